//! Packs that are opened before the trees of their image are here.
//!
//! Trees take a few round trips, and so do the head and the first frames of a pack. Where an image
//! is about to start, and nothing of it is here, both are fetched at the same time.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Opening;

use super::{Images, PackEntry, Purpose, Resolved};

/// Beginnings of packs that are kept for images which then did not start.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// Images that are about to start, and the packs that were opened for them.
pub struct Openings(Mutex<State>);

struct State {
    starting: HashSet<Digest>,
    opened: LruCache<Digest, Opening>,
}

impl Default for Openings {
    fn default() -> Self {
        let (starting, opened) = (HashSet::new(), LruCache::new(KEPT));
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
            self.openings.state().starting.insert(image.digest);
        }
    }

    /// Opens the start-up pack among the `packs` of an image that is about to start.
    pub(super) fn open_packs(&self, image: &Resolved, packs: &[PackEntry]) {
        let mut state = self.openings.state();
        if !state.starting.remove(&image.digest) {
            return;
        }
        for entry in packs.iter().filter(|entry| entry.purpose == Purpose::Start) {
            let pack = entry.in_scope(image.reference.repository().scope());
            state.opened.put(entry.blob, self.filler.open_pack(pack));
        }
    }
}
