//! Start-up packs, made where the layers are, of what nodes tell of their starts.
//!
//! ```text
//! profile of a node -> repositories/<name>/_profiles -+-> a few seconds later, one image at a time:
//! image that was indexed -----------------------------'   profiles -> units -> pack -> artifact
//! ```
//!
//! An image without profiles gets a pack by those of its repository's image that was recorded last:
//! a new build is ready for the nodes before any of them has started it. A pack that somebody has
//! built by hand stays, whatever nodes tell; once he takes it away, this makes one again.

mod shelf;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use undermount_fs::digest::Digest;
use undermount_fs::index::Backing;
use undermount_fs::pack::{HEAD_MAX, Packed, Profile, Table, UnitName};

use super::digest::ContentDigest;
use super::error::ApiError;
use super::indexing::{Image, artifacts};
use super::storage::{Referrer, Storage, StorageError, StoredManifest};
use super::target::Reference;
use crate::blocking::blocking;
use crate::image::artifact::pack::{self, Origin, PackEntry, Purpose};
use crate::image::artifact::{self, ArtifactError, LayerEntry};
use crate::image::manifest::{Descriptor, Document};
use crate::profile::{
    PackError, ProfileError, Profiles, StartRecord, fitting, make_pack, profile_of,
};
use shelf::Shelf;

/// Profiles of one repository that are kept, the newest.
const PROFILES_MAX: usize = 32;
/// Profiles come from many nodes at about the same time: so long they are gathered.
const GATHER: Duration = Duration::from_secs(5);
/// How long a request about profiles waits for those before it.
const TURN: Duration = Duration::from_secs(20);
/// A pack stays as long as it holds so much of what the profiles name, and the other way round.
const ALIKE: f64 = 0.9;

/// Why an image has no (new) pack.
#[derive(Debug, thiserror::Error)]
pub enum MakingError {
    /// The profiles cannot be read or kept.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The index artifact cannot be used.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// No pack can be made.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// What belongs to the image was removed meanwhile.
    #[error("the image or its index was removed meanwhile")]
    Gone,
}

/// Makes packs.
pub struct Packing {
    storage: Arc<Storage>,
    taking: Semaphore,
    making: Semaphore,
    /// Images whose pack will be made.
    due: Mutex<HashSet<Image>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// An index artifact as it is stored.
struct Found {
    digest: ContentDigest,
    /// All that the image has: as a rule this one alone.
    listed: Vec<ContentDigest>,
    manifest: Bytes,
    layers: Vec<LayerEntry>,
    subject: Digest,
}

impl Packing {
    /// Makes packs of the images in `storage`, in `tasks`, until `stop`.
    pub fn new(storage: Arc<Storage>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let (taking, making) = (Semaphore::new(1), Semaphore::new(1));
        Self { storage, taking, making, due: Mutex::default(), tasks, stop }
    }

    /// Waits for the turn to read a profile, one at a time: so much memory they may take.
    ///
    /// # Errors
    /// [`ApiError::TooManyProfiles`] where the turn does not come soon.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.turn_within(TURN).await
    }

    async fn turn_within(&self, patience: Duration) -> Result<SemaphorePermit<'_>, ApiError> {
        let turn = tokio::time::timeout(patience, self.taking.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(ApiError::TooManyProfiles)
    }

    /// How many starts of `image` are known.
    ///
    /// # Errors
    /// [`ApiError::TooManyProfiles`] where too many ask.
    pub async fn starts(&self, image: &Image) -> Result<usize, ApiError> {
        let (storage, image) = (self.storage.clone(), image.clone());
        // Anybody may ask, and what is read for it is large.
        let _turn = self.turn().await?;
        blocking(move || {
            let listed = profiles(&storage, &image).list().unwrap_or_default();
            let own = |record: &StartRecord| image.digest.sha256() == Some(record.manifest);
            let starts = listed.iter().map(|(_, record)| record).filter(|record| own(record));
            Ok(starts.map(StartRecord::starts).sum())
        })
        .await
    }

    /// Keeps a profile of `image`, whose pack is made anew soon.
    ///
    /// # Errors
    /// [`ApiError::Profile`] where it cannot be kept.
    pub async fn take(self: Arc<Self>, image: Image, record: StartRecord) -> Result<(), ApiError> {
        let (storage, of) = (self.storage.clone(), image.clone());
        blocking(move || {
            let profiles = profiles(&storage, &of);
            let kept = profiles.add(record).and_then(|_| profiles.keep_newest(PROFILES_MAX));
            kept.map_err(|error| ApiError::Profile(error.to_string()))
        })
        .await?;
        self.schedule(image);
        Ok(())
    }

