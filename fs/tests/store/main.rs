//! The object store against crashes, damage and chance: a disk that stops between any two steps,
//! files that somebody altered, 200,000 random operations beside a model.
#![allow(clippy::unwrap_used)]

mod crash;
mod cut;
mod damage;
mod model;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::object::{CHUNK, LargeName, Object, ObjectKey, Store, StoreError};

/// A file content and the names it goes by.
struct Content {
    key: ObjectKey,
    bytes: Vec<u8>,
    chunks: Vec<Digest>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        if bytes.len() as u64 <= CHUNK {
            return Self { key: ObjectKey::small(&bytes), bytes, chunks: Vec::new() };
        }
        let chunks: Vec<Digest> = bytes.chunks(CHUNK as usize).map(Digest::of).collect();
        Self { key: ObjectKey::large(bytes.len() as u64, &chunks), bytes, chunks }
    }

    /// A content of `size` bytes that no other seed gives.
    fn of(seed: u64, size: usize) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        let mut bytes: Vec<u8> = words.take(size.div_ceil(8)).flatten().collect();
        bytes.truncate(size);
        Self::new(bytes)
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> LargeName<'_> {
        LargeName { key: &self.key, size: self.size(), chunks: &self.chunks }
    }

    fn chunk(&self, number: usize) -> &[u8] {
        self.bytes.chunks(CHUNK as usize).nth(number).unwrap()
    }

    /// Keeps the whole content, or, of a large one, chunk `number`.
    fn keep(&self, store: &Store, number: usize) -> Result<(), StoreError> {
        if self.chunks.is_empty() {
            return store.insert(&Object::name(Bytes::copy_from_slice(&self.bytes)));
        }
        let partial = store.large_or_new(self.name())?;
        let chunk = Verified::name(Bytes::copy_from_slice(self.chunk(number)));
        store.fill_chunk(&partial, number, &chunk)
    }

    fn keep_all(&self, store: &Store) -> Result<(), StoreError> {
        (0..self.chunks.len().max(1)).try_for_each(|number| self.keep(store, number))
    }

    /// Whether the store has the content, or the chunk; wrong bytes panic.
    fn is_read(&self, store: &Store, number: usize) -> bool {
        let (expected, file) = if self.chunks.is_empty() {
            let Some(file) = store.get(&self.key, self.size()) else { return false };
            (&self.bytes[..], file.try_clone().unwrap())
        } else {
            let Some(partial) = store.large(self.name()) else { return false };
            if !store.has_chunk(&partial, number) {
                return false;
            }
            (self.chunk(number), partial.file().try_clone().unwrap())
        };
        let mut bytes = vec![0; expected.len()];
        file.read_exact_at(&mut bytes, number as u64 * CHUNK).unwrap();
        assert!(bytes == expected, "wrong bytes for chunk {number} of {}", self.key);
        true
    }

    /// Where its file is when it is complete, and when it is not.
    fn places(&self, root: &Path) -> [PathBuf; 2] {
        let hex = self.key.hex();
        [root.join("objects").join(&hex[..2]).join(&hex), root.join("partial").join(&hex)]
    }
}
