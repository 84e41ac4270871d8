//! Why the store cannot be used, or does not keep an object.

use std::io;
use std::path::{Path, PathBuf};

use super::ObjectKey;
use crate::disk::is_full;

/// The store cannot be used, or an object cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step on the disk failed.
    #[error("object store: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Quota or reserve forbid it, and nothing else may go.
    #[error("object store: no room for {size} bytes within quota and reserve")]
    Full {
        /// Bytes that were to be kept.
        size: u64,
    },
    /// Somebody gives the chunks of one large object the key of another.
    #[error("object store: {key} is not the key of the chunks that are to make it")]
    Name {
        /// The key.
        key: ObjectKey,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether there was no room, as opposed to something being wrong.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Name { .. } => false,
            Self::Io { source, .. } => is_full(source),
        }
    }
}
