//! What a registry reads from: its own directory, or the tree of an Apache that it stands in
//! for. Both are asked the same questions, where they may block.

use super::digest::ContentDigest;
use super::name::Repository;
use super::storage::{Blob, Storage, StorageError, StoredManifest};
use super::target::Reference;

/// Repositories to pull from. Every method fails with [`StorageError`] where the disk does, or
/// where what it holds is damaged.
pub trait Library: Send + Sync {
    /// The names of all repositories, unsorted.
    fn repositories(&self) -> Result<Vec<Repository>, StorageError>;

    /// The tags of a repository, unsorted; `None` if there is no such repository.
    fn tags(&self, repository: &Repository) -> Result<Option<Vec<String>>, StorageError>;

    /// The manifest that `reference` stands for; where a tag stands for several, the first that
    /// `accept` (the header, or "") names, else the first.
    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &str,
    ) -> Result<Option<StoredManifest>, StorageError>;

    /// The blob, if the repository has it.
    fn blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<Option<Blob>, StorageError>;

    /// The descriptors, as JSON, of the manifests that have `subject` as their subject; ordered
    /// by digest.
    fn referrers(
        &self,
        repository: &Repository,
        subject: &ContentDigest,
    ) -> Result<Vec<Vec<u8>>, StorageError>;

    /// Notes that somebody relies on the repository having the blob.
    fn mark_blob(&self, _repository: &Repository, _digest: &ContentDigest) {}
}

impl Library for Storage {
    fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
        Self::repositories(self)
    }

    fn tags(&self, repository: &Repository) -> Result<Option<Vec<String>>, StorageError> {
        Self::tags(self, repository)
    }

    /// Accept is not consulted: a tag stands for one manifest, and a client that cannot read it
    /// would be helped by nothing else that could be sent.
    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        _accept: &str,
    ) -> Result<Option<StoredManifest>, StorageError> {
        Self::manifest(self, repository, reference)
    }

    fn blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<Option<Blob>, StorageError> {
        Self::blob(self, repository, digest)
    }

    fn referrers(
        &self,
        repository: &Repository,
        subject: &ContentDigest,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        Self::referrers(self, repository, subject)
    }

    fn mark_blob(&self, repository: &Repository, digest: &ContentDigest) {
        Self::mark_blob(self, repository, digest);
    }
}
