//! Which files of a mount are open, and through which backing file the kernel reads them.
//!
//! ```text
//! OPEN -> join: node is open already?  yes -> the same backing id, a new handle
//!                                      no  -> open: register the backing file -> record -> answer
//! RELEASE -> release: erase the record; the last one of a node closes its backing id
//! ```
//!
//! In passthrough mode a worker answers OPEN with a *backing id*, under which the kernel has a file
//! of the object store that it then reads and maps without asking anybody. Until the last open file
//! of a node is released, every OPEN of the node must be answered in the same way, with the same
//! id, or the kernel refuses it with EIO. The ids belong to the connection, not to the process, so
//! that promise outlives a worker: it is written down, before OPEN is answered, in memory that the
//! keeper holds and hands to the next worker.
//!
//! A kernel that can pass reads through also sends unanswered requests again (both came with Linux
//! 6.9), so OPEN and RELEASE may each arrive twice. An OPEN that arrives again is known by its
//! unique id, a RELEASE by its handle, which is never given to another file.
//!
//! ```text
//! memfd, sealed in size, native byte order
//!      0  magic "UMOPEN01"
//!      8  handles given out so far
//!     16  end of the slots that were ever in use: the rest is free
//!     24  reserved, 0
//!     64  65536 slots of 32 bytes, one for each open file:
//!           0  its handle; 0: the slot is free
//!           8  its node
//!          16  the unique id of its OPEN
//!          24  the backing id; 0: the kernel asks the worker for its bytes
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::backing;
use super::shared::SharedWords;
use super::wire::RESENT;

const MAGIC: &[u8; 8] = b"UMOPEN01";
const HANDLES: usize = 8;
const SLOTS_USED: usize = 16;
const FIRST_SLOT: usize = 64;
const SLOT: usize = 32;
const SLOTS: usize = 1 << 16;
const SIZE: usize = FIRST_SLOT + SLOTS * SLOT;

/// The table, shared by the keeper and its present worker.
#[derive(Debug)]
pub(super) struct OpenTable(SharedWords);

/// An open file as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    handle: u64,
    node: u64,
    unique: u64,
    backing: u64,
}

impl OpenTable {
    /// An empty table in a new memfd.
    pub(super) fn create() -> io::Result<Self> {
        SharedWords::create("undermount-opens", MAGIC, SIZE).map(Self)
    }

    /// The table that lies in `memory`.
    pub(super) fn open(memory: OwnedFd) -> io::Result<Self> {
        SharedWords::open(memory, MAGIC, SIZE).map(Self)
    }

    /// The memfd, to be handed to a worker.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.0.memory()
    }

    /// A handle that no open file ever had.
    fn new_handle(&self) -> u64 {
        self.0.word(HANDLES).fetch_add(1, Ordering::Relaxed) + 1
    }

    fn slots_used(&self) -> usize {
        // Only workers of this keeper write here, but one that was damaged may have written
        // anything.
        usize::try_from(self.0.word(SLOTS_USED).load(Ordering::Relaxed))
            .map_or(SLOTS, |n| n.min(SLOTS))
    }

    fn read(&self, slot: usize) -> Option<Record> {
        let field = |n: usize| self.field(slot, n).load(Ordering::Relaxed);
        let handle = self.field(slot, 0).load(Ordering::Acquire);
        (handle != 0).then(|| Record {
            handle,
            node: field(1),
            unique: field(2),
            backing: field(3),
        })
    }

    /// Writes the handle last: a record that is half written is none.
    fn write(&self, slot: usize, record: Record) {
        let Record { handle, node, unique, backing } = record;
        self.0.word(SLOTS_USED).fetch_max(slot as u64 + 1, Ordering::Relaxed);
        for (n, value) in [(1, node), (2, unique), (3, backing)] {
            self.field(slot, n).store(value, Ordering::Relaxed);
        }
        self.field(slot, 0).store(handle, Ordering::Release);
    }

    fn erase(&self, slot: usize) {
        self.field(slot, 0).store(0, Ordering::Release);
    }

    fn field(&self, slot: usize, n: usize) -> &AtomicU64 {
        self.0.word(FIRST_SLOT + slot * SLOT + n * size_of::<u64>())
    }
}

