//! Which image a name means that holds a certain layer, and images that were ready once, made ready
//! again from the cache alone.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;

use super::indexes::readable;
use super::resolve::RESOLVE_TIMEOUT;
use super::{ImageError, ImageFault, Images, Ready, Resolved, share_equal};
use crate::image::{Descriptor, Document, ImageConfig, Manifest, Reference};
use crate::registry::client::RawManifest;

/// How many images of an index are looked through.
const CHILDREN_MAX: usize = 32;

/// What a name means, as far as one layer is concerned.
pub struct Holder {
    /// The image that has the layer, if one has.
    pub image: Option<Resolved>,
    /// Whether the name means several images, one for each platform.
    pub one_of_several: bool,
}

impl Images {
    /// The image that `reference` means at this moment and whose manifest `holds` the layer. The one
    /// for this platform is looked at first, but any other may have been pulled.
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
        let (pinned, digest) = (reference.pinned(raw.digest), raw.digest);
        self.on_disk(move |cache| cache.put_reference(&pinned, &digest)).await?;
        if let Some(known) = self.kept(reference, &digest) {
            return Ok(known);
        }
        let client = self.client.until(Instant::now() + RESOLVE_TIMEOUT);
        let config = client.config(reference.repository(), &manifest.config).await;
        let config: ImageConfig = config.map_err(|error| ImageFault::Registry(Box::new(error)))?;
        config.layers(&manifest)?;
        self.keep("a manifest", raw.bytes).await?;
        self.keep("a config", Bytes::clone(&config.raw)).await?;
        Ok(Resolved { reference: reference.clone(), digest, manifest, config })
    }

    /// The image with this manifest, where manifest and config are in the cache. Its bytes are fetched
    /// on behalf of `reference`.
    pub fn kept(&self, reference: &Reference, manifest: &Digest) -> Option<Resolved> {
        self.stored(reference, manifest).ok().flatten()
    }

    /// The index with this digest, if it is in the cache.
    pub fn tree(&self, digest: &Digest) -> Option<LayerTree> {
        readable(digest, self.blobs().get(digest)?.bytes())
    }

    /// The image with this manifest and these `trees`, as it was ready once; `None` where some of that
    /// is not here any more. A mounted image keeps its indexes, whatever was found out about them
    /// since: the kernel remembers what it was told by them.
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
