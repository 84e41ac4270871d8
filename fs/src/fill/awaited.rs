//! Units that are on their way in a start-up pack.
//!
//! A read that misses a unit can fetch the unit's span, or wait for the pack to bring it. It
//! waits as long as the pack brings it soon: the pack is the cheaper way by far, and its order is
//! that of the reads. What lies far ahead, or behind a pack that stalls, is fetched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::object::ObjectKey;

/// A unit that arrives within this time is waited for.
const SOON: Duration = Duration::from_secs(1);

/// A pack that brings nothing for this long is not waited for any more.
const STALL: Duration = Duration::from_secs(1);

/// A unit by its content.
pub type Unit = (ObjectKey, usize);

/// What is awaited from all packs that are on their way.
#[derive(Default)]
pub struct Awaited {
    units: Mutex<HashMap<Unit, Expected>>,
    progress: Notify,
}

/// Where a unit is in its pack.
struct Expected {
    transfer: Arc<Transfer>,
    /// Compressed bytes from the start of the transfer to the end of its frame.
    position: u64,
}

/// How far a pack has come.
struct Transfer {
    start: Instant,
    state: Mutex<Arrival>,
    /// Whether somebody has waited in vain: from then on nobody waits for it.
    failed: AtomicBool,
}

#[derive(Clone, Copy)]
struct Arrival {
    bytes: u64,
    last: Instant,
}

/// A pack on its way: its units are awaited until this is dropped.
pub struct Arrivals<'a> {
    awaited: &'a Awaited,
    transfer: Arc<Transfer>,
}

impl Awaited {
    /// Announces units with the compressed bytes of the pack that come no later than they do.
    pub fn announce(&self, units: impl IntoIterator<Item = (Unit, u64)>) -> Arrivals<'_> {
        let now = Instant::now();
        let state = Mutex::new(Arrival { bytes: 0, last: now });
        let transfer = Arc::new(Transfer { start: now, state, failed: AtomicBool::new(false) });
        let expected = |position| Expected { transfer: transfer.clone(), position };
        self.units().extend(units.into_iter().map(|(unit, position)| (unit, expected(position))));
        Arrivals { awaited: self, transfer }
    }

    /// Waits while any of `units` is going to arrive soon.
    pub async fn wait(&self, units: &[Unit]) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let now = Instant::now();
            let patience = {
                let awaited = self.units();
                let expected = units.iter().filter_map(|unit| awaited.get(unit));
                expected.filter_map(|expected| expected.patience(now)).max()
            };
            let Some(patience) = patience else { return };
            if tokio::time::timeout(patience, progress).await.is_err() {
                return self.note_stall(units);
            }
        }
    }

    /// One stall is enough: each read that waits for such a pack is slower than without it.
    fn note_stall(&self, units: &[Unit]) {
        let awaited = self.units();
        for expected in units.iter().filter_map(|unit| awaited.get(unit)) {
            expected.transfer.failed.store(true, Ordering::Relaxed);
        }
    }

    fn units(&self) -> MutexGuard<'_, HashMap<Unit, Expected>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expected {
    /// How long to wait for the next sign of the pack; `None` where the unit is better fetched.
    fn patience(&self, now: Instant) -> Option<Duration> {
        if self.transfer.failed.load(Ordering::Relaxed) {
            return None;
        }
        let arrival = *self.transfer.state.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = STALL.checked_sub(now.duration_since(arrival.last))?;
        if arrival.bytes > 0 {
            let rate = arrival.bytes as f64
                / arrival.last.duration_since(self.transfer.start).as_secs_f64().max(0.001);
            let ahead = self.position.saturating_sub(arrival.bytes) as f64;
            if ahead > rate * SOON.as_secs_f64() {
                return None;
            }
        }
        (!patience.is_zero()).then_some(patience)
    }
}

impl Arrivals<'_> {
    /// Notes that the pack has come as far as `bytes`, and that `units` are settled: kept, or
    /// found to be wrong.
    pub fn settle<'u>(&self, bytes: u64, units: impl IntoIterator<Item = &'u Unit>) {
        *self.transfer.state.lock().unwrap_or_else(PoisonError::into_inner) =
            Arrival { bytes, last: Instant::now() };
        let mut awaited = self.awaited.units();
        for unit in units {
            awaited.remove(unit);
        }
        drop(awaited);
        self.awaited.progress.notify_waiters();
    }
}

impl Drop for Arrivals<'_> {
    fn drop(&mut self) {
        self.awaited.units().retain(|_, unit| !Arc::ptr_eq(&unit.transfer, &self.transfer));
        self.awaited.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn unit(content: &[u8]) -> Unit {
        (ObjectKey::small(content), 0)
    }

    #[test]
    fn what_nobody_announced_is_not_waited_for() {
        let awaited = Awaited::default();
        let _other = awaited.announce([(unit(b"other"), 10)]);
        assert!(awaited.wait(&[unit(b"this")]).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_unit_is_settled() {
        let awaited = Awaited::default();
        let arrivals = awaited.announce([(unit(b"first"), 10), (unit(b"second"), 20)]);
        let second = [unit(b"second")];
        let mut wait = std::pin::pin!(awaited.wait(&second));
        assert!(wait.as_mut().now_or_never().is_none());
        arrivals.settle(10, &[unit(b"first")]);
        assert!(wait.as_mut().now_or_never().is_none());
        arrivals.settle(20, &[unit(b"second")]);
        wait.await;
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_pack() {
        let awaited = Awaited::default();
        let arrivals = awaited.announce([(unit(b"unit"), 10)]);
        let units = [unit(b"unit")];
        let mut wait = std::pin::pin!(awaited.wait(&units));
        assert!(wait.as_mut().now_or_never().is_none());
        drop(arrivals);
        wait.await;
        assert!(awaited.units().is_empty());
    }

    #[tokio::test]
    async fn what_lies_far_ahead_is_not_waited_for() {
        let awaited = Awaited::default();
        let arrivals = awaited.announce([(unit(b"near"), 20), (unit(b"far"), u64::MAX / 2)]);
        arrivals.settle(10, &[]);
        assert!(awaited.wait(&[unit(b"far")]).now_or_never().is_some());
        assert!(awaited.wait(&[unit(b"near")]).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_pack_that_stalls_is_not_waited_for() {
        let awaited = Awaited::default();
        let arrivals = awaited.announce([(unit(b"unit"), 10)]);
        // It ends by itself, though nothing ever comes, and nobody waits for it again,
        awaited.wait(&[unit(b"unit")]).await;
        // also when it goes on to trickle.
        arrivals.settle(1, &[]);
        assert!(awaited.wait(&[unit(b"unit")]).now_or_never().is_some());
    }
}
