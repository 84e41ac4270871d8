//! Which files are read, in which order: start-up packs are made from that.
//!
//! ```text
//! begin_read -> Recorder::note -> every Recording of that layer: units not seen before, in order
//! start is over (last_news) -> Recording::profile -> pack
//! ```
//!
//! A recording sees the reads that the kernel passes on: the first reads of a start whose files are
//! not in the page cache yet.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::digest::Digest;
use crate::pack::{Profile, UNITS_MAX, UnitName};

/// The recordings that are going on.
#[derive(Default)]
pub struct Recorder {
    /// How many there are. While there are none, a read costs one look at this.
    active: AtomicUsize,
    recordings: Mutex<Vec<Weak<Recording>>>,
}

/// The reads of files of some layers, from [`Recorder::begin`] until it is dropped.
pub struct Recording {
    layers: HashSet<Digest>,
    reads: Mutex<Reads>,
}

#[derive(Default)]
struct Reads {
    seen: HashSet<UnitName>,
    order: Vec<UnitName>,
    last: Option<Instant>,
}

impl Recorder {
    /// Begins to record the reads of files of `layers`.
    pub fn begin(&self, layers: impl IntoIterator<Item = Digest>) -> Arc<Recording> {
        let layers = layers.into_iter().collect();
        let recording = Arc::new(Recording { layers, reads: Mutex::default() });
        let mut recordings = self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
        recordings.retain(|recording| recording.strong_count() > 0);
        recordings.push(Arc::downgrade(&recording));
        self.active.store(recordings.len(), Ordering::Release);
        recording
    }

    /// Notes that the units `units` of the file `inode` are read.
    pub fn note(&self, layer: Digest, inode: u32, units: Range<usize>) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut recordings = self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
        recordings.retain(|recording| match recording.upgrade() {
            Some(recording) => {
                recording.note(layer, inode, units.clone());
                true
            }
            None => false,
        });
        self.active.store(recordings.len(), Ordering::Release);
    }
}

impl Recording {
    fn note(&self, layer: Digest, inode: u32, units: Range<usize>) {
        if !self.layers.contains(&layer) {
            return;
        }
        let mut reads = self.reads();
        for number in units {
            let unit = UnitName { layer, inode, number: number as u32 };
            if reads.seen.len() < UNITS_MAX && reads.seen.insert(unit) {
                reads.order.push(unit);
                reads.last = Some(Instant::now());
            }
        }
    }

    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something was last read that had not been read before; `None` before the first read. A
    /// start is over when that is a while ago.
    pub fn last_news(&self) -> Option<Instant> {
        self.reads().last
    }

    /// The units that were read so far, in the order of their first reads.
    pub fn profile(&self) -> Profile {
        Profile::new(self.reads().order.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reads_of_the_named_layers_are_noted_in_order() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let unit = |inode, number| UnitName { layer: one, inode, number };
        let recorder = Recorder::default();
        recorder.note(one, 1, 0..1);
        let recording = recorder.begin([one]);
        assert_eq!(recording.last_news(), None);
        for (layer, inode, units) in
            [(one, 7, 0..1), (other, 2, 0..1), (one, 5, 1..3), (one, 7, 0..1)]
        {
            recorder.note(layer, inode, units);
        }
        assert_eq!(recording.profile().units(), [unit(7, 0), unit(5, 1), unit(5, 2)]);
        assert!(recording.last_news().is_some());
    }

    #[test]
    fn recordings_do_not_see_each_other_and_end_when_dropped() {
        let layer = Digest::of(b"layer");
        let recorder = Recorder::default();
        let first = recorder.begin([layer]);
        recorder.note(layer, 1, 0..1);
        let second = recorder.begin([layer]);
        recorder.note(layer, 2, 0..1);
        assert_eq!(first.profile().units().len(), 2);
        assert_eq!(second.profile().units().len(), 1);
        drop((first, second));
        recorder.note(layer, 3, 0..1);
        assert_eq!(recorder.active.load(Ordering::Acquire), 0);
    }
}
