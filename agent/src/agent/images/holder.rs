//! Which image of a name has a certain layer, and what of it can be read lazily.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, iter};
use tokio::sync::OnceCell;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;

use super::indexes::readable;
use super::resolve::RESOLVE_TIMEOUT;
use super::{ImageError, ImageFault, Images, Ready, Resolved, TREES_SIDE_BY_SIDE, share_equal};
use crate::image::artifact::pack::PackEntry;
use crate::image::{Descriptor, Document, ImageConfig, Manifest, Reference};
use crate::registry::client::RawManifest;

/// Images of an index that are looked through.
const CHILDREN_MAX: usize = 32;

/// What a name means, as far as one layer is concerned.
pub struct Holder {
    /// The image that has the layer, if any has.
    pub image: Option<Resolved>,
    /// Whether the name means several images.
    pub one_of_several: bool,
}

/// An image and those of its layers that can be read lazily.
pub struct Indexed {
    /// The image.
    pub image: Resolved,
    /// Its layers, the lowest first, or why a layer cannot be read lazily.
    layers: Vec<Result<Arc<Layer>, ImageFault>>,
    packs: Vec<PackEntry>,
}

impl Indexed {
    /// `image` with its layers, the lowest first.
    pub(in crate::agent) fn new(
        image: Resolved,
        layers: Vec<Result<Arc<Layer>, ImageFault>>,
        packs: Vec<PackEntry>,
    ) -> Self {
        Self { image, layers, packs }
    }

    /// Layer `place`, the lowest being 0, or why it cannot be read lazily.
    ///
    /// # Errors
    /// The fault that it was found to have.
    pub fn layer(&self, place: usize) -> Result<&Arc<Layer>, &ImageFault> {
        self.layers.get(place).ok_or(&ImageFault::NoSuchLayer)?.as_ref()
    }

    /// The image with what of it can be read lazily, to be completed.
    pub fn ready(&self) -> Arc<Ready> {
        let layers = self.layers.iter().filter_map(|layer| layer.as_ref().ok().cloned()).collect();
        Arc::new(Ready { image: self.image.clone(), layers, packs: self.packs.clone() })
    }
}

impl Images {
    /// The image that `reference` means at this moment and of which `holds` is true. The one for
    /// this platform comes first, but any other may have been pulled.
    ///
    /// # Errors
    /// [`ImageError`] where the registry does not have it or cannot be reached.
    pub async fn find_holder(
        &self,
        reference: &Reference,
        holds: impl Fn(&Manifest) -> bool,
    ) -> Result<Holder, ImageError> {
        self.holder(reference, holds).await.map_err(|fault| fault.of(reference))
    }

    async fn holder(
        &self,
        reference: &Reference,
        holds: impl Fn(&Manifest) -> bool,
    ) -> Result<Holder, ImageFault> {
        let client = self.client.until(Instant::now() + RESOLVE_TIMEOUT);
        let unreachable = |error| ImageFault::Registry(Box::new(error));
        let named = client.manifest(reference).await.map_err(unreachable)?;
        let index = match named.document()? {
            Document::Manifest(manifest) => {
                let image = if holds(&manifest) {
                    Some(self.with_config(reference, named, *manifest).await?)
                } else {
                    None
                };
                return Ok(Holder { image, one_of_several: false });
            }
            Document::Index(index) => index,
        };
        let own = index.select(&self.platform).ok().map(|own| own.digest);
        let mut children: Vec<&Descriptor> = index.images().collect();
        children.sort_by_key(|child| Some(child.digest) != own);
        let one_of_several = children.len() > 1;
        for child in children.into_iter().take(CHILDREN_MAX) {
            let raw =
                client.manifest(&reference.pinned(child.digest)).await.map_err(unreachable)?;
            let manifest = raw.document()?.into_manifest()?;
            if holds(&manifest) {
                let image = self.with_config(reference, raw, manifest).await?;
                return Ok(Holder { image: Some(image), one_of_several });
            }
        }
        Ok(Holder { image: None, one_of_several })
    }

    /// Fetches the config of an image, and keeps it and the manifest.
    async fn with_config(
        &self,
        reference: &Reference,
        raw: RawManifest,
        manifest: Manifest,
    ) -> Result<Resolved, ImageFault> {
        manifest.check_is_image()?;
        // Under a name of its own, since the tag may come to mean another image.
        self.cache.put_reference(&reference.pinned(raw.digest), &raw.digest)?;
        if let Some(known) = self.kept(reference, &raw.digest) {
            return Ok(known);
        }
        let client = self.client.until(Instant::now() + RESOLVE_TIMEOUT);
        let config = client.config(reference.repository(), &manifest.config).await;
        let config: ImageConfig = config.map_err(|error| ImageFault::Registry(Box::new(error)))?;
        config.layers(&manifest)?;
        let digest = raw.digest;
        self.keep("a manifest", raw.bytes)?;
        self.keep("a config", Bytes::clone(&config.raw))?;
        Ok(Resolved { reference: reference.clone(), digest, manifest, config })
    }

    /// The image with this manifest as far as it is in the cache; `reference` says in whose name
    /// it is fetched.
    pub fn kept(&self, reference: &Reference, manifest: &Digest) -> Option<Resolved> {
        self.stored(reference, manifest).ok().flatten()
    }

    /// `image` with the indexes that are known or attached. Nothing is fetched whole.
    pub async fn indexed(&self, image: Resolved) -> Indexed {
        let layers: Vec<(Descriptor, Digest)> = match image.config.layers(&image.manifest) {
            Ok(layers) => layers.into_iter().map(|(layer, id)| (layer.clone(), *id)).collect(),
            Err(_) => Vec::new(),
        };
        let attached = OnceCell::new();
        let layers = iter(layers)
            .map(|(layer, diff_id)| self.lazy_layer(&image, layer, diff_id, &attached))
            .buffered(TREES_SIDE_BY_SIDE)
            .collect()
            .await;
        let packs = attached.into_inner().map(|attached| attached.packs).unwrap_or_default();
        Indexed::new(image, layers, packs)
    }

    /// The index with this digest, if it is in the cache.
    pub fn tree(&self, digest: &Digest) -> Option<LayerTree> {
        readable(digest, self.blobs().get(digest)?.bytes())
    }

    /// The image with this manifest and these `trees`, as it was ready once; `None` where some of it
    /// is not here any more. What is mounted keeps its indexes, whatever was found out about
    /// them since: the kernel remembers what it was told.
    pub fn ready_again(
        &self,
        reference: &Reference,
        manifest: &Digest,
        trees: &[Digest],
    ) -> Option<Ready> {
        let image = self.kept(reference, manifest)?;
        let scope = reference.repository().scope();
        let layer = |tree| Some(Arc::new(Layer::new(Arc::new(self.tree(tree)?), scope.clone())));
        let layers: Vec<Arc<Layer>> = trees.iter().map(layer).collect::<Option<_>>()?;
        let named = image.manifest.layers.iter().map(|layer| layer.digest);
        let fits = named.eq(layers.iter().map(|layer| layer.digest()));
        fits.then(|| Ready { image, layers: share_equal(layers), packs: Vec::new() })
    }
}
