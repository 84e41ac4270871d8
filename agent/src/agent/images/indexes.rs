//! Where the index of a layer comes from.
//!
//! ```text
//! layer:       lazy_tree, else build
//! lazy_layer:  lazy_tree, else no index
//!
//! lazy_tree -> known_tree      the cache has it: built here, or looked through already
//!         `-> attached_tree   fetch -> take_in: readable? -> examine: does it lie? -> keep
//! build                        fetch the whole layer, index it on the way -> keep
//! ```
//!
//! Whatever comes out is held against manifest and config ([`check`]). An index that lies is noted
//! by its digest and not believed again.

use std::sync::Arc;

use tokio::sync::OnceCell;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Blob, Layer, Pace, Progress};
use undermount_fs::index::{Backing, LayerTree};
use undermount_fs::layer::LayerIndex;
use undermount_fs::source::Priority;

use super::attached::Attached;
use super::room::put_blob;
use super::{ImageFault, Images, LayerRecord, Resolved};
use crate::agent::cache::Cache;
use crate::blocking::blocking;
use crate::image::Descriptor;
use crate::image::artifact::LayerEntry;

impl Images {
    /// The index of `layer`, in the form that reads files.
    pub(super) async fn layer(
        &self,
        image: &Resolved,
        layer: Descriptor,
        diff_id: Digest,
        attached: &OnceCell<Attached>,
        progress: &Progress,
    ) -> Result<Arc<Layer>, ImageFault> {
        let tree = match self.lazy_tree(image, &layer, &diff_id, attached).await {
            Some(tree) => tree,
            None => self.build(image, &layer, progress).await?,
        };
        readable_layer(image, &layer, &diff_id, tree)
    }

    /// The same, if its index is known or attached.
    pub(super) async fn lazy_layer(
        &self,
        image: &Resolved,
        layer: Descriptor,
        diff_id: Digest,
        attached: &OnceCell<Attached>,
    ) -> Result<Arc<Layer>, ImageFault> {
        let tree = self.lazy_tree(image, &layer, &diff_id, attached).await;
        readable_layer(image, &layer, &diff_id, tree.ok_or(ImageFault::NoIndex)?)
    }

    async fn lazy_tree(
        &self,
        image: &Resolved,
        layer: &Descriptor,
        diff_id: &Digest,
        attached: &OnceCell<Attached>,
    ) -> Option<LayerTree> {
        let (cache, known, id) = (self.cache.clone(), layer.clone(), *diff_id);
        if let Some(tree) = blocking(move || known_tree(&cache, &known, &id)).await {
            return Some(tree);
        }
        let attached = attached.get_or_init(|| self.attached_indexes(image)).await;
        self.attached_tree(image, layer, diff_id, attached).await
    }

    /// The index that the record of `layer` names, if it is here and can be read.
    pub fn kept_tree(&self, layer: &Digest) -> Option<LayerTree> {
        kept_tree(&self.cache, layer)
    }

    /// The index that is attached to the image, fetched and kept, unless something is wrong with
    /// it.
    async fn attached_tree(
        &self,
        image: &Resolved,
        layer: &Descriptor,
        diff_id: &Digest,
        attached: &Attached,
    ) -> Option<LayerTree> {
        let entry = attached.index(&layer.digest)?;
        if self.is_liar(&entry.tree) {
            return None;
        }
        if !entry.is_plausible(layer.size) {
            tracing::error!(layer = %layer.digest, tree = entry.tree_size,
                "refused an index that is too large for its layer");
            return None;
        }
        let _turn = self.budget.turn(entry).await;
        let bytes = match self.tree_of(image, entry, attached).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(layer = %layer.digest, %error, "cannot fetch an attached index");
                return None;
            }
        };
        let (named, described, id) = (entry.clone(), layer.clone(), *diff_id);
        let taken = self.on_disk(move |cache| take_in(cache, &bytes, &named, &described, &id));
        taken.await.unwrap_or_else(|error| {
            tracing::error!(layer = %layer.digest, error, "refused an index that lies");
            self.note_liar(entry.tree);
            None
        })
    }

    /// Fetches the whole layer and indexes it on the way.
    async fn build(
        &self,
        image: &Resolved,
        layer: &Descriptor,
        progress: &Progress,
    ) -> Result<LayerTree, ImageFault> {
        let reference = &image.reference;
        tracing::info!(%reference, layer = %layer.digest, bytes = layer.size,
            "no index: fetching the whole layer");
        let scope = reference.repository().scope();
        let blob = Blob { scope, digest: layer.digest, size: layer.size };
        let _turn = self.builders.acquire().await;
        progress.expect(layer.size);
        let index = self.filler.ingest(&blob, Pace::unlimited(Priority::Demand), progress).await?;
        self.keep_index(&index).await?;
        let digest = layer.digest;
        let tree = blocking(move || readable(&digest, &index.tree)).await;
        let what = "its index cannot be read back";
        tree.ok_or(ImageFault::Mismatch { layer: digest, what })
    }

    /// Keeps an index that was built here, spans included: nobody else has them.
    pub(super) async fn keep_index(&self, index: &LayerIndex) -> Result<(), ImageFault> {
        self.keep("spans", index.spans.clone()).await?;
        let tree = self.keep("an index", index.tree.clone()).await?;
        let (layer, record) = (index.layer, LayerRecord::own(tree));
        Ok(self.on_disk(move |cache| cache.put_layer(&layer, &record)).await?)
    }
}

