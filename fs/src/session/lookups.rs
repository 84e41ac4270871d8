//! How many look-ups in each slot the kernel has been given and has not forgotten.
//!
//! ```text
//! LOOKUP, READDIRPLUS -> add -> answer         FORGET -> take         is_forgotten: drop the slot?
//! ```
//!
//! A view may drop a slot (a layer, or the directories of an image) once the kernel knows no node
//! in it. Every entry that the kernel takes out of an answer to LOOKUP or READDIRPLUS counts as a
//! look-up of that node, and a FORGET takes a number of them back (`nlookup` in
//! `include/uapi/linux/fuse.h`). The counts belong to the mounts, not to the process, so they lie
//! in memory that the keeper holds and hands to every worker.
//!
//! A count is **never too low**, whenever a worker may die:
//!
//! ```text
//! add, answer         died between: the request comes again and is counted again   too high
//! read FORGET, take   died between: the kernel does not say it again               too high
//! the answer is not taken (its caller was killed, the connection is gone)          too high
//! ```
//!
//! A slot whose count is too high stays until the mount goes, which costs memory and nothing else.
//! A FORGET of more than was counted shows that some count was too low: from then on no count is
//! believed.
//!
//! ```text
//! memfd, sealed in size, native byte order
//!      0  magic "UMLOOK01"
//!      8  0; anything else: a count was found to be wrong
//!     16  reserved, 0
//!     64  1048576 words of 8 bytes: the look-ups of each slot
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::shared::SharedWords;

const MAGIC: &[u8; 8] = b"UMLOOK01";
const WRONG: usize = 8;
const FIRST_SLOT: usize = 64;
const SLOTS: u32 = 1 << 20;
const SIZE: usize = FIRST_SLOT + SLOTS as usize * size_of::<u64>();

/// The table, shared by the keeper and its workers. Slots beyond its end are never forgotten.
#[derive(Debug)]
pub struct Lookups(SharedWords);

impl Lookups {
    /// An empty table in a new memfd (8 MiB, of which only the used pages take memory).
    ///
    /// # Errors
    /// Those of making and mapping the memfd.
    pub fn create() -> io::Result<Self> {
        SharedWords::create("undermount-lookups", MAGIC, SIZE).map(Self)
    }

    /// The table that lies in `memory`.
    ///
    /// # Errors
    /// Where it cannot be mapped, or is not such a table.
    pub fn open(memory: OwnedFd) -> io::Result<Self> {
        SharedWords::open(memory, MAGIC, SIZE).map(Self)
    }

    /// A descriptor of the memfd, to be handed to workers.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn memory(&self) -> io::Result<OwnedFd> {
        self.0.memory().try_clone_to_owned()
    }

    /// Counts a look-up of a node in `slot`. Call it before the kernel is answered.
    pub fn add(&self, slot: u32) {
        if slot < SLOTS {
            self.0.word(offset(slot)).fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes back `count` look-ups: the kernel has forgotten them, or they were never answered.
    pub fn take(&self, slot: u32, count: u64) {
        if slot >= SLOTS {
            return;
        }
        let word = self.0.word(offset(slot));
        let taken = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |known| {
            Some(known.saturating_sub(count))
        });
        if taken.is_ok_and(|known| known < count) && !self.are_wrong() {
            self.0.word(WRONG).store(1, Ordering::Release);
            tracing::error!(slot, count, "the kernel forgets more than it was told");
        }
    }

    /// Whether it is certain that the kernel knows no node in `slot`.
    pub fn is_forgotten(&self, slot: u32) -> bool {
        let word = || self.0.word(offset(slot)).load(Ordering::Acquire);
        slot < SLOTS && !self.are_wrong() && word() == 0
    }

    fn are_wrong(&self) -> bool {
        self.0.word(WRONG).load(Ordering::Acquire) != 0
    }
}

fn offset(slot: u32) -> usize {
    FIRST_SLOT + slot as usize * size_of::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_forgotten_when_all_of_its_lookups_are_also_by_the_next_worker() {
        let keeper = Lookups::create().unwrap();
        let worker = Lookups::open(keeper.memory().unwrap()).unwrap();
        assert!(worker.is_forgotten(7));
        worker.add(7);
        worker.add(7);
        worker.take(7, 1);
        assert!(!worker.is_forgotten(7) && worker.is_forgotten(8));
        drop(worker);
        let next = Lookups::open(keeper.memory().unwrap()).unwrap();
        assert!(!next.is_forgotten(7));
        next.take(7, 1);
        assert!(next.is_forgotten(7));
    }

    #[test]
    fn after_a_count_below_none_no_count_is_believed() {
        let lookups = Lookups::create().unwrap();
        lookups.add(1);
        lookups.take(1, 2);
        assert!(!lookups.is_forgotten(1) && !lookups.is_forgotten(2));
        let next = Lookups::open(lookups.memory().unwrap()).unwrap();
        assert!(!next.is_forgotten(2), "nor by the next worker");
    }

    #[test]
    fn slots_beyond_the_table_are_never_forgotten() {
        let lookups = Lookups::create().unwrap();
        for slot in [SLOTS, u32::MAX] {
            lookups.add(slot);
            lookups.take(slot, 2);
            assert!(!lookups.is_forgotten(slot));
        }
        lookups.add(SLOTS - 1);
        assert!(!lookups.is_forgotten(SLOTS - 1) && lookups.is_forgotten(SLOTS - 2));
    }

    #[test]
    fn threads_that_count_at_the_same_time_lose_nothing() {
        const ROUNDS: u64 = 10_000;
        let lookups = Lookups::create().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..ROUNDS).for_each(|_| lookups.add(3)));
            }
        });
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..ROUNDS).for_each(|_| lookups.take(3, 2)));
            }
        });
        assert!(lookups.is_forgotten(3));
        lookups.add(3);
        lookups.take(3, 1);
        assert!(lookups.is_forgotten(3), "it was none, not below");
    }
}
