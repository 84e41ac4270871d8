//! Hashing the content of files into object keys.

use std::sync::OnceLock;

use crate::digest::{Digest, Hasher};
use crate::object::{CHUNK, ObjectKey};

/// Takes part in the pass over a layer: sees the content of every file, and may keep it.
///
/// For each file the order is `begin`, any number of `data` and `zeros`, `end`.
pub trait ObjectSink: Send {
    /// A content of `size` bytes begins.
    fn begin(&mut self, size: u64);
    /// The next bytes of it.
    fn data(&mut self, bytes: &[u8]);
    /// The next `count` bytes of it are zeros: a hole of a sparse file.
    fn zeros(&mut self, count: u64);
    /// It is complete and has this key.
    fn end(&mut self, key: ObjectKey);
}

/// Drops what it sees.
pub struct NoSink;

impl ObjectSink for NoSink {
    fn begin(&mut self, _size: u64) {}
    fn data(&mut self, _bytes: &[u8]) {}
    fn zeros(&mut self, _count: u64) {}
    fn end(&mut self, _key: ObjectKey) {}
}

/// Hashes one content.
pub struct ContentHasher {
    size: u64,
    chunk: Hasher,
    /// Bytes in the current chunk.
    filled: u64,
    chunks: Vec<Digest>,
}

/// What a content is called.
pub struct ContentName {
    /// The key of its object.
    pub key: ObjectKey,
    /// The digests of its chunks where it is above 1 MiB.
    pub chunks: Vec<Digest>,
}

impl ContentHasher {
    /// A hasher for a content of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, chunk: Hasher::default(), filled: 0, chunks: Vec::new() }
    }

    /// Adds bytes.
    pub fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (CHUNK - self.filled).min(bytes.len() as u64);
            let (head, tail) = bytes.split_at(room as usize);
            self.chunk.update(head);
            self.filled += room;
            self.close_full_chunk();
            bytes = tail;
        }
    }

    /// Adds zeros; whole chunks of them cost nothing.
    pub fn zeros(&mut self, mut count: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            if self.filled == 0 && count >= CHUNK {
                self.chunks.push(zero_chunk());
                count -= CHUNK;
                continue;
            }
            let part = (CHUNK - self.filled).min(count).min(ZEROS.len() as u64);
            self.chunk.update(&ZEROS[..part as usize]);
            self.filled += part;
            self.close_full_chunk();
            count -= part;
        }
    }

    fn close_full_chunk(&mut self) {
        if self.filled == CHUNK {
            self.chunks.push(std::mem::take(&mut self.chunk).finish());
            self.filled = 0;
        }
    }

    /// The name of what was added.
    pub fn finish(mut self) -> ContentName {
        if self.filled > 0 || self.size == 0 {
            self.chunks.push(self.chunk.finish());
        }
        match self.chunks.as_slice() {
            [only] if self.size <= CHUNK => {
                ContentName { key: ObjectKey::from_digest(*only), chunks: Vec::new() }
            }
            chunks => ContentName { key: ObjectKey::large(self.size, chunks), chunks: self.chunks },
        }
    }
}

fn zero_chunk() -> Digest {
    static DIGEST: OnceLock<Digest> = OnceLock::new();
    *DIGEST.get_or_init(|| Digest::of(&vec![0; CHUNK as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(parts: &[&[u8]]) -> ContentName {
        let mut hasher = ContentHasher::new(parts.iter().map(|part| part.len() as u64).sum());
        for part in parts {
            hasher.data(part);
        }
        hasher.finish()
    }

    #[test]
    fn small_contents_are_named_by_their_digest() {
        assert_eq!(name(&[b"con", b"tent"]).key, ObjectKey::small(b"content"));
        assert_eq!(name(&[]).key, ObjectKey::small(b""));
        let full = vec![7; CHUNK as usize];
        assert_eq!(name(&[&full]).key, ObjectKey::small(&full));
        assert!(name(&[&full]).chunks.is_empty());
    }

    #[test]
    fn large_contents_are_named_by_their_chunks() {
        let content = vec![7; CHUNK as usize + 1];
        let named = name(&[&content[..100], &content[100..]]);
        let chunks = [Digest::of(&content[1..]), Digest::of(&[7])];
        assert_eq!(
            (named.key, named.chunks.as_slice()),
            (ObjectKey::large(CHUNK + 1, &chunks), &chunks[..])
        );
    }

    #[test]
    fn holes_hash_like_zeros() {
        let size = 3 * CHUNK + 77;
        let mut sparse = ContentHasher::new(size);
        sparse.zeros(CHUNK / 2);
        sparse.data(b"x");
        sparse.zeros(size - CHUNK / 2 - 1);
        let mut content = vec![0; size as usize];
        content[CHUNK as usize / 2] = b'x';
        assert_eq!(sparse.finish().key, name(&[&content]).key);
    }
}
