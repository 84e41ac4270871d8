//! What reads cost: how many there were, from where they were answered, and how long those took
//! that had to wait.
//!
//! A read that finds its bytes here is counted in a slot of the thread that answers it: two
//! additions to memory that no other core writes. Only reads that wait look at the clock.

use std::array;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::unpack::Unpacked;
use super::unread::Unread;
use super::{Content, FillError};
use crate::digest::Digest;
use crate::source::SourceError;
use crate::trail::{Origin, Trail};

/// Slots for threads that answer reads; more than there are in an owner.
const SLOTS: usize = 16;

/// Slow reads that are remembered.
const SLOWEST: usize = 16;

/// How long a slow read is remembered.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// The upper bounds of the histogram of waits, in microseconds: from what a disk takes to what
/// no container should have to bear.
pub const WAIT_BOUNDS_MICROS: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 30_000_000,
];

thread_local! {
    static SLOT: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS
    };
}

/// Reads and their bytes. On a cache line of its own (two, where they come in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Slot {
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Slot {
    fn add(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Counts reads.
#[derive(Default)]
pub struct Meter {
    hits: [Slot; SLOTS],
    /// By origin, without those in `hits`.
    answered: [Slot; Origin::ALL.len()],
    failed: AtomicU64,
    late: AtomicU64,
    waiting: AtomicU64,
    waits: [AtomicU64; WAIT_BOUNDS_MICROS.len() + 1],
    wait_micros: AtomicU64,
    slowest: Mutex<Vec<SlowRead>>,
    packs: PackCounters,
    /// What packs have brought.
    pub(super) unread: Unread,
}

#[derive(Default)]
struct PackCounters {
    used: AtomicU64,
    given_up: AtomicU64,
    units: AtomicU64,
    foreign: AtomicU64,
    fetched: AtomicU64,
}

/// Reads from one origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// How many.
    pub reads: u64,
    /// Bytes that they were answered with.
    pub bytes: u64,
}

/// What became of the packs of all images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackReadings {
    /// Packs that were used to their end.
    pub used: u64,
    /// Packs that could not be.
    pub given_up: u64,
    /// Units that packs brought.
    pub units: u64,
    /// Units that were not taken from packs.
    pub foreign: u64,
    /// Bytes of packs that were fetched.
    pub fetched: u64,
}

/// What was counted since the meter was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readings {
    /// Answered reads, in the order of [`Origin::ALL`].
    pub answered: [Reads; Origin::ALL.len()],
    /// Reads that were answered with an error, the late ones among them.
    pub failed: u64,
    /// Reads that were given up at their deadline.
    pub late: u64,
    /// Reads that wait now.
    pub waiting: u64,
    /// Reads that waited, by time: one number for each of [`WAIT_BOUNDS_MICROS`], and one for
    /// those that took longer.
    pub waits: [u64; WAIT_BOUNDS_MICROS.len() + 1],
    /// How long all of them waited.
    pub waited: Duration,
    /// What became of packs.
    pub packs: PackReadings,
}

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The layer that has the file.
    pub layer: Digest,
    /// The file's inode in the layer.
    pub inode: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// A read that had to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowRead {
    /// What it was for.
    pub wanted: Wanted,
    /// When it came.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What it waited for.
    pub trail: Trail,
    /// Where the bytes came from; `None` where it failed.
    pub origin: Option<Origin>,
}

/// A read that waits; it does until this is dropped.
pub struct Waiting<'a> {
    meter: &'a Meter,
    wanted: Wanted,
    begin: Instant,
    at: SystemTime,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.meter.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// Counts a read of `length` bytes from `offset` of `content` that was answered from the cache.
    pub fn hit(&self, content: &Content, offset: u64, length: u64) {
        if self.is_first_read(content, offset, length) {
            return self.answered[Origin::Pack as usize].add(length);
        }
        self.hits[SLOT.with(|slot| *slot)].add(length);
    }

    fn is_first_read(&self, content: &Content, offset: u64, length: u64) -> bool {
        let units = content.units(offset..offset.saturating_add(length));
        self.unread.take(units.map(|unit| (content.key, unit)))
    }

    /// A read begins to wait.
    pub fn wait(&self, wanted: Wanted) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting { meter: self, wanted, begin: Instant::now(), at: SystemTime::now() }
    }

    /// Counts what became of a pack.
    pub(super) fn unpacked(&self, outcome: Option<&Unpacked>) {
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        let Some(unpacked) = outcome else {
            add(&self.packs.given_up, 1);
            return;
        };
        add(&self.packs.used, 1);
        add(&self.packs.units, unpacked.units);
        add(&self.packs.foreign, unpacked.foreign);
        add(&self.packs.fetched, unpacked.fetched);
    }

    /// What was counted so far.
    pub fn readings(&self) -> Readings {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reads = |slot: &Slot| Reads { reads: get(&slot.reads), bytes: get(&slot.bytes) };
        let mut answered = array::from_fn(|origin| reads(&self.answered[origin]));
        for slot in self.hits.iter().map(reads) {
            let hits: &mut Reads = &mut answered[Origin::Cache as usize];
            hits.reads += slot.reads;
            hits.bytes += slot.bytes;
        }
        let PackCounters { used, given_up, units, foreign, fetched } = &self.packs;
        Readings {
            answered,
            failed: get(&self.failed),
            late: get(&self.late),
            waiting: get(&self.waiting),
            waits: array::from_fn(|bucket| get(&self.waits[bucket])),
            waited: Duration::from_micros(get(&self.wait_micros)),
            packs: PackReadings {
                used: get(used),
                given_up: get(given_up),
                units: get(units),
                foreign: get(foreign),
                fetched: get(fetched),
            },
        }
    }

    /// The slowest reads of the last day, the slowest first; at most 16.
    pub fn slowest(&self) -> Vec<SlowRead> {
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut slowest, SystemTime::now());
        slowest.clone()
    }

    fn note_wait(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = WAIT_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.waits[bucket].fetch_add(1, Ordering::Relaxed);
        self.wait_micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn note_failure(&self, error: &FillError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if matches!(error, FillError::Source(SourceError::Deadline { .. })) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note_answer(&self, content: &Content, wanted: &Wanted, trail: &Trail) -> Origin {
        let first = self.is_first_read(content, wanted.offset, wanted.length);
        let origin = if first && trail.fetched() == 0 { Origin::Pack } else { trail.origin() };
        self.answered[origin as usize].add(wanted.length);
        origin
    }

    fn note_slow(&self, read: SlowRead) {
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut slowest, read.at);
        let place = slowest.partition_point(|other| other.took >= read.took);
        slowest.insert(place, read);
        slowest.truncate(SLOWEST);
    }
}

