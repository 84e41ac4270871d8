//! Whether the threads that take requests still answer them.
//!
//! ```text
//! request -> turn: count it in the present step of 2 s -> answer -> drop: count it out
//! alive?  -> is_stuck: whether a step older than the limit still counts anybody
//! ```
//!
//! Such a thread never waits for the network: what takes long moves to a task with a deadline of
//! its own. A thread that has been at a request for long is therefore stuck in a lock or in a
//! system call, and the mount with it. A worker whose threads are well tells its keeper so again
//! and again; a keeper that hears nothing replaces the worker.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The width of a step: requests that arrive within one are counted together.
const STEP: Duration = Duration::from_secs(2);
/// The number of steps that are told apart: 128 s.
const STEPS: u64 = 64;

/// Counts the requests that threads are at, by the time when they arrived.
#[derive(Debug)]
pub struct Pulse {
    begun: Instant,
    at: [AtomicU32; STEPS as usize],
}

/// The turn of a thread: it is at a request until this is dropped.
#[derive(Debug)]
#[must_use = "the thread is at the request for as long as this lives"]
pub struct Turn<'a>(&'a AtomicU32);

impl Default for Pulse {
    fn default() -> Self {
        Self { begun: Instant::now(), at: std::array::from_fn(|_| AtomicU32::new(0)) }
    }
}

impl Pulse {
    /// Notes that the calling thread begins with a request.
    pub fn turn(&self) -> Turn<'_> {
        self.turn_at(Instant::now())
    }

    fn turn_at(&self, now: Instant) -> Turn<'_> {
        let count = self.count(self.step(now));
        count.fetch_add(1, Ordering::Relaxed);
        Turn(count)
    }

    /// Whether some thread has been at its request for `limit`, give or take two seconds; a longer
    /// limit than 126 s counts as 126 s.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        self.is_stuck_at(Instant::now(), limit)
    }

    /// How many threads have been at their requests for `limit`, as in [`Self::is_stuck`].
    pub fn stuck(&self, limit: Duration) -> u32 {
        self.stuck_at(Instant::now(), limit)
    }

    fn is_stuck_at(&self, now: Instant, limit: Duration) -> bool {
        self.stuck_at(now, limit) > 0
    }

    fn stuck_at(&self, now: Instant, limit: Duration) -> u32 {
        let step = self.step(now);
        let steps = limit.as_secs() / STEP.as_secs();
        // The steps are a ring: a turn older than all of them looks as young again as its
        // remainder. The keeper replaces a silent worker long before that.
        let old = (steps.min(STEPS - 1)..STEPS).filter_map(|age| step.checked_sub(age));
        old.map(|step| self.count(step).load(Ordering::Relaxed)).sum()
    }

    fn step(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / STEP.as_secs()
    }

    fn count(&self, step: u64) -> &AtomicU32 {
        &self.at[(step % STEPS) as usize]
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn after(pulse: &Pulse, seconds: u64) -> Instant {
        pulse.begun + Duration::from_secs(seconds)
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_stuck_after_the_limit_and_for_good() {
        let pulse = Pulse::default();
        let _stuck = pulse.turn_at(after(&pulse, 100));
        assert!(!pulse.is_stuck_at(after(&pulse, 101), LIMIT));
        assert!(!pulse.is_stuck_at(after(&pulse, 117), LIMIT));
        assert!(pulse.is_stuck_at(after(&pulse, 122), LIMIT));
        assert!(pulse.is_stuck_at(after(&pulse, 200), LIMIT));
    }

    #[test]
    fn threads_that_come_and_go_are_well() {
        let pulse = Pulse::default();
        for second in 0..600 {
            drop(pulse.turn_at(after(&pulse, second)));
            let present = pulse.turn_at(after(&pulse, second));
            assert!(!pulse.is_stuck_at(after(&pulse, second), LIMIT));
            drop(present);
        }
    }
}
