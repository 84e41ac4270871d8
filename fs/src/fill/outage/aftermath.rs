//! Reads that were just waited for in vain.
//!
//! The kernel reads ahead. Where such a read fails, it asks for its first page once more, all by
//! itself, and whoever reads would wait twice as long as he was promised. What has just failed
//! therefore fails again at once.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fill::FillError;
use crate::object::ObjectKey;

/// The kernel asks again at once; whoever asks later may wait.
const LASTS: Duration = Duration::from_millis(20);

/// The reads that have just failed.
#[derive(Default)]
pub struct Aftermath(Mutex<Vec<Failed>>);

struct Failed {
    key: ObjectKey,
    range: Range<u64>,
    at: Instant,
    error: FillError,
}

impl Failed {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.at) >= LASTS
    }
}

impl Aftermath {
    /// Notes that a read of `range` has failed `now`.
    pub fn note(&self, now: Instant, key: ObjectKey, range: Range<u64>, error: &FillError) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|read| !read.is_over(now));
        failed.push(Failed { key, range, at: now, error: error.clone() });
    }

    /// How a read that began where one of `range` begins, or before, has just failed.
    pub fn of(&self, now: Instant, key: &ObjectKey, range: &Range<u64>) -> Option<FillError> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |read: &&Failed| read.key == *key && read.range.contains(&range.start);
        failed.iter().filter(same).find(|read| !read.is_over(now)).map(|read| read.error.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_just_failed_fails_again_at_once_and_nothing_else_does() {
        let aftermath = Aftermath::default();
        let [key, other] = [b"one", b"two"].map(|content| ObjectKey::small(content));
        let now = Instant::now();
        aftermath.note(now, key, 4096..8192, &FillError::Interrupted);
        let fails = |now, key, range: Range<u64>| aftermath.of(now, key, &range).is_some();
        assert!(fails(now, &key, 4096..5000));
        assert!(fails(now, &key, 5000..9000));
        assert!(!fails(now, &key, 0..8192), "it begins earlier");
        assert!(!fails(now, &key, 8192..9000));
        assert!(!fails(now, &other, 4096..5000));
        let later = now + LASTS;
        assert!(!fails(later, &key, 4096..5000));
        aftermath.note(later, other, 0..1, &FillError::Interrupted);
        assert_eq!(aftermath.0.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
