//! Memory that a keeper shares with its workers: words of 8 bytes in a memfd of fixed size.
//!
//! The tables of [`super::inflight`], [`super::opens`], [`super::lookups`] and of the keeper's
//! estate lie in it, so that they outlive the worker that writes them. Words are in native byte
//! order and are accessed atomically in all processes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Words in a memfd whose first 8 bytes, the magic, say which table it is.
#[derive(Debug)]
pub(super) struct SharedWords {
    memory: OwnedFd,
    map: MmapRaw,
    size: usize,
}

impl SharedWords {
    /// Makes a memfd of `size` bytes: `magic`, then zeros. Its size is sealed (fcntl(2),
    /// `F_ADD_SEALS`).
    pub(super) fn create(name: &str, magic: &[u8; 8], size: usize) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(name, flags)?);
        file.set_len(size as u64)?;
        file.write_all(magic)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Self::open(file.into(), magic, size)
    }

    /// Maps `memory`, which [`Self::create`] made with the same `magic` and `size`; an error where
    /// it is something else.
    pub(super) fn open(memory: OwnedFd, magic: &[u8; 8], size: usize) -> io::Result<Self> {
        let file = File::from(memory);
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 0)?;
        if found != *magic || file.metadata()?.len() != size as u64 {
            let name = magic.escape_ascii();
            return Err(io::Error::other(format!("the shared memory is not a table {name}")));
        }
        let map = MmapOptions::new().len(size).map_raw(&file)?;
        Ok(Self { memory: file.into(), map, size })
    }

    /// The memfd, to be handed to a worker.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The word at byte `offset`. Panics unless that is a multiple of 8 below the size.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        let size = self.size;
        assert!(offset.is_multiple_of(size_of::<u64>()) && offset < size, "offset {offset}");
        // SAFETY: the mapping is `size` bytes long, page-aligned, lives as long as `self` and
        // cannot shrink (sealed); all access to it, in all processes, is atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn both_sides_see_the_same_words() {
        let keeper = SharedWords::create("test", b"UMTEST01", 4096).unwrap();
        let memory = || keeper.memory().try_clone_to_owned().unwrap();
        let worker = SharedWords::open(memory(), b"UMTEST01", 4096).unwrap();
        worker.word(4088).store(7, Ordering::Relaxed);
        assert_eq!(keeper.word(4088).load(Ordering::Relaxed), 7);
        assert!(SharedWords::open(memory(), b"UMTEST02", 4096).is_err());
        assert!(SharedWords::open(memory(), b"UMTEST01", 8192).is_err());
    }

    #[test]
    fn foreign_memory_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(SharedWords::open(file.into(), b"UMTEST01", 4096).is_err());
    }
}
