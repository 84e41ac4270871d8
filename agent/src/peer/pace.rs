//! How fast this node sends, and what share of the pieces that is good for. Pure: times are
//! arguments.
//!
//! ```text
//! Sent (uploads count) -> Sample every SPAN -> Share: slow STRAINED times in a row  half of it
//!                                                     not slow for a while          twice of it
//! ```
//!
//! A slow node delays everybody who wants what it owns, so it owns less. Only uploads of what lies
//! on its disk count: what is still arriving is as slow as the registry. Only several receivers
//! count: a single one may be slow itself. And only a while counts: each change of a share moves
//! pieces to nodes that may have to read them from the registry again, so nothing changes in the
//! middle of a wave.
//!
//! A node whose share was raised, and that is slow again with more, waits twice as long the next
//! time.

use std::collections::HashSet;
use std::time::Duration;

use super::member::{MemberId, Weight};
use super::standing::Moment;

/// The time that a sample covers.
pub const SPAN: Duration = Duration::from_secs(10);
/// The pace, in bytes per second of all uploads together, below which a node is slow.
const SLOW: u64 = 10_000_000;
/// The fewest receivers that say something about the sender.
const RECEIVERS: usize = 3;
/// How many slow samples in a row halve the share.
const STRAINED: u32 = 3;
/// How many other samples in a row double it again; at first, and at most.
const CALM: (u32, u32) = (6, 96);
/// The least share: somebody has to own the pieces where all are slow.
const LEAST: Weight = Weight(12);

/// What uploads of pieces on disk have sent since the last sample.
#[derive(Debug, Default)]
pub struct Sent {
    running: usize,
    since: Moment,
    busy: Duration,
    bytes: u64,
    receivers: HashSet<MemberId>,
}

/// What was sent in one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The time during which something was sent.
    pub busy: Duration,
    /// The bytes that were sent.
    pub bytes: u64,
    /// The number of members that received them.
    pub receivers: usize,
}

impl Sent {
    /// Notes that an upload to `member` begins.
    pub fn begin(&mut self, member: MemberId, now: Moment) {
        self.settle(now);
        self.running += 1;
        self.receivers.insert(member);
    }

    /// Adds bytes that a receiver has taken.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Notes that an upload ends.
    pub fn end(&mut self, now: Moment) {
        self.settle(now);
        self.running = self.running.saturating_sub(1);
    }

    /// Takes what was sent since the last call.
    pub fn take(&mut self, now: Moment) -> Sample {
        self.settle(now);
        let Self { busy, bytes, receivers, .. } = &*self;
        let sample = Sample { busy: *busy, bytes: *bytes, receivers: receivers.len() };
        (self.busy, self.bytes) = (Duration::ZERO, 0);
        self.receivers.clear();
        sample
    }

    fn settle(&mut self, now: Moment) {
        if self.running > 0 {
            self.busy += now.saturating_sub(self.since);
        }
        self.since = now;
    }
}

impl Sample {
    /// Whether the node is slow by this sample. `rate` is what its uploads may take together, in
    /// bytes per second: a node that reaches half of that does what it may, and as much as the others
    /// do where the link is slow or an operator spares it.
    pub fn is_slow(&self, rate: Option<u64>) -> bool {
        let limit = rate.map_or(SLOW, |rate| SLOW.min(rate / 2));
        let pace = self.bytes as f64 / self.busy.as_secs_f64().max(f64::EPSILON);
        self.receivers >= RECEIVERS && self.busy >= SPAN / 2 && pace < limit as f64
    }
}

/// The share of the pieces that a node takes upon itself.
#[derive(Debug)]
pub struct Share {
    weight: Weight,
    strained: u32,
    calm: u32,
    patience: u32,
    /// Whether the weight was raised since it was last lowered.
    raised: bool,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: Weight::FULL, strained: 0, calm: 0, patience: CALM.0, raised: false }
    }
}

