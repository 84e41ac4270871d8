//! The steps by which the cache changes what is on disk.
//!
//! Everything that writes below the cache directory does so through a [`Disk`], one small step at
//! a time, so that a test can stop between any two of them and look at what a crash would leave.
//! Reading changes nothing and needs no seam, but for one rule: what is opened must be a regular
//! file under its own name ([`open_regular`]), whatever somebody has put in its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Changes what is on disk. Each method is one step: after a crash all of it happened or, but for
/// [`Disk::write_at`], nothing.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory and those above it, where they are missing.
    ///
    /// # Errors
    /// Those of mkdir(2).
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a file that is not there yet, for reading and writing.
    ///
    /// # Errors
    /// Those of open(2).
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Writes all of `bytes` at `offset`. A crash may leave any part of it.
    ///
    /// # Errors
    /// Those of pwrite(2).
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a file `size` bytes long, with a hole for what is new.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    fn set_len(&self, file: &File, size: u64) -> io::Result<()>;

    /// Makes `length` bytes at `offset` a hole again.
    ///
    /// # Errors
    /// Those of fallocate(2).
    fn punch(&self, file: &File, offset: u64, length: u64) -> io::Result<()>;

    /// Sets the modification time.
    ///
    /// # Errors
    /// Those of futimens(2).
    fn set_modified(&self, file: &File, time: SystemTime) -> io::Result<()>;

    /// Brings a file or directory to stable storage.
    ///
    /// # Errors
    /// Those of fsync(2).
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Gives a file another name, in place of whatever file had it.
    ///
    /// # Errors
    /// Those of rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes what has this name: a file, or whatever is in a file's place.
    ///
    /// # Errors
    /// Those of unlink(2).
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The room on the file system that holds `path`.
    ///
    /// # Errors
    /// Those of statvfs(3).
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user could still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, size: u64) -> io::Result<()> {
        file.set_len(size)
    }

    fn punch(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
        Ok(fallocate(file, flags, signed(offset)?, signed(length)?)?)
    }

    fn set_modified(&self, file: &File, time: SystemTime) -> io::Result<()> {
        file.set_modified(time)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
            result => result,
        }
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = statvfs(path)?;
        // The counts' types differ between platforms.
        #[allow(clippy::useless_conversion)]
        let bytes = |blocks| u64::from(blocks).saturating_mul(u64::from(found.fragment_size()));
        Ok(Space { free: bytes(found.blocks_available()), total: bytes(found.blocks()) })
    }
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// Opens a regular file: never through a symbolic link, and without waiting for whoever is at the
/// other end of a pipe or device that somebody has put in its place.
///
/// # Errors
/// Those of open(2), and `InvalidInput` for anything but a regular file.
pub fn open_regular(path: &Path, access: Access) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::Write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Whether `error` says that a file of ours is not what was put there: another kind of file, or one
/// that the disk cannot read. Anything else (no descriptors or memory left, no permission) says
/// nothing about the file, which may be read another time.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
    ) || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::EIO))
}

/// Whether `error` says that there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether `path` names a regular file.
pub fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// A file on its way: it has a name that nobody looks for until it is placed, and goes when it is
/// dropped before that.
pub struct Draft {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: File,
    length: u64,
}

impl Draft {
    /// An empty draft in `directory`.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn new(disk: &Arc<dyn Disk>, directory: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{}-{number}", std::process::id()));
        let file = disk.create(&path)?;
        Ok(Self { disk: disk.clone(), path, file, length: 0 })
    }

    /// Adds `bytes` at the end.
    ///
    /// # Errors
    /// Those of writing.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(&self.file, bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Adds a hole at the end.
    ///
    /// # Errors
    /// Those of changing a file's size.
    pub fn skip(&mut self, zeros: u64) -> io::Result<()> {
        self.disk.set_len(&self.file, self.length.saturating_add(zeros))?;
        self.length += zeros;
        Ok(())
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Brings the content to stable storage.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync(&self.file)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Those of rename(2); the draft goes.
    pub fn place(mut self, path: &Path) -> io::Result<()> {
        self.disk.rename(&self.path, path)?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What stays is removed when the cache is opened again.
            let _ = self.disk.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_under_its_own_name_opens() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "x").unwrap();
        fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for (name, opens) in
            [("file", true), ("directory", false), ("link", false), ("pipe", false), ("no", false)]
        {
            assert_eq!(open_regular(&at(name), Access::Read).is_ok(), opens, "{name}");
            assert_eq!(is_regular(&at(name)), opens, "{name}");
            assert_eq!(LocalDisk.remove(&at(name)).is_ok(), name != "no", "{name}");
            assert!(fs::symlink_metadata(at(name)).is_err(), "{name} is still there");
        }
    }

    #[test]
    fn a_draft_that_is_not_placed_goes() {
        let directory = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(LocalDisk);
        let mut draft = Draft::new(&disk, directory.path()).unwrap();
        draft.append(b"ab").unwrap();
        draft.skip(2).unwrap();
        draft.append(b"c").unwrap();
        let place = directory.path().join("place");
        draft.place(&place).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"ab\0\0c");
        drop(Draft::new(&disk, directory.path()).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
