//! A limit of bytes per second, shared by all who keep to it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A limit of bytes per second, on average since the last pause.
pub struct Rate {
    bytes_per_second: u64,
    /// When all bytes that were taken so far are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Rate {
    /// A limit of `bytes_per_second`, at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Mutex::new(None) }
    }

    /// Takes `bytes` at the time `now`, and returns how long to wait before the next ones.
    pub fn take(&self, bytes: u64, now: Instant) -> Duration {
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or(now, |paid| paid.max(now)) + price;
        *paid = Some(until);
        until - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_share_a_rate_wait_for_each_other() {
        let (rate, start) = (Rate::new(1000), Instant::now());
        assert_eq!(rate.take(500, start), Duration::from_millis(500));
        assert_eq!(rate.take(500, start), Duration::from_secs(1));
        let later = start + Duration::from_millis(800);
        assert_eq!(rate.take(300, later), Duration::from_millis(500));
    }

    #[test]
    fn a_pause_saves_nothing_up() {
        let (rate, start) = (Rate::new(1000), Instant::now());
        rate.take(1, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(rate.take(1000, later), Duration::from_secs(1));
    }
}
