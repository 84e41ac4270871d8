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
//!               then packs, see [`pack`]
//! ```
//!
//! The bytes follow from the subject, the indexes and the packs alone. Layers of other types are
//! left for later versions and ignored. How a reader finds the artifact: see [`super::referrers`].

pub mod pack;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use bytes::Bytes;
use serde::Serialize;
use undermount_fs::digest::{Digest, Verified, WrongDigest};
use undermount_fs::layer::LayerIndex;

use self::pack::PackEntry;
use super::manifest::{Descriptor, Document, Manifest, ManifestError, media_type};

/// On tree and spans: the digest of the layer blob they describe.
pub const LAYER: &str = "io.undermount.layer";
/// On the tree: the digest of its uncompressed bytes.
pub const TREE: &str = "io.undermount.tree";
/// On the tree: the number of its uncompressed bytes.
pub const TREE_SIZE: &str = "io.undermount.tree.size";

/// Largest uncompressed tree that is read, in bytes: several million files.
pub const MAX_TREE: u64 = 1 << 30;
/// A tree is fetched by every node but compressed while its image is copied: a middle level.
const TREE_LEVEL: i32 = 9;
const EMPTY: &[u8] = b"{}";

/// Why an index artifact cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not a manifest at all.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Some other artifact.
    #[error("this is no index artifact: its artifact type is `{0}`")]
    Type(String),
    /// Made for another image.
    #[error("the index artifact belongs to {found}, not to image {expected}")]
    Subject {
        /// The image that is wanted.
        expected: Digest,
        /// The image that the artifact names, in words.
        found: String,
    },
    /// An annotation that is missing or malformed.
    #[error("the index artifact's blob {blob} has no valid annotation {key}")]
    Annotation {
        /// The tree or spans blob.
        blob: Digest,
        /// The key.
        key: &'static str,
    },
    /// A layer with a tree but no spans, the reverse, or two of a kind.
    #[error("the index artifact does not have exactly one tree and one spans blob for layer {0}")]
    Unpaired(Digest),
    /// A tree larger than any that this program makes.
    #[error(
        "the tree of layer {layer} has {size} bytes, more than the {MAX_TREE} that are allowed"
    )]
    TreeTooLarge {
        /// The layer blob.
        layer: Digest,
        /// The size that is claimed.
        size: u64,
    },
    /// A tree that does not decompress, or not to its size.
    #[error("the tree of layer {layer} is damaged: {reason}")]
    TreeDamaged {
        /// The layer blob.
        layer: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A tree that decompresses to other bytes than the annotation names.
    #[error("the tree of layer {layer} is not what the artifact names: {source}")]
    TreeDigest {
        /// The layer blob.
        layer: Digest,
        /// Both digests.
        source: WrongDigest,
    },
    /// The compressor failed.
    #[error("cannot compress the tree of layer {layer}: {source}")]
    Compress {
        /// The layer blob.
        layer: Digest,
        /// Its words.
        source: std::io::Error,
    },
}

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
    manifest_with_packs(subject, layers, &[])
}

