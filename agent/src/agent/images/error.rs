//! Why an image cannot be mounted or pulled.

use std::error::Error;
use std::fmt;

use undermount_fs::digest::Digest;
use undermount_fs::fill::IngestError;
use undermount_fs::tree::TreeError;

use crate::agent::cache::CacheError;
use crate::image::{ManifestError, Reference};
use crate::registry::client::RegistryError;

/// An image cannot be mounted or pulled.
#[derive(Debug)]
pub struct ImageError {
    /// The image.
    pub reference: Reference,
    /// Why.
    pub fault: Box<ImageFault>,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.fault {
            // It names the image, and what of it, itself.
            ImageFault::Registry(error) => error.fmt(f),
            _ => write!(f, "image {}", self.reference),
        }
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.fault {
            ImageFault::Registry(error) => error.source(),
            fault => Some(fault),
        }
    }
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// The registry does not have it, refuses it or cannot be reached.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// Manifest or config are damaged or contradict each other.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer could not be fetched or unpacked.
    #[error(transparent)]
    Layer(#[from] IngestError),
    /// An index contradicts the manifest or the config.
    #[error("layer {layer}: {what}")]
    Mismatch {
        /// The layer.
        layer: Digest,
        /// What contradicts what.
        what: &'static str,
    },
    /// No index of the layer is known or attached to the image.
    #[error("the registry has no index of it; `undermount prepare` makes one")]
    NoIndex,
    /// The image has fewer layers.
    #[error("the image has no such layer")]
    NoSuchLayer,
    /// The layers do not make an image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The cache cannot be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The quota has no room for it.
    #[error(
        "its files take {image} bytes; with the {pinned} bytes of the images that are mounted or \
         complete that makes {needed}, and the quota is {quota}: raise --quota, or allow with \
         --evict-complete that they are dropped and fetched again"
    )]
    Quota {
        /// Bytes of this image's files.
        image: u64,
        /// Bytes of the files that must stay.
        pinned: u64,
        /// Bytes of both together, what they share counted once.
        needed: u64,
        /// Bytes that may be kept.
        quota: u64,
    },
    /// All of it was fetched, and the disk did not take all.
    #[error(
        "the cache has no room for {missing} bytes of its files, which are fetched again when they \
         are read"
    )]
    NotKept {
        /// Bytes of the files that are not here.
        missing: u64,
    },
    /// The cache cannot be written.
    #[error("cannot keep {what} in the cache")]
    Keep {
        /// What was to be kept.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl ImageFault {
    /// The error of the image `reference`.
    pub(super) fn of(self, reference: &Reference) -> ImageError {
        ImageError { reference: reference.clone(), fault: Box::new(self) }
    }
}
