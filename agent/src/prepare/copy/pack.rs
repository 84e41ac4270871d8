//! Start-up packs for images that were copied, where profiles of their starts are known here.
//!
//! A registry of ours makes packs by itself; this is for all others, and for the first nodes. The
//! profiles of an earlier build of an image serve as well: files are known by their paths. A
//! registry of ours may refine what is made here, since nobody chose it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::Backing;

use crate::image::artifact::LayerEntry;
use crate::image::artifact::pack::{Origin, PackEntry, Purpose};
use crate::image::{Platform, Reference};
use crate::profile::{
    PackError, ProfileError, Profiles, StartRecord, fitting, make_pack, packable_layer, profile_of,
};
use crate::registry::client::{Client, RegistryError};
use crate::supply::{Ledger, RegistrySource};

/// Why an image has no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackFailure {
    /// The profiles cannot be read.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The destination does not deliver, or refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No pack can be made.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Makes packs.
pub struct Packs {
    client: Client,
    profiles: Profiles,
    scratch: PathBuf,
}

impl Packs {
    /// Makes packs by the profiles in `profiles`, with contents in `scratch` meanwhile.
    pub fn new(client: Client, profiles: PathBuf, scratch: PathBuf) -> Self {
        Self { client, profiles: Profiles::new(profiles), scratch }
    }

    /// Gives the image `target` a start-up pack, if it has none and there is a profile for it. It is
    /// usable without, so a failure is only told.
    pub async fn give(&self, target: &Reference) {
        match self.attach(target).await {
            Ok(true) => tracing::info!(image = %target, "start-up pack made"),
            Ok(false) => {}
            Err(error) => tracing::warn!(image = %target,
                error = &error as &dyn std::error::Error, "no start-up pack"),
        }
    }

    async fn attach(&self, target: &Reference) -> Result<bool, PackFailure> {
        let repository = target.repository();
        let records = self.profiles.dated(|record| record.is_of(repository.path()))?;
        if records.is_empty() {
            return Ok(false);
        }
        let manifest = self.client.image(target, &Platform::host()).await?.raw.digest;
        let records = fitting(records, &manifest);
        let artifacts = self.client.index_artifacts(repository, &manifest).await?;
        let Some(artifact) = artifacts.into_iter().next() else { return Ok(false) };
        if artifact.packs.iter().any(|pack| pack.purpose == Purpose::Start) {
            return Ok(false);
        }
        let layers = self.layers(target, &artifact.layers).await?;
        self.push(target, &manifest, &layers, &records).await
    }

    async fn layers(
        &self,
        target: &Reference,
        entries: &[LayerEntry],
    ) -> Result<Vec<Arc<Layer>>, PackFailure> {
        let mut layers = Vec::with_capacity(entries.len());
        for entry in entries {
            let tree = self.client.tree(target.repository(), entry).await?;
            layers.push(packable_layer(&tree, target.repository().scope())?);
        }
        Ok(layers)
    }

    async fn push(
        &self,
        target: &Reference,
        manifest: &Digest,
        layers: &[Arc<Layer>],
        records: &[StartRecord],
    ) -> Result<bool, PackFailure> {
        let profile = profile_of(records, layers)?;
        if profile.units().is_empty() {
            return Ok(false);
        }
        let source =
            Arc::new(RegistrySource::new(self.client.clone(), Arc::new(Ledger::default())));
        let packed = make_pack(&profile, layers, source, &self.scratch).await?;
        let entry = PackEntry::of(Purpose::Start, Origin::Prepare, &packed);
        let bytes = Bytes::from_owner(Backing::load(packed.file).map_err(PackError::from)?);
        self.client.push_blob(target.repository(), &bytes).await?;
        Ok(self.client.attach_pack(target.repository(), manifest, entry, Vec::new()).await?)
    }
}
