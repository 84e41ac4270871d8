//! Every byte of every image read and hashed, and what is damaged brought again from elsewhere.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use crate::image::{Descriptor, Document, Reference, Repository};
use crate::registry::client::{Client, Fault, Message, RawManifest, RegistryError};

use super::Holder;
use super::repair::{Repair, RepairError};

/// Blobs that are read at a time.
const PARALLEL: usize = 4;

/// What was read, and what was wrong with it.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Images and what belongs to them: manifests.
    pub manifests: u64,
    /// Blobs, each once.
    pub blobs: u64,
    /// Bytes of blobs.
    pub bytes: u64,
    /// What is missing or has other bytes.
    pub damage: Vec<Damage>,
}

impl Checked {
    /// Whether everything is as it should be, or is again.
    pub fn is_whole(&self) -> bool {
        self.damage.iter().all(|damage| damage.repaired)
    }
}

/// A manifest or blob that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The image: `path:tag` or `path@digest`.
    pub image: String,
    /// Its manifest or blob, where its digest is known.
    pub digest: Option<Digest>,
    /// What is wrong.
    pub reason: String,
    /// Whether it is as it should be now.
    pub repaired: bool,
}

/// A check of the images of one place.
pub struct Verification<'a> {
    client: &'a Client,
    holder: &'a Holder,
    repair: Option<Repair<'a>>,
    /// What was checked, by repository.
    seen: Mutex<HashSet<(String, Digest)>>,
    /// Blobs that were read, wherever.
    read: Mutex<HashSet<Digest>>,
    damage: Mutex<Vec<Damage>>,
    manifests: AtomicU64,
    blobs: AtomicU64,
    bytes: AtomicU64,
}

