//! Where copies go: a registry, the tree of the undercloud's Apache, an OCI layout or an
//! archive of one. All keep one contract:
//!
//! - a blob is taken if the store has it, or has it elsewhere and can share it; else it is
//!   received, and is there only when whole and hashed;
//! - manifests come after their blobs, by digest; names after manifests;
//! - what belongs to an image is attached before the image gets its name.

mod archive;
mod directory;
mod registry;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;

use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Reference, Repository, Tag};
use crate::registry::client::{BlobSource, Listener, RawManifest, RegistryError, Upload};

use super::blob_file::{BlobFileError, sync};
use super::layout::LayoutError;
use crate::prepare::image_serve::ImageServeError;

pub use archive::ArchiveStore;
pub use directory::DirectoryStore;
pub use registry::RegistryStore;
pub use tree::TreeStore;

/// Why a destination does not take something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A registry failed, as source or as destination.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] BlobFileError),
    /// The tree could not be written.
    #[error(transparent)]
    ImageServe(#[from] ImageServeError),
    /// A layout that is there cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Somebody else writes the same archive.
    #[error("another process writes {}", .0.display())]
    Busy(PathBuf),
}

/// A destination.
pub enum Store {
    /// A registry.
    Registry(RegistryStore),
    /// The tree of the undercloud's Apache.
    Tree(TreeStore),
    /// An OCI image layout.
    Directory(DirectoryStore),
    /// An OCI image layout in one tar file.
    Archive(ArchiveStore),
}

/// Where in a store an image goes.
#[derive(Clone)]
pub struct Spot {
    /// The store.
    pub store: Arc<Store>,
    /// The image's name there; in files its registry means nothing.
    pub reference: Reference,
    /// The whole name, where the store keeps names and not tags.
    pub name: String,
}

/// What a blob is, for stores that keep layers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobRole {
    /// A layer of an image.
    Layer,
    /// Anything else.
    Other,
}

/// The answer to [`Spot::take`].
pub enum Taken {
    /// The store has it at this spot now.
    Here,
    /// It has to be received.
    Missing(Opened),
}

/// Where a blob is to be received.
pub enum Opened {
    /// Through this upload of a registry, or a new one.
    Upload(Option<Upload>),
    /// Into this file.
    File(PathBuf),
    /// At the end of an archive.
    Append,
}

/// How a manifest that belongs to another is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundBy {
    /// It names its subject. The tag is for registries that do not list by subject.
    Subject(Option<Tag>),
    /// Its tag, made of the subject's digest (cosign).
    Tag(Tag),
}

/// A manifest that belongs to another.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The manifest.
    pub raw: RawManifest,
    /// What lists of referrers say of it.
    pub descriptor: Descriptor,
    /// How it is found.
    pub found_by: FoundBy,
}

impl Store {
    /// Names the store: blobs of spots with the same key can be shared.
    pub fn key(&self, repository: &Repository) -> String {
        match self {
            Self::Registry(_) => repository.host().to_owned(),
            Self::Tree(store) => store.key(),
            Self::Directory(store) => store.key(),
            Self::Archive(store) => store.key(),
        }
    }

    /// Whether `repository` has the blob, as far as the store can tell.
    pub async fn has_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        role: BlobRole,
    ) -> bool {
        match self {
            Self::Registry(store) => store.has_blob(repository, blob).await,
            Self::Tree(store) => store.has_blob(repository, blob, role).await,
            // These have one place for all.
            Self::Directory(_) | Self::Archive(_) => false,
        }
    }

    /// Makes what was written last, and sees to it that what is there stays over a loss of power;
    /// `whole` says whether all images arrived.
    ///
    /// # Errors
    /// [`StoreError`] where that fails.
    pub async fn finish(&self, whole: bool) -> Result<(), StoreError> {
        match self {
            Self::Archive(store) if whole => store.finish().await,
            Self::Archive(_) | Self::Registry(_) => Ok(()),
            Self::Tree(store) => Ok(sync(store.root()).await?),
            Self::Directory(store) => Ok(sync(store.root()).await?),
        }
    }
}

impl Spot {
    /// The image's repository.
    pub fn repository(&self) -> &Repository {
        self.reference.repository()
    }

