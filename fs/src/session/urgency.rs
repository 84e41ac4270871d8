//! The scheduling policy of the threads that take requests.
//!
//! ```text
//! request -> attend -> a look at /proc/loadavg, at most every 20 ms -> average
//!                        |-> more threads than processors -> SCHED_RR
//!                        `-> otherwise                    -> SCHED_BATCH
//! ```
//!
//! A program that opens a file of a mount waits for such a thread, and the thread for a processor.
//!
//! - Where more threads want to run than there are processors, they are realtime threads, whose
//!   turn comes at once however busy the machine is with starting containers. They never wait for
//!   the network, and a request takes them microseconds, so they cannot keep others from running
//!   for long. Should one ever spin, the kernel leaves 5 % of the processor to others
//!   (`sched_rt_runtime_us`, sched(7)), and the keeper replaces the worker.
//! - Elsewhere they are batch threads. Such a thread does not push aside the one that has woken it
//!   (sched(7)), so that asker and answerer tend to share a processor and need not wake another one
//!   from its sleep for each request: that takes longer than the request.
//!
//! The threads look at the load themselves, at requests, so that an idle mount costs nothing.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use crate::share::set_nice;

/// The lowest realtime priority: above all ordinary threads, below those of anybody who asked for
/// more.
const PRIORITY: i32 = 1;
/// The nice value of a batch thread, and of an ordinary one where neither policy is permitted
/// (realtime is not, in some control groups).
const NICE: i32 = -15;

/// The shortest time between two looks at the load.
const LOOK: Duration = Duration::from_millis(20);
/// After such a time without requests, what was seen before says nothing.
const FORGET: Duration = Duration::from_secs(1);

thread_local! {
    /// The policy that the calling thread has; `None` until its first request.
    static PRESENT: Cell<Option<Order>> = const { Cell::new(None) };
}

/// The policy of a thread that takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Realtime,
    Batch,
}

/// One for all mounts: they share the machine.
static URGENCY: LazyLock<Urgency> = LazyLock::new(Urgency::default);

/// Gives the calling thread, which takes a request, the policy that it has to have now.
pub(super) fn attend() {
    let order = URGENCY.order(Instant::now());
    if PRESENT.get() == Some(order) {
        return;
    }
    if PRESENT.replace(Some(order)).is_none() {
        let outcome = set_nice(NICE);
        tracing::debug!(?outcome, "the share of a thread that takes requests");
    }
    let outcome = adopt(order);
    tracing::trace!(?order, ?outcome, "a thread that takes requests");
}

/// Follows the load of the machine.
#[derive(Debug)]
struct Urgency {
    begun: Instant,
    processors: u32,
    /// `/proc/loadavg`, see proc_loadavg(5); without it the machine is taken for a busy one.
    load: Option<File>,
    /// When the load was looked at last, in milliseconds since `begun`.
    looked: AtomicU64,
    /// The present [`Level`].
    level: AtomicU32,
}

impl Default for Urgency {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, |count| count.get());
        Self {
            begun: Instant::now(),
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
            load: File::open("/proc/loadavg").ok(),
            looked: AtomicU64::new(0),
            level: AtomicU32::new(Level::UNKNOWN.0),
        }
    }
}

impl Urgency {
    fn order(&self, now: Instant) -> Order {
        let now = now.saturating_duration_since(self.begun).as_millis() as u64;
        let looked = self.looked.load(Relaxed);
        let since = Duration::from_millis(now.saturating_sub(looked));
        let is_mine = || self.looked.compare_exchange(looked, now, Relaxed, Relaxed).is_ok();
        if since >= LOOK && is_mine() {
            let before = Level(self.level.load(Relaxed));
            let before = if since < FORGET { before } else { Level::UNKNOWN };
            let level = self.running().map_or(Level::UNKNOWN, |running| before.after(running));
            self.level.store(level.0, Relaxed);
        }
        match Level(self.level.load(Relaxed)).is_above(self.processors) {
            true => Order::Realtime,
            false => Order::Batch,
        }
    }

    /// How many threads of the machine want to run at this moment, the calling one among them: the
    /// number before the `/` in the fourth field.
    fn running(&self) -> Option<u32> {
        let mut text = [0; 128];
        let count = self.load.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..count]).ok()?;
        let (running, _) = text.split(' ').nth(3)?.split_once('/')?;
        running.parse().ok()
    }
}

/// How many threads wanted to run of late, in sixteenths of a thread. It is an average, since what
/// is seen at one moment is chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level(u32);

impl Level {
    const UNIT: u32 = 16;
    /// Nothing was seen yet. It counts as busy, since a mount is made while much else is started.
    const UNKNOWN: Self = Self(u32::MAX);

    /// The level after `running` threads were seen, which counts for a quarter.
    fn after(self, running: u32) -> Self {
        let running = running.min(1 << 20) * Self::UNIT;
        match self {
            Self::UNKNOWN => Self(running),
            Self(level) => Self((level * 3 + running) / 4),
        }
    }

    /// Whether more threads wanted to run than there are `processors`, by more than half a thread.
    fn is_above(self, processors: u32) -> bool {
        self.0 > processors.saturating_mul(Self::UNIT) + Self::UNIT / 2
    }
}

/// Gives the calling thread the policy of `order`, or else the ordinary one; threads that it starts
/// do not inherit it.
fn adopt(order: Order) -> io::Result<()> {
    let (policy, sched_priority) = match order {
        Order::Realtime => (libc::SCHED_RR, PRIORITY),
        Order::Batch => (libc::SCHED_BATCH, 0),
    };
    schedule(policy, sched_priority).or_else(|_| schedule(libc::SCHED_OTHER, 0))
}

fn schedule(policy: i32, sched_priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority };
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameters live through the call, which only reads them; 0 stands for the
    // calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The level after each of `seen` in turn.
    fn level(seen: &[u32]) -> Level {
        seen.iter().fold(Level::UNKNOWN, |level, running| level.after(*running))
    }

    #[test]
    fn a_busy_machine_is_one_where_threads_wait_for_long() {
        assert!(Level::UNKNOWN.is_above(64));
        assert!(!level(&[1]).is_above(2));
        assert!(!level(&[2; 9]).is_above(2));
        assert!(!level(&[2, 1, 3, 2]).is_above(2));
        assert!(!level(&[1, 1, 4]).is_above(2), "a moment is no load");
        assert!(level(&[1, 1, 4, 4, 4]).is_above(2));
        assert!(level(&[9]).is_above(8) && !level(&[9]).is_above(9));
        assert!(!level(&[25, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]).is_above(2), "it passes");
        assert!(level(&[u32::MAX; 3]).is_above(4096), "absurd numbers are only large");
    }

    #[test]
    fn the_load_is_looked_at_now_and_then() {
        let urgency = Urgency { processors: u32::MAX >> 5, ..Urgency::default() };
        let at = |milliseconds| urgency.begun + Duration::from_millis(milliseconds);
        assert_eq!(urgency.order(at(1)), Order::Realtime, "nothing was seen yet");
        assert_eq!(urgency.order(at(LOOK.as_millis() as u64)), Order::Batch);
        let seen = urgency.level.swap(Level::UNKNOWN.0, Relaxed);
        assert_eq!(urgency.order(at(21)), Order::Realtime, "it is not time yet");
        urgency.level.store(seen, Relaxed);
        let blind = Urgency { load: None, ..urgency };
        assert_eq!(blind.order(at(60)), Order::Realtime);
    }
}
