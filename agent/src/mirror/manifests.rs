//! Manifests: a tag is asked of its registry each time, a digest of the store first.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use undermount_fs::digest::Digest;

use super::MirrorError;
use super::store::MirrorStore;
use crate::image::manifest::MAX_MANIFEST;
use crate::image::{Document, Reference};
use crate::registry::client::{Client, Fault, RegistryError};

/// How long a registry may take to tell what a tag means, before the answer of last time counts.
const PATIENCE: Duration = Duration::from_secs(15);

/// A manifest as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub bytes: Bytes,
    pub media_type: String,
    pub digest: Digest,
}

/// All manifests.
pub(super) struct Manifests {
    store: Arc<MirrorStore>,
    client: Client,
}

impl Manifests {
    pub(super) fn new(store: Arc<MirrorStore>, client: Client) -> Self {
        Self { store, client }
    }

    /// The manifest that `reference` means now; where its registry does not answer, the one that
    /// it meant last.
    pub(super) async fn find(&self, reference: &Reference) -> Result<Found, MirrorError> {
        let client = self.client.until(Instant::now() + PATIENCE);
        if let Some(digest) = reference.digest() {
            return match self.stored(*digest).await {
                Some(found) => Ok(found),
                None => self.fetch(&client, reference).await,
            };
        }
        match self.ask(&client, reference).await {
            Err(MirrorError::Registry(error)) if is_outage(&error) => {
                self.as_before(reference).await.ok_or(MirrorError::Registry(error))
            }
            answer => answer,
        }
    }

    /// What the registry says that a tag means.
    async fn ask(&self, client: &Client, reference: &Reference) -> Result<Found, MirrorError> {
        if let Some(descriptor) = client.resolve(reference).await?
            && let Some(found) = self.stored(descriptor.digest).await
        {
            self.note(reference, &found).await?;
            return Ok(found);
        }
        let found = self.fetch(client, reference).await?;
        self.note(reference, &found).await?;
        Ok(found)
    }

    async fn fetch(&self, client: &Client, reference: &Reference) -> Result<Found, MirrorError> {
        let raw = client.manifest(reference).await?;
        let found = Found { bytes: raw.bytes, media_type: raw.media_type, digest: raw.digest };
        let bytes = found.bytes.clone();
        self.on_store(move |store| store.put(&bytes)).await.transpose()?;
        Ok(found)
    }

    /// What a tag meant when it was asked for last.
    async fn as_before(&self, reference: &Reference) -> Option<Found> {
        let name = reference.to_string();
        let digest = self.on_store(move |store| store.tag(&name)).await??;
        let found = self.stored(digest).await?;
        tracing::warn!(%reference, manifest = %digest, "its registry does not answer: as before");
        Some(found)
    }

    async fn note(&self, reference: &Reference, found: &Found) -> Result<(), MirrorError> {
        let (name, digest) = (reference.to_string(), found.digest);
        self.on_store(move |store| store.put_tag(&name, &digest)).await.transpose()?;
        Ok(())
    }

    /// A manifest of the store. Its media type is not kept beside it: it tells it by itself.
    async fn stored(&self, digest: Digest) -> Option<Found> {
        let read = move |store: &MirrorStore| {
            let (mut file, size) = store.get(&digest)?;
            if size > MAX_MANIFEST as u64 {
                return None;
            }
            // It was hashed with its file just opened, and may have been read by that.
            std::io::Seek::rewind(&mut file).ok()?;
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        };
        let bytes: Bytes = self.on_store(read).await??.into();
        let document = Document::parse(&bytes, None).ok()?;
        // The file may have changed since it was hashed.
        let media_type = document.media_type().to_owned();
        (Digest::of(&bytes) == digest).then_some(Found { bytes, media_type, digest })
    }

    /// Works on the store where it may wait for the disk; `None` at a shutdown.
    async fn on_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&MirrorStore) -> T + Send + 'static,
    ) -> Option<T> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.ok()
    }
}

/// Whether the registry says nothing of use, rather than no.
fn is_outage(error: &RegistryError) -> bool {
    !matches!(error.fault, Fault::NotFound(_) | Fault::Unauthorized { .. } | Fault::NoCredentials)
}
