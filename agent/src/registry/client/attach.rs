//! Index artifacts in a registry: attached to their image, and found again.

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::digest::{Digest, Verified};

use crate::image::artifact::pack::{self, PackEntry, Purpose};
use crate::image::artifact::patch::{self, TreePatch};
use crate::image::artifact::{self, Artifact, ArtifactError, LayerEntry, MAX_TREE};
use crate::image::{Descriptor, Reference, Repository, Tag, media_type, referrers};

use super::error::{Fault, Message, RegistryError, Subject};
use super::publish::Listed;
use super::{Client, RawManifest};

/// Blobs of an artifact that are pushed side by side.
const SIDE_BY_SIDE: usize = 4;
/// Index artifacts of one image that are looked at: more is a registry that makes them up.
const MAX_ARTIFACTS: usize = 16;
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
    /// How to get trees from those of a predecessor.
    pub patches: Vec<TreePatch>,
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
        let knows_referrers = !endpoint.without_referrers.holds();
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
        if let Some(listed) = self.api_referrers(repository, subject, kind).await? {
            return self.read_artifacts(repository, subject, listed).await;
        }
        let own = repository.tagged(referrers::own_tag(subject));
        if let Some(found) = self.read_artifact(&own, subject).await? {
            return Ok(vec![found]);
        }
        let listed = self.fallback_referrers(repository, subject, kind).await?;
        self.read_artifacts(repository, subject, listed).await
    }

    /// Those of the artifacts in a list that can be used.
    async fn read_artifacts(
        &self,
        repository: &Repository,
        subject: &Digest,
        listed: Vec<Descriptor>,
    ) -> Result<Vec<FoundArtifact>, RegistryError> {
        if listed.len() > MAX_ARTIFACTS {
            let listed = listed.len();
            tracing::warn!(%repository, %subject, listed, "too many index artifacts for one image");
        }
        let mut found = Vec::new();
        for entry in listed.into_iter().take(MAX_ARTIFACTS) {
            found.extend(self.read_artifact(&repository.at(entry.digest), subject).await?);
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
                let (packs, patches) = (pack::packs(&raw.bytes), patch::patches(&raw.bytes));
                Ok(Some(FoundArtifact { digest: raw.digest, raw, layers, packs, patches }))
            }
            Err(error) => {
                tracing::warn!(%reference, %error, "unusable index artifact");
                Ok(None)
            }
        }
    }

    /// Adds `pack` and the `patches` that come with it, whose blobs `repository` has, to the index
    /// artifact of the image manifest `subject`, in the place of others for the same purpose.
    /// `false` where the image has no index artifact.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn attach_pack(
        &self,
        repository: &Repository,
        subject: &Digest,
        pack: PackEntry,
        patches: Vec<TreePatch>,
    ) -> Result<bool, RegistryError> {
        let found = self.index_artifacts(repository, subject).await?;
        let Some(before) = found.first() else { return Ok(false) };
        let changed = pack::with_pack(&before.raw.bytes, subject, pack, patches);
        let changed = changed.map_err(|error| unusable(repository, before, &error))?;
        self.replace_artifacts(repository, subject, &found, changed).await?;
        Ok(true)
    }

    /// Takes the pack for `purpose` out of the index artifact of the image manifest `subject`.
    /// `false` where the image has none.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached, or goes on listing what
    /// has the pack.
    pub async fn detach_pack(
        &self,
        repository: &Repository,
        subject: &Digest,
        purpose: Purpose,
    ) -> Result<bool, RegistryError> {
        let has_pack =
            |artifact: &&FoundArtifact| artifact.packs.iter().any(|pack| pack.purpose == purpose);
        let found = self.index_artifacts(repository, subject).await?;
        let Some(before) = found.iter().find(has_pack) else { return Ok(false) };
        let changed = pack::without_pack(&before.raw.bytes, subject, purpose);
        let changed = changed.map_err(|error| unusable(repository, before, &error))?;
        self.replace_artifacts(repository, subject, &found, changed).await?;
        // Another one may have come meanwhile; what was there must be gone.
        let left = self.index_artifacts(repository, subject).await?;
        let stays = |artifact: &&FoundArtifact| {
            has_pack(artifact) && found.iter().any(|before| before.digest == artifact.digest)
        };
        match left.iter().find(stays) {
            None => Ok(true),
            Some(artifact) => {
                let words = "the registry does not delete it, and lists it with its pack";
                let subject = Subject::Manifest(repository.at(artifact.digest));
                Err(Fault::Unusable(Message(words.to_owned())).of(&subject))
            }
        }
    }

    /// Attaches an index artifact of the image manifest `subject` whose blobs are there, in the
    /// place of those that were `found`.
    async fn replace_artifacts(
        &self,
        repository: &Repository,
        subject: &Digest,
        found: &[FoundArtifact],
        (descriptor, manifest): (Descriptor, Bytes),
    ) -> Result<(), RegistryError> {
        let after = descriptor.digest;
        let blobs = Vec::new();
        self.attach(repository, &Artifact { subject: *subject, descriptor, manifest, blobs })
            .await?;
        for outdated in found.iter().filter(|artifact| artifact.digest != after) {
            if let Err(error) = self.delete_manifest(repository, &outdated.digest).await {
                tracing::debug!(%error, "cannot delete an outdated index artifact");
            }
        }
        Ok(())
    }
}

/// An artifact that cannot be changed.
fn unusable(
    repository: &Repository,
    artifact: &FoundArtifact,
    error: &ArtifactError,
) -> RegistryError {
    let subject = Subject::Manifest(repository.at(artifact.digest));
    Fault::Unusable(Message(error.to_string())).of(&subject)
}
