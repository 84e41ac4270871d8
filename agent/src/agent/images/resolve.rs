//! What a name means: a manifest and a config, from the registry or from here.

use std::error::Error;
use std::time::{Duration, Instant};

use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{Piece, PieceRequest, Priority};

use super::{ImageError, ImageFault, Images};
use crate::image::{Descriptor, Document, ImageConfig, Manifest, ManifestError, Reference};
use crate::registry::client::{Fault, Image, RegistryError};

/// How long the registry may take to tell what a name means.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take where the last known answer can be used instead.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// An image whose manifest and config are known.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The name it was asked for by.
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: ImageConfig,
}

impl Images {
    /// What `reference` means: from the registry, or what it meant last where the registry cannot
    /// be reached.
    ///
    /// # Errors
    /// [`ImageError`] where the registry does not have it, or nobody knows.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        if let Some(digest) = reference.digest()
            && let Ok(Some(known)) = self.stored(reference, digest)
        {
            return Ok(known);
        }
        let known = self.cache.reference(reference);
        let timeout = if known.is_some() { KNOWN_TIMEOUT } else { RESOLVE_TIMEOUT };
        let client = self.client.until(Instant::now() + timeout);
        let elsewhere = |config| self.shared(reference, config);
        match client.image_beside(reference, &self.platform, elsewhere).await {
            Ok(image) => self.remember(reference, image).await,
            Err(error) => self.resolve_offline(reference, error),
        }
        .map_err(|fault| fault.of(reference))
    }

    /// A small blob of the image, where other nodes may have it.
    async fn shared(&self, reference: &Reference, blob: Descriptor) -> Option<Verified> {
        let source = self.filler.source();
        if !source.shares() {
            return None;
        }
        let request = PieceRequest {
            scope: reference.repository().scope(),
            pieces: vec![Piece { blob: blob.digest, range: 0..blob.size, digest: blob.digest }],
            priority: Priority::Demand,
            deadline: Instant::now() + KNOWN_TIMEOUT,
        };
        // Where nobody has it, the registry is asked in the ordinary way, and says why not.
        source.fetch(request).await.ok()?.into_iter().next()
    }

    /// Keeps manifest and config, and what the name means.
    async fn remember(&self, reference: &Reference, image: Image) -> Result<Resolved, ImageFault> {
        let resolved = self.keep_image(reference, image).await?;
        let (name, digest) = (reference.clone(), resolved.digest);
        let noted = self.on_disk(move |cache| cache.put_reference(&name, &digest)).await;
        if let Err(error) = noted {
            tracing::warn!(%reference, error = &error as &dyn Error, "cannot note what it means");
        }
        Ok(resolved)
    }

    /// Keeps manifest and config.
    async fn keep_image(
        &self,
        reference: &Reference,
        image: Image,
    ) -> Result<Resolved, ImageFault> {
        let Image { raw, manifest, config, .. } = image;
        self.keep("a manifest", raw.bytes).await?;
        self.keep("a config", config.raw.clone()).await?;
        Ok(Resolved { reference: reference.clone(), digest: raw.digest, manifest, config })
    }

    /// The image that `reference` meant with this manifest: from here, or once more from the
    /// registry.
    ///
    /// # Errors
    /// [`ImageError`] where the registry does not have it, or cannot be reached.
    pub async fn restore(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<Resolved, ImageError> {
        if let Ok(Some(known)) = self.stored(reference, manifest) {
            return Ok(known);
        }
        let client = self.client.until(Instant::now() + RESOLVE_TIMEOUT);
        let pinned = reference.pinned(*manifest);
        let image = client
            .image(&pinned, &self.platform)
            .await
            .map_err(|error| ImageFault::Registry(Box::new(error)).of(reference))?;
        self.keep_image(reference, image).await.map_err(|fault| fault.of(reference))
    }

    /// What `reference` meant last, if `failure` says that the registry cannot tell.
    fn resolve_offline(
        &self,
        reference: &Reference,
        failure: RegistryError,
    ) -> Result<Resolved, ImageFault> {
        let known = self.cache.reference(reference).filter(|_| is_outage(&failure));
        let stored = match known {
            Some(record) => self.stored(reference, &record.manifest)?,
            None => None,
        };
        let stored = stored.ok_or_else(|| ImageFault::Registry(Box::new(failure)))?;
        tracing::warn!(%reference, manifest = %stored.digest,
            "registry unreachable: using what the name meant last");
        Ok(stored)
    }

    /// The image with this manifest, if manifest and config are here.
    pub(super) fn stored(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<Resolved>, ManifestError> {
        let Some(manifest) = self.blobs().get(digest) else { return Ok(None) };
        let manifest = match Document::parse(manifest.bytes(), None)? {
            Document::Manifest(manifest) => *manifest,
            // A pinned index: the registry chooses again.
            Document::Index(_) => return Ok(None),
        };
        let Some(config) = self.blobs().get(&manifest.config.digest) else { return Ok(None) };
        let config = ImageConfig::parse(config.into_bytes())?;
        Ok(Some(Resolved { reference: reference.clone(), digest: *digest, manifest, config }))
    }
}

/// Whether the registry could not be asked, as opposed to having said no.
fn is_outage(error: &RegistryError) -> bool {
    error.fault.is_transient() || matches!(error.fault, Fault::Deadline(_))
}
