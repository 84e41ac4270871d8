//! What start-up packs have brought and nobody has read yet: how well a pack fits shows in what
//! of it is read.
//!
//! While nothing is unread, asking costs the load of one counter. Units that nobody reads are
//! forgotten after a while, so that reads do not ask for them for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::awaited::Unit;

/// A start that has not read a unit by then does not.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// More units than the packs of a node's starts hold; more are not followed.
const UNITS_MAX: usize = 1 << 18;

/// Units of packs that were not read so far.
#[derive(Default)]
pub struct Unread {
    count: AtomicUsize,
    units: Mutex<HashMap<Unit, Instant>>,
}

impl Unread {
    /// Notes units that a pack has just brought.
    pub fn add<'u>(&self, units: impl IntoIterator<Item = &'u Unit>) {
        self.add_at(Instant::now(), units);
    }

    fn add_at<'u>(&self, now: Instant, units: impl IntoIterator<Item = &'u Unit>) {
        let mut unread = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        unread.retain(|_, came| now.duration_since(*came) < FORGET_AFTER);
        let room = UNITS_MAX.saturating_sub(unread.len());
        unread.extend(units.into_iter().take(room).map(|unit| (*unit, now)));
        self.count.store(unread.len(), Ordering::Relaxed);
    }

    /// Whether any of `units` is read for the first time since a pack brought it.
    pub fn take(&self, units: impl IntoIterator<Item = Unit>) -> bool {
        self.take_at(Instant::now, units)
    }

    fn take_at(
        &self,
        now: impl FnOnce() -> Instant,
        units: impl IntoIterator<Item = Unit>,
    ) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut unread = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        let came = units.into_iter().filter_map(|unit| unread.remove(&unit)).max();
        let now = now();
        let is_old = |came: &Instant| now.duration_since(*came) >= FORGET_AFTER;
        if came.is_none() && unread.values().next().is_some_and(is_old) {
            unread.retain(|_, came| !is_old(came));
        }
        self.count.store(unread.len(), Ordering::Relaxed);
        came.is_some_and(|came| !is_old(&came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectKey;

    fn unit(content: &[u8]) -> Unit {
        (ObjectKey::small(content), 0)
    }

    #[test]
    fn a_unit_is_unread_once() {
        let unread = Unread::default();
        assert!(!unread.take([unit(b"a")]));
        unread.add(&[unit(b"a"), unit(b"b")]);
        assert!(!unread.take([unit(b"c")]));
        assert!(unread.take([unit(b"c"), unit(b"a")]));
        assert!(!unread.take([unit(b"a")]));
        assert!(unread.take([unit(b"b")]));
        assert_eq!(unread.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_nobody_reads_is_forgotten() {
        let unread = Unread::default();
        let now = Instant::now();
        unread.add_at(now, &[unit(b"a"), unit(b"b")]);
        let later = now + FORGET_AFTER;
        assert!(!unread.take_at(|| later, [unit(b"a")]));
        assert!(!unread.take_at(|| later, [unit(b"c")]));
        assert_eq!(unread.count.load(Ordering::Relaxed), 0);
    }
}
