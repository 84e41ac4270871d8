//! The tree of the undercloud's Apache as a destination.

use std::path::Path;

use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Reference, Repository, referrers};
use crate::prepare::image_serve::ImageServe;
use crate::registry::client::RawManifest;

use super::super::blob_file::{Whole, discard_partial};
use super::super::layout::{FileBlob, Region};
use super::{Attachment, BlobRole, FoundBy, Opened, StoreError, Taken};

/// The tree below a directory.
pub struct TreeStore {
    tree: ImageServe,
    key: String,
    whole: Whole,
}

impl TreeStore {
    /// The tree below `root`.
    pub fn new(root: &Path) -> Self {
        let key = format!("image-serve:{}", root.display());
        Self { tree: ImageServe::new(root), key, whole: Whole::default() }
    }

    /// The tree itself.
    pub fn tree(&self) -> &ImageServe {
        &self.tree
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        self.tree.root()
    }

    pub(super) fn key(&self) -> String {
        self.key.clone()
    }

    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        role: BlobRole,
    ) -> bool {
        let path = self.tree.blob_path(repository, &blob.digest, role == BlobRole::Layer);
        self.whole.is_whole(&path, blob).await
    }

    pub(super) async fn take(
        &self,
        to: &Repository,
        blob: &Descriptor,
        role: BlobRole,
        neighbour: Option<&Repository>,
    ) -> Result<Taken, StoreError> {
        let place =
            |repository| self.tree.blob_path(repository, &blob.digest, role == BlobRole::Layer);
        let path = place(to);
        if self.whole.is_whole(&path, blob).await {
            discard_partial(&path);
            return Ok(Taken::Here);
        }
        if let Some(known) = neighbour.map(place)
            && known != path
            && self.whole.is_whole(&known, blob).await
        {
            self.tree.link(&known, &path)?;
            return Ok(Taken::Here);
        }
        Ok(Taken::Missing(Opened::File(path)))
    }

    pub(super) fn name(
        &self,
        reference: &Reference,
        variants: &[&RawManifest],
    ) -> Result<bool, StoreError> {
        let mut changed = false;
        for raw in variants {
            changed |= self.tree.put_manifest(reference.repository(), raw)?;
        }
        let named = self.tree.put_tag(reference.repository(), &reference.identifier(), variants)?;
        Ok(changed || named)
    }

    /// What names its subject is listed as a referrer. Our index gets a tag as well: that is
    /// where nodes look that ask an Apache which does not answer for referrers, and it keeps the
    /// original's `delete` from taking the artifact away. A list under the fallback tag would
    /// make that command fail.
    pub(super) fn attach(
        &self,
        to: &Repository,
        subject: &Digest,
        attachment: &Attachment,
    ) -> Result<bool, StoreError> {
        let Attachment { raw, descriptor, found_by } = attachment;
        let mut changed = self.tree.put_manifest(to, raw)?;
        let tag = match found_by {
            FoundBy::Tag(tag) => Some(tag.clone()),
            FoundBy::Subject(own_tag) => {
                changed |= self.tree.put_referrer(to, subject, descriptor)?;
                own_tag.clone()
            }
        };
        if let Some(tag) = tag {
            debug_assert!(referrers::is_reserved_tag(tag.as_str()), "{}", tag.as_str());
            changed |= self.tree.put_tag(to, tag.as_str(), &[raw])?;
        }
        Ok(changed)
    }

    pub(super) fn blob(&self, from: &Repository, blob: &Descriptor, role: BlobRole) -> FileBlob {
        let path = self.tree.blob_path(from, &blob.digest, role == BlobRole::Layer);
        FileBlob { region: Region { path, start: 0, length: blob.size }, digest: blob.digest }
    }
}
