//! The index artifact: how the indexes of an image's layers travel through a registry.
//!
//! An OCI image manifest whose `subject` is the image's manifest:
//!
//! ```text
//! artifactType  application/vnd.undermount.index.v1
//! config        {}                                      application/vnd.oci.empty.v1+json
//! subject       the image manifest
//! layers        for each distinct layer of the image, lowest first:
//!   tree        zstd, read whole before the mount        …index.tree.v1+zstd
//!     io.undermount.layer      digest of the layer blob
//!     io.undermount.tree       digest of the tree, uncompressed
//!     io.undermount.tree.size  its bytes
//!   spans       as it is, its parts are read by Range    …index.spans.v1
//!     io.undermount.layer      digest of the layer blob
//!               then packs, see [`pack`], and patches of trees, see [`patch`]
//! ```
//!
//! The bytes follow from the subject, the indexes, the packs and the patches alone. Layers of other types are
//! left for later versions and ignored. How a reader finds the artifact: see [`super::referrers`].

mod error;
pub mod pack;
pub mod patch;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use bytes::Bytes;
use serde::Serialize;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::layer::LayerIndex;

use self::pack::PackEntry;
use self::patch::TreePatch;
use super::manifest::{Descriptor, Document, Manifest, media_type};

pub use self::error::ArtifactError;

/// On tree and spans: the digest of the layer blob they describe.
pub const LAYER: &str = "io.undermount.layer";
/// On the tree: the digest of its uncompressed bytes.
pub const TREE: &str = "io.undermount.tree";
/// On the tree: the number of its uncompressed bytes.
pub const TREE_SIZE: &str = "io.undermount.tree.size";

/// Largest uncompressed tree that is read, and most bytes of all the trees of an image: several
/// million files.
pub const MAX_TREE: u64 = 1 << 30;
/// A byte of a layer gives at most so many bytes of its tree. A file without content has a header of
/// 512 bytes, and some hundred bytes in the tree; a million of them with running numbers for names
/// shrink to a hundredth of that.
const TREE_PER_BYTE: u64 = 256;
/// What any tree may have.
const SMALL_TREE: u64 = 1 << 20;
/// A tree is fetched by every node but compressed while its image is copied: a middle level.
const TREE_LEVEL: i32 = 9;
const EMPTY: &[u8] = b"{}";

/// The index of one layer, as it comes from the indexer.
#[derive(Debug, Clone)]
pub struct LayerBlobs {
    /// The digest of the layer blob.
    pub layer: Digest,
    /// The tree, uncompressed.
    pub tree: Bytes,
    /// The spans.
    pub spans: Bytes,
}

/// An index artifact, ready to be pushed: first the blobs, then the manifest.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The digest of the image manifest that the artifact belongs to.
    pub subject: Digest,
    /// Names the manifest, with the artifact type.
    pub descriptor: Descriptor,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The blobs that it refers to, the empty configuration included.
    pub blobs: Vec<(Descriptor, Bytes)>,
}

/// Where the index of one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEntry {
    /// The digest of the layer blob.
    pub layer: Digest,
    /// The blob with the compressed tree.
    pub tree_blob: Descriptor,
    /// The digest of the uncompressed tree.
    pub tree: Digest,
    /// The bytes of the uncompressed tree.
    pub tree_size: u64,
    /// The blob with the spans.
    pub spans: Descriptor,
}

/// The index of one layer in the form in which it is pushed.
#[derive(Debug, Clone)]
pub struct PackedLayer {
    /// Names the blobs.
    pub entry: LayerEntry,
    /// The bytes of [`LayerEntry::tree_blob`]: the tree, compressed.
    pub tree: Bytes,
    /// The bytes of [`LayerEntry::spans`].
    pub spans: Bytes,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    artifact_type: &'a str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
    subject: Descriptor,
}

impl Artifact {
    /// The artifact for the image `subject` with the indexes of its `layers`, lowest first; a
    /// layer that occurs again is left out.
    ///
    /// # Errors
    /// [`ArtifactError::Compress`] where zstd fails.
    pub fn build(subject: &Descriptor, layers: &[LayerBlobs]) -> Result<Self, ArtifactError> {
        let mut blobs = vec![(empty(), Bytes::from_static(EMPTY))];
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        for layer in layers.iter().filter(|layer| seen.insert(layer.layer)) {
            let packed = layer.pack()?;
            blobs.push((packed.entry.tree_blob.clone(), packed.tree));
            blobs.push((packed.entry.spans.clone(), packed.spans));
            entries.push(packed.entry);
        }
        let (descriptor, manifest) = manifest(subject, &entries);
        Ok(Self { subject: subject.digest, descriptor, manifest, blobs })
    }
}

