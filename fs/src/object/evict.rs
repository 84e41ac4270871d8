//! Making room: what was not used for longest goes first.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::store::{Store, lock};
use super::survey::Surveyed;
use super::{ObjectKey, StoreLimits};

/// After an eviction that found too little, the next one is not tried for this time: it would
/// read every directory again.
const PAUSE: Duration = Duration::from_secs(5);

/// Says which objects must stay: those of images that are mounted or complete.
pub trait Pins: Send + Sync {
    /// The objects, as of now.
    fn keys(&self) -> HashSet<ObjectKey>;
}

/// What is known of earlier evictions.
#[derive(Default)]
pub(super) struct Evictor {
    barren: Option<Instant>,
}

impl Store {
    /// Sees to it that `size` more bytes may be kept.
    ///
    /// # Errors
    /// [`StoreError::Full`] where not enough can go.
    pub(super) fn admit(&self, size: u64) -> Result<(), StoreError> {
        if self.excess(size) == 0 {
            return Ok(());
        }
        let mut evictor = lock(&self.evictor);
        // Whoever was before may have made room enough.
        if self.excess(size) > 0 {
            self.evict(&mut evictor, |used| match self.excess(size) {
                0 => 0,
                excess => self.limits.goal(excess, used),
            })?;
        }
        if self.excess(size) > 0 {
            evictor.barren.get_or_insert_with(Instant::now);
            return Err(StoreError::Full { size });
        }
        Ok(())
    }

    /// Whether `size` more bytes may be kept without anything being dropped.
    pub fn has_room(&self, size: u64) -> bool {
        self.excess(size) == 0
    }

    fn excess(&self, size: u64) -> u64 {
        let StoreLimits { reserve, .. } = self.limits;
        // Where the file system does not tell, writing will.
        let space = (reserve > 0).then(|| self.disk.space(&self.layout.objects).ok()).flatten();
        self.limits.excess(self.used.load(Ordering::Relaxed), size, space)
    }

    /// Drops at least `bytes` of objects, where so many can go; returns how many went.
    ///
    /// # Errors
    /// [`StoreError`] where the directories cannot be read.
    pub fn make_room(&self, bytes: u64) -> Result<u64, StoreError> {
        let mut evictor = lock(&self.evictor);
        evictor.barren = None;
        self.evict(&mut evictor, |_| bytes)
    }

    /// Drops as much as `goal` says once it is known what is used.
    fn evict(
        &self,
        evictor: &mut Evictor,
        goal: impl FnOnce(u64) -> u64,
    ) -> Result<u64, StoreError> {
        if evictor.barren.is_some_and(|since| since.elapsed() < PAUSE) {
            return Ok(0);
        }
        evictor.barren = None;
        let found = self.layout.survey()?;
        let used: u64 = found.iter().map(|object| object.allocated).sum();
        self.used.store(used, Ordering::Relaxed);
        let goal = goal(used);
        let mut freed = 0;
        for object in self.evictable(found) {
            if freed >= goal {
                break;
            }
            freed += self.discard(&object);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        tracing::debug!(freed, goal, used, "evicted");
        Ok(freed)
    }

    /// What may go, the first to go first.
    fn evictable(&self, mut found: Vec<Surveyed>) -> Vec<Surveyed> {
        let pinned = if self.limits.evict_complete { HashSet::new() } else { self.pinned() };
        let open = self.open_objects();
        let stays = |key: &ObjectKey| pinned.contains(key) || open.contains(key);
        found.retain(|object| !object.key.as_ref().is_some_and(stays));
        let warm = self.warm_objects();
        let is_warm = |object: &Surveyed| object.key.is_some_and(|key| warm.contains(&key));
        found.sort_by_cached_key(|object| (is_warm(object), object.last_use));
        found
    }

    /// Objects whose descriptors are kept: those that were read last, of which only the first read
    /// is written down.
    fn warm_objects(&self) -> HashSet<ObjectKey> {
        let mut warm: HashSet<ObjectKey> =
            lock(&self.handles).iter().map(|(key, _)| *key).collect();
        warm.extend(lock(&self.partials).iter().map(|(key, _)| *key));
        warm
    }

    /// The objects that must stay.
    pub fn pinned(&self) -> HashSet<ObjectKey> {
        let pins = lock(&self.pins).clone();
        pins.map(|pins| pins.keys()).unwrap_or_default()
    }

    /// Objects that somebody holds open.
    fn open_objects(&self) -> HashSet<ObjectKey> {
        let handles = lock(&self.handles);
        let files = handles.iter().filter(|(_, file)| Arc::strong_count(file) > 1);
        let mut open: HashSet<ObjectKey> = files.map(|(key, _)| *key).collect();
        drop(handles);
        let partials = lock(&self.partials);
        let files = partials.iter().filter(|(_, partial)| Arc::strong_count(partial) > 1);
        open.extend(files.map(|(key, _)| *key));
        open
    }
}
