//! Blobs by digest, and which repository has them.

use std::fs::{File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::digest::ContentDigest;
use super::super::name::Repository;
use super::{Change, Storage, StorageError, durable};

/// A link that was used less than this ago need not be marked as used again.
const MARK_INTERVAL: Duration = Duration::from_secs(60);

/// A blob, opened.
#[derive(Debug)]
pub struct Blob {
    /// Its bytes; the file is complete and never changes.
    pub file: File,
    /// How many they are.
    pub size: u64,
}

impl Storage {
    pub(super) fn blob_path(&self, digest: &ContentDigest) -> PathBuf {
        let hex = digest.hex();
        let first = hex.get(..2).unwrap_or(hex);
        self.root.join("blobs").join(digest.algorithm().name()).join(first).join(hex)
    }

    pub(super) fn blob_link(&self, repository: &Repository, digest: &ContentDigest) -> PathBuf {
        self.repository_path(repository).join("_blobs").join(digest.file_name())
    }

    /// The blob, wherever it belongs; `None` if the registry has none such.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn any_blob(&self, digest: &ContentDigest) -> Result<Option<Blob>, StorageError> {
        open_blob(&self.blob_path(digest))
    }

    /// The blob, if `repository` has it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<Option<Blob>, StorageError> {
        if !self.blob_link(repository, digest).exists() {
            return Ok(None);
        }
        self.any_blob(digest)
    }

    /// Marks that somebody relies on `repository` having the blob, such as a client that will
    /// not push it again: for a while it is then not taken for garbage.
    pub fn mark_blob(&self, repository: &Repository, digest: &ContentDigest) {
        mark(&self.blob_link(repository, digest));
    }
}

impl Change<'_> {
    /// Gives the repository the blob; says whether the registry has it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn link_blob(&self, digest: &ContentDigest) -> Result<bool, StorageError> {
        self.storage.usage.note(digest);
        if !self.storage.blob_path(digest).exists() {
            return Ok(false);
        }
        let link = self.storage.blob_link(self.repository, digest);
        if link.exists() {
            mark(&link);
        } else {
            self.storage.dirs.write_unsynced(&link, b"")?;
        }
        Ok(true)
    }

    /// Takes the blob from the repository; says whether it had it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn unlink_blob(&self, digest: &ContentDigest) -> Result<bool, StorageError> {
        durable::remove(&self.storage.blob_link(self.repository, digest))
    }

    /// Makes the names of `blobs`, as far as the repository has them, last.
    pub(super) fn sync_blobs(&self, blobs: &[ContentDigest]) -> Result<(), StorageError> {
        let mut links = None;
        for digest in blobs {
            let link = self.storage.blob_link(self.repository, digest);
            if link.exists() {
                durable::sync_parent(&self.storage.blob_path(digest))?;
                links = Some(link);
            }
        }
        links.map_or(Ok(()), |link| durable::sync_parent(&link))
    }
}

/// The blob in the file at `path`; `None` if there is none.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn open_blob(path: &Path) -> Result<Option<Blob>, StorageError> {
    let opened = File::open(path).and_then(|file| {
        let size = file.metadata()?.len();
        Ok(Blob { file, size })
    });
    match opened {
        Ok(blob) => Ok(Some(blob)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("open", path)(error)),
    }
}

/// Gives the link a new time, if its own is old. One that has just gone needs none.
fn mark(link: &Path) {
    let now = SystemTime::now();
    let Ok(file) = File::options().write(true).open(link) else { return };
    let age = file.metadata().and_then(|metadata| metadata.modified());
    let is_recent =
        age.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age < MARK_INTERVAL));
    if !is_recent {
        // A mark that cannot be made only shortens the time that the blob is kept.
        let _ = file.set_times(FileTimes::new().set_modified(now));
    }
}
