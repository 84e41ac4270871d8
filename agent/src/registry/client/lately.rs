//! What a registry has shown, believed for a while only: registries are replaced, and come back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Something that was seen not long ago, or not at all.
#[derive(Debug)]
pub(super) struct Lately {
    within: Duration,
    seen: Mutex<Option<Instant>>,
}

impl Lately {
    /// Nothing was seen yet; what will be counts for `within`.
    pub fn new(within: Duration) -> Self {
        Self { within, seen: Mutex::default() }
    }

    /// It is seen now.
    pub fn note(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// It is no more.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// Whether it still counts.
    pub fn holds(&self) -> bool {
        self.lock().is_some_and(|seen| seen.elapsed() < self.within)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_counts_for_a_while_or_until_it_is_gone() {
        let (long, short) = (Lately::new(Duration::from_secs(3600)), Lately::new(Duration::ZERO));
        assert!(!long.holds());
        long.note();
        short.note();
        assert_eq!((long.holds(), short.holds()), (true, false));
        long.forget();
        assert!(!long.holds());
    }
}