/// The open files of a mount in passthrough mode, as its worker knows them.
#[derive(Debug)]
pub struct Opens {
    table: OpenTable,
    /// The connection that the backing ids belong to.
    device: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The slot of each handle.
    slots: HashMap<u64, usize>,
    nodes: HashMap<u64, OpenNode>,
    /// Slots below `fresh` that are free.
    free: Vec<usize>,
    /// The first slot that was never in use.
    fresh: usize,
}

/// What all open files of a node have in common.
#[derive(Debug, Clone, Copy)]
struct OpenNode {
    backing: u64,
    files: usize,
}

/// What OPEN is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle of the open file.
    pub handle: u64,
    /// The backing id through which the kernel reads it; `None` where it asks the worker.
    pub backing: Option<u32>,
}

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The table is full: as many files are open as it has slots.
    #[error("{SLOTS} files of the mount are open already")]
    TooMany,
    /// The kernel does not take the backing file; the source has its errno.
    #[error("the kernel does not pass reads through to an object of the store")]
    Backing(#[source] io::Error),
}

impl Opens {
    /// The open files that are recorded in `table`, on the connection of `device`.
    pub(super) fn resume(table: OpenTable, device: OwnedFd) -> Self {
        let mut state = State { fresh: table.slots_used(), ..State::default() };
        // Low slots come first, so that few pages of the table are ever touched.
        for slot in (0..state.fresh).rev() {
            match table.read(slot) {
                Some(record) => state.note(slot, record),
                None => state.free.push(slot),
            }
        }
        Self { table, device, state: Mutex::new(state) }
    }

    /// Answers OPEN `unique` of `node` like the one before it, if the node is open already; `None`
    /// if it is not.
    ///
    /// # Errors
    /// [`OpenError::TooMany`].
    pub fn join(&self, unique: u64, node: u64) -> Result<Option<Opened>, OpenError> {
        let mut state = self.state();
        if let Some(opened) = self.answered_before(&state, unique) {
            return Ok(Some(opened));
        }
        let Some(open) = state.nodes.get(&node).copied() else { return Ok(None) };
        self.record(&mut state, unique, node, open.backing).map(Some)
    }

