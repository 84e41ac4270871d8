//! What the link to the source was seen to do: a rate and a round trip.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A request for fewer bytes tells of the round trip, one for more of the rate.
const SMALL: u64 = 128 * 1024;

/// What the latest observation counts.
const WEIGHT: f64 = 0.25;

/// A link of which nothing was seen yet is taken for one of 1 Gbit/s with 1 ms.
const DEFAULT: Link =
    Link { bytes_per_second: 125e6, round_trip: 0.001, least_round_trip: f64::INFINITY };

/// By so much the least round trip grows with each request that takes longer: links change.
const GROWTH: f64 = 1.01;

/// A link as it was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes per second of a single request.
    pub bytes_per_second: f64,
    /// Seconds from a request to its first bytes.
    pub round_trip: f64,
    /// The same of the quickest among the latest requests: what the link itself takes, while on a
    /// busy machine most of a round trip is waiting for a processor. Infinite before the first.
    pub least_round_trip: f64,
}

impl Link {
    /// Bytes that arrive in the time of a round trip: so many more cost as much as a request.
    pub fn bytes_in_flight(&self) -> u64 {
        (self.bytes_per_second * self.round_trip) as u64
    }

    /// The same link after a request for `bytes` took `time`.
    fn after(self, bytes: u64, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(1e-6);
        let mean = |old: f64, new: f64| old + (new - old) * WEIGHT;
        if bytes <= SMALL {
            let rest = (seconds - bytes as f64 / self.bytes_per_second).max(1e-5);
            let least = (self.least_round_trip * GROWTH).min(rest);
            let round_trip = mean(self.round_trip, rest);
            return Self { round_trip, least_round_trip: least, ..self };
        }
        // No request is faster than a round trip: what is more is the transfer.
        let transfer = (seconds - self.round_trip).max(seconds / 8.0);
        let rate = mean(self.bytes_per_second, bytes as f64 / transfer);
        Self { bytes_per_second: rate, ..self }
    }
}

/// Watches requests.
pub struct Gauge(Mutex<Link>);

impl Gauge {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self(Mutex::new(DEFAULT))
    }

    /// Notes that a request for `bytes` took `time`.
    pub fn note(&self, bytes: u64, time: Duration) {
        let mut link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *link = link.after(bytes, time);
    }

    /// The link as it was seen.
    pub fn link(&self) -> Link {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a link where small and large requests alternate.
    fn seen(rate: f64, round_trip: f64) -> Link {
        let gauge = Gauge::new();
        for bytes in [4096, 1 << 20].into_iter().cycle().take(60) {
            let seconds = round_trip + bytes as f64 / rate;
            gauge.note(bytes, Duration::from_secs_f64(seconds));
        }
        gauge.link()
    }

    #[test]
    fn rate_and_round_trip_are_found() {
        for (rate, round_trip) in [(125e6, 0.0005), (50e6, 0.02), (12.5e6, 0.005)] {
            let link = seen(rate, round_trip);
            assert!((link.bytes_per_second / rate - 1.0).abs() < 0.1, "{link:?}");
            assert!((link.round_trip / round_trip - 1.0).abs() < 0.1, "{link:?}");
        }
    }

    #[test]
    fn the_least_round_trip_is_that_of_the_quickest_and_follows_the_link() {
        let gauge = Gauge::new();
        let note = |milliseconds| gauge.note(0, Duration::from_millis(milliseconds));
        [30, 2, 50, 20].into_iter().for_each(note);
        let busy = gauge.link();
        assert!(busy.least_round_trip < 0.0025 && busy.round_trip > 0.01, "{busy:?}");
        std::iter::repeat_n(20, 300).for_each(note);
        assert!(gauge.link().least_round_trip > 0.019, "{:?}", gauge.link());
    }

    #[test]
    fn impossible_times_do_no_harm() {
        let gauge = Gauge::new();
        for (bytes, time) in
            [(0, Duration::ZERO), (u64::MAX, Duration::ZERO), (1 << 20, Duration::MAX)]
        {
            gauge.note(bytes, time);
            let link = gauge.link();
            assert!(link.bytes_per_second > 0.0 && link.round_trip > 0.0, "{link:?}");
        }
    }
}