fn kept_tree(cache: &Cache, layer: &Digest) -> Option<LayerTree> {
    let record = cache.layer(layer)?;
    readable(layer, cache.blobs.get(&record.tree)?.bytes())
}

/// The index of `layer` that the cache has. A record that names the index of something else was
/// damaged: it counts as none. One that an older version took from somebody else is looked through
/// once more.
pub(super) fn known_tree(cache: &Cache, layer: &Descriptor, diff_id: &Digest) -> Option<LayerTree> {
    let record = cache.layer(&layer.digest)?;
    let tree = readable(&layer.digest, cache.blobs.get(&record.tree)?.bytes())?;
    check(&tree, layer, diff_id).ok()?;
    if record.is_examined() {
        return Some(tree);
    }
    if let Err(error) = tree.check() {
        tracing::error!(layer = %layer.digest, %error, "dropped an index that lies");
        cache.forget_layer(&layer.digest);
        return None;
    }
    note_examined(cache, &layer.digest, record.tree);
    Some(tree)
}

/// Notes that the index `tree` of somebody else was looked through.
fn note_examined(cache: &Cache, layer: &Digest, tree: Digest) {
    if let Err(error) = cache.put_layer(layer, &LayerRecord::examined(tree)) {
        tracing::warn!(%layer, %error, "cannot keep an index");
    }
}

pub(super) fn readable_layer(
    image: &Resolved,
    layer: &Descriptor,
    diff_id: &Digest,
    tree: LayerTree,
) -> Result<Arc<Layer>, ImageFault> {
    check(&tree, layer, diff_id)?;
    let scope = image.reference.repository().scope();
    Ok(Arc::new(Layer::new(Arc::new(tree), scope)))
}

/// The tree in `bytes`; one that cannot be read counts as none.
pub(super) fn readable(layer: &Digest, bytes: &[u8]) -> Option<LayerTree> {
    let tree = Backing::sealed(bytes)
        .map_err(|error| error.to_string())
        .and_then(|backing| LayerTree::new(backing).map_err(|error| error.to_string()));
    match tree {
        Ok(tree) => Some(tree),
        Err(error) => {
            tracing::warn!(%layer, %error, "unusable index");
            None
        }
    }
}

/// Looks through the index of `layer` that `entry` names, and keeps it; `None` where it cannot be
/// read, an error where it lies.
fn take_in(
    cache: &Cache,
    bytes: &Verified,
    entry: &LayerEntry,
    layer: &Descriptor,
    diff_id: &Digest,
) -> Result<Option<LayerTree>, String> {
    let Some(tree) = readable(&layer.digest, bytes.bytes()) else { return Ok(None) };
    examine(&tree, entry, layer, diff_id)?;
    match put_blob(&cache.blobs, &cache.store, bytes) {
        Ok(()) => note_examined(cache, &layer.digest, entry.tree),
        Err(error) => tracing::warn!(layer = %layer.digest, %error, "cannot keep an index"),
    }
    Ok(Some(tree))
}

/// Looks through an index that somebody else has made.
fn examine(
    tree: &LayerTree,
    entry: &LayerEntry,
    layer: &Descriptor,
    diff_id: &Digest,
) -> Result<(), String> {
    if tree.header().spans != entry.spans.digest {
        return Err("it names other spans than its artifact".to_owned());
    }
    check(tree, layer, diff_id).map_err(|error| error.to_string())?;
    tree.check().map_err(|error| error.to_string())
}

/// Holds what an index says of its layer against the manifest and the config.
fn check(tree: &LayerTree, layer: &Descriptor, diff_id: &Digest) -> Result<(), ImageFault> {
    let header = tree.header();
    let what = if header.layer != layer.digest {
        "its index belongs to another layer"
    } else if header.layer_size != layer.size {
        "its size is not the one in the manifest"
    } else if header.diff_id != *diff_id {
        "its uncompressed bytes do not have the DiffID in the image's config"
    } else {
        return Ok(());
    };
    Err(ImageFault::Mismatch { layer: layer.digest, what })
}
