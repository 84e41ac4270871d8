//! Images made ready to mount: resolved, indexed, merged.
//!
//! ```text
//! reference -> manifest and config     registry; the last known ones where it is unreachable
//!           -> an index for each layer known here, or attached to the image, or built from
//!                                      the layer's bytes (which are then all here)
//!           -> merged tree
//! ```
//!
//! What an index says about its layer is checked against the manifest and the config before it is
//! used. Whether it tells the truth about the contents shows when they are read (every object is
//! hashed) and when the layer is complete (the index is built again and compared).

mod attached;
mod budget;
mod complete;
mod error;
mod extent;
mod holder;
mod indexed;
mod indexes;
mod packs;
mod resolve;
mod room;

pub use error::{ImageError, ImageFault};
pub use extent::{Extent, missing_bytes};
pub use holder::Holder;
pub use indexed::Indexed;
pub use resolve::Resolved;
pub use room::put_blob;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use tokio::sync::{OnceCell, Semaphore};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Filler, Layer, Patience, Progress};
use undermount_fs::source::Source;
use undermount_fs::tree::ImageTree;

use self::budget::Budget;
use self::packs::Openings;
use super::cache::{Cache, LayerRecord, PROFILES};
use crate::blocking::blocking;
use crate::image::artifact::pack::PackEntry;
use crate::image::{Descriptor, Platform};
use crate::registry::client::Client;

/// Layers that are indexed or completed side by side.
const SIDE_BY_SIDE: usize = 3;

/// Trees that are fetched side by side: they are small, and each takes a round trip.
const TREES_SIDE_BY_SIDE: usize = 8;

/// An image that can be mounted.
pub struct Ready {
    /// Which one.
    pub image: Resolved,
    /// Its layers, the lowest first.
    pub layers: Vec<Arc<Layer>>,
    /// What came with the image to fetch first; empty where all its indexes were known here.
    pub packs: Vec<PackEntry>,
}

/// The images of a cache.
pub struct Images {
    cache: Arc<Cache>,
    client: Client,
    filler: Arc<Filler>,
    platform: Platform,
    /// Digests of trees that were found to lie, so that they are not believed again.
    liars: Mutex<HashSet<Digest>>,
    openings: Openings,
    /// Memory for attached indexes.
    budget: Budget,
    /// Layers that are indexed here at the same time.
    builders: Semaphore,
}

impl Images {
    /// The images in `cache`: names are resolved with `client`, bytes come from `source`, and a
    /// read waits for them with `patience`.
    pub fn new(cache: Cache, client: Client, source: Arc<dyn Source>, patience: Patience) -> Self {
        let filler = Filler::new(cache.store.clone(), cache.blobs.clone(), source, patience);
        Self {
            cache: Arc::new(cache),
            client,
            filler: Arc::new(filler),
            platform: Platform::host(),
            liars: Mutex::default(),
            openings: Openings::default(),
            budget: Budget::default(),
            builders: Semaphore::new(SIDE_BY_SIDE),
        }
    }

    /// Reads what is missing; a view needs it.
    pub fn filler(&self) -> &Arc<Filler> {
        &self.filler
    }

    /// The cache that they are in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where the profiles of starts on this node are.
    pub fn profiles_dir(&self) -> PathBuf {
        self.cache.root().join(PROFILES)
    }

    fn blobs(&self) -> &Blobs {
        &self.cache.blobs
    }

    /// Sees to it that every layer of `image` has an index. Layers for which none is known or
    /// attached are fetched whole; `progress` counts their bytes.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be had or contradicts the image.
    pub async fn make_ready(
        &self,
        image: Resolved,
        progress: &Progress,
    ) -> Result<Ready, ImageError> {
        match self.layers(&image, progress).await {
            Ok((layers, packs)) => Ok(Ready { image, layers: share_equal(layers), packs }),
            Err(fault) => Err(fault.of(&image.reference)),
        }
    }

    async fn layers(
        &self,
        image: &Resolved,
        progress: &Progress,
    ) -> Result<(Vec<Arc<Layer>>, Vec<PackEntry>), ImageFault> {
        let layers: Vec<(Descriptor, Digest)> = image
            .config
            .layers(&image.manifest)?
            .into_iter()
            .map(|(layer, diff_id)| (layer.clone(), *diff_id))
            .collect();
        let attached = OnceCell::new();
        let layers = iter(layers)
            .map(|(layer, diff_id)| self.layer(image, layer, diff_id, &attached, progress))
            .buffered(TREES_SIDE_BY_SIDE)
            .try_collect()
            .await?;
        let packs = attached.into_inner().map(|attached| attached.packs).unwrap_or_default();
        Ok((layers, packs))
    }

    /// The merged tree of `ready`.
    ///
    /// # Errors
    /// [`ImageError`] where the layers do not make an image.
    pub fn merge(&self, ready: &Ready) -> Result<ImageTree, ImageError> {
        let trees = ready.layers.iter().map(|layer| layer.tree.clone()).collect();
        ImageTree::merge(trees).map_err(|error| {
            // An index of somebody else may be to blame. The next attempt builds its own.
            ready.layers.iter().filter(|layer| !self.is_own(layer)).for_each(|l| self.distrust(l));
            ImageFault::Tree(error).of(&ready.image.reference)
        })
    }

    /// Whether the index of `layer` was built here.
    fn is_own(&self, layer: &Layer) -> bool {
        let own = LayerRecord::own(layer.tree_digest());
        self.cache.layer(&layer.digest()) == Some(own)
    }

    /// Forgets the index of `layer` and does not believe it again.
    fn distrust(&self, layer: &Layer) {
        self.note_liar(layer.tree_digest());
        self.cache.forget_layer(&layer.digest());
    }

    /// Runs `work` on the cache, on a thread that may wait for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cache) -> T + Send + 'static,
    ) -> T {
        let cache = self.cache.clone();
        blocking(move || work(&cache)).await
    }

    fn note_liar(&self, tree: Digest) {
        self.liars.lock().unwrap_or_else(PoisonError::into_inner).insert(tree);
    }

    fn is_liar(&self, tree: &Digest) -> bool {
        self.liars.lock().unwrap_or_else(PoisonError::into_inner).contains(tree)
    }
}

/// Whether any layer of the image has extended attributes.
pub fn has_xattrs(ready: &Ready) -> bool {
    ready.layers.iter().any(|layer| layer.tree.has_xattrs())
}

fn distinct(layers: &[Arc<Layer>]) -> Vec<Arc<Layer>> {
    let mut seen = HashSet::new();
    layers.iter().filter(|layer| seen.insert(layer.digest())).cloned().collect()
}

/// A layer that occurs twice is one layer.
fn share_equal(layers: Vec<Arc<Layer>>) -> Vec<Arc<Layer>> {
    let mut first = std::collections::HashMap::new();
    layers.into_iter().map(|layer| first.entry(layer.digest()).or_insert(layer).clone()).collect()
}
