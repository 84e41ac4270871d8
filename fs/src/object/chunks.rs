//! What names a large object: its key, which is that of its chunks.
//!
//! An index says which key a file has and which digests its chunks have. Only together do they
//! mean anything: whoever could give the chunks of one object the key of another would put his own
//! bytes in its place. So the store opens no file of a large object but for [`Chunks`].

use super::{CHUNK, ObjectKey};
use crate::digest::Digest;

/// What somebody says of a large object, true or not.
#[derive(Debug, Clone, Copy)]
pub struct LargeName<'a> {
    /// Its key.
    pub key: &'a ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// The digests of its chunks.
    pub chunks: &'a [Digest],
}

impl LargeName<'_> {
    /// Whether the key is the one of these chunks.
    pub fn is_right(&self) -> bool {
        self.size > CHUNK
            && self.size.div_ceil(CHUNK) == self.chunks.len() as u64
            && ObjectKey::large(self.size, self.chunks) == *self.key
    }
}

/// The digests of the chunks of a large object, which were found to give its key.
pub(super) struct Chunks {
    key: ObjectKey,
    size: u64,
    digests: Box<[Digest]>,
}

impl Chunks {
    /// Those of `name`, if it is right.
    pub fn prove(name: LargeName<'_>) -> Option<Self> {
        let LargeName { key, size, chunks } = name;
        name.is_right().then(|| Self { key: *key, size, digests: chunks.into() })
    }

    /// The key that they give.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Bytes of the whole object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digests, in order.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Bytes of chunk `number`; 0 where there is none.
    pub fn length(&self, number: usize) -> usize {
        let start = (number as u64).saturating_mul(CHUNK);
        self.size.saturating_sub(start).min(CHUNK) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_right_where_key_size_and_chunks_belong_together() {
        let size = CHUNK + 7;
        let chunks = [Digest::of(b"one"), Digest::of(b"two")];
        let key = ObjectKey::large(size, &chunks);
        let is_right =
            |key: &ObjectKey, size, chunks: &[Digest]| LargeName { key, size, chunks }.is_right();
        assert!(is_right(&key, size, &chunks));
        assert!(!is_right(&key, size + 1, &chunks));
        assert!(!is_right(&key, size, &[chunks[1], chunks[0]]));
        assert!(!is_right(&key, size, &chunks[..1]) && !is_right(&key, size, &[]));
        assert!(!is_right(&ObjectKey::small(b"other"), size, &chunks));
        let small = [Digest::of(b"one")];
        assert!(!is_right(&ObjectKey::from_digest(small[0]), 3, &small), "it is no large object");
    }
}