/// The manifest of the artifact for the image `subject`, and what names it. The indexes of the
/// `layers`, lowest first, are in the registry already, as is the blob `{}`.
pub fn manifest(subject: &Descriptor, layers: &[LayerEntry]) -> (Descriptor, Bytes) {
    manifest_with(subject, layers, &[], &[])
}

fn manifest_with(
    subject: &Descriptor,
    layers: &[LayerEntry],
    packs: &[PackEntry],
    patches: &[TreePatch],
) -> (Descriptor, Bytes) {
    let config = empty();
    let mut seen = HashSet::new();
    let distinct = layers.iter().filter(|entry| seen.insert(entry.layer));
    let mut listed: Vec<Descriptor> =
        distinct.flat_map(|entry| [entry.tree_blob.clone(), entry.spans.clone()]).collect();
    listed.extend(packs.iter().map(PackEntry::descriptor));
    listed.extend(patches.iter().map(TreePatch::descriptor));
    if listed.is_empty() {
        // The image-spec wants at least one layer.
        listed.push(config.clone());
    }
    let manifest = ArtifactManifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST,
        artifact_type: media_type::UNDERMOUNT_INDEX,
        config: &config,
        layers: &listed,
        subject: Descriptor::new(&subject.media_type, subject.digest, subject.size),
    };
    let manifest = serde_json::to_vec(&manifest).expect("strings and numbers become JSON");
    let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    descriptor.artifact_type = Some(media_type::UNDERMOUNT_INDEX.to_owned());
    (descriptor, manifest.into())
}

/// The configuration of an artifact, which has none.
fn empty() -> Descriptor {
    Descriptor::of(media_type::OCI_EMPTY, EMPTY)
}

impl From<&LayerIndex> for LayerBlobs {
    fn from(index: &LayerIndex) -> Self {
        Self { layer: index.layer, tree: index.tree.clone(), spans: index.spans.clone() }
    }
}

impl LayerBlobs {
    /// The two blobs as they are pushed, and what names them.
    ///
    /// # Errors
    /// [`ArtifactError::Compress`] where zstd fails.
    pub fn pack(&self) -> Result<PackedLayer, ArtifactError> {
        let layer = self.layer;
        let compressed = zstd::bulk::compress(&self.tree, TREE_LEVEL)
            .map_err(|source| ArtifactError::Compress { layer, source })?;
        let tree = Digest::of(&self.tree);
        let tree_size = self.tree.len() as u64;
        let mut tree_blob = Descriptor::of(media_type::UNDERMOUNT_TREE, &compressed);
        let mut spans = Descriptor::of(media_type::UNDERMOUNT_SPANS, &self.spans);
        let of_layer = || (LAYER.to_owned(), layer.to_string());
        tree_blob.annotations = BTreeMap::from([
            of_layer(),
            (TREE.to_owned(), tree.to_string()),
            (TREE_SIZE.to_owned(), tree_size.to_string()),
        ]);
        spans.annotations = BTreeMap::from([of_layer()]);
        let entry = LayerEntry { layer, tree_blob, tree, tree_size, spans };
        Ok(PackedLayer { entry, tree: compressed.into(), spans: self.spans.clone() })
    }
}

/// Reads the manifest of the index artifact of image `subject`: one entry per layer, in the
/// order of the artifact.
///
/// # Errors
/// [`ArtifactError`] where it is not exactly what [`Artifact::build`] makes for this image.
pub fn parse(manifest: &[u8], subject: &Digest) -> Result<Vec<LayerEntry>, ArtifactError> {
    let manifest = Document::parse(manifest, None)?.into_manifest()?;
    let kind = manifest.artifact_type.as_deref().unwrap_or_default();
    if kind != media_type::UNDERMOUNT_INDEX {
        return Err(ArtifactError::Type(kind.to_owned()));
    }
    let found = manifest.subject.as_ref().map(|found| found.digest);
    if found != Some(*subject) {
        let found = found.map_or("no image".to_owned(), |found| found.to_string());
        return Err(ArtifactError::Subject { expected: *subject, found });
    }
    pair(&manifest)
}

