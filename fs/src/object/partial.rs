//! Large objects, which arrive and are verified chunk by chunk.
//!
//! There is no map of what has arrived: after a restart each chunk is unknown, and its digest,
//! which the reader brings along, tells on first use whether it is there. So no order of writes
//! before a crash can make a hole look like data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::CHUNK;
use super::stamp::{Stamp, note_use};
use crate::digest::{Digest, Verified};

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;

/// The file of a large object of which some chunks, or all, are there.
pub struct Partial {
    file: File,
    size: u64,
    chunks: Box<[AtomicU8]>,
    present: AtomicUsize,
    /// The file after our own last write.
    stamp: Mutex<Option<Stamp>>,
}

impl Partial {
    /// Opens or makes the file for an object of `size` bytes.
    pub(super) fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let fresh = file.metadata()?.len() != size;
        if fresh {
            file.set_len(0)?;
            file.set_len(size)?;
        }
        let state = if fresh { ABSENT } else { UNKNOWN };
        let chunks = (0..size.div_ceil(CHUNK)).map(|_| AtomicU8::new(state)).collect();
        note_use(&file);
        let stamp = Mutex::new(Stamp::of(&file));
        Ok(Self { file, size, chunks, present: AtomicUsize::new(0), stamp })
    }

    /// Whether somebody else has touched the file: then nothing is known of its chunks.
    pub(super) fn is_touched(&self) -> bool {
        let stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        *stamp != Stamp::of(&self.file)
    }

    /// Size of the whole object in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file; only ranges of chunks that [`Self::has`] confirms may be read from it.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn length(&self, chunk: usize) -> usize {
        let start = chunk as u64 * CHUNK;
        (self.size - start.min(self.size)).min(CHUNK) as usize
    }

    /// Whether the chunk with this number and digest is here.
    pub fn has(&self, chunk: usize, digest: &Digest) -> bool {
        let Some(state) = self.chunks.get(chunk) else { return false };
        match state.load(Ordering::Acquire) {
            PRESENT => true,
            UNKNOWN => {
                let there = self.hashes_to(chunk, digest);
                let found = if there { PRESENT } else { ABSENT };
                // A writer that was faster knows better.
                if state
                    .compare_exchange(UNKNOWN, found, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
                    && there
                {
                    self.present.fetch_add(1, Ordering::AcqRel);
                }
                there
            }
            _ => false,
        }
    }

    fn hashes_to(&self, chunk: usize, digest: &Digest) -> bool {
        let mut bytes = vec![0; self.length(chunk)];
        self.file.read_exact_at(&mut bytes, chunk as u64 * CHUNK).is_ok()
            && Digest::of(&bytes) == *digest
    }

    /// Writes a chunk. Returns whether it was missing before.
    ///
    /// # Errors
    /// Those of writing, and `InvalidInput` for bytes of another length than the chunk's.
    pub fn fill(&self, chunk: usize, bytes: &Verified) -> io::Result<bool> {
        if chunk >= self.chunks.len() || bytes.bytes().len() != self.length(chunk) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        {
            let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
            self.file.write_all_at(bytes.bytes(), chunk as u64 * CHUNK)?;
            *stamp = Stamp::of(&self.file);
        }
        let was_missing = self.chunks[chunk].swap(PRESENT, Ordering::AcqRel) != PRESENT;
        if was_missing {
            self.present.fetch_add(1, Ordering::AcqRel);
        }
        Ok(was_missing)
    }

    /// Whether every chunk is here. Chunks of which that is not known are hashed, until the first
    /// one that is missing.
    pub fn is_complete(&self, chunks: &[Digest]) -> bool {
        let all = self.chunks.len();
        self.present.load(Ordering::Acquire) == all
            || chunks.len() == all
                && self.chunks.iter().all(|state| state.load(Ordering::Acquire) != ABSENT)
                && chunks.iter().enumerate().all(|(chunk, digest)| self.has(chunk, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn chunks(size: usize) -> Vec<Verified> {
        let content: Vec<u8> = (0..size).map(|i| (i / 1000) as u8).collect();
        content
            .chunks(CHUNK as usize)
            .map(|chunk| Verified::name(Bytes::copy_from_slice(chunk)))
            .collect()
    }

    #[test]
    fn chunks_are_known_by_their_digest_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("object");
        let size = 2 * CHUNK + 5;
        let chunks = chunks(size as usize);
        let partial = Partial::open(&path, size).unwrap();
        assert!(partial.fill(1, &chunks[1]).unwrap());
        assert!(!partial.fill(1, &chunks[1]).unwrap());
        drop(partial);

        let partial = Partial::open(&path, size).unwrap();
        assert!(!partial.has(0, chunks[0].digest()));
        assert!(partial.has(1, chunks[1].digest()));
        let digests: Vec<Digest> = chunks.iter().map(|chunk| *chunk.digest()).collect();
        assert!(partial.fill(0, &chunks[0]).unwrap());
        assert!(!partial.is_complete(&digests));
        drop(partial);

        let partial = Partial::open(&path, size).unwrap();
        assert!(partial.fill(2, &chunks[2]).unwrap());
        assert!(partial.is_complete(&digests));
    }

    #[test]
    fn a_chunk_of_the_wrong_length_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let partial = Partial::open(&directory.path().join("object"), CHUNK + 5).unwrap();
        let short = Verified::name(Bytes::from_static(b"short"));
        assert!(partial.fill(0, &short).is_err());
        assert!(partial.fill(7, &short).is_err());
        assert!(partial.fill(1, &short).is_ok());
    }
}
