//! Which requests a worker has in hand, for kernels that cannot send them again (before 6.9).
//!
//! ```text
//! worker:  request -> enter: id into a slot of shared memory -> answer -> drop: slot cleared
//! keeper:  worker dead -> take_suspects -> EIO for each id that the kernel still knows
//! ```
//!
//! On such a kernel a request that dies with its worker would never be answered, and its caller
//! would hang. On newer kernels nothing is recorded.
//!
//! One gap remains: a worker can die after the kernel handed it a request and before the request
//! was recorded. The kernel gives out ids in order, so such an id lies close to the newest one that
//! was recorded, and the keeper tries all ids around that one. To answer a request that nobody
//! waits for does no harm: the kernel says ENOENT.
//!
//! ```text
//! memfd, sealed in size, native byte order
//!      0  magic "UMINFL01"
//!      8  newest id that was recorded
//!     16  reserved, 0
//!     64  16384 slots of 8 bytes: the id of a request in hand, or 0
//! ```

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::shared::SharedWords;
use super::urgency;
use super::wire::{RESENT, UNIQUE_STEP};

const MAGIC: &[u8; 8] = b"UMINFL01";
const NEWEST: usize = 8;
const FIRST_SLOT: usize = 64;
const SLOTS: usize = 16384;
const SIZE: usize = FIRST_SLOT + SLOTS * size_of::<u64>();

/// How far from the newest id, as a difference of ids (every [`UNIQUE_STEP`]th belongs to a
/// request), a request may lie that a loop thread had read but not yet recorded. Other threads go
/// on while that one waits for a processor, and ids are also spent on requests that are withdrawn
/// before anyone reads them.
const REACH: u64 = 1 << 16;

/// The table, shared by the keeper and its present worker.
#[derive(Debug)]
pub(super) struct Table(SharedWords);

impl Table {
    /// An empty table in a new memfd.
    pub(super) fn create() -> io::Result<Self> {
        SharedWords::create("undermount-inflight", MAGIC, SIZE).map(Self)
    }

    /// The table that lies in `memory`.
    pub(super) fn open(memory: OwnedFd) -> io::Result<Self> {
        SharedWords::open(memory, MAGIC, SIZE).map(Self)
    }

    /// The memfd, to be handed to a worker.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.0.memory()
    }

    /// Notes that request `unique` was read from the device.
    pub(super) fn note(&self, unique: u64) {
        self.0.word(NEWEST).fetch_max(unique & !RESENT, Ordering::Relaxed);
    }

    /// The ids of all requests that may lack an answer, which the caller has to give: those that
    /// were recorded, which this call erases, and all that lie within [`REACH`] of the newest.
    pub(super) fn take_suspects(&self) -> Vec<u64> {
        let recorded: Vec<u64> = (0..SLOTS)
            .map(|slot| self.slot(slot).swap(0, Ordering::Relaxed))
            .filter(|&unique| unique != 0)
            .collect();
        let newest = self.0.word(NEWEST).load(Ordering::Relaxed);
        let first = newest.saturating_sub(REACH).max(UNIQUE_STEP);
        let near = (first / UNIQUE_STEP..=(newest + REACH) / UNIQUE_STEP).map(|n| n * UNIQUE_STEP);
        recorded.into_iter().chain(near).collect()
    }

    fn slot(&self, index: usize) -> &AtomicU64 {
        self.0.word(FIRST_SLOT + index * size_of::<u64>())
    }
}

/// Records the requests that a worker has in hand, if that is needed at all.
#[derive(Debug, Clone)]
pub struct Inflight(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    table: Table,
    free: Mutex<Vec<usize>>,
}

/// The table is full: as many requests are in hand as it has slots.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{SLOTS} requests are already being answered")]
pub struct TooManyRequests;

impl Inflight {
    /// Records nothing: for a kernel that sends unanswered requests again.
    pub fn unrecorded() -> Self {
        Self(None)
    }

    /// Records in `table`.
    pub(super) fn recorded_in(table: Table) -> Self {
        // Low slots come first, so that few pages of the table are ever touched.
        let free = Mutex::new((0..SLOTS).rev().collect());
        Self(Some(Arc::new(Recorder { table, free })))
    }

    /// Records that the calling thread has taken request `unique`, and gives the thread the
    /// priority of one that answers requests. Call it before the request is handled, and drop the
    /// ticket after the answer was given.
    ///
    /// # Errors
    /// [`TooManyRequests`]: the request cannot be recorded and must be refused.
    pub fn enter(&self, unique: u64) -> Result<Ticket, TooManyRequests> {
        urgency::attend();
        let Some(recorder) = &self.0 else { return Ok(Ticket(None)) };
        let mut free = recorder.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.pop().ok_or(TooManyRequests)?;
        drop(free);
        recorder.table.slot(slot).store(unique, Ordering::Relaxed);
        recorder.table.note(unique);
        Ok(Ticket(Some((Arc::clone(recorder), slot))))
    }
}

/// A request in hand. Drop it after the answer.
#[derive(Debug)]
#[must_use = "the request counts as answered once the ticket is dropped"]
pub struct Ticket(Option<(Arc<Recorder>, usize)>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some((recorder, slot)) = self.0.take() {
            recorder.table.slot(slot).store(0, Ordering::Relaxed);
            recorder.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared_table() -> (Table, Inflight) {
        let keeper = Table::create().unwrap();
        let worker = Table::open(keeper.memory().try_clone_to_owned().unwrap()).unwrap();
        (keeper, Inflight::recorded_in(worker))
    }

    #[test]
    fn the_keeper_finds_what_a_worker_left_unanswered() {
        let (keeper, inflight) = shared_table();
        let answered = inflight.enter(1_000_000).unwrap();
        let slow = inflight.enter(2_000_000).unwrap();
        let newest = inflight.enter(9_000_000).unwrap();
        drop(answered);
        std::mem::forget((slow, newest));
        let suspects = keeper.take_suspects();
        assert!(suspects.contains(&2_000_000) && suspects.contains(&9_000_000));
        assert!(!suspects.contains(&1_000_000));
        assert!(!keeper.take_suspects().contains(&2_000_000), "taken once, not twice");
    }

    #[test]
    fn a_request_that_was_read_but_not_recorded_is_suspected() {
        let (keeper, inflight) = shared_table();
        drop(inflight.enter(500_000).unwrap());
        let suspects = keeper.take_suspects();
        assert!(suspects.contains(&500_002), "read after the newest");
        assert!(suspects.contains(&499_998), "read before it by another thread");
    }

    #[test]
    fn a_fresh_connection_suspects_its_first_ids() {
        let (keeper, _inflight) = shared_table();
        assert_eq!(keeper.take_suspects().first(), Some(&UNIQUE_STEP));
    }

    #[test]
    fn a_full_table_refuses_until_a_request_is_answered() {
        let (_keeper, inflight) = shared_table();
        let mut tickets: Vec<_> =
            (1..=SLOTS as u64).map(|n| inflight.enter(n * UNIQUE_STEP).unwrap()).collect();
        assert!(inflight.enter(2).is_err());
        tickets.pop();
        assert!(inflight.enter(2).is_ok());
    }
}