impl Share {
    /// Takes in whether the last sample was slow, and returns the weight.
    pub fn after(&mut self, slow: bool) -> Weight {
        if slow {
            (self.strained, self.calm) = (self.strained + 1, 0);
        } else {
            (self.strained, self.calm) = (0, self.calm + 1);
        }
        if self.strained >= STRAINED && self.weight > LEAST {
            self.lower();
        } else if self.calm >= self.patience && self.weight < Weight::FULL {
            self.weight = Weight(self.weight.0.saturating_mul(2).min(Weight::FULL.0));
            (self.calm, self.raised) = (0, true);
        }
        self.weight
    }

    fn lower(&mut self) {
        self.weight = Weight((self.weight.0 / 2).max(LEAST.0));
        self.strained = 0;
        if std::mem::take(&mut self.raised) {
            self.patience = (self.patience * 2).min(CALM.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn id(number: u8) -> MemberId {
        MemberId::from_bytes([number; 16])
    }

    /// The sample of a node that sends at `pace` to so many receivers, for `busy` of ten seconds.
    fn sample(pace: u64, receivers: u8, busy: Duration) -> Sample {
        let mut sent = Sent::default();
        for number in 0..receivers {
            sent.begin(id(number), S);
        }
        sent.add(pace * busy.as_secs());
        for _ in 0..receivers {
            sent.end(S + busy);
        }
        sent.take(S + SPAN)
    }

    #[test]
    fn time_counts_once_however_many_are_served() {
        let mut sent = Sent::default();
        sent.begin(id(1), S);
        sent.begin(id(2), 2 * S);
        sent.add(700);
        sent.end(3 * S);
        assert_eq!(sent.take(5 * S), Sample { busy: 4 * S, bytes: 700, receivers: 2 });
        sent.end(6 * S);
        assert_eq!(sent.take(9 * S), Sample { busy: S, bytes: 0, receivers: 0 });
        assert_eq!(sent.take(19 * S).busy, Duration::ZERO);
    }

    #[test]
    fn slow_is_who_sends_little_to_several_for_most_of_the_time() {
        let is_slow = |pace, receivers, busy| sample(pace, receivers, busy).is_slow(None);
        assert!(is_slow(SLOW / 2, 3, 8 * S));
        assert!(!is_slow(SLOW * 2, 3, 8 * S), "it is fast");
        assert!(!is_slow(SLOW / 2, 2, 8 * S), "these two may be slow");
        assert!(!is_slow(SLOW / 2, 3, 4 * S), "it had little to do");
        assert!(!sample(0, 0, Duration::ZERO).is_slow(None), "nobody wanted anything");
        // With links of 100 Mbit/s all nodes are like that.
        let half_of_link = Some(6_250_000);
        assert!(!sample(6_000_000, 3, 8 * S).is_slow(half_of_link));
        assert!(sample(3_000_000, 3, 8 * S).is_slow(half_of_link));
    }

    #[test]
    fn a_share_is_halved_after_a_while_and_comes_back_after_a_longer_one() {
        let mut share = Share::default();
        let mut after = |slow, times| (0..times).map(|_| share.after(slow).0).last().unwrap();
        assert_eq!(after(true, STRAINED - 1), 100, "a wave is over by then");
        assert_eq!(after(false, 1), 100);
        assert_eq!(after(true, STRAINED), 50);
        assert_eq!(after(true, STRAINED * 9), LEAST.0);
        assert_eq!(after(false, CALM.0), 24);
        assert_eq!(after(false, CALM.0 * 9), 100);
    }

    #[test]
    fn who_is_slow_again_with_more_waits_longer() {
        let mut share = Share::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            for _ in 0..STRAINED {
                share.after(true);
            }
            let before = share.weight;
            waits.push((1..).find(|_| share.after(false) > before).unwrap());
        }
        assert_eq!(waits, [6, 12, 24, 48, 96, 96, 96, 96]);
    }
}
