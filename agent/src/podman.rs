//! podman's additional layer store: the directory tree in which containers/storage looks for a
//! layer before it downloads it.
//!
//! ```text
//! <store>/<base64 of the reference>/<digest>/diff   the layer: a link into a content mount
//!                                            info   what podman wants to know of it (JSON)
//!                                            blob   its compressed bytes
//!                                            use    never exists: creating it counts a user
//! ```
//!
//! One pull, for every layer:
//!
//! ```text
//! stat diff -> name and nodes (no network)
//!           -> Shelf::layer: the agent resolves the image and all its indexes, with a deadline
//!           -> link, or ENOENT: podman then downloads the layer as if there were no store
//! stat info, stat blob, create use (ENOENT means "counted"), read info
//! at the end: rmdir <digest> (ENOENT means "counted off")
//! ```
//!
//! One start of a container: the kernel follows `diff` of every layer while it mounts the
//! overlay. That must never need the network, nor an answer of ours to anything but these links.
//!
//! This module knows names, nodes and the protocol. What a layer is and where its files are is
//! the [`Shelf`]'s to say.

mod info;
mod key;
mod nodes;
mod store;

pub use info::{Compression, LayerInfo};
pub use key::{LayerKey, store_name};
pub use nodes::NodeTable;
pub use store::Store;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Annotations of a layer whose value newer podmans ask for instead of the layer's digest
/// (container-libs, `pkg/chunked/toc`).
pub const TOC_ANNOTATIONS: [&str; 2] = [
    "containerd.io/snapshot/stargz/toc.digest",
    "io.github.containers.zstd-chunked.manifest-checksum",
];

/// A layer that podman may use without downloading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Where its files are: a directory of a content mount.
    pub directory: PathBuf,
    /// The content of `info`.
    pub info: Bytes,
    /// The size of its compressed bytes.
    pub blob_size: u64,
}

/// What a question for a layer is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A container starts, or a pull begins. What is known is enough.
    Path,
    /// A pull, for certain: the registry has just answered podman, so it may be asked.
    Pull,
}

/// No offer is made: podman has to download the layer. Why has been told elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Who knows the layers.
pub trait Shelf: Send + Sync + 'static {
    /// The layer `key`, within a deadline of the shelf's.
    fn layer(
        &self,
        key: &LayerKey,
        occasion: Occasion,
    ) -> BoxFuture<'static, Result<Arc<Offer>, Refused>>;

    /// Up to `length` of the layer's compressed bytes from `offset` on; fewer only at the end.
    fn blob(
        &self,
        key: &LayerKey,
        offset: u64,
        length: u32,
    ) -> BoxFuture<'static, Result<Bytes, Refused>>;

    /// Counts a user of the layer.
    fn hold(&self, key: &LayerKey);

    /// Counts a user of the layer off.
    fn release(&self, key: &LayerKey);
}
