//! A registry as a destination.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Reference, Repository};
use crate::registry::client::{
    BlobSource, Client, Fault, Listener, Mount, RawManifest, RegistryError, RemoteBlob, Upload,
};

use super::super::annotated;
use super::{Attachment, FoundBy, Opened, StoreError, Taken};

/// All registries that a client reaches.
pub struct RegistryStore {
    client: Client,
    /// Whether a registry had no repository at all when it was first asked.
    empty: Mutex<HashMap<String, Arc<OnceCell<bool>>>>,
}

impl RegistryStore {
    /// The registries that `client` reaches.
    pub fn new(client: Client) -> Self {
        Self { client, empty: Mutex::default() }
    }

    pub(super) async fn shows_annotated(
        &self,
        reference: &Reference,
        original: &Digest,
    ) -> Result<bool, StoreError> {
        if self.was_empty(reference).await || self.client.resolve(reference).await?.is_none() {
            return Ok(false);
        }
        let shown = self.client.manifest(reference).await?;
        let repository = reference.repository();
        Ok(annotated::is_of(&shown, original) && self.is_indexed(repository, &shown.digest).await?)
    }

    /// A registry that was empty when the run began has nothing but what the run has brought, and
    /// that is brought once: it is not asked image by image.
    pub(super) async fn has(
        &self,
        reference: &Reference,
        named: &RawManifest,
    ) -> Result<bool, StoreError> {
        if self.was_empty(reference).await {
            return Ok(false);
        }
        let present = self.client.resolve(reference).await?;
        Ok(present.is_some_and(|present| present.digest == named.digest))
    }

    /// Whether the registry of `reference` had nothing, this image included: a catalog may be
    /// empty for those who are not shown it.
    async fn was_empty(&self, reference: &Reference) -> bool {
        let host = reference.repository().host();
        let cell = {
            let mut empty = self.empty.lock().expect("no panic while it is held");
            Arc::clone(empty.entry(host.to_owned()).or_default())
        };
        let ask = || async {
            let absent = self.client.resolve(reference).await.is_ok_and(|found| found.is_none());
            absent && self.client.is_empty(host).await.unwrap_or(false)
        };
        *cell.get_or_init(ask).await
    }

    pub(super) async fn is_indexed(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(!self.client.index_artifacts(repository, digest).await?.is_empty())
    }

    pub(super) async fn has_attachment(
        &self,
        repository: &Repository,
        attachment: &Attachment,
    ) -> Result<bool, StoreError> {
        let reference = match &attachment.found_by {
            FoundBy::Tag(tag) => repository.tagged(tag.clone()),
            FoundBy::Subject(_) => repository.at(attachment.raw.digest),
        };
        self.has(&reference, &attachment.raw).await
    }

    pub(super) async fn has_blob(&self, repository: &Repository, blob: &Descriptor) -> bool {
        self.client.blob_exists(repository, &blob.digest).await.unwrap_or(false)
    }

    /// Mounting a blob from its own repository asks in one request whether it is there and
    /// opens an upload if it is not.
    pub(super) async fn take(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        neighbour: Option<&Repository>,
    ) -> Result<Taken, StoreError> {
        let neighbour = neighbour.unwrap_or(repository);
        match self.client.mount(repository, &blob.digest, neighbour).await {
            Ok(Mount::Mounted) => Ok(Taken::Here),
            Ok(Mount::Opened(upload)) => Ok(Taken::Missing(Opened::Upload(Some(upload)))),
            // Not every registry mounts; then the long way is the only one.
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => {
                match self.client.blob_exists(repository, &blob.digest).await? {
                    true => Ok(Taken::Here),
                    false => Ok(Taken::Missing(Opened::Upload(None))),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn receive(
        &self,
        repository: &Repository,
        upload: Option<Upload>,
        blob: &Descriptor,
        source: &dyn BlobSource,
        listener: Option<Listener>,
    ) -> Result<(), StoreError> {
        Ok(self.client.copy_blob(blob, source, repository, upload, listener).await?)
    }

    pub(super) async fn put(
        &self,
        reference: &Reference,
        raw: &RawManifest,
    ) -> Result<bool, StoreError> {
        self.client.put_manifest(reference, &raw.media_type, &raw.bytes).await?;
        Ok(true)
    }

    pub(super) async fn attach(
        &self,
        repository: &Repository,
        subject: &Digest,
        attachment: &Attachment,
    ) -> Result<(), StoreError> {
        let Attachment { raw, descriptor, found_by } = attachment;
        match found_by {
            FoundBy::Tag(tag) => {
                self.put(&repository.tagged(tag.clone()), raw).await?;
            }
            FoundBy::Subject(own_tag) => {
                let tag = own_tag.clone();
                let manifest = &raw.bytes;
                self.client.attach_manifest(repository, subject, descriptor, manifest, tag).await?;
            }
        }
        Ok(())
    }

    pub(super) fn blob(&self, repository: &Repository, blob: &Descriptor) -> RemoteBlob {
        RemoteBlob::new(&self.client, repository, blob)
    }
}