    /// Makes the pack of `image` soon, if there are profiles that fit.
    pub fn schedule(self: &Arc<Self>, image: Image) {
        if !self.due().insert(image.clone()) {
            return;
        }
        let packing = self.clone();
        self.tasks.spawn(async move {
            let stopped = packing.stop.clone();
            tokio::select! {
                () = stopped.cancelled() => {}
                () = packing.make_soon(&image) => {}
            }
            packing.due().remove(&image);
        });
    }

    async fn make_soon(&self, image: &Image) {
        tokio::time::sleep(GATHER).await;
        let _turn = self.making.acquire().await;
        // What comes from now on is for the next one.
        self.due().remove(image);
        let Image { repository, digest } = image;
        match self.make(image).await {
            Ok(Some(units)) => tracing::info!(%repository, %digest, units, "start-up pack made"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%repository, %digest,
                error = &error as &dyn std::error::Error, "no start-up pack"),
        }
    }

    fn due(&self) -> std::sync::MutexGuard<'_, HashSet<Image>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the pack of `image`; the number of its units, if it was made.
    async fn make(&self, image: &Image) -> Result<Option<usize>, MakingError> {
        let (storage, of) = (self.storage.clone(), image.clone());
        let Some((records, found)) = blocking(move || basis(&storage, &of)).await? else {
            return Ok(None);
        };
        let shelf = Shelf::new(self.storage.clone(), image.repository.clone());
        let (open, entries) = (shelf.clone(), found.layers.clone());
        let layers = blocking(move || open.layers(&entries)).await?;
        let (read, manifest, known) = (shelf.clone(), found.manifest.clone(), layers.clone());
        let profile = blocking(move || {
            let profile = profile_of(&records, &known)?;
            let is_new = !profile.units().is_empty() && !is_alike(&read, &manifest, &profile)?;
            Ok::<_, MakingError>(is_new.then_some(profile))
        })
        .await?;
        let Some(profile) = profile else { return Ok(None) };
        let scratch = self.storage.uploads_dir();
        let packed = make_pack(&profile, &layers, Arc::new(shelf), &scratch).await?;
        let (storage, image) = (self.storage.clone(), image.clone());
        blocking(move || attach(&storage, &image, &found, packed)).await?;
        Ok(Some(profile.units().len()))
    }
}

/// The profiles of an image's repository.
fn profiles(storage: &Storage, image: &Image) -> Profiles {
    Profiles::new(storage.profiles_dir(&image.repository))
}

/// The records that fit an image, and its index artifact; `None` where either is missing, or where
/// somebody has chosen a pack.
fn basis(
    storage: &Storage,
    image: &Image,
) -> Result<Option<(Vec<StartRecord>, Found)>, MakingError> {
    let Some(subject) = image.digest.sha256() else { return Ok(None) };
    let records = fitting(profiles(storage, image).dated(|_| true)?, &subject);
    let is_here = storage.manifest_size(&image.repository, &image.digest)?.is_some();
    if records.is_empty() || !is_here {
        return Ok(None);
    }
    let listed = artifacts(storage, image)?;
    let mut manifests = Vec::new();
    for digest in &listed {
        let reference = Reference::Digest(digest.clone());
        let Some(manifest) = storage.manifest(&image.repository, &reference)? else { continue };
        manifests.push((digest.clone(), Bytes::from(manifest.bytes)));
    }
    let is_chosen = |pack: PackEntry| !pack.origin.is_automatic();
    if manifests.iter().any(|(_, manifest)| start_packs(manifest).any(is_chosen)) {
        return Ok(None);
    }
    let Some((digest, manifest)) = manifests.into_iter().next() else { return Ok(None) };
    let layers = artifact::parse(&manifest, &subject)?;
    Ok(Some((records, Found { digest, listed, manifest, layers, subject })))
}

/// The start-up packs of an artifact: at most one, if the programs that pushed it are ours.
fn start_packs(manifest: &[u8]) -> impl Iterator<Item = PackEntry> {
    pack::packs(manifest).into_iter().filter(|pack| pack.purpose == Purpose::Start)
}

/// Whether the start-up pack of an artifact holds about what `profile` names.
fn is_alike(shelf: &Shelf, manifest: &[u8], profile: &Profile) -> Result<bool, MakingError> {
    let Some(entry) = start_packs(manifest).find(|pack| pack.head_size <= HEAD_MAX) else {
        return Ok(false);
    };
    let Some(head) = shelf.read(&entry.blob, 0..entry.head_size)? else {
        return Ok(false);
    };
    let Ok(table) = Table::parse(entry.blob, &head) else { return Ok(false) };
    let packed: HashSet<UnitName> =
        table.frames().iter().flat_map(|frame| &frame.units).map(|unit| unit.name).collect();
    let both = profile.units().iter().filter(|unit| packed.contains(unit)).count();
    let larger = packed.len().max(profile.units().len());
    Ok(both as f64 >= larger as f64 * ALIKE)
}

