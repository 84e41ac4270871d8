//! Where the index of a layer comes from.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Blob, Layer, Pace, Progress};
use undermount_fs::index::{Backing, LayerTree, Trust};
use undermount_fs::layer::LayerIndex;
use undermount_fs::source::{Piece, PieceRequest, Priority};

use super::{ImageFault, Images, LayerRecord, Resolved};
use crate::image::artifact::pack::PackEntry;
use crate::image::artifact::{LayerEntry, MAX_TREE};
use crate::image::{Descriptor, Reference};
use crate::registry::client::FoundArtifact;

/// How long the tree of an index may take to come.
const TREE_TIMEOUT: Duration = Duration::from_secs(60);

/// What is attached to an image.
#[derive(Default)]
pub struct Attached {
    /// The indexes by layer. `None` where several contradict each other: then none of them is
    /// believed.
    layers: HashMap<Digest, Option<LayerEntry>>,
    /// Contents that are worth fetching together.
    pub packs: Vec<PackEntry>,
}

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
        if let Some(tree) = self.known_tree(layer, diff_id) {
            return Some(tree);
        }
        let attached = attached.get_or_init(|| self.attached_indexes(image)).await;
        self.attached_tree(image, layer, diff_id, attached).await
    }

    /// The index that the cache has. A record that names the index of something else was damaged:
    /// it counts as none.
    fn known_tree(&self, layer: &Descriptor, diff_id: &Digest) -> Option<LayerTree> {
        let tree = self.kept_tree(&layer.digest)?;
        check(&tree, layer, diff_id).is_ok().then_some(tree)
    }

    /// The index that the record of `layer` names, if it is here and can be read.
    pub fn kept_tree(&self, layer: &Digest) -> Option<LayerTree> {
        let record = self.cache.layer(layer)?;
        let bytes = self.blobs().get(&record.tree)?;
        readable(layer, bytes.bytes())
    }

    /// What is attached to the image. Where the registry cannot tell, nothing is: then the layers
    /// that are not known are fetched whole, if they can be.
    async fn attached_indexes(&self, image: &Resolved) -> Attached {
        let repository = image.reference.repository();
        let artifacts = match self.client.index_artifacts(repository, &image.digest).await {
            Ok(artifacts) => artifacts,
            Err(error) => {
                tracing::warn!(reference = %image.reference, %error, "cannot look for an index");
                return Attached::default();
            }
        };
        let mut attached = Attached::default();
        for artifact in artifacts {
            attached.add(&image.reference, artifact);
        }
        self.open_packs(image, &attached.packs);
        attached
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
        let entry = attached.layers.get(&layer.digest)?.as_ref()?;
        if self.is_liar(&entry.tree) {
            return None;
        }
        let bytes = match self.fetch_tree(image, entry).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(layer = %layer.digest, %error, "cannot fetch an attached index");
                return None;
            }
        };
        let tree = readable(&layer.digest, bytes.bytes())?;
        if let Err(error) = examine(&tree, entry, layer, diff_id) {
            tracing::error!(layer = %layer.digest, %error, "refused an index that lies");
            self.note_liar(entry.tree);
            return None;
        }
        let record = LayerRecord { tree: entry.tree, trust: Trust::Registry };
        let kept = self.blobs().put(&bytes).map_err(|error| error.to_string()).and_then(|()| {
            self.cache.put_layer(&layer.digest, &record).map_err(|error| error.to_string())
        });
        if let Err(error) = kept {
            tracing::warn!(layer = %layer.digest, %error, "cannot keep an index");
        }
        Some(tree)
    }

    /// The tree of an attached index, from wherever its bytes are.
    async fn fetch_tree(
        &self,
        image: &Resolved,
        entry: &LayerEntry,
    ) -> Result<Verified, Box<dyn Error + Send + Sync>> {
        let Descriptor { digest: blob, size, .. } = entry.tree_blob;
        if size > MAX_TREE {
            return Err(format!("its tree is above {MAX_TREE} bytes").into());
        }
        let request = PieceRequest {
            scope: image.reference.repository().scope(),
            pieces: vec![Piece { blob, range: 0..size, digest: blob }],
            priority: Priority::Demand,
            deadline: Instant::now() + TREE_TIMEOUT,
        };
        let fetched = self.filler.source().fetch(request).await?;
        let packed = fetched.first().ok_or("no answer to the request for its tree")?;
        Ok(entry.unpack_tree(packed.bytes())?)
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
        self.keep_index(&index)?;
        readable(&layer.digest, &index.tree).ok_or_else(|| ImageFault::Mismatch {
            layer: layer.digest,
            what: "its index cannot be read back",
        })
    }

    /// Keeps an index that was built here, spans included: nobody else has them.
    pub(super) fn keep_index(&self, index: &LayerIndex) -> Result<(), ImageFault> {
        self.keep("spans", index.spans.clone())?;
        let tree = self.keep("an index", index.tree.clone())?;
        let record = LayerRecord { tree, trust: Trust::Own };
        Ok(self.cache.put_layer(&index.layer, &record)?)
    }
}

impl Attached {
    fn add(&mut self, reference: &Reference, artifact: FoundArtifact) {
        self.packs.extend(artifact.packs);
        for entry in artifact.layers {
            let layer = entry.layer;
            let known = self.layers.entry(layer).or_insert_with(|| Some(entry.clone()));
            if known.as_ref().is_some_and(|known| known.tree != entry.tree) {
                tracing::error!(%reference, %layer,
                    "two different indexes are attached for one layer: neither is used");
                *known = None;
            }
        }
    }
}

fn readable_layer(
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
