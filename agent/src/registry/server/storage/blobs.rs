//! Blobs by digest, and which repository has them.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::super::digest::ContentDigest;
use super::super::name::Repository;
use super::{Storage, StorageError, durable};

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

    fn blob_link(&self, repository: &Repository, digest: &ContentDigest) -> PathBuf {
        self.repository_path(repository).join("_blobs").join(digest.file_name())
    }

    /// The blob, wherever it belongs; `None` if the registry has none such.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn any_blob(&self, digest: &ContentDigest) -> Result<Option<Blob>, StorageError> {
        let path = self.blob_path(digest);
        let opened = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok(Blob { file, size })
        });
        match opened {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("open", &path)(error)),
        }
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

    /// Gives `repository` the blob; says whether the registry has it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn link_blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<bool, StorageError> {
        let _change = self.change(repository);
        let link = self.blob_link(repository, digest);
        if !self.blob_path(digest).exists() {
            return Ok(false);
        }
        if !link.exists() {
            self.dirs.write_unsynced(&link, b"")?;
        }
        Ok(true)
    }

    /// Takes the blob from `repository`; says whether it had it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn unlink_blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<bool, StorageError> {
        let _change = self.change(repository);
        durable::remove(&self.blob_link(repository, digest))
    }

    /// Makes the names of `digests`, blobs of `repository`, last.
    pub(super) fn sync_blobs<'a>(
        &self,
        repository: &Repository,
        digests: impl Iterator<Item = &'a ContentDigest>,
    ) -> Result<(), StorageError> {
        let mut links = None;
        for digest in digests {
            durable::sync_parent(&self.blob_path(digest))?;
            links = Some(self.blob_link(repository, digest));
        }
        links.map_or(Ok(()), |link| durable::sync_parent(&link))
    }
}
