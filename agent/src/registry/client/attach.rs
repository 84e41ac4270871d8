//! Index artifacts in a registry: attached to their image, and found again.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::digest::{Digest, Verified};

use crate::image::artifact::pack::{self, PackEntry};
use crate::image::artifact::{self, Artifact, ArtifactError, LayerEntry, MAX_TREE};
use crate::image::{Descriptor, Reference, Repository, Tag, media_type, referrers};

use super::error::{Fault, Message, RegistryError, Subject};
use super::upload::Listed;
use super::{Client, RawManifest};

/// Blobs of an artifact that are pushed side by side.
const SIDE_BY_SIDE: usize = 4;
/// How often the fallback index is written when others write it too.
const FALLBACK_ROUNDS: usize = 5;

/// An index artifact that was found.
#[derive(Debug, Clone)]
pub struct FoundArtifact {
    /// The digest of the artifact's manifest.
    pub digest: Digest,
    /// The manifest's bytes.
    pub raw: RawManifest,
    /// Where the index of each layer is.
    pub layers: Vec<LayerEntry>,
    /// Where contents lie that are worth fetching together.
    pub packs: Vec<PackEntry>,
}

impl Client {
    /// Pushes `artifact` to `repository`, which has its subject, in such a way that
    /// [`Self::index_artifacts`] finds it: listed by the registry, or else under a tag of its
    /// own and in the fallback index.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn attach(
        &self,
        repository: &Repository,
        artifact: &Artifact,
    ) -> Result<(), RegistryError> {
        // Owned, since a future that borrows from an iterator's item cannot be spawned.
        iter(artifact.blobs.clone())
            .map(|(blob, bytes)| async move {
                if !self.blob_exists(repository, &blob.digest).await? {
                    self.push_blob(repository, &bytes).await?;
                }
                Ok::<_, RegistryError>(())
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect::<()>()
            .await?;
        let Artifact { subject, descriptor, manifest, .. } = artifact;
        let own_tag = referrers::own_tag(subject);
        self.attach_manifest(repository, subject, descriptor, manifest, Some(own_tag)).await
    }

    /// Puts `manifest`, which `descriptor` names and whose blobs are in `repository`, so that
    /// whoever looks for what belongs to `subject` finds it: listed by the registry, or else
    /// under `own_tag` and in the fallback index.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn attach_manifest(
        &self,
        repository: &Repository,
        subject: &Digest,
        descriptor: &Descriptor,
        manifest: &Bytes,
        own_tag: Option<Tag>,
    ) -> Result<(), RegistryError> {
        let put = |reference: Reference| async move {
            self.put_manifest(&reference, &descriptor.media_type, manifest).await
        };
        let about = Subject::Referrers(repository.clone(), *subject);
        let endpoint = self.endpoint(&self.home(repository, &about)?);
        let knows_referrers = !endpoint.without_referrers.load(Ordering::Relaxed);
        if knows_referrers || own_tag.is_none() {
            let listed = put(repository.at(descriptor.digest)).await?;
            if listed == Listed::ByRegistry {
                return Ok(());
            }
        }
        if let Some(tag) = own_tag {
            put(repository.tagged(tag)).await?;
        }
        let _writing = endpoint.fallback.lock().await;
        self.list_in_fallback(repository, subject, descriptor).await
    }

    /// Writes the fallback index and reads it again until the manifest is in it: registries
    /// ignore conditions on a PUT, so another writer's update may undo ours.
    async fn list_in_fallback(
        &self,
        repository: &Repository,
        subject: &Digest,
        descriptor: &Descriptor,
    ) -> Result<(), RegistryError> {
        let tag = repository.tagged(referrers::fallback_tag(subject));
        let subject = Subject::Manifest(tag.clone());
        for _ in 0..FALLBACK_ROUNDS {
            let existing = match self.manifest(&tag).await {
                Ok(raw) => Some(raw.bytes),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            let updated = referrers::list_in_fallback(existing.as_deref(), descriptor)
                .map_err(|error| Fault::Manifest(error).of(&subject))?;
            match updated {
                None => return Ok(()),
                Some(index) => {
                    self.put_manifest(&tag, media_type::OCI_INDEX, &index.into()).await?
                }
            };
        }
        Err(Fault::Protocol("others keep overwriting the list".into()).of(&subject))
    }

    /// The index artifacts of the image manifest `subject`: as a rule none or one. Those that
    /// cannot be used are left out, with a warning.
    ///
    /// # Errors
    /// [`RegistryError`] where that cannot be found out.
    pub async fn index_artifacts(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<FoundArtifact>, RegistryError> {
        let kind = Some(media_type::UNDERMOUNT_INDEX);
        let mut found = Vec::new();
        match self.api_referrers(repository, subject, kind).await? {
            Some(listed) => {
                for entry in listed {
                    found.extend(self.read_artifact(&repository.at(entry.digest), subject).await?);
                }
            }
            None => {
                let own = repository.tagged(referrers::own_tag(subject));
                found.extend(self.read_artifact(&own, subject).await?);
                if found.is_empty() {
                    for entry in self.fallback_referrers(repository, subject, kind).await? {
                        let reference = repository.at(entry.digest);
                        found.extend(self.read_artifact(&reference, subject).await?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The tree of one layer of an artifact, fetched, unpacked and verified.
    ///
    /// # Errors
    /// [`RegistryError`] where it is missing, damaged or not what the artifact names.
    pub async fn tree(
        &self,
        repository: &Repository,
        entry: &LayerEntry,
    ) -> Result<Verified, RegistryError> {
        let blob = self.small_blob(repository, &entry.tree_blob, MAX_TREE).await?;
        entry.unpack_tree(blob.bytes()).map_err(|error: ArtifactError| {
            let subject = Subject::Blob(repository.clone(), entry.tree_blob.digest);
            Fault::Unusable(Message(error.to_string())).of(&subject)
        })
    }

    async fn read_artifact(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Option<FoundArtifact>, RegistryError> {
        let raw = match self.manifest(reference).await {
            Ok(raw) => raw,
            // Lists outlive what they list.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(RegistryError { fault: Fault::Manifest(error), .. }) => {
                tracing::warn!(%reference, %error, "unusable index artifact");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match artifact::parse(&raw.bytes, subject) {
            Ok(layers) => {
                let packs = pack::packs(&raw.bytes);
                Ok(Some(FoundArtifact { digest: raw.digest, raw, layers, packs }))
            }
            Err(error) => {
                tracing::warn!(%reference, %error, "unusable index artifact");
                Ok(None)
            }
        }
    }

    /// Adds `pack`, whose blob `repository` has, to the index artifact of the image manifest
    /// `subject`, in the place of another one for the same purpose. `false` where the image has no
    /// index artifact.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn attach_pack(
        &self,
        repository: &Repository,
        subject: &Digest,
        pack: PackEntry,
    ) -> Result<bool, RegistryError> {
        let found = self.index_artifacts(repository, subject).await?;
        let Some(before) = found.first() else { return Ok(false) };
        let (descriptor, manifest) =
            pack::with_pack(&before.raw.bytes, subject, pack).map_err(|error| {
                let subject = Subject::Manifest(repository.at(before.digest));
                Fault::Unusable(Message(error.to_string())).of(&subject)
            })?;
        let after = descriptor.digest;
        let blobs = Vec::new();
        self.attach(repository, &Artifact { subject: *subject, descriptor, manifest, blobs })
            .await?;
        for outdated in found.iter().filter(|artifact| artifact.digest != after) {
            if let Err(error) = self.delete_manifest(repository, &outdated.digest).await {
                tracing::debug!(%error, "cannot delete an outdated index artifact");
            }
        }
        Ok(true)
    }
}