fn manifest_with_packs(
    subject: &Descriptor,
    layers: &[LayerEntry],
    packs: &[PackEntry],
) -> (Descriptor, Bytes) {
    let config = empty();
    let mut seen = HashSet::new();
    let distinct = layers.iter().filter(|entry| seen.insert(entry.layer));
    let mut listed: Vec<Descriptor> =
        distinct.flat_map(|entry| [entry.tree_blob.clone(), entry.spans.clone()]).collect();
    listed.extend(packs.iter().map(PackEntry::descriptor));
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
    entries.collect()
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
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn subject() -> Descriptor {
        let mut subject = Descriptor::of(media_type::DOCKER_MANIFEST, b"image");
        subject.annotations.insert("not".into(), "copied".into());
        subject
    }

    fn blobs(name: &str) -> LayerBlobs {
        LayerBlobs {
            layer: Digest::of(name.as_bytes()),
            tree: Bytes::from(format!("tree of {name} ").repeat(100)),
            spans: Bytes::from(format!("spans of {name}")),
        }
    }

    fn built() -> Artifact {
        Artifact::build(&subject(), &[blobs("b"), blobs("a"), blobs("b")]).unwrap()
    }

    fn parse_changed(change: impl FnOnce(&mut Value)) -> Result<Vec<LayerEntry>, String> {
        let mut manifest: Value = serde_json::from_slice(&built().manifest).unwrap();
        change(&mut manifest);
        parse(manifest.to_string().as_bytes(), &subject().digest).map_err(|e| e.to_string())
    }

    #[test]
    fn what_was_built_is_read_back_layer_by_layer() {
        let artifact = built();
        assert_eq!(artifact.descriptor.digest, Digest::of(&artifact.manifest));
        assert_eq!(artifact.blobs.len(), 5, "config, and two per distinct layer");
        let entries = parse(&artifact.manifest, &subject().digest).unwrap();
        for (entry, name) in entries.iter().zip(["b", "a"]) {
            let expected = blobs(name);
            let bytes = |wanted: &Descriptor| {
                let found = artifact.blobs.iter().find(|(blob, _)| blob == wanted).unwrap();
                assert_eq!(Digest::of(&found.1), wanted.digest);
                assert_eq!(found.1.len() as u64, wanted.size);
                found.1.clone()
            };
            assert_eq!(entry.layer, expected.layer);
            assert_eq!(bytes(&entry.spans), expected.spans);
            let tree = entry.unpack_tree(&bytes(&entry.tree_blob)).unwrap();
            assert_eq!(tree.bytes(), &expected.tree);
        }
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn the_format_is_pinned() {
        let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
        let artifact = Artifact::build(&subject(), &[layer]).unwrap();
        let manifest: Value = serde_json::from_slice(&artifact.manifest).unwrap();
        let layer = Digest::of(b"l");
        let tree = artifact.blobs[1].0.clone();
        let expected = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.undermount.index.v1",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "size": 2,
            },
            "layers": [{
                "mediaType": "application/vnd.undermount.index.tree.v1+zstd",
                "digest": tree.digest,
                "size": tree.size,
                "annotations": {
                    "io.undermount.layer": layer,
                    "io.undermount.tree": Digest::of(b"t"),
                    "io.undermount.tree.size": "1",
                },
            }, {
                "mediaType": "application/vnd.undermount.index.spans.v1",
                "digest": Digest::of(b"s"),
                "size": 1,
                "annotations": {"io.undermount.layer": layer},
            }],
            "subject": {
                "mediaType": media_type::DOCKER_MANIFEST,
                "digest": Digest::of(b"image"),
                "size": 5,
            },
        });
        assert_eq!(manifest, expected);
        assert_eq!(built().manifest, built().manifest, "same input, same bytes");
    }

    #[test]
    fn an_image_without_layers_has_an_artifact_without_entries() {
        let artifact = Artifact::build(&subject(), &[]).unwrap();
        assert_eq!(parse(&artifact.manifest, &subject().digest).unwrap(), []);
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        let other = Digest::of(b"other image");
        assert!(matches!(parse(&built().manifest, &other), Err(ArtifactError::Subject { .. })));
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 9] = [
            (|m| m["artifactType"] = json!("application/x"), "`application/x`"),
            (|m| m["subject"] = Value::Null, "no image"),
            (|m| m["layers"][0]["annotations"] = Value::Null, "io.undermount.layer"),
            (|m| m["layers"][0]["annotations"][TREE] = json!("sha256:1"), "io.undermount.tree"),
            (|m| m["layers"][0]["annotations"][TREE_SIZE] = json!("-1"), "io.undermount.tree.size"),
            (
                |m| m["layers"][0]["annotations"][TREE_SIZE] = json!("2000000000"),
                "2000000000 bytes",
            ),
            (|m| drop(m["layers"].as_array_mut().unwrap().remove(1)), "exactly one tree"),
            (|m| m["layers"][2] = m["layers"][0].clone(), "exactly one tree"),
            (|m| m["manifests"] = json!([]), "ambiguous"),
        ];
        for (change, part) in changes {
            let message = parse_changed(change).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let with_more = parse_changed(|manifest| {
            manifest["layers"][0]["mediaType"] = json!("application/vnd.undermount.pack.v9");
            manifest["layers"][1]["mediaType"] = json!("application/vnd.undermount.pack.v9");
        });
        assert_eq!(with_more.unwrap().len(), 1, "types of later versions are left alone");
    }

    #[test]
    fn a_tree_that_is_not_the_named_one_is_refused() {
        let artifact = built();
        let mut entry = parse(&artifact.manifest, &subject().digest).unwrap().remove(0);
        let blob = artifact.blobs[1].1.clone();
        let message = |entry: &LayerEntry, blob: &[u8]| {
            let error = entry.unpack_tree(blob).unwrap_err().to_string();
            assert!(error.contains(&entry.layer.to_string()), "{error}");
            error
        };
        assert!(message(&entry, b"no zstd").contains("damaged"));
        assert!(message(&entry, &blob[..blob.len() - 3]).contains("damaged"));
        entry.tree_size -= 1;
        assert!(message(&entry, &blob).contains("other than"));
        entry.tree_size += 1;
        entry.tree = Digest::of(b"another");
        assert!(message(&entry, &blob).contains("not what the artifact names"));
    }

    proptest! {
        #[test]
        fn no_damage_to_an_artifact_panics(at in 0usize..1200, byte: u8) {
            let mut manifest = built().manifest.to_vec();
            if let Some(target) = manifest.get_mut(at) {
                *target = byte;
            }
            let _ = parse(&manifest, &subject().digest);
        }
    }
}
