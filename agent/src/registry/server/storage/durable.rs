//! Files and directories that survive a power cut once a call returned.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::StorageError;

/// Writes files by way of a directory for temporary ones on the same file system.
#[derive(Debug)]
pub struct Dirs {
    temporary: PathBuf,
    next: AtomicU64,
}

impl Dirs {
    /// Temporary files go to `temporary`, which nobody else writes to.
    pub fn new(temporary: PathBuf) -> Self {
        Self { temporary, next: AtomicU64::new(0) }
    }

    /// The directory for what is not finished.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the directory `path` and those above it.
    pub fn ensure(&self, path: &Path) -> Result<(), StorageError> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(path);
        if parent != path {
            self.ensure(parent)?;
        }
        match fs::create_dir(path) {
            Ok(()) => sync_dir(parent),
            // Another thread was faster, and syncs or will sync the parent as well.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync_dir(parent),
            Err(error) => Err(StorageError::io("make", path)(error)),
        }
    }

    /// Puts `content` at `path`, whole or not at all, and makes it last.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        self.write_unsynced(path, content)?;
        sync_parent(path)
    }

    /// Puts `content` at `path`, whole or not at all. The name lasts once the directory was
    /// synced.
    pub fn write_unsynced(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        if let Some(parent) = path.parent() {
            self.ensure(parent)?;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = self.temporary.join(format!("{number}.tmp"));
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            if content.is_empty() { Ok(()) } else { file.sync_data() }
        })();
        written
            .map_err(StorageError::io("write", &temporary))
            .and_then(|()| rename(&temporary, path))
            .inspect_err(|_| {
                // The error that is returned says more; what is left is cleared at start.
                let _ = fs::remove_file(&temporary);
            })
    }
}

/// Gives the file at `from`, whose content was synced, its final name.
pub fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::rename(from, to).map_err(StorageError::io("make", to))
}

/// Makes the names in the directory that holds `path` last.
pub fn sync_parent(path: &Path) -> Result<(), StorageError> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in `dir` last.
pub fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(StorageError::io("sync", dir))
}

/// Removes a file; says whether it was there.
pub fn remove(path: &Path) -> Result<bool, StorageError> {
    let removed = remove_unsynced(path)?;
    if removed {
        sync_parent(path)?;
    }
    Ok(removed)
}

/// Removes a file, which may be back after a power cut; says whether it was there.
pub fn remove_unsynced(path: &Path) -> Result<bool, StorageError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StorageError::io("remove", path)(error)),
    }
}

/// The content of a file, `None` if there is none.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("read", path)(error)),
    }
}

/// The names in a directory, none if it does not exist. Names that are not UTF-8 are not ours.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn list(dir: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io("list", dir)(error)),
    };
    let names = entries.filter_map(|entry| match entry {
        Ok(entry) => entry.file_name().into_string().ok().map(Ok),
        Err(error) => Some(Err(error)),
    });
    names.collect::<io::Result<_>>().map_err(StorageError::io("list", dir))
}
