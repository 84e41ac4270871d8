//! The packs of an image: what its start reads, and what it has that its predecessor has not.
//!
//! Trees take a few round trips, and so do the head and the first frames of a pack. Where an image
//! is about to start, and nothing of it is here, both are fetched at the same time: its start-up
//! pack is *opened* before its trees are here.

use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Opening, Told};

use super::{Images, Ready, Resolved};
use crate::image::artifact::pack::{PackEntry, Purpose};

/// Beginnings of packs that are kept for images which then did not start.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// Images that count as about to start. One whose layers nobody then looks up leaves no other way.
const STARTING: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Images that are about to start, and the packs that were opened for them.
pub struct Openings(Mutex<State>);

struct State {
    starting: LruCache<Digest, ()>,
    opened: LruCache<Digest, Opening>,
}

impl Default for Openings {
    fn default() -> Self {
        let (starting, opened) = (LruCache::new(STARTING), LruCache::new(KEPT));
        Self(Mutex::new(State { starting, opened }))
    }
}

impl Openings {
    /// The pack with this digest, if it was opened.
    pub fn take(&self, pack: &Digest) -> Option<Opening> {
        self.state().opened.pop(pack)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    /// Opens the start-up pack of `image` as soon as it is known, if the image is new here.
    pub fn expect_start(&self, image: &Resolved) {
        let layers = &image.manifest.layers;
        // Where layers are known, most of what the pack holds may be here.
        if layers.iter().all(|layer| self.cache.layer(&layer.digest).is_none()) {
            self.openings.state().starting.put(image.digest, ());
        }
    }

    /// Opens the start-up pack among the `packs` of an image that is about to start.
    pub(super) fn open_packs(&self, image: &Resolved, packs: &[PackEntry]) {
        let mut state = self.openings.state();
        if state.starting.pop(&image.digest).is_none() {
            return;
        }
        for entry in packs.iter().filter(|entry| entry.purpose == Purpose::Start) {
            let pack = entry.in_scope(image.reference.repository().scope());
            state.opened.put(entry.blob, self.filler.open_pack(pack));
        }
    }

    /// Brings in what the image's packs hold: what its start reads, and what it has that an image
    /// here, its predecessor, has not. What cannot be had that way comes when it is read. `told`
    /// hears of what has come.
    pub async fn unpack(&self, ready: &Ready, told: Option<&Told>) {
        let is_of_use = |purpose: &Purpose| match purpose {
            Purpose::Start => true,
            Purpose::Update(predecessor) => self.blobs().has(predecessor),
        };
        for entry in ready.packs.iter().filter(|entry| is_of_use(&entry.purpose)) {
            let reference = &ready.image.reference;
            let pack = entry.in_scope(reference.repository().scope());
            let unpacked = match self.openings.take(&entry.blob) {
                Some(opening) => self.filler.unpack_opened(opening, &ready.layers, told).await,
                None => self.filler.unpack(&pack, &ready.layers, told).await,
            };
            match unpacked {
                Ok(unpacked) => tracing::info!(%reference, purpose = %entry.purpose,
                    units = unpacked.units, bytes = unpacked.bytes, foreign = unpacked.foreign,
                    fetched = unpacked.fetched, "unpacked a pack"),
                Err(error) => tracing::warn!(%reference, purpose = %entry.purpose,
                    error = &error as &dyn Error, "cannot use a pack"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::agent::testing::{images, ready};

    use super::*;

    #[test]
    fn regression_images_that_nobody_looks_up_do_not_count_as_starting_for_good() {
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        for n in 0..2 * STARTING.get() {
            images.expect_start(&ready(&n.to_string()).image);
        }
        assert_eq!(images.openings.state().starting.len(), STARTING.get());
    }
}
