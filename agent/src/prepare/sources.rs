//! The images' sources, each asked once: what discovery has seen, the copy does not ask again,
//! and files that discovery has opened the copy does not open again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use undermount_fs::digest::Digest;

use super::copy::Files;
use crate::image::manifest::MAX_CONFIG;
use crate::image::{Descriptor, Document, ImageConfig, ManifestError, Platform, Reference};
use crate::registry::client::{Client, Fault, RawManifest, RegistryError, Subject};

/// Manifests of sources, by the name they were found under.
pub struct Sources {
    client: Client,
    platform: Platform,
    known: Mutex<HashMap<Reference, RawManifest>>,
    /// Configurations that were read, which the copy then need not download.
    configs: Mutex<HashMap<Digest, Bytes>>,
    files: Files,
}

impl Sources {
    /// Sources that `client` reaches, and files, which are unpacked below `scratch` where they
    /// have to be. Of an index the image for `platform` is taken.
    pub fn new(client: Client, platform: Platform, scratch: PathBuf) -> Self {
        let files = Files::new(scratch);
        Self { client, platform, known: Mutex::default(), configs: Mutex::default(), files }
    }

    /// Files of this host.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The client that asks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The platform whose image an index means.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The manifest or index that `reference` names.
    ///
    /// # Errors
    /// [`RegistryError`] where it cannot be had.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        if let Some(known) = self.recall(reference) {
            return Ok(known);
        }
        let manifest = self.client.manifest(reference).await?;
        self.remember(reference, &manifest);
        Ok(manifest)
    }

    /// The manifest of the image that `reference` means on our platform: itself, or a child.
    ///
    /// # Errors
    /// [`RegistryError`] where it cannot be had, or the index has nothing for the platform.
    pub async fn image(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        let named = self.manifest(reference).await?;
        let unusable = |error| unusable(reference, error);
        match named.document().map_err(unusable)? {
            Document::Manifest(_) => Ok(named),
            Document::Index(index) => {
                let child = index.select(&self.platform).map_err(unusable)?;
                self.manifest(&reference.pinned(child.digest)).await
            }
        }
    }

    /// The configuration of the image that `reference` means on our platform.
    ///
    /// # Errors
    /// [`RegistryError`] where it cannot be had, or is not that of an image.
    pub async fn config(&self, reference: &Reference) -> Result<ImageConfig, RegistryError> {
        let raw = self.image(reference).await?;
        let manifest = raw.document().and_then(Document::into_manifest);
        let manifest = manifest.map_err(|error| unusable(reference, error))?;
        let bytes = match self.known_config(&manifest.config.digest) {
            Some(bytes) => bytes,
            None => self.download_config(reference, &manifest.config).await?,
        };
        ImageConfig::parse(bytes).map_err(|error| unusable(reference, error))
    }

    async fn download_config(
        &self,
        reference: &Reference,
        config: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let limit = MAX_CONFIG as u64;
        let bytes = self.client.small_blob(reference.repository(), config, limit).await?;
        let bytes = bytes.into_bytes();
        let mut configs = self.configs.lock().expect("no panic while it is held");
        configs.insert(config.digest, bytes.clone());
        Ok(bytes)
    }

    /// The bytes of a configuration that was read.
    pub fn known_config(&self, digest: &Digest) -> Option<Bytes> {
        self.configs.lock().expect("no panic while it is held").get(digest).cloned()
    }

    /// Whether the source has the manifest that `reference` names. Where it is one that is known
    /// under another name, it is known under this one too from now on.
    ///
    /// # Errors
    /// [`RegistryError`] where that cannot be found out.
    pub async fn has(
        &self,
        reference: &Reference,
        like: &Reference,
    ) -> Result<bool, RegistryError> {
        if self.recall(reference).is_some() {
            return Ok(true);
        }
        let Some(found) = self.client.resolve(reference).await? else { return Ok(false) };
        if let Some(known) = self.recall(like).filter(|known| known.digest == found.digest) {
            self.remember(reference, &known);
        }
        Ok(true)
    }

    fn recall(&self, reference: &Reference) -> Option<RawManifest> {
        self.known.lock().expect("no panic while it is held").get(reference).cloned()
    }

    fn remember(&self, reference: &Reference, manifest: &RawManifest) {
        let mut known = self.known.lock().expect("no panic while it is held");
        known.insert(reference.clone(), manifest.clone());
    }
}

fn unusable(reference: &Reference, error: ManifestError) -> RegistryError {
    Fault::Manifest(error).of(&Subject::Manifest(reference.clone()))
}