    /// Whether the image is there under its name, just as `named`. Stores of files are asked
    /// blob by blob instead, since files can be damaged.
    ///
    /// # Errors
    /// [`StoreError`] where that cannot be found out.
    pub async fn has(&self, named: &RawManifest) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.has(&self.reference, named).await,
            _ => Ok(false),
        }
    }

    /// Whether the name means a manifest with annotations that was made of `original`. Stores of
    /// files are asked file by file.
    ///
    /// # Errors
    /// [`StoreError`] where that cannot be found out.
    pub async fn shows_annotated(&self, original: &Digest) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.shows_annotated(&self.reference, original).await,
            _ => Ok(false),
        }
    }

    /// Whether the image `digest`, which is there, has an index. Stores of files are asked file
    /// by file.
    ///
    /// # Errors
    /// [`StoreError`] where that cannot be found out.
    pub async fn is_indexed(&self, digest: &Digest) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.is_indexed(self.repository(), digest).await,
            _ => Ok(false),
        }
    }

    /// Whether what belongs to an image is there.
    ///
    /// # Errors
    /// [`StoreError`] where that cannot be found out.
    pub async fn has_attachment(&self, attachment: &Attachment) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.has_attachment(self.repository(), attachment).await,
            _ => Ok(false),
        }
    }

    /// Takes `blob` from what the store has, perhaps in the repository `neighbour`.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
    pub async fn take(
        &self,
        blob: &Descriptor,
        role: BlobRole,
        neighbour: Option<&Repository>,
    ) -> Result<Taken, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.take(self.repository(), blob, neighbour).await,
            Store::Tree(store) => store.take(self.repository(), blob, role, neighbour).await,
            Store::Directory(store) => Ok(store.take(blob).await),
            Store::Archive(store) => Ok(store.take(blob).await),
        }
    }

    /// Receives `blob` from `source`; `listener` hears all of its bytes.
    ///
    /// # Errors
    /// [`StoreError`] where either fails, or the bytes are others.
    pub async fn receive(
        &self,
        opened: Opened,
        blob: &Descriptor,
        source: &dyn BlobSource,
        listener: Option<Listener>,
    ) -> Result<(), StoreError> {
        match (&*self.store, opened) {
            (Store::Registry(store), Opened::Upload(upload)) => {
                store.receive(self.repository(), upload, blob, source, listener).await
            }
            (Store::Registry(store), _) => {
                store.receive(self.repository(), None, blob, source, listener).await
            }
            (Store::Archive(store), _) => store.receive(blob, source, listener).await,
            (_, Opened::File(path)) => {
                Ok(super::blob_file::bring(&path, blob, source, listener).await?)
            }
            (Store::Tree(_) | Store::Directory(_), _) => {
                unreachable!("stores of files open files")
            }
        }
    }

    /// Puts a manifest by its digest; whether it was not there.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
    pub async fn put(&self, raw: &RawManifest) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.put(&self.repository().at(raw.digest), raw).await,
            Store::Tree(store) => Ok(store.tree().put_manifest(self.repository(), raw)?),
            Store::Directory(store) => store.put(raw).await,
            Store::Archive(store) => store.put(raw).await,
        }
    }

    /// Gives the image its name: `named`, whose children are there; `common` is what clients
    /// get that know no lists. Whether the name meant something else.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
    pub async fn name(
        &self,
        named: &RawManifest,
        common: Option<&RawManifest>,
    ) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => store.put(&self.reference, named).await,
            Store::Tree(store) => {
                let variants: Vec<_> = std::iter::once(named).chain(common).collect();
                store.name(&self.reference, &variants)
            }
            Store::Directory(store) => store.name(&self.name, named).await,
            Store::Archive(store) => store.name(&self.name, named).await,
        }
    }

    /// Attaches what belongs to `subject` and whose blobs are there; whether it was not there.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
    pub async fn attach(
        &self,
        subject: &Digest,
        attachment: &Attachment,
    ) -> Result<bool, StoreError> {
        match &*self.store {
            Store::Registry(store) => {
                store.attach(self.repository(), subject, attachment).await?;
                Ok(true)
            }
            Store::Tree(store) => store.attach(self.repository(), subject, attachment),
            Store::Directory(store) => store.attach(&self.sibling(attachment), attachment).await,
            Store::Archive(store) => store.attach(&self.sibling(attachment), attachment).await,
        }
    }

    /// The name under which a layout keeps an attachment: none where its subject tells.
    fn sibling(&self, attachment: &Attachment) -> Option<String> {
        match &attachment.found_by {
            FoundBy::Subject(_) => None,
            FoundBy::Tag(tag) => {
                let bare =
                    self.name.strip_suffix(&self.reference.identifier()).unwrap_or(&self.name);
                Some(format!("{}:{}", bare.trim_end_matches([':', '@']), tag.as_str()))
            }
        }
    }

    /// A blob that is there.
    ///
    /// # Errors
    /// [`StoreError`] where it is not.
    pub fn blob(
        &self,
        blob: &Descriptor,
        role: BlobRole,
    ) -> Result<Box<dyn BlobSource>, StoreError> {
        match &*self.store {
            Store::Registry(store) => Ok(Box::new(store.blob(self.repository(), blob))),
            Store::Tree(store) => Ok(Box::new(store.blob(self.repository(), blob, role))),
            Store::Directory(store) => Ok(Box::new(store.blob(blob))),
            Store::Archive(store) => Ok(Box::new(store.blob(blob)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn regression_what_was_written_to_files_is_on_the_disk_before_a_copy_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let stores = |root: &std::path::Path| {
            [Store::Tree(TreeStore::new(root)), Store::Directory(DirectoryStore::new(root))]
        };
        for whole in [true, false] {
            for store in stores(directory.path()) {
                store.finish(whole).await.unwrap();
            }
            for store in stores(&directory.path().join("nothing written")) {
                store.finish(whole).await.unwrap();
            }
        }
        // No disk can be made to fail here; a directory that leads to itself cannot be synced either.
        let circle = directory.path().join("v2");
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        let [tree, layout] =
            [stores(directory.path()).into_iter().next(), stores(&circle).into_iter().nth(1)];
        for store in [tree, layout].into_iter().flatten() {
            let error = store.finish(true).await.unwrap_err();
            assert!(matches!(error, StoreError::File(BlobFileError::Write { .. })), "{error}");
        }
    }
}
