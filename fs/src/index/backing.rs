//! Where the bytes of an index live: in a sealed memfd, which does not count as the process's own
//! memory.
//!
//! A mapped file that is truncated kills the process that reads it (SIGBUS). So files of up to
//! 64 MiB, packs that were just built, are copied, too; a larger one is mapped as it is, and only
//! root can truncate it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Deref;

use memmap2::Mmap;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Files up to this size are copied instead of mapped.
const COPY_LIMIT: u64 = 64 * 1024 * 1024;

/// The bytes of an index file: mapped, or in memory.
pub enum Backing {
    /// A mapping of a file or of a sealed memfd.
    Mapped(Mmap),
    /// Bytes on the heap: an index that was just built.
    Heap(Vec<u8>),
}

impl Backing {
    /// The contents of `file`, safe against later changes of its size.
    ///
    /// # Errors
    /// Those of reading and of memory that cannot be had.
    pub fn load(mut file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        if size == 0 {
            return Ok(Self::Heap(Vec::new()));
        }
        if size > COPY_LIMIT {
            // SAFETY: the cache directory belongs to root and one process owns it; nothing
            // truncates a file of it in place.
            return Ok(Self::Mapped(unsafe { Mmap::map(&file)? }));
        }
        let mut memory = sealable()?;
        copy(&mut file, &mut memory)?;
        seal(memory)
    }

    /// A copy of `bytes` that does not count as the process's own memory until it is read.
    ///
    /// # Errors
    /// Those of memory that cannot be had.
    pub fn sealed(bytes: &[u8]) -> io::Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::Heap(Vec::new()));
        }
        let mut memory = sealable()?;
        memory.write_all(bytes)?;
        seal(memory)
    }
}

impl AsRef<[u8]> for Backing {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

fn sealable() -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    Ok(File::from(memfd_create("undermount-index", flags)?))
}

fn seal(memory: File) -> io::Result<Backing> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    // SAFETY: the seals forbid every change of size and content.
    Ok(Backing::Mapped(unsafe { Mmap::map(&memory)? }))
}

fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
    }
}

impl From<Vec<u8>> for Backing {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Heap(bytes)
    }
}

impl Deref for Backing {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Heap(bytes) => bytes,
        }
    }
}
