//! Packs that an owner builds on request, and attaches to their images in the registry.
//!
//! ```text
//! profiles, or another image -> Packer: contents -> pack -> registry, with the image's index
//! ```

mod update;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{PackingError, Progress};
use undermount_fs::index::{Backing, IndexError};
use undermount_fs::pack::Profile;

use self::update::difference;
use super::images::{ImageError, Images, Ready};
use crate::blocking::blocking;
use crate::control::PackRequest;
use crate::image::artifact::pack::{Origin, PackEntry, Purpose};
use crate::image::artifact::patch::TreePatch;
use crate::image::{Reference, ReferenceError, Repository};
use crate::profile::{self, FileUnit, ProfileError, combined, name_units, place_units};
use crate::registry::client::{Client, RegistryError};

/// Why a pack cannot be built or attached.
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
    /// No patch can be made of a tree.
    #[error("the tree of layer {layer} cannot be compressed")]
    Patch {
        /// The layer.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The pack cannot be read back.
    #[error("cannot read the pack back")]
    ReadBack(#[source] io::Error),
    /// The registry refuses the pack.
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

    /// Builds the pack that is asked for and attaches it. Returns the digest of the image's manifest.
    ///
    /// # Errors
    /// [`PackerError`]; the image keeps the packs that it had.
    pub async fn pack(
        &self,
        request: &PackRequest,
        progress: &Progress,
    ) -> Result<Digest, PackerError> {
        let ready = Arc::new(self.ready(&request.image.reference, request, progress).await?);
        let before = match &request.update_from {
            Some(predecessor) => Some(Arc::new(self.ready(predecessor, request, progress).await?)),
            None => None,
        };
        let (purpose, profile) = self.content(&ready, before.as_ref(), &request.profiles).await?;
        let reference = &ready.image.reference;
        if profile.units().is_empty() {
            return Err(PackerError::Empty(reference.clone()));
        }
        let packed = self.images.filler().pack(&profile, &ready.layers).await?;
        let entry = PackEntry::of(purpose, Origin::ByHand, &packed);
        let bytes = blocking(move || Backing::load(packed.file)).await;
        let bytes = bytes.map_err(PackerError::ReadBack)?;
        let repository = reference.repository();
        self.client.push_blob(repository, &Bytes::from_owner(bytes)).await?;
        let digest = ready.image.digest;
        let patches = match before {
            Some(before) => self.push_patches(repository, &ready, before).await?,
            None => Vec::new(),
        };
        match self.client.attach_pack(repository, &digest, entry, patches).await? {
            true => Ok(digest),
            false => Err(PackerError::NoIndex(reference.clone())),
        }
    }

    /// Pushes patches that give the trees of `image` from those of `before`, as far as they are worth it.
    async fn push_patches(
        &self,
        repository: &Repository,
        image: &Arc<Ready>,
        before: Arc<Ready>,
    ) -> Result<Vec<TreePatch>, PackerError> {
        let image = image.clone();
        let made = blocking(move || update::patches(&image, &before)).await?;
        let mut patches = Vec::new();
        for (patch, bytes) in made {
            self.client.push_blob(repository, &bytes).await?;
            patches.push(patch);
        }
        Ok(patches)
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
        blocking(move || Ok(name_units(&profile, &images.merge(&ready)?))).await
    }

    /// What is packed of the image `ready`, and for which purpose: whatever the image `before` lacks,
    /// or what the profiles in `files` come to.
    async fn content(
        &self,
        ready: &Arc<Ready>,
        before: Option<&Arc<Ready>>,
        files: &[PathBuf],
    ) -> Result<(Purpose, Profile), PackerError> {
        let (images, ready) = (self.images.clone(), ready.clone());
        let (before, files) = (before.cloned(), files.to_vec());
        let look = move || match before {
            Some(before) => {
                Ok((Purpose::Update(before.image.digest), difference(&ready, &before)?))
            }
            None => Ok((Purpose::Start, common_profile(&images, &ready, &files)?)),
        };
        blocking(look).await
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

/// What the profiles in `files` come to in the image `ready`.
fn common_profile(
    images: &Images,
    ready: &Ready,
    files: &[PathBuf],
) -> Result<Profile, PackerError> {
    let records = files.iter().map(|path| profile::read(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(place_units(&combined(&records), &images.merge(ready)?))
}
