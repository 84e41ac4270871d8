//! Large objects, which arrive and are verified chunk by chunk.
//!
//! There is no map of what has arrived: after a restart each chunk is unknown, and its digest
//! tells on first use whether it is there. So no order of writes before a crash can make a hole
//! look like data.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::chunks::Chunks;
use super::stamp::{Stamp, note_use};
use super::{CHUNK, ObjectKey};
use crate::digest::{Digest, Verified};
use crate::disk::{Access, Disk, is_damage, open_regular};

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;

/// The file of a large object of which some chunks, or all, are there.
pub struct Partial {
    disk: Arc<dyn Disk>,
    file: File,
    chunks: Chunks,
    /// What is known of each of them.
    states: Box<[AtomicU8]>,
    present: AtomicUsize,
    /// Whether the file has its place among the complete objects.
    placed: AtomicBool,
    /// The file after our own last step.
    stamp: Mutex<Option<Stamp>>,
}

/// Where the file of a large object is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Among the complete objects.
    Complete(&'a Path),
    /// Among the incomplete ones, where it is made if need be.
    Incomplete(&'a Path),
}

impl Partial {
    /// Opens or makes the file for the object of these `chunks`.
    ///
    /// # Errors
    /// Those of opening; a complete object of another size or kind gives `InvalidData`.
    pub(super) fn open(disk: &Arc<dyn Disk>, place: Place<'_>, chunks: Chunks) -> io::Result<Self> {
        let size = chunks.size();
        let (file, state) = match place {
            Place::Complete(path) => {
                let file = open_regular(path, Access::Write)?;
                if file.metadata()?.len() != size {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                (file, UNKNOWN)
            }
            Place::Incomplete(path) => open_incomplete(disk, path, size)?,
        };
        let states = chunks.digests().iter().map(|_| AtomicU8::new(state)).collect();
        note_use(&**disk, &file);
        Ok(Self {
            disk: disk.clone(),
            stamp: Mutex::new(Stamp::of(&file)),
            placed: AtomicBool::new(matches!(place, Place::Complete(_))),
            file,
            chunks,
            states,
            present: AtomicUsize::new(0),
        })
    }

    /// Believes that every chunk is there and undamaged.
    pub(super) fn trust(&self) {
        self.states.iter().for_each(|state| state.store(PRESENT, Ordering::Release));
        self.present.store(self.states.len(), Ordering::Release);
    }

    /// Whether the file has its place among the complete objects.
    pub(super) fn is_placed(&self) -> bool {
        self.placed.load(Ordering::Acquire)
    }

    /// Moves the file by `step` to or from the complete objects.
    ///
    /// # Errors
    /// Those of `step`, and `NotFound` where the file was removed: what has its name by now is
    /// another one.
    pub(super) fn transfer(
        &self,
        placed: bool,
        step: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.transfer_locked(&mut self.lock_stamp(), placed, step)
    }

    /// Moves the file by `step` from the complete objects, since the chunk with this number is not
    /// in it; whether that was so. Whoever brings the chunk at the same time is before or after.
    ///
    /// # Errors
    /// As [`Self::transfer`].
    pub(super) fn withdraw(
        &self,
        chunk: usize,
        step: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut stamp = self.lock_stamp();
        let state = self.states.get(chunk);
        let is_absent = state.is_some_and(|state| state.load(Ordering::Acquire) == ABSENT);
        if !is_absent || !self.is_placed() {
            return Ok(false);
        }
        self.transfer_locked(&mut stamp, false, step).map(|()| true)
    }

    fn transfer_locked(
        &self,
        stamp: &mut Option<Stamp>,
        placed: bool,
        step: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let untouched = *stamp == Stamp::of(&self.file);
        step()?;
        self.placed.store(placed, Ordering::Release);
        if untouched {
            *stamp = Stamp::of(&self.file);
        }
        Ok(())
    }

    /// Whether somebody else has touched the file: then nothing is known of its chunks.
    pub(super) fn is_touched(&self) -> bool {
        *self.lock_stamp() != Stamp::of(&self.file)
    }

    fn lock_stamp(&self) -> MutexGuard<'_, Option<Stamp>> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of the object.
    pub fn key(&self) -> &ObjectKey {
        self.chunks.key()
    }

    /// Size of the whole object in bytes.
    pub fn size(&self) -> u64 {
        self.chunks.size()
    }

    /// The file; only ranges of chunks that [`Self::has`] confirms may be read from it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the chunk with this number is here.
    pub fn has(&self, chunk: usize) -> bool {
        let (Some(state), Some(digest)) = (self.states.get(chunk), self.digest(chunk)) else {
            return false;
        };
        match state.load(Ordering::Acquire) {
            PRESENT => true,
            UNKNOWN => {
                let there = self.hashes_to(chunk, digest);
                let found = if there { PRESENT } else { ABSENT };
                let (won, lost) = (Ordering::AcqRel, Ordering::Acquire);
                match state.compare_exchange(UNKNOWN, found, won, lost) {
                    Ok(_) if there => {
                        self.present.fetch_add(1, Ordering::AcqRel);
                        true
                    }
                    Ok(_) => false,
                    // A writer that was faster knows better.
                    Err(state) => state == PRESENT,
                }
            }
            _ => false,
        }
    }

    fn digest(&self, chunk: usize) -> Option<&Digest> {
        self.chunks.digests().get(chunk)
    }

    fn hashes_to(&self, chunk: usize, digest: &Digest) -> bool {
        let mut bytes = vec![0; self.chunks.length(chunk)];
        self.file.read_exact_at(&mut bytes, chunk as u64 * CHUNK).is_ok()
            && Digest::of(&bytes) == *digest
    }

    /// Whether `bytes` are those of the chunk with this number.
    pub(super) fn is_chunk(&self, chunk: usize, bytes: &Verified) -> bool {
        self.digest(chunk).is_some_and(|digest| digest == bytes.digest())
            && bytes.bytes().len() == self.chunks.length(chunk)
    }

    /// Writes a chunk. Returns whether it was missing before.
    ///
    /// # Errors
    /// Those of writing, and `InvalidInput` for bytes that are not those of the chunk.
    pub(super) fn fill(&self, chunk: usize, bytes: &Verified) -> io::Result<bool> {
        if !self.is_chunk(chunk, bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut stamp = self.lock_stamp();
        if *stamp != Stamp::of(&self.file) {
            // Our own write must not hide somebody else's.
            self.doubt();
        }
        let written = self.disk.write_at(&self.file, bytes.bytes(), chunk as u64 * CHUNK);
        *stamp = Stamp::of(&self.file);
        if let Err(error) = written {
            self.doubt();
            return Err(error);
        }
        let was_missing = self.states[chunk].swap(PRESENT, Ordering::AcqRel) != PRESENT;
        if was_missing {
            self.present.fetch_add(1, Ordering::AcqRel);
        }
        Ok(was_missing)
    }

    /// Forgets what is known of the chunks.
    pub(super) fn doubt(&self) {
        for state in &self.states {
            if state.swap(UNKNOWN, Ordering::AcqRel) == PRESENT {
                self.present.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Whether every chunk is here. Chunks of which that is not known are hashed, until the first
    /// one that is missing.
    pub fn is_complete(&self) -> bool {
        let all = self.states.len();
        self.present.load(Ordering::Acquire) == all
            || self.states.iter().all(|state| state.load(Ordering::Acquire) != ABSENT)
                && (0..all).all(|chunk| self.has(chunk))
    }
}

/// The file of an incomplete object and what is known of its chunks. Whatever else is in its
/// place, or has another size, makes way for a new one.
fn open_incomplete(disk: &Arc<dyn Disk>, path: &Path, size: u64) -> io::Result<(File, u8)> {
    match open_regular(path, Access::Write) {
        Ok(file) if file.metadata()?.len() == size => return Ok((file, UNKNOWN)),
        Ok(_) => disk.remove(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if is_damage(&error) => disk.remove(path)?,
        Err(error) => return Err(error),
    }
    let file = disk.create(path)?;
    disk.set_len(&file, size)?;
    Ok((file, ABSENT))
}

#[cfg(test)]
mod tests {
    use super::super::LargeName;
    use super::*;
    use bytes::Bytes;

    fn open(path: &Path, chunks: &[Verified]) -> Partial {
        let disk: Arc<dyn Disk> = Arc::new(crate::disk::LocalDisk);
        let size = chunks.iter().map(|chunk| chunk.bytes().len() as u64).sum();
        let digests: Vec<Digest> = chunks.iter().map(|chunk| *chunk.digest()).collect();
        let key = ObjectKey::large(size, &digests);
        let name = LargeName { key: &key, size, chunks: &digests };
        Partial::open(&disk, Place::Incomplete(path), Chunks::prove(name).unwrap()).unwrap()
    }

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
        let chunks = chunks(2 * CHUNK as usize + 5);
        let partial = open(&path, &chunks);
        assert!(partial.fill(1, &chunks[1]).unwrap());
        assert!(!partial.fill(1, &chunks[1]).unwrap());
        drop(partial);

        let partial = open(&path, &chunks);
        assert!(!partial.has(0));
        assert!(partial.has(1));
        assert!(partial.fill(0, &chunks[0]).unwrap());
        assert!(!partial.is_complete());
        drop(partial);

        let partial = open(&path, &chunks);
        assert!(partial.fill(2, &chunks[2]).unwrap());
        assert!(partial.is_complete());
    }

    #[test]
    fn bytes_that_are_not_those_of_the_chunk_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(CHUNK as usize + 5);
        let partial = open(&directory.path().join("object"), &chunks);
        assert!(partial.fill(0, &chunks[1]).is_err());
        assert!(partial.fill(7, &chunks[1]).is_err());
        assert!(partial.fill(1, &Verified::name(Bytes::from_static(b"other"))).is_err());
        assert!(partial.fill(1, &chunks[1]).is_ok());
    }

    #[test]
    fn regression_a_write_of_ours_does_not_hide_that_of_somebody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("object");
        let chunks = chunks(2 * CHUNK as usize);
        let partial = open(&path, &chunks);
        partial.fill(0, &chunks[0]).unwrap();
        let damager = File::options().write(true).open(&path).unwrap();
        // Beyond the tick of a kernel with a slow clock.
        std::thread::sleep(std::time::Duration::from_millis(30));
        damager.write_all_at(b"damage", 1000).unwrap();
        partial.fill(1, &chunks[1]).unwrap();
        assert!(!partial.has(0));
        assert!(partial.has(1));
    }
}
