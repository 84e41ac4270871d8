//! A sweep: what a collector of garbage sees and may remove, while pushes go on.
//!
//! What it may remove is decided elsewhere; that nothing is removed which was given to a
//! repository meanwhile is seen to here (see [`Usage`](super::usage::Usage)).

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::super::digest::{Algorithm, ContentDigest};
use super::super::name::Repository;
use super::{Change, Storage, StorageError, durable};

/// The one sweep that is under way.
pub struct Sweep<'a>(&'a Storage);

/// Something with a name and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// What it is the name of.
    pub digest: ContentDigest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was made or last relied upon.
    pub modified: SystemTime,
}

impl Storage {
    /// Begins a sweep; `None` where one is under way.
    pub fn sweep(&self) -> Option<Sweep<'_>> {
        let begun = self.usage.begin();
        if begun {
            // Changes that began before say nothing of what they use. When each lock was free
            // once, they have ended, and what they made can be seen.
            for lock in &self.locks {
                drop(lock.lock());
            }
        }
        begun.then_some(Sweep(self))
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        self.0.usage.end();
    }
}

impl Sweep<'_> {
    /// The names of all repositories, also of those without a manifest.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
        self.0.find_repositories(|_| Ok(true))
    }

    /// Goes through all blobs, whatever repositories have them.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails, or what `visit` returns.
    pub fn each_blob<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(Aged) -> Result<(), E>,
    ) -> Result<(), E> {
        for algorithm in Algorithm::ALL {
            let directory = self.0.root.join("blobs").join(algorithm.name());
            for first in durable::list(&directory)? {
                let directory = directory.join(first);
                for hex in durable::list(&directory)? {
                    let digest = format!("{}:{hex}", algorithm.name()).parse();
                    let Ok(digest) = digest else { continue };
                    if let Some(blob) = aged(&directory.join(&hex), digest) {
                        visit(blob)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a blob that no repository had when the sweep looked at it; says whether it is
    /// gone: if it was used since then, it stays.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn remove_blob(&self, digest: &ContentDigest) -> Result<bool, StorageError> {
        let path = self.0.blob_path(digest);
        let removed = self.0.usage.unless_used(digest, || durable::remove_unsynced(&path));
        removed.unwrap_or(Ok(false))
    }

    /// Removes the records of indexes of layers other than `layers`, and gives the blobs that
    /// the other records name.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn keep_indexes_of(
        &self,
        layers: &HashSet<ContentDigest>,
        dry_run: bool,
    ) -> Result<Vec<ContentDigest>, StorageError> {
        let mut blobs = Vec::new();
        for record in self.0.index_records()? {
            if layers.contains(&record.layer.into()) {
                blobs.extend(record.blobs.into_iter().map(ContentDigest::from));
            } else if !dry_run {
                self.0.usage.unless_used(&record.layer.into(), || durable::remove(&record.path));
            }
        }
        Ok(blobs)
    }
}

impl Change<'_> {
    /// The blobs that the repository has; their times are those at which it was given them or
    /// somebody last relied on that.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn blobs(&self) -> Result<Vec<Aged>, StorageError> {
        self.list_aged("_blobs")
    }

    /// The manifests that the repository has; their times are those of the last push.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn manifests(&self) -> Result<Vec<Aged>, StorageError> {
        self.list_aged("_manifests")
    }

    fn list_aged(&self, kind: &str) -> Result<Vec<Aged>, StorageError> {
        let directory = self.storage.repository_path(self.repository).join(kind);
        let names = durable::list(&directory)?;
        let named = names.iter().filter_map(|name| {
            let digest = ContentDigest::from_file_name(name)?;
            aged(&directory.join(name), digest)
        });
        Ok(named.collect())
    }
}

/// `None` if the file has gone meanwhile.
fn aged(path: &Path, digest: ContentDigest) -> Option<Aged> {
    let metadata = fs::metadata(path).ok()?;
    Some(Aged { digest, size: metadata.len(), modified: metadata.modified().ok()? })
}
