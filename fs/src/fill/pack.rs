//! From a profile to a start-up pack.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Content, FillError, Filler, Layer};
use crate::digest::Digest;
use crate::object::CHUNK;
use crate::pack::{Builder, Packed, Profile, UnitName};

/// Units that were read and wait to be compressed.
const QUEUE: usize = 8;

/// Why there is no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackingError {
    /// A unit of the profile cannot be read.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The pack cannot be written.
    #[error("cannot write a start-up pack")]
    Write(#[from] io::Error),
    /// The process is shutting down.
    #[error("packing was interrupted by a shutdown")]
    Interrupted,
}

impl Filler {
    /// A pack with the units of `profile` that files of `layers` have, each content once. What
    /// is not here is fetched.
    ///
    /// # Errors
    /// [`PackingError`] where a unit cannot be read or the pack cannot be written.
    pub async fn pack(
        self: &Arc<Self>,
        profile: &Profile,
        layers: &[Arc<Layer>],
    ) -> Result<Packed, PackingError> {
        let layers: HashMap<Digest, &Arc<Layer>> =
            layers.iter().map(|layer| (layer.digest(), layer)).collect();
        let (sender, mut units) = tokio::sync::mpsc::channel::<(UnitName, Bytes)>(QUEUE);
        let building = tokio::task::spawn_blocking(move || {
            let mut builder = Builder::new()?;
            while let Some((name, content)) = units.blocking_recv() {
                if !builder.add(&name, &content)? {
                    break;
                }
            }
            builder.finish()
        });
        let mut seen = HashSet::new();
        for name in profile.units() {
            let Some(layer) = layers.get(&name.layer) else { continue };
            let content =
                Content::named(&layer.tree, name).map_err(|error| layer.damaged(error))?;
            let Some(content) = content else { continue };
            if !seen.insert((content.key, name.number)) {
                continue;
            }
            let start = u64::from(name.number) * CHUNK;
            let range = start..(start + CHUNK).min(content.size);
            let bytes = self.read(layer, &Arc::new(content), range).await?;
            if sender.send((*name, bytes)).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok(building.await.map_err(|_| PackingError::Interrupted)??)
    }
}
