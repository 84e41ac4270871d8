//! Packs from the owner's side: reads recorded, packs built and attached.
//!
//! ```text
//! mount -> Recordings: reads of its files -> profile            (control socket, then a file)
//! profiles, or another image -> Packer: contents -> pack -> registry, with the image's index
//! ```

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, PackingError, Progress};
use undermount_fs::index::{Backing, IndexError};
use undermount_fs::pack::{Profile, UnitName};
use undermount_fs::view::{Recording, View};

use super::images::{ImageError, Images, Ready};
use crate::control::{PackRequest, RecordingStatus};
use crate::image::artifact::pack::{PackEntry, Purpose};
use crate::image::{Reference, ReferenceError};
use crate::profile::{self, FileUnit, ProfileError, combined, name_units, place_units};
use crate::registry::client::{Client, RegistryError};

/// A pack cannot be built or attached.
#[derive(Debug, thiserror::Error)]
pub enum PackerError {
    /// A name is not one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A profile cannot be read.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Nothing of what the profiles or the predecessor name is in the image.
    #[error("there is nothing to pack for {0}")]
    Empty(Reference),
    /// The index of a layer is damaged.
    #[error("layer {layer} cannot be packed")]
    Index {
        /// The layer.
        layer: Digest,
        /// Why.
        source: IndexError,
    },
    /// A content cannot be read, or the pack not be written.
    #[error(transparent)]
    Packing(#[from] PackingError),
    /// The pack cannot be read back.
    #[error("cannot read the pack back")]
    ReadBack(#[source] io::Error),
    /// The registry refuses it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The pack would have nothing to go with.
    #[error(
        "{0} has no index in its registry, with which a pack travels: push it with \
         `undermount prepare --index auto`"
    )]
    NoIndex(Reference),
}

/// Builds packs and attaches them to their images.
#[derive(Clone)]
pub struct Packer {
    images: Arc<Images>,
    client: Client,
}

impl Packer {
    /// A packer of `images`, which attaches packs through `client`.
    pub fn new(images: Arc<Images>, client: Client) -> Self {
        Self { images, client }
    }

    /// Builds the pack that is asked for and attaches it; the digest of the image's manifest.
    ///
    /// # Errors
    /// [`PackerError`]; the image keeps the packs that it had.
    pub async fn pack(
        &self,
        request: &PackRequest,
        progress: &Progress,
    ) -> Result<Digest, PackerError> {
        let ready = self.ready(&request.image.reference, request, progress).await?;
        let (purpose, profile) = match &request.update_from {
            Some(predecessor) => {
                let before = self.ready(predecessor, request, progress).await?;
                (Purpose::Update(before.image.digest), difference(&ready, &before)?)
            }
            None => (Purpose::Start, self.common_profile(&ready, &request.profiles)?),
        };
        let reference = &ready.image.reference;
        if profile.units().is_empty() {
            return Err(PackerError::Empty(reference.clone()));
        }
        let packed = self.images.filler().pack(&profile, &ready.layers).await?;
        let entry = PackEntry::of(purpose, &packed);
        let bytes = Backing::load(packed.file).map_err(PackerError::ReadBack)?;
        let repository = reference.repository();
        self.client.push_blob(repository, &Bytes::from_owner(bytes)).await?;
        let digest = ready.image.digest;
        match self.client.attach_pack(repository, &digest, entry).await? {
            true => Ok(digest),
            false => Err(PackerError::NoIndex(reference.clone())),
        }
    }

    /// The units of `profile` by the paths of their files.
    ///
    /// # Errors
    /// [`PackerError::Image`] where the layers do not make an image.
    pub async fn named(
        &self,
        ready: &Arc<Ready>,
        profile: Profile,
    ) -> Result<Vec<FileUnit>, PackerError> {
        let (images, ready) = (self.images.clone(), ready.clone());
        let work = move || Ok(name_units(&profile, &images.merge(&ready)?));
        tokio::task::spawn_blocking(work).await.map_err(|_| PackingError::Interrupted)?
    }

    /// What the profiles in `files` come to in the image `ready`.
    fn common_profile(&self, ready: &Ready, files: &[PathBuf]) -> Result<Profile, PackerError> {
        let records =
            files.iter().map(|path| profile::read(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(place_units(&combined(&records), &self.images.merge(ready)?))
    }

    async fn ready(
        &self,
        reference: &str,
        request: &PackRequest,
        progress: &Progress,
    ) -> Result<Ready, PackerError> {
        let reference: Reference = reference.parse()?;
        if request.image.plain_http {
            self.client.allow_plain_http(reference.repository().host());
        }
        let image = self.images.resolve(&reference).await?;
        Ok(self.images.make_ready(image, progress).await?)
    }
}

/// The units of `image` whose contents `predecessor` has not, in the order of the layers.
fn difference(image: &Ready, predecessor: &Ready) -> Result<Profile, PackerError> {
    let mut known = HashSet::new();
    each_content(predecessor, |_, _, content| {
        known.insert(content.key);
    })?;
    let mut units = Vec::new();
    each_content(image, |layer, inode, content| {
        if known.insert(content.key) {
            let named = |number| UnitName { layer, inode, number: number as u32 };
            units.extend(content.all_units().map(named));
        }
    })?;
    Ok(Profile::new(units))
}

/// Calls `each` with every content of the layers of an image, in the order of the tars.
fn each_content(
    image: &Ready,
    mut each: impl FnMut(Digest, u32, &Content),
) -> Result<(), PackerError> {
    for layer in &image.layers {
        let digest = layer.digest();
        for content in Content::all(&layer.tree) {
            let (inode, content) =
                content.map_err(|source| PackerError::Index { layer: digest, source })?;
            each(digest, inode, &content);
        }
    }
    Ok(())
}

/// The recordings that were asked for, by mount point.
#[derive(Clone)]
pub struct Recordings {
    view: Arc<View>,
    running: Arc<Mutex<BTreeMap<PathBuf, Arc<Recording>>>>,
}

impl Recordings {
    /// No recordings yet of reads through `view`.
    pub fn new(view: Arc<View>) -> Self {
        Self { view, running: Arc::default() }
    }

    /// Begins to record the reads of the image `ready` at `dir`, anew where that is going on.
    pub fn begin(&self, dir: &Path, ready: &Ready) {
        let layers = ready.layers.iter().map(|layer| layer.digest());
        let recording = self.view.recorder().begin(layers);
        self.running().insert(dir.to_owned(), recording);
    }

    /// How far the recording at `dir` is; `None` where nothing is recorded.
    pub fn status(&self, dir: &Path) -> Option<RecordingStatus> {
        let recording = self.running().get(dir)?.clone();
        let quiet = recording.last_news().map(|last| last.elapsed().as_millis() as u64);
        Some(RecordingStatus { units: recording.profile().units().len(), quiet_ms: quiet })
    }

    /// Ends the recording at `dir`; what was read.
    pub fn end(&self, dir: &Path) -> Option<Profile> {
        self.running().remove(dir).map(|recording| recording.profile())
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Recording>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
