//! What is wrong with a manifest, index or image configuration.

use super::MAX_LAYERS;
use crate::image::platform::Platform;

/// Bytes that are not a manifest, index or configuration that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("{what} is malformed: {source}")]
    Json {
        /// `manifest`, `index` or `image configuration`.
        what: &'static str,
        /// Where and how.
        source: serde_json::Error,
    },
    /// More bytes than are read.
    #[error("{what} has {size} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// `manifest` or `image configuration`.
        what: &'static str,
        /// Bytes it has.
        size: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// More layers than any runtime can mount.
    #[error("the image has {0} layers, more than the {MAX_LAYERS} that are allowed")]
    TooManyLayers(usize),
    /// A type that is read by no part of this program.
    #[error("manifests of type `{0}` are not supported")]
    Unsupported(String),
    /// It can be read as a manifest and as an index, which clients would take differently.
    #[error("ambiguous manifest: it has the fields of both an image and an index")]
    Ambiguous,
    /// An index where an image is wanted, or the reverse.
    #[error("expected an {expected}, found an {found}")]
    Kind {
        /// What the caller wants.
        expected: &'static str,
        /// What the bytes are.
        found: &'static str,
    },
    /// An OCI artifact, such as a signature or a chart, where an image is wanted.
    #[error("this is an artifact of type `{0}`, not a container image")]
    Artifact(String),
    /// No image of an index runs on the platform.
    #[error("no image for {wanted}; there are: {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms of the index.
        offered: String,
    },
    /// Layers and DiffIDs do not belong together.
    #[error("the manifest has {layers} layers, the configuration {diff_ids} DiffIDs")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// DiffIDs of the configuration.
        diff_ids: usize,
    },
}