/// Puts a pack into the index artifact of its image.
fn attach(
    storage: &Storage,
    image: &Image,
    found: &Found,
    packed: Packed,
) -> Result<(), MakingError> {
    let entry = PackEntry::of(Purpose::Start, Origin::Registry, &packed);
    storage.put_blob(&entry.blob.into(), &Backing::load(packed.file).map_err(PackError::from)?)?;
    let (descriptor, manifest) =
        pack::with_pack(&found.manifest, &found.subject, entry, Vec::new())?;
    let document = Document::parse(&manifest, None).and_then(Document::into_manifest);
    let document = document.map_err(ArtifactError::from)?;
    let named = document.layers.iter().chain([&document.config]);
    let blobs: Vec<ContentDigest> = named.map(|blob| blob.digest.into()).collect();
    let change = storage.change(&image.repository);
    // Who pushed another artifact meanwhile knows better.
    if artifacts(storage, image)? != found.listed {
        return Err(MakingError::Gone);
    }
    for blob in &blobs {
        if !change.link_blob(blob)? {
            return Err(MakingError::Gone);
        }
    }
    let stored = StoredManifest {
        digest: descriptor.digest.into(),
        media_type: descriptor.media_type.clone(),
        bytes: manifest.to_vec(),
    };
    let referrer = Referrer { subject: image.digest.clone(), descriptor: json(&descriptor) };
    change.put_manifest(&stored, &blobs, Some(&referrer), &[])?;
    if stored.digest != found.digest {
        change.delete_manifest(&found.digest, Some(&image.digest))?;
    }
    Ok(())
}

fn json(descriptor: &Descriptor) -> Vec<u8> {
    serde_json::to_vec(descriptor).expect("descriptors become JSON")
}

#[cfg(test)]
mod tests {
    use super::super::storage::testing::{Fixture, fixture};
    use super::*;
    use crate::image::artifact::{Artifact, LayerBlobs};
    use crate::image::media_type;

    /// An image with an index artifact and a start-up pack, and a profile of it.
    fn packed(fixture: &Fixture, origin: Origin) -> Image {
        let Fixture { storage, repository, .. } = fixture;
        let bytes = b"image".to_vec();
        let subject = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
        let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
        let artifact = Artifact::build(&subject, &[layer]).unwrap();
        let (blob, head) = (Digest::of(b"pack"), Digest::of(b"head"));
        let pack = PackEntry { purpose: Purpose::Start, origin, blob, size: 9, head, head_size: 4 };
        let (named, manifest) =
            pack::with_pack(&artifact.manifest, &artifact.subject, pack, vec![]).unwrap();
        let stored = |named: &Descriptor, bytes: Vec<u8>| {
            let media_type = named.media_type.clone();
            StoredManifest { digest: named.digest.into(), media_type, bytes }
        };
        let image = Image { repository: repository.clone(), digest: subject.digest.into() };
        let change = storage.change(repository);
        change.put_manifest(&stored(&subject, bytes), &[], None, &[]).unwrap();
        let referrer = Referrer { subject: image.digest.clone(), descriptor: json(&named) };
        let manifest = stored(&named, manifest.to_vec());
        change.put_manifest(&manifest, &[], Some(&referrer), &[]).unwrap();
        let record = StartRecord::new("r/a/b".to_owned(), subject.digest, "service".to_owned());
        profiles(storage, &image).add(record).unwrap();
        image
    }

    #[test]
    fn a_pack_that_somebody_chose_stays() {
        for (origin, is_replaced) in
            [(Origin::ByHand, false), (Origin::Registry, true), (Origin::Prepare, true)]
        {
            let fixture = fixture();
            let image = packed(&fixture, origin);
            let found = basis(&fixture.storage, &image).unwrap();
            assert_eq!(found.is_some(), is_replaced, "{origin:?}");
        }
    }

    #[test]
    fn no_pack_is_made_of_an_image_that_is_gone() {
        let fixture = fixture();
        let image = packed(&fixture, Origin::Registry);
        fixture.storage.change(&image.repository).delete_manifest(&image.digest, None).unwrap();
        assert!(basis(&fixture.storage, &image).unwrap().is_none());
    }

    #[tokio::test]
    async fn who_waits_too_long_for_his_turn_is_told_so() {
        let storage = Arc::new(fixture().storage);
        let packing = Packing::new(storage, TaskTracker::new(), CancellationToken::new());
        let first = packing.turn().await.unwrap();
        let refused = packing.turn_within(Duration::ZERO).await.unwrap_err();
        assert!(matches!(refused, ApiError::TooManyProfiles));
        drop(first);
        assert!(packing.turn_within(Duration::ZERO).await.is_ok());
    }
}
