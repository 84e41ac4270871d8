//! The content-addressed store of file contents.
//!
//! ```text
//! <cache>/objects/ab/ab12…    a complete object, named by its key
//! <cache>/partial/cd34…       a large object of which some chunks are there, the rest holes
//! <cache>/tmp/                objects on their way: renamed when whole, deleted at start
//! ```
//!
//! Content enters only as an [`Object`], which is hashed on the way in, so that whatever has a
//! name has the content of that name. Nothing is synced; instead, an object is hashed again when
//! a process first uses it, and whenever its file was touched since (a large one chunk by chunk), so
//! that neither a power cut nor a failing disk can make a wrong byte. To the reader, every fault of
//! the store is a miss, a lack of room among them: then reading goes on without it.
//!
//! What came in a moment ago is held in memory as well, and can be read before it is on the disk
//! ([`Store::hold`]).

mod audit;
mod budget;
mod chunks;
mod error;
mod evict;
mod fresh;
mod key;
mod large;
mod partial;
mod stamp;
mod store;
mod survey;

pub use audit::Audited;
pub use budget::StoreLimits;
pub use chunks::LargeName;
pub use error::StoreError;
pub use evict::Pins;
pub use fresh::{Holding, Unwritten, weight};
pub use key::{CHUNK, ObjectKey};
pub use partial::Partial;
pub use store::{Store, StoreUsage, Verify};
pub use survey::{State, Surveyed};

use bytes::Bytes;

/// A content of at most 1 MiB and the key that it hashes to.
#[derive(Clone)]
pub struct Object {
    key: ObjectKey,
    bytes: Bytes,
}

impl Object {
    /// Hashes `bytes`, at most [`CHUNK`] of them.
    pub fn name(bytes: Bytes) -> Self {
        Self { key: ObjectKey::small(&bytes), bytes }
    }

    /// The key that the content hashes to.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests;