/// Reads everything that the images `references` of `holder` consist of, with their index
/// artifacts. What is damaged is brought from `source`, if there is one, from repositories of the
/// same names.
///
/// # Errors
/// [`RegistryError`] where the registry cannot be reached; damage is told in the outcome.
pub async fn verify(
    client: &Client,
    holder: &Holder,
    references: &[Reference],
    source: Option<&Holder>,
) -> Result<Checked, RegistryError> {
    let repair = source.map(|source| Repair { client, source, target: holder });
    let verification = Verification {
        client,
        holder,
        repair,
        seen: Mutex::default(),
        read: Mutex::default(),
        damage: Mutex::default(),
        manifests: AtomicU64::new(0),
        blobs: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    for reference in references {
        verification.image(reference).await?;
    }
    Ok(verification.into_checked())
}

impl Verification<'_> {
    fn into_checked(self) -> Checked {
        Checked {
            manifests: self.manifests.into_inner(),
            blobs: self.blobs.into_inner(),
            bytes: self.bytes.into_inner(),
            damage: self.damage.into_inner().expect("no panic while it is held"),
        }
    }

    /// Checks an image, or all images of an index.
    async fn image(&self, reference: &Reference) -> Result<(), RegistryError> {
        let mut waiting = vec![reference.clone()];
        while let Some(reference) = waiting.pop() {
            let Some(raw) = self.manifest(&reference).await? else { continue };
            if !self.is_new(reference.repository(), &raw.digest) {
                continue;
            }
            self.manifests.fetch_add(1, Ordering::Relaxed);
            let repository = reference.repository();
            match raw.document() {
                Ok(Document::Manifest(manifest)) => {
                    let blobs = std::iter::once(manifest.config).chain(manifest.layers);
                    self.blobs(&reference, blobs.collect()).await?;
                    let artifacts = self.client.index_artifacts(repository, &raw.digest).await?;
                    waiting.extend(artifacts.iter().map(|found| repository.at(found.digest)));
                }
                Ok(Document::Index(index)) => {
                    waiting.extend(index.manifests.iter().map(|child| repository.at(child.digest)));
                }
                Err(error) => self.note(&reference, Some(raw.digest), error.to_string(), false),
            }
        }
        Ok(())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Option<RawManifest>, RegistryError> {
        let error = match self.client.manifest(reference).await {
            Ok(raw) => return Ok(Some(raw)),
            Err(error) if is_damage(&error.fault) => error,
            Err(error) => return Err(error),
        };
        let repaired = match &self.repair {
            None => None,
            Some(repair) => self.bring_manifest(repair, reference).await?,
        };
        self.note(
            reference,
            reference.digest().copied(),
            error.fault.in_words(),
            repaired.is_some(),
        );
        Ok(repaired)
    }

    /// Brings a manifest, after the blobs that it names: a registry takes it only then.
    async fn bring_manifest(
        &self,
        repair: &Repair<'_>,
        reference: &Reference,
    ) -> Result<Option<RawManifest>, RegistryError> {
        let Some(raw) = told(repair.fetch_manifest(reference).await) else { return Ok(None) };
        if let Ok(Document::Manifest(manifest)) = raw.document() {
            let blobs = std::iter::once(manifest.config).chain(manifest.layers);
            self.blobs(reference, blobs.collect()).await?;
        }
        let put = told(repair.put_manifest(reference, &raw).await);
        Ok(put.map(|()| raw))
    }

    async fn blobs(&self, image: &Reference, blobs: Vec<Descriptor>) -> Result<(), RegistryError> {
        let new = blobs
            .into_iter()
            .filter(|blob| blob.urls.is_empty() && self.is_new(image.repository(), &blob.digest));
        stream::iter(new.collect::<Vec<_>>())
            .map(|blob| async move { self.blob(image, &blob).await })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    async fn blob(&self, image: &Reference, blob: &Descriptor) -> Result<(), RegistryError> {
        let repository = image.repository();
        let fault = match self.is_to_be_read(&blob.digest) {
            true => {
                self.blobs.fetch_add(1, Ordering::Relaxed);
                self.fault_of(repository, blob).await?
            }
            false => {
                let exists = self.client.blob_exists(repository, &blob.digest).await?;
                (!exists).then(|| Fault::NotFound(Message::default()))
            }
        };
        let Some(fault) = fault else { return Ok(()) };
        let repaired = match &self.repair {
            None => false,
            Some(repair) => {
                told(repair.blob(repository, blob).await).is_some()
                    && self.fault_of(repository, blob).await?.is_none()
            }
        };
        self.note(image, Some(blob.digest), fault.in_words(), repaired);
        Ok(())
    }

    /// What is wrong with the blob, if anything.
    async fn fault_of(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> Result<Option<Fault>, RegistryError> {
        let mut reader = self.client.read_blob(repository, &blob.digest, blob.size, 0);
        let mut hasher = Hasher::default();
        loop {
            match reader.next().await {
                Ok(Some(chunk)) => {
                    self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    hasher.update(&chunk);
                }
                Ok(None) => break,
                Err(error) if is_damage(&error.fault) => return Ok(Some(error.fault)),
                Err(error) => return Err(error),
            }
        }
        let (expected, actual) = (blob.digest, hasher.finish());
        Ok((expected != actual).then_some(Fault::WrongDigest(WrongDigest { expected, actual })))
    }

    /// Whether a digest was not seen before in this repository.
    fn is_new(&self, repository: &Repository, digest: &Digest) -> bool {
        let mut seen = self.seen.lock().expect("no panic while it is held");
        seen.insert((repository.path().to_owned(), *digest))
    }

    /// Whether a blob has to be read: a tree has a file of it for each repository, a registry
    /// keeps it once and only knows which repositories have it.
    fn is_to_be_read(&self, digest: &Digest) -> bool {
        let mut read = self.read.lock().expect("no panic while it is held");
        read.insert(*digest) || self.holder.tree().is_some()
    }

    fn note(&self, image: &Reference, digest: Option<Digest>, reason: String, repaired: bool) {
        let name = image.to_string();
        let image = name.split_once('/').map_or(name.as_str(), |(_, rest)| rest).to_owned();
        let damage = Damage { image, digest, reason, repaired };
        self.damage.lock().expect("no panic while it is held").push(damage);
    }
}

/// A repair that failed is told in the log; the check goes on.
fn told<T>(repaired: Result<T, RepairError>) -> Option<T> {
    let tell = |error: &RepairError| {
        tracing::warn!(error = error as &dyn std::error::Error, "not repaired");
    };
    repaired.inspect_err(tell).ok()
}

/// Whether a fault is one of what the registry holds, not of the way to it.
fn is_damage(fault: &Fault) -> bool {
    match fault {
        Fault::NotFound(_)
        | Fault::Short { .. }
        | Fault::Size { .. }
        | Fault::WrongDigest(_)
        | Fault::Manifest(_) => true,
        // Our registry answers so for a manifest that no longer hashes right.
        Fault::Status { status, .. } => status.is_server_error(),
        _ => false,
    }
}