fn pair(manifest: &Manifest) -> Result<Vec<LayerEntry>, ArtifactError> {
    let mut order = Vec::new();
    let mut halves: BTreeMap<Digest, (Option<&Descriptor>, Option<&Descriptor>)> = BTreeMap::new();
    for blob in &manifest.layers {
        let tree = blob.media_type == media_type::UNDERMOUNT_TREE;
        if !tree && blob.media_type != media_type::UNDERMOUNT_SPANS {
            continue;
        }
        let layer: Digest = annotation(blob, LAYER)?;
        let entry = halves.entry(layer).or_insert_with(|| {
            order.push(layer);
            (None, None)
        });
        let half = if tree { &mut entry.0 } else { &mut entry.1 };
        if half.replace(blob).is_some() {
            return Err(ArtifactError::Unpaired(layer));
        }
    }
    let entries = order.into_iter().map(|layer| match halves.get(&layer) {
        Some((Some(tree), Some(spans))) => LayerEntry::new(layer, tree, spans),
        _ => Err(ArtifactError::Unpaired(layer)),
    });
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let all = entries.iter().fold(0, |all: u64, entry| all.saturating_add(entry.tree_size));
    match all <= MAX_TREE {
        true => Ok(entries),
        false => Err(ArtifactError::TreesTooLarge(all)),
    }
}

fn annotation<T: std::str::FromStr>(
    blob: &Descriptor,
    key: &'static str,
) -> Result<T, ArtifactError> {
    let value = blob.annotations.get(key).and_then(|value| value.parse().ok());
    value.ok_or(ArtifactError::Annotation { blob: blob.digest, key })
}

impl LayerEntry {
    /// The entry of `layer` out of the descriptors of its two blobs.
    ///
    /// # Errors
    /// [`ArtifactError`] where the annotations of the tree are missing, malformed or too large.
    pub fn new(
        layer: Digest,
        tree: &Descriptor,
        spans: &Descriptor,
    ) -> Result<Self, ArtifactError> {
        let tree_size: u64 = annotation(tree, TREE_SIZE)?;
        if tree_size > MAX_TREE || tree.size > MAX_TREE {
            return Err(ArtifactError::TreeTooLarge { layer, size: tree_size.max(tree.size) });
        }
        Ok(Self {
            layer,
            tree_blob: tree.clone(),
            tree: annotation(tree, TREE)?,
            tree_size,
            spans: spans.clone(),
        })
    }

    /// Whether a layer of `layer_size` bytes can have such a tree, and the tree such a blob. Somebody
    /// who makes indexes up can make one that takes much memory out of little.
    pub fn is_plausible(&self, layer_size: u64) -> bool {
        let most = layer_size.saturating_mul(TREE_PER_BYTE).max(SMALL_TREE);
        // What zstd cannot compress grows by less.
        let packed = self.tree_size.saturating_add(self.tree_size / 128).saturating_add(1 << 10);
        self.tree_size <= most && self.tree_blob.size <= packed
    }

    /// The tree out of `blob`, the bytes of [`Self::tree_blob`]. Memory grows with what comes
    /// out and not with what is claimed.
    ///
    /// # Errors
    /// [`ArtifactError`] where it is damaged or not the tree that the artifact names.
    pub fn unpack_tree(&self, blob: &[u8]) -> Result<Verified, ArtifactError> {
        let layer = self.layer;
        let damaged = |reason: String| ArtifactError::TreeDamaged { layer, reason };
        let mut tree = Vec::new();
        zstd::Decoder::with_buffer(blob)
            .and_then(|decoder| decoder.take(self.tree_size + 1).read_to_end(&mut tree))
            .map_err(|error| damaged(error.to_string()))?;
        if tree.len() as u64 != self.tree_size {
            let wanted = self.tree_size;
            return Err(damaged(format!("it decompresses to other than {wanted} bytes")));
        }
        Verified::check(tree.into(), &self.tree)
            .map_err(|source| ArtifactError::TreeDigest { layer, source })
    }
}

#[cfg(test)]
mod tests;