    /// Answers OPEN `unique` of `node`, whose content `file` holds whole; with `None` the kernel
    /// asks the worker for its bytes. If the node has been opened since, the answer is the same as
    /// it was then.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, unique: u64, node: u64, file: Option<&File>) -> Result<Opened, OpenError> {
        let mut state = self.state();
        if let Some(opened) = self.answered_before(&state, unique) {
            return Ok(opened);
        }
        let backing = match (state.nodes.get(&node), file) {
            (Some(open), _) => open.backing,
            (None, None) => 0,
            (None, Some(file)) => {
                let id = backing::open(self.device.as_fd(), file);
                id.map_err(OpenError::Backing)?.into()
            }
        };
        self.record(&mut state, unique, node, backing)
    }

    /// Notes that an open file is closed. With the last one of a node its backing id is given back.
    pub fn release(&self, handle: u64) {
        let mut state = self.state();
        let Some(slot) = state.slots.remove(&handle) else { return };
        let Some(record) = self.table.read(slot) else { return };
        self.table.erase(slot);
        state.free.push(slot);
        let Some(node) = state.nodes.get_mut(&record.node) else { return };
        node.files -= 1;
        if node.files == 0 {
            state.nodes.remove(&record.node);
            self.close(record.backing);
        }
    }

    /// The number of open files.
    pub fn count(&self) -> usize {
        self.state().slots.len()
    }

    fn answered_before(&self, state: &State, unique: u64) -> Option<Opened> {
        let first = (unique & RESENT != 0).then_some(unique & !RESENT)?;
        let records = state.slots.values().filter_map(|&slot| self.table.read(slot));
        records.into_iter().find(|record| record.unique == first).map(Record::opened)
    }

    fn record(
        &self,
        state: &mut State,
        unique: u64,
        node: u64,
        backing: u64,
    ) -> Result<Opened, OpenError> {
        let Some(slot) = state.take_slot() else {
            if !state.nodes.contains_key(&node) {
                self.close(backing);
            }
            return Err(OpenError::TooMany);
        };
        let record =
            Record { handle: self.table.new_handle(), node, unique: unique & !RESENT, backing };
        self.table.write(slot, record);
        state.note(slot, record);
        Ok(record.opened())
    }

    fn close(&self, backing: u64) {
        let Some(id) = backing_id(backing) else { return };
        if let Err(error) = backing::close(self.device.as_fd(), id) {
            tracing::warn!(id, %error, "cannot close a backing file");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_slot(&mut self) -> Option<usize> {
        self.free.pop().or_else(|| {
            let slot = self.fresh;
            (slot < SLOTS).then(|| self.fresh += 1).map(|()| slot)
        })
    }

    fn note(&mut self, slot: usize, record: Record) {
        self.slots.insert(record.handle, slot);
        let node = OpenNode { backing: record.backing, files: 0 };
        self.nodes.entry(record.node).or_insert(node).files += 1;
    }
}

impl Record {
    fn opened(self) -> Opened {
        Opened { handle: self.handle, backing: backing_id(self.backing) }
    }
}

/// A backing id from its word in the table: the kernel counts from 1, and 0 stands for none.
fn backing_id(word: u64) -> Option<u32> {
    u32::try_from(word).ok().filter(|&id| id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two workers of one keeper, one after the other. Backing ids need a mount; the suites try
    /// them.
    fn resume(keeper: &OpenTable) -> Opens {
        let memory = keeper.memory().try_clone_to_owned().unwrap();
        let device = File::open("/dev/null").unwrap().into();
        Opens::resume(OpenTable::open(memory).unwrap(), device)
    }

    /// A file that is open under a backing id, as a worker left it.
    fn leave_open(keeper: &OpenTable, slot: usize, node: u64, backing: u64) -> u64 {
        let record = Record { handle: keeper.new_handle(), node, unique: 2 * slot as u64, backing };
        keeper.write(slot, record);
        record.handle
    }

    #[test]
    fn the_next_worker_opens_a_node_as_the_one_before_did() {
        let keeper = OpenTable::create().unwrap();
        let (through, cached) = (leave_open(&keeper, 0, 70, 5), leave_open(&keeper, 1, 71, 0));
        let opens = resume(&keeper);
        let opened = opens.join(100, 70).unwrap().unwrap();
        assert_eq!(opened.backing, Some(5));
        assert!(opened.handle != through && opened.handle != cached);
        assert_eq!(opens.open(102, 71, None).unwrap().backing, None);
        assert_eq!(opens.join(104, 72).unwrap(), None);
        assert_eq!(resume(&keeper).count(), 4);
    }

    #[test]
    fn an_open_that_comes_again_is_not_counted_twice() {
        let keeper = OpenTable::create().unwrap();
        let first = resume(&keeper).open(8, 70, None).unwrap();
        let next = resume(&keeper);
        assert_eq!(next.join(8 | RESENT, 70).unwrap(), Some(first));
        assert_eq!(next.open(8 | RESENT, 70, None).unwrap(), first);
        assert_eq!(next.count(), 1);
        assert!(next.join(10 | RESENT, 70).unwrap().unwrap() != first, "one that was never seen");
    }

    #[test]
    fn a_release_that_comes_again_closes_no_other_file() {
        let keeper = OpenTable::create().unwrap();
        let opens = resume(&keeper);
        let first = opens.open(2, 70, None).unwrap();
        opens.release(first.handle);
        let second = opens.open(4, 70, None).unwrap();
        opens.release(first.handle);
        assert_eq!(opens.count(), 1);
        opens.release(second.handle);
        assert_eq!((opens.count(), resume(&keeper).count()), (0, 0));
        assert_eq!(keeper.slots_used(), 1, "slots are used again");
    }

    #[test]
    fn a_full_table_refuses_until_a_file_is_closed() {
        let keeper = OpenTable::create().unwrap();
        let opens = resume(&keeper);
        let first = opens.open(2, 70, None).unwrap();
        for n in 1..SLOTS as u64 {
            opens.open(2 + 2 * n, 70, None).unwrap();
        }
        assert!(matches!(opens.join(2, 70), Err(OpenError::TooMany)));
        assert!(matches!(opens.open(2, 71, None), Err(OpenError::TooMany)));
        opens.release(first.handle);
        assert!(opens.open(2, 71, None).is_ok());
    }
}
