//! What is wrong with an index artifact.

use undermount_fs::digest::{Digest, WrongDigest};

use super::MAX_TREE;
use crate::image::manifest::ManifestError;

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
    /// Trees that together are larger than any that this program makes.
    #[error(
        "the trees of the layers have {0} bytes together, more than the {MAX_TREE} that are allowed"
    )]
    TreesTooLarge(u64),
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
