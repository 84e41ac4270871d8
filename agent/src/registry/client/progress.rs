//! Tells a slow transfer from one that has stalled.
//!
//! A body that trickles a byte per second never times out on a single read, and a slow reader
//! must not be mistaken for a slow registry. So only the time that was spent waiting for the
//! registry counts, and in each window of it a least number of bytes has to come. A registry that
//! falls silent altogether is not waited for as long as that: whoever reads waits for it.

use std::time::Duration;

/// What a transfer has to achieve so as not to count as stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time of waiting after which bytes are counted.
    pub window: Duration,
    /// The bytes that must have come by then.
    pub least: u64,
    /// The longest time without any byte.
    pub silence: Duration,
}

impl Default for Pace {
    /// 1 KiB per second, judged every 20 seconds, and something every 10 seconds.
    fn default() -> Self {
        let silence = Duration::from_secs(10);
        Self { window: Duration::from_secs(20), least: 20 << 10, silence }
    }
}

/// One transfer's bytes and waiting time in the current window.
#[derive(Debug)]
pub struct Progress {
    pace: Pace,
    waited: Duration,
    received: u64,
    /// The time since the last byte.
    silent: Duration,
}

/// Fewer bytes in a time than the pace wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled {
    /// Bytes in this time.
    pub received: u64,
    /// Its length.
    pub waited: Duration,
}

impl Progress {
    /// A transfer that is to keep `pace`.
    pub fn new(pace: Pace) -> Self {
        Self { pace, waited: Duration::ZERO, received: 0, silent: Duration::ZERO }
    }

    /// How long the next read may wait for its first byte.
    pub fn patience(&self) -> Duration {
        let window = self.pace.window.saturating_sub(self.waited);
        window.min(self.pace.silence.saturating_sub(self.silent)).max(Duration::from_millis(1))
    }

    /// Counts `bytes` that came after `waited`.
    ///
    /// # Errors
    /// [`Stalled`] at the end of a window in which too few bytes came, or of the longest silence.
    pub fn record(&mut self, waited: Duration, bytes: u64) -> Result<(), Stalled> {
        self.silent = if bytes > 0 { Duration::ZERO } else { self.silent + waited };
        if self.silent >= self.pace.silence {
            return Err(Stalled { received: 0, waited: self.silent });
        }
        self.waited += waited;
        self.received += bytes;
        if self.waited < self.pace.window {
            return Ok(());
        }
        let (received, waited) = (self.received, self.waited);
        (self.received, self.waited) = (0, Duration::ZERO);
        if received < self.pace.least { Err(Stalled { received, waited }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { window: Duration::from_secs(10), least: 100, silence: Duration::from_secs(6) };

    #[test]
    fn a_trickle_stalls_at_the_end_of_its_window() {
        let mut progress = Progress::new(PACE);
        for _ in 0..9 {
            assert_eq!(progress.record(Duration::from_secs(1), 1), Ok(()));
        }
        assert_eq!(progress.patience(), Duration::from_secs(1));
        let stalled = Stalled { received: 10, waited: Duration::from_secs(10) };
        assert_eq!(progress.record(Duration::from_secs(1), 1), Err(stalled));
    }

    #[test]
    fn enough_bytes_begin_a_new_window() {
        let mut progress = Progress::new(PACE);
        for _ in 0..50 {
            assert_eq!(progress.record(Duration::from_secs(1), 10), Ok(()));
        }
        assert!(progress.record(Duration::from_secs(10), 99).is_err());
    }

    #[test]
    fn regression_silence_ends_sooner_than_its_window() {
        let mut progress = Progress::new(PACE);
        assert_eq!(progress.patience(), PACE.silence);
        assert_eq!(progress.record(Duration::from_secs(3), 5000), Ok(()));
        assert_eq!(progress.record(Duration::from_secs(4), 0), Ok(()));
        assert_eq!(progress.patience(), Duration::from_secs(2));
        let stalled = Stalled { received: 0, waited: PACE.silence };
        assert_eq!(progress.record(Duration::from_secs(2), 0), Err(stalled));
    }

    #[test]
    fn a_slow_reader_is_not_a_stall() {
        let mut progress = Progress::new(PACE);
        for _ in 0..1000 {
            assert_eq!(progress.record(Duration::ZERO, 1), Ok(()));
        }
        assert_eq!(progress.patience(), PACE.silence);
    }
}
