//! What is attached to an image: the indexes of its layers, packs, and patches of trees; and how the
//! tree of an attached index is fetched.
//!
//! ```text
//! image -> index_artifacts (registry) -> Attached: index of each layer, patches, packs
//! index -> tree_of: a patch whose base is here -> patched tree
//!                    `- there is none, or it is of no use -> whole tree
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{Piece, PieceRequest, Priority};

use super::{Images, Resolved};
use crate::blocking::blocking;
use crate::image::artifact::pack::PackEntry;
use crate::image::artifact::patch::TreePatch;
use crate::image::artifact::{LayerEntry, MAX_TREE};
use crate::image::{Descriptor, Reference};
use crate::registry::client::FoundArtifact;

/// How long the registry may take to say what is attached.
const ATTACHED_WITHIN: Duration = Duration::from_secs(30);

/// How long the tree of an index, or a patch of it, may take to come.
const TREE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why something that is attached cannot be had.
type Fetch = Box<dyn Error + Send + Sync>;

/// What is attached to an image.
#[derive(Default)]
pub struct Attached {
    /// The indexes by layer. `None` where several contradict each other: then none of them is
    /// believed.
    layers: HashMap<Digest, Option<LayerEntry>>,
    /// Patches that give their trees, by layer.
    patches: HashMap<Digest, Vec<TreePatch>>,
    /// Contents that are worth fetching together.
    pub packs: Vec<PackEntry>,
}

impl Images {
    /// What is attached to the image. Where the registry cannot say, nothing is: then the layers
    /// whose index is not known here are fetched whole, if they can be.
    pub(super) async fn attached_indexes(&self, image: &Resolved) -> Attached {
        let repository = image.reference.repository();
        let client = self.client.until(Instant::now() + ATTACHED_WITHIN);
        let artifacts = match client.index_artifacts(repository, &image.digest).await {
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

    /// The tree that `entry` names: from a patch whose base is here, else whole.
    ///
    /// # Errors
    /// Where it cannot be fetched, or is not what `entry` says.
    pub(super) async fn tree_of(
        &self,
        image: &Resolved,
        entry: &LayerEntry,
        attached: &Attached,
    ) -> Result<Verified, Fetch> {
        match self.patched_tree(image, entry, attached.patches(&entry.layer)).await {
            Some(tree) => Ok(tree),
            None => self.whole_tree(image, entry).await,
        }
    }

    /// The tree from the first of `patches` whose base is here; `None` where there is none, or it is
    /// of no use, which costs its transfer.
    async fn patched_tree(
        &self,
        image: &Resolved,
        entry: &LayerEntry,
        patches: &[TreePatch],
    ) -> Option<Verified> {
        let of_use = |patch: &&TreePatch| {
            let base_size = self.blobs().size(&patch.base);
            base_size.is_some_and(|size| patch.is_bounded(entry, size))
        };
        let patch = patches.iter().find(of_use)?;
        let patched = async {
            let bytes = self.small_blob(image, patch.blob, patch.size).await?;
            let (base, entry) = (patch.base, entry.clone());
            let patched = self.on_disk(move |cache| {
                let base = cache.blobs.get(&base);
                base.map(|base| TreePatch::apply(bytes.bytes(), base.bytes(), &entry)).transpose()
            });
            Ok::<_, Fetch>(patched.await?)
        };
        match patched.await {
            Ok(tree) => tree,
            Err(error) => {
                tracing::warn!(layer = %entry.layer, %error, "cannot use the patch of a tree");
                None
            }
        }
    }

    async fn whole_tree(&self, image: &Resolved, entry: &LayerEntry) -> Result<Verified, Fetch> {
        let Descriptor { digest, size, .. } = entry.tree_blob;
        if size > MAX_TREE {
            return Err(format!("its tree is above {MAX_TREE} bytes").into());
        }
        let packed = self.small_blob(image, digest, size).await?;
        let entry = entry.clone();
        Ok(blocking(move || entry.unpack_tree(packed.bytes())).await?)
    }

    /// A blob of the image's repository, of `size` bytes, from wherever its bytes are.
    async fn small_blob(
        &self,
        image: &Resolved,
        blob: Digest,
        size: u64,
    ) -> Result<Verified, Fetch> {
        let request = PieceRequest {
            scope: image.reference.repository().scope(),
            pieces: vec![Piece { blob, range: 0..size, digest: blob }],
            priority: Priority::Demand,
            deadline: Instant::now() + TREE_TIMEOUT,
        };
        let fetched = self.filler.source().fetch(request).await?;
        fetched.into_iter().next().ok_or_else(|| "no answer to the request for it".into())
    }
}

impl Attached {
    /// The index of `layer`, unless there is none or several that contradict each other.
    pub fn index(&self, layer: &Digest) -> Option<&LayerEntry> {
        self.layers.get(layer)?.as_ref()
    }

    fn patches(&self, layer: &Digest) -> &[TreePatch] {
        self.patches.get(layer).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, reference: &Reference, artifact: FoundArtifact) {
        self.packs.extend(artifact.packs);
        for patch in artifact.patches {
            self.patches.entry(patch.layer).or_default().push(patch);
        }
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
