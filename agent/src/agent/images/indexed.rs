//! Which layers of an image can be read lazily: those whose indexes are here or attached to the image.
//!
//! podman asks for layers one by one, so that an image is of use before all of its indexes are here.
//! An image that is mounted as a whole needs all of them, see [`Images::make_ready`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt as _, iter};
use tokio::sync::OnceCell;
use tokio::time::timeout_at;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;

use super::attached::Attached;
use super::indexes::{known_tree, readable_layer};
use super::{ImageFault, Images, Ready, Resolved, TREES_SIDE_BY_SIDE};
use crate::blocking::blocking;
use crate::image::Descriptor;
use crate::image::artifact::pack::PackEntry;

/// How long the indexes of an image may take to come, while podman already asks for its other layers.
/// Whichever has not come by then is looked for again when somebody asks for its layer.
const INDEXES_WITHIN: Duration = Duration::from_secs(60);

/// A layer that can be read lazily, or why it cannot.
type Found = Result<Arc<Layer>, Arc<ImageFault>>;

/// An image and those of its layers that can be read lazily.
pub struct Indexed {
    /// The image.
    pub image: Resolved,
    /// Its layers, the lowest first.
    layers: Vec<Found>,
    packs: Vec<PackEntry>,
}

impl Indexed {
    /// `image` with its layers, the lowest first.
    pub(in crate::agent) fn new(
        image: Resolved,
        layers: Vec<Result<Arc<Layer>, ImageFault>>,
        packs: Vec<PackEntry>,
    ) -> Self {
        let layers = layers.into_iter().map(|layer| layer.map_err(Arc::new)).collect();
        Self { image, layers, packs }
    }

    /// Layer `place`, the lowest being 0, or why it cannot be read lazily.
    ///
    /// # Errors
    /// The fault that it was found to have.
    pub fn layer(&self, place: usize) -> Result<&Arc<Layer>, &ImageFault> {
        let layer = self.layers.get(place).ok_or(&ImageFault::NoSuchLayer)?;
        layer.as_ref().map_err(|fault| &**fault)
    }

    /// Whether layer `place` has no index here. The registry may have one by now.
    pub fn lacks_index(&self, place: usize) -> bool {
        self.layers.get(place).is_some_and(lacks_index)
    }

    /// The image with those of its layers that can be read lazily, to be completed.
    pub fn ready(&self) -> Arc<Ready> {
        let layers = self.layers.iter().filter_map(|layer| layer.as_ref().ok().cloned()).collect();
        Arc::new(Ready { image: self.image.clone(), layers, packs: self.packs.clone() })
    }
}

fn lacks_index(layer: &Found) -> bool {
    layer.as_ref().is_err_and(|fault| matches!(**fault, ImageFault::NoIndex))
}

impl Images {
    /// `image` with the indexes that are here.
    pub async fn indexed_here(&self, image: Resolved) -> Indexed {
        let cache = self.cache.clone();
        blocking(move || {
            let known = |(layer, diff_id): (&Descriptor, &Digest)| {
                let tree = known_tree(&cache, layer, diff_id).ok_or(ImageFault::NoIndex)?;
                readable_layer(&image, layer, diff_id, tree)
            };
            let layers = image.config.layers(&image.manifest).unwrap_or_default();
            let layers = layers.into_iter().map(known).collect();
            Indexed::new(image, layers, Vec::new())
        })
        .await
    }

    /// `image` with the indexes that are here or attached to it. Nothing is fetched whole.
    pub async fn indexed(&self, image: Resolved) -> Indexed {
        let here = self.indexed_here(image).await;
        self.indexed_again(&here).await.unwrap_or(here)
    }

    /// The same image, after another look for the indexes that it lacks; `None` where that found none.
    pub async fn indexed_again(&self, image: &Indexed) -> Option<Indexed> {
        self.indexed_until(image, Instant::now() + INDEXES_WITHIN).await
    }

    /// The same; whatever has not come by `end` counts as not found.
    pub async fn indexed_until(&self, indexed: &Indexed, end: Instant) -> Option<Indexed> {
        let image = &indexed.image;
        if !indexed.layers.iter().any(lacks_index) {
            return None;
        }
        let attached = OnceCell::new();
        let layers: Vec<(Descriptor, Digest, Found)> = image
            .config
            .layers(&image.manifest)
            .unwrap_or_default()
            .into_iter()
            .zip(&indexed.layers)
            .map(|((layer, diff_id), known)| (layer.clone(), *diff_id, known.clone()))
            .collect();
        let layers: Vec<Found> = iter(layers)
            .map(|layer| self.found_by(end, image, layer, &attached))
            .buffered(TREES_SIDE_BY_SIDE)
            .collect()
            .await;
        let is_new = |(now, before): (&Found, &Found)| now.is_ok() && before.is_err();
        if !layers.iter().zip(&indexed.layers).any(is_new) {
            return None;
        }
        let attached = attached.into_inner().map(|attached| attached.packs);
        let packs = attached.unwrap_or_else(|| indexed.packs.clone());
        Some(Indexed { image: image.clone(), layers, packs })
    }

    /// A layer that was `known` to be readable or not, after another look for its index until `end`.
    async fn found_by(
        &self,
        end: Instant,
        image: &Resolved,
        (layer, diff_id, known): (Descriptor, Digest, Found),
        attached: &OnceCell<Attached>,
    ) -> Found {
        if !lacks_index(&known) {
            return known;
        }
        let looking = self.lazy_layer(image, layer, diff_id, attached);
        let found = timeout_at(end.into(), looking).await;
        found.unwrap_or(Err(ImageFault::NoIndex)).map_err(Arc::new)
    }
}