impl Waiting<'_> {
    /// The read was answered, with an error or with bytes of `content`, after what `trail` holds.
    pub fn answered(self, content: &Content, error: Option<&FillError>, trail: Trail) -> SlowRead {
        let took = self.begin.elapsed();
        self.meter.note_wait(took);
        let origin = match error {
            Some(error) => {
                self.meter.note_failure(error);
                None
            }
            None => Some(self.meter.note_answer(content, &self.wanted, &trail)),
        };
        let read = SlowRead { wanted: self.wanted, at: self.at, took, trail, origin };
        self.meter.note_slow(read.clone());
        read
    }
}

fn forget_old(slowest: &mut Vec<SlowRead>, now: SystemTime) {
    // A clock that was set back makes nothing old.
    slowest.retain(|read| now.duration_since(read.at).map_or(true, |age| age < REMEMBER));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Extents;
    use crate::object::ObjectKey;
    use crate::trail;

    fn content() -> Content {
        let (chunks, extents) = (Vec::new().into(), Extents::Whole(None));
        Content { key: ObjectKey::small(b"x"), size: 10, chunks, extents }
    }

    fn wanted() -> Wanted {
        Wanted { layer: Digest::of(b"layer"), inode: 1, offset: 0, length: 10 }
    }

    #[test]
    fn reads_are_counted_by_origin_whatever_thread_answers_them() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| meter.hit(&content(), 0, 10)));
            }
        });
        meter.unread.add(&[(content().key, 0)]);
        meter.hit(&content(), 0, 10);
        meter.hit(&content(), 0, 10);
        let [cache, pack, ..] = meter.readings().answered;
        assert_eq!(cache, Reads { reads: 401, bytes: 4010 });
        assert_eq!(pack, Reads { reads: 1, bytes: 10 });
    }

    #[tokio::test]
    async fn reads_that_wait_are_timed_and_the_slowest_are_remembered() {
        let meter = Meter::default();
        for millis in [2, 20, 1] {
            let waiting = meter.wait(wanted());
            assert_eq!(meter.readings().waiting, 1);
            let fetch = async {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                trail::delivered(Origin::Registry, "registry", 10);
            };
            let ((), trail) = trail::follow(fetch).await;
            assert_eq!(waiting.answered(&content(), None, trail).origin, Some(Origin::Registry));
        }
        let waiting = meter.wait(wanted());
        let late = SourceError::Deadline { origin: "registry".into(), blob: Digest::of(b"layer") };
        waiting.answered(&content(), Some(&late.into()), Trail::default());
        let readings = meter.readings();
        assert_eq!(readings.answered[Origin::Registry as usize], Reads { reads: 3, bytes: 30 });
        assert_eq!((readings.failed, readings.late, readings.waiting), (1, 1, 0));
        assert_eq!(readings.waits.iter().sum::<u64>(), 4);
        assert!(readings.waited >= Duration::from_millis(23));
        let slowest = meter.slowest();
        assert!(slowest[0].took >= Duration::from_millis(20) && slowest.len() == 4);
        assert!(slowest.is_sorted_by(|one, other| one.took >= other.took));
        assert_eq!(slowest[3].origin, None);
    }

    #[test]
    fn no_more_slow_reads_are_remembered_than_fit_and_none_for_ever() {
        let meter = Meter::default();
        let read = |took, at| SlowRead {
            wanted: wanted(),
            at,
            took: Duration::from_secs(took),
            trail: Trail::default(),
            origin: None,
        };
        let now = SystemTime::now();
        meter.note_slow(read(99, now - REMEMBER));
        (0..30).for_each(|took| meter.note_slow(read(took, now)));
        let slowest: Vec<u64> = meter.slowest().iter().map(|read| read.took.as_secs()).collect();
        assert_eq!(slowest, (14..30).rev().collect::<Vec<_>>());
    }
}
