//! The names of file contents.

use std::fmt;

use crate::digest::{Digest, Hasher};

/// Files above this size are hashed, fetched and verified in chunks of it, in bytes.
pub const CHUNK: u64 = 1024 * 1024;

/// Separates keys of large objects from every other use of SHA-256.
const LARGE_DOMAIN: &[u8] = b"undermount large object v1\0";

/// The name of a file's content, the same in every layer and image.
///
/// Up to 1 MiB it is the SHA-256 of the content. Above, it is the SHA-256 of a domain string,
/// the size (u64, little-endian) and the digests of the 1 MiB chunks: every verified chunk then
/// belongs to exactly one key, and an index that lies about a chunk cannot spoil the object of
/// another image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Digest);

impl ObjectKey {
    /// The key of a content of at most [`CHUNK`] bytes.
    pub fn small(content: &[u8]) -> Self {
        debug_assert!(content.len() as u64 <= CHUNK);
        Self(Digest::of(content))
    }

    /// The key of a content of `size` bytes, more than [`CHUNK`], from the digests of its chunks.
    pub fn large(size: u64, chunks: &[Digest]) -> Self {
        debug_assert_eq!(size.div_ceil(CHUNK), chunks.len() as u64);
        let mut hasher = Hasher::default();
        hasher.update(LARGE_DOMAIN);
        hasher.update(&size.to_le_bytes());
        for chunk in chunks {
            hasher.update(chunk.as_bytes());
        }
        Self(hasher.finish())
    }

    /// The key with these bytes, as an index file gives it.
    pub fn from_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// The bytes of the key.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// 64 hex digits: the object's file name.
    pub fn hex(&self) -> String {
        self.0.hex()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({})", self.hex())
    }
}
