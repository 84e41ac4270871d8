//! How far a copy is: told to whoever shows it, since the library prints nothing.

use super::copy::CopyError;

/// Sees a copy go by. Calls come from many tasks at once and must not block.
pub trait Progress: Send + Sync {
    /// `count` images are about to be looked at.
    fn images(&self, count: usize) {
        let _ = count;
    }
    /// An image is being looked at or copied.
    fn begun(&self, image: &str) {
        let _ = image;
    }
    /// A blob of `bytes` has to move.
    fn expected(&self, bytes: u64) {
        let _ = bytes;
    }
    /// `bytes` have moved.
    fn moved(&self, bytes: u64) {
        let _ = bytes;
    }
    /// An image is done with.
    fn ended(&self, image: &str, outcome: Result<&Done, &CopyError>) {
        let _ = (image, outcome);
    }
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The destination has it already.
    Unchanged,
    /// It was copied.
    Copied {
        /// Bytes that were uploaded for it.
        bytes: u64,
        /// Blobs that were at the destination already, or came with another image.
        shared: usize,
        /// Its blobs.
        blobs: usize,
    },
}

/// Nobody looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unseen;

impl Progress for Unseen {}
