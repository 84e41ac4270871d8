//! Looking after a cache: what is in it, whether it is sound, what can go.
//!
//! ```text
//! records (names, mounts) -> manifests -> layers -> trees -> keys of objects   needs
//!   what is here and not needed                                                 collect
//!   what is here and not what its name says -> dropped -> fetched again         verify
//! ```
//!
//! The owner of a cache does this on request; where none runs, the command does it itself,
//! holding the cache's lock.

mod background;
mod collect;
pub mod needs;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use undermount_fs::digest::Digest;
use undermount_fs::index::{SPANS_MAGIC, TREE_MAGIC};
use undermount_fs::object::{State, StoreError};

pub use needs::{Needs, Pinned, Shown};

use super::cache::ReferenceRecord;
use super::images::Images;
use crate::control::{CacheStatus, Tally};
use crate::image::Reference;

/// A cache cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The objects cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory of the cache cannot be read.
    #[error("cannot read the cache directory {}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The process is shutting down.
    #[error("interrupted by a shutdown")]
    Interrupted,
}

/// An image that a record speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its name.
    pub reference: Reference,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Whether all of it was fetched once.
    pub complete: bool,
}

impl Recorded {
    /// The image of which `record` speaks, unless its name is none.
    fn of(record: ReferenceRecord) -> Option<Self> {
        let ReferenceRecord { reference, manifest, complete } = record;
        Some(Self { reference: reference.parse().ok()?, manifest, complete })
    }
}

/// Looks after the cache of some images.
#[derive(Clone)]
pub struct Upkeep {
    images: Arc<Images>,
    cache: PathBuf,
    mounted: Vec<Recorded>,
    shown: Shown,
}

impl Upkeep {
    /// For the cache of `images`, where `mounted` are needed whatever the records say.
    pub fn new(images: Arc<Images>, mounted: Vec<Recorded>) -> Self {
        let cache = images.cache().root().to_owned();
        Self { images, cache, mounted, shown: Shown::default() }
    }

    /// The same where also the layers `shown` are needed.
    #[must_use]
    pub fn with_shown(self, shown: Shown) -> Self {
        Self { shown, ..self }
    }

    /// Every image that a name or a mount means, each manifest once.
    fn recorded(&self) -> Vec<Recorded> {
        let mut all = self.mounted.clone();
        for record in self.images.cache().references().into_iter().filter_map(Recorded::of) {
            match all.iter_mut().find(|known| known.manifest == record.manifest) {
                Some(known) => known.complete |= record.complete,
                None => all.push(record),
            }
        }
        all
    }

    fn needs(&self) -> Needs {
        Needs::of(&self.images, &self.recorded(), &self.shown)
    }

    /// What is in the cache.
    ///
    /// # Errors
    /// [`UpkeepError`] where directories cannot be read.
    pub async fn status(&self) -> Result<CacheStatus, UpkeepError> {
        let upkeep = self.clone();
        background::run(move || upkeep.status_now()).await?
    }

    fn status_now(&self) -> Result<CacheStatus, UpkeepError> {
        let store = self.images.filler().store();
        let (limits, usage) = (store.limits(), store.usage());
        let mut status = CacheStatus {
            cache: self.cache.clone(),
            images: self.images.cache().references().len() as u64,
            quota: limits.quota,
            reserve: limits.reserve,
            free: store.space()?.free,
            evicted: usage.evicted,
            unkept: usage.unkept,
            damaged: usage.damaged,
            ..CacheStatus::default()
        };
        let pinned = store.pinned();
        for object in store.survey()? {
            match object.state {
                State::Complete => status.objects.add(object.allocated),
                State::Incomplete => status.partials.add(object.allocated),
            }
            if object.key.is_some_and(|key| pinned.contains(&key)) {
                status.pinned_bytes += object.allocated;
            }
            if limits.evict_complete || !object.key.is_some_and(|key| pinned.contains(&key)) {
                status.evictable_bytes += object.allocated;
            }
        }
        self.tally_blobs(&mut status.index_blobs, &mut status.small_blobs)?;
        Ok(status)
    }

    fn tally_blobs(&self, indexes: &mut Tally, others: &mut Tally) -> Result<(), UpkeepError> {
        let blobs = self.images.filler().blobs();
        for blob in blobs.list().map_err(self.unreadable("blobs"))? {
            let is_index = [TREE_MAGIC, SPANS_MAGIC].contains(&blobs.magic(&blob.digest));
            if is_index { &mut *indexes } else { &mut *others }.add(blob.bytes);
        }
        Ok(())
    }

    fn unreadable(&self, directory: &str) -> impl FnOnce(std::io::Error) -> UpkeepError + use<> {
        let path = self.cache.join(directory);
        move |source| UpkeepError::Read { path, source }
    }
}
