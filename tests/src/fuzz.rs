//! Structured mutation: valid inputs are damaged in the ways that find bugs, as often as the time
//! allows, and the memory of the readers is watched.
//!
//! A run is a function of its seed. The harness prints the seed of an input before it is tried if
//! it turns out to fail, and of one that does not end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Seconds that all targets of a suite may take together.
pub const SECONDS: &str = "UNDERMOUNT_FUZZ_SECONDS";
/// The seed of the first input, or of the only one with `UNDERMOUNT_FUZZ_SECONDS=0`.
pub const SEED: &str = "UNDERMOUNT_FUZZ_SEED";

/// An input that takes longer than this, on however loaded a machine, does not end.
const ENDLESS: Duration = Duration::from_secs(180);

/// Counts what the process has allocated: the suite's global allocator.
pub struct Meter {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// A meter at zero.
    pub const fn new() -> Self {
        Self { live: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Bytes that were live at once while `work` ran, beyond those before it.
    pub fn peak_of(&self, work: impl FnOnce()) -> usize {
        let before = self.live.load(Ordering::Relaxed);
        self.peak.store(before, Ordering::Relaxed);
        work();
        self.peak.load(Ordering::Relaxed).saturating_sub(before)
    }

    fn grow(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; the rest is counting.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.grow(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Random numbers that follow from a seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 16) as usize % limit.max(1)
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Numbers at which arithmetic and allocations go wrong.
const EXTREMES: &[u64] = &[
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_fffe,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// `input`, damaged; parts may come from others of the `corpus`.
pub fn mutate(dice: &mut Dice, input: &[u8], corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + dice.below(4) {
        mutate_once(dice, &mut bytes, corpus);
    }
    bytes
}

fn mutate_once(dice: &mut Dice, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = dice.below(bytes.len());
    let length = 1 + dice.below(*dice.clone().pick(&[4, 64, 512, 5_000]));
    let end = (at + length).min(bytes.len());
    match dice.below(10) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = dice.number() as u8;
            }
        }
        3 | 4 => overwrite_number(dice, bytes, at),
        5 => bytes.truncate(at),
        6 => drop(bytes.drain(at..end)),
        7 => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        8 => {
            let other = dice.pick(corpus);
            let from = dice.below(other.len());
            let part = &other[from..(from + length).min(other.len())];
            bytes.splice(at..end, part.iter().copied());
        }
        _ => bytes[at..end].fill(*dice.clone().pick(&[0, 0xff, b'9', b' '])),
    }
}

/// Puts an extreme number, of 2, 4 or 8 bytes in either order, over what is at `at`.
fn overwrite_number(dice: &mut Dice, bytes: &mut [u8], at: usize) {
    let width = *dice.pick(&[2, 4, 8]);
    let at = if dice.chance(70) { at & !3 } else { at };
    let number = dice.pick(EXTREMES).wrapping_add(dice.below(3) as u64).to_le_bytes();
    let mut number = number[..width].to_vec();
    if dice.chance(30) {
        number.reverse();
    }
    for (target, byte) in bytes.iter_mut().skip(at).zip(number) {
        *target = byte;
    }
}

/// What a target holds from its first preparations on.
pub type Turn = MutexGuard<'static, ()>;

/// Waits for the other targets of the process: they share a meter, which counts what any of them
/// allocates.
pub fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries inputs until the target's share of the time is over. `try_one` makes an input from the
/// dice and tries it; it panics where something is wrong.
///
/// The share is 60 seconds by `targets`, or what [`SECONDS`] says; at least one input is tried.
pub fn fuzz(_turn: &Turn, target: &str, targets: u32, mut try_one: impl FnMut(&mut Dice)) {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let share = Duration::from_secs(variable(SECONDS).unwrap_or(60)) / targets;
    let first = variable(SEED).unwrap_or(1);
    let watchdog = Watchdog::start(target);
    let (begin, mut seed) = (Instant::now(), first);
    loop {
        watchdog.now_at(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| try_one(&mut Dice::new(seed)))) {
            println!("{target}: {SEED}={seed} {SECONDS}=0 shows it again");
            resume_unwind(panic);
        }
        if begin.elapsed() >= share {
            break;
        }
        seed += 1;
    }
    println!("{target}: {} inputs", seed - first + 1);
}

/// Ends the process, with the seed, when one input takes for ever.
struct Watchdog(Arc<AtomicU64>);

impl Watchdog {
    fn start(target: &str) -> Self {
        let current = Arc::new(AtomicU64::new(0));
        let (watched, target) = (Arc::downgrade(&current), target.to_owned());
        std::thread::spawn(move || {
            let mut last = (0, Instant::now());
            while let Some(current) = watched.upgrade() {
                let seed = current.load(Ordering::Relaxed);
                drop(current);
                if seed != last.0 {
                    last = (seed, Instant::now());
                } else if last.1.elapsed() > ENDLESS {
                    println!("{target}: {SEED}={seed} does not end");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Self(current)
    }

    fn now_at(&self, seed: u64) {
        self.0.store(seed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_one_input() {
        let corpus = vec![b"first input".to_vec(), b"second input".to_vec(), Vec::new()];
        let input = |seed| mutate(&mut Dice::new(seed), &corpus[0], &corpus);
        assert!((0..200).all(|seed| input(seed) == input(seed)));
        let different = (0..200).filter(|seed| input(*seed) != corpus[0]).count();
        assert!(different > 150, "{different}");
        assert!((0..200).any(|seed| mutate(&mut Dice::new(seed), b"", &corpus) != b""));
    }

    #[test]
    fn the_meter_counts_what_is_live_at_once() {
        let meter = Meter::new();
        meter.grow(100);
        let peak = meter.peak_of(|| {
            meter.grow(50);
            meter.live.fetch_sub(50, Ordering::Relaxed);
            meter.grow(30);
        });
        assert_eq!(peak, 50);
    }
}
