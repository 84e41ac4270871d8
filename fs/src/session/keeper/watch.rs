//! When to start, to kill and to stop waiting for a worker. Pure: the clock is an argument.
//!
//! ```text
//! Down --started--> Starting --ready--> Serving       Starting, Serving --died--> Down
//!   (pause)           (ready_within)      (silent_limit)
//! any of them --stopping--> Stopping (stop_within)
//! ```
//!
//! While no worker serves, either of two clocks makes the keeper answer requests with errors:
//! - *down*: the time since which no worker has come up;
//! - *unsound*: the time since which no worker has served for a while. This clock ends the loop in
//!   which one request kills every worker that it is sent to.

use std::time::{Duration, Instant};

/// How a keeper deals with workers that die.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// A worker that has not reported ready within this time is killed.
    pub ready_within: Duration,
    /// A worker that has served for this long counts as sound.
    pub sound_after: Duration,
    /// Requests are answered with EIO when no worker has come up for this long.
    pub answer_after: Duration,
    /// Requests are answered with EIO between workers when none was sound for this long.
    pub unsound_limit: Duration,
    /// The pause after the second crash in a row; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause between a crash and the next start.
    pub longest_pause: Duration,
    /// A serving worker that has said that it is alive, but has not said so again within this time,
    /// is killed.
    pub silent_limit: Duration,
    /// A worker that has not exited within this time of being told to stop is killed.
    pub stop_within: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            ready_within: Duration::from_secs(60),
            sound_after: Duration::from_secs(1),
            answer_after: Duration::from_secs(30),
            unsound_limit: Duration::from_secs(120),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            silent_limit: Duration::from_secs(30),
            stop_within: Duration::from_secs(10),
        }
    }
}

/// How a worker ended, as far as the start of the next one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// By a signal from outside (SIGKILL, SIGTERM, SIGINT) or as announced: it adds no pause.
    Harmless,
    /// By a fault of its own, which the next one may repeat.
    Crash,
}

/// What the keeper has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    Start,
    Kill,
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down {
        start_at: Instant,
    },
    Starting {
        since: Instant,
    },
    /// `alive` is the last sign of life; `None` for a worker that has given none, as old ones do.
    Serving {
        since: Instant,
        alive: Option<Instant>,
    },
    Stopping {
        since: Instant,
    },
}

/// Follows the workers of one keeper.
#[derive(Debug)]
pub(super) struct Watch {
    policy: RestartPolicy,
    phase: Phase,
    down_since: Instant,
    unsound_since: Option<Instant>,
    crashes: u32,
    /// Whether the worker has been killed and is to be buried.
    condemned: bool,
}

impl Watch {
    /// Watches from `now` on; the first worker is due at once.
    pub(super) fn new(policy: RestartPolicy, now: Instant) -> Self {
        let phase = Phase::Down { start_at: now };
        Self { policy, phase, down_since: now, unsound_since: None, crashes: 0, condemned: false }
    }

    /// Notes that a worker was started.
    pub(super) fn started(&mut self, now: Instant) {
        self.phase = Phase::Starting { since: now };
    }

    /// Notes that the worker serves.
    pub(super) fn ready(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Starting { .. }) {
            self.phase = Phase::Serving { since: now, alive: None };
        }
    }

    /// Notes a sign of life.
    pub(super) fn alive(&mut self, now: Instant) {
        if let Phase::Serving { alive, .. } = &mut self.phase {
            *alive = Some(now);
        }
    }

    /// Notes that the keeper stops. Only the first call counts.
    pub(super) fn stopping(&mut self, now: Instant) {
        if !self.is_stopping() {
            self.phase = Phase::Stopping { since: now };
        }
    }

    /// Notes that the worker was killed as [`Duty::Kill`] demanded.
    pub(super) fn condemned(&mut self) {
        self.condemned = true;
    }

    /// Notes that the worker has ended, and plans the next start.
    pub(super) fn died(&mut self, death: Death, now: Instant) {
        // A worker that had to be killed was not sound, however long it served: what made it hang
        // may make the next one hang as well.
        let hung = std::mem::take(&mut self.condemned);
        let death = if hung { Death::Crash } else { death };
        if let Phase::Serving { since, .. } = self.phase {
            self.down_since = now;
            if !hung && now - since >= self.policy.sound_after {
                self.unsound_since = None;
                self.crashes = 0;
            }
        }
        self.unsound_since.get_or_insert(now);
        if death == Death::Crash {
            self.crashes = self.crashes.saturating_add(1);
        }
        self.phase = Phase::Down { start_at: now + self.pause() };
    }

    /// Notes that a worker could not even be started.
    pub(super) fn start_failed(&mut self, now: Instant) {
        self.died(Death::Crash, now);
    }

    /// Whether a worker serves.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Whether the keeper stops.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    /// Whether callers have waited long enough, so that the keeper has to answer them with errors.
    pub(super) fn answers(&self, now: Instant) -> bool {
        self.is_waiting() && now >= self.answers_from()
    }

    fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Down { .. } | Phase::Starting { .. })
    }

    fn answers_from(&self) -> Instant {
        let down = self.down_since + self.policy.answer_after;
        let unsound = self.unsound_since.map(|since| since + self.policy.unsound_limit);
        unsound.map_or(down, |unsound| unsound.min(down))
    }

    /// What the keeper has to do at `now`.
    pub(super) fn duty(&self, now: Instant) -> Duty {
        match self.phase {
            _ if self.condemned => Duty::Wait,
            Phase::Down { start_at } if now >= start_at => Duty::Start,
            Phase::Starting { since } if now >= since + self.policy.ready_within => Duty::Kill,
            Phase::Stopping { since } if now >= since + self.policy.stop_within => Duty::Kill,
            Phase::Serving { alive: Some(alive), .. }
                if now >= alive + self.policy.silent_limit =>
            {
                Duty::Kill
            }
            _ => Duty::Wait,
        }
    }

    /// When [`Self::duty`] or [`Self::answers`] changes if nothing happens until then.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let duty = match self.phase {
            _ if self.condemned => None,
            Phase::Down { start_at } => Some(start_at),
            Phase::Starting { since } => Some(since + self.policy.ready_within),
            Phase::Stopping { since } => Some(since + self.policy.stop_within),
            Phase::Serving { alive, .. } => alive.map(|alive| alive + self.policy.silent_limit),
        };
        let answer = (self.is_waiting() && !self.answers(now)).then(|| self.answers_from());
        duty.into_iter().chain(answer).min()
    }

    /// The pause before the next start. The first crash after a sound worker costs none.
    fn pause(&self) -> Duration {
        match self.crashes {
            0 | 1 => Duration::ZERO,
            n => self
                .policy
                .first_pause
                .saturating_mul(1 << (n - 2).min(20))
                .min(self.policy.longest_pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartPolicy {
        RestartPolicy::default()
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// A watch whose worker has been serving since `now`.
    fn serving(now: Instant) -> Watch {
        let mut watch = Watch::new(policy(), now);
        watch.started(now);
        watch.ready(now);
        watch
    }

    #[test]
    fn a_killed_worker_is_replaced_at_once_however_often() {
        let mut now = Instant::now();
        let mut watch = serving(now);
        for _ in 0..500 {
            now += Duration::from_millis(100);
            watch.died(Death::Harmless, now);
            assert_eq!(watch.duty(now), Duty::Start);
            assert!(!watch.answers(now));
            watch.started(now);
            watch.ready(now);
        }
    }

    #[test]
    fn crashes_in_a_row_are_paced_and_a_sound_worker_ends_the_row() {
        let start = Instant::now();
        let mut watch = serving(start);
        let mut now = start + seconds(10);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            watch.died(Death::Crash, now);
            let next = watch.next_look(now).unwrap();
            pauses.push(next - now);
            now = next;
            assert_eq!(watch.duty(now), Duty::Start);
            watch.started(now);
            watch.ready(now);
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert_eq!(pauses[1], policy().first_pause);
        assert_eq!(pauses[2], policy().first_pause * 2);
        assert_eq!(pauses[11], policy().longest_pause);
        now += seconds(5);
        watch.died(Death::Crash, now);
        assert_eq!(watch.duty(now), Duty::Start);
    }

    #[test]
    fn callers_are_answered_when_no_worker_comes_up_in_time() {
        let start = Instant::now();
        let mut watch = serving(start);
        let death = start + seconds(100);
        watch.died(Death::Crash, death);
        let mut now = death;
        while now < death + policy().answer_after {
            assert!(!watch.answers(now));
            watch.start_failed(now);
            now = watch.next_look(now).unwrap();
        }
        assert!(watch.answers(now));
        watch.started(now);
        assert!(watch.answers(now), "until the worker is ready");
        watch.ready(now);
        assert!(!watch.answers(now));
    }

    #[test]
    fn a_request_that_kills_every_worker_is_answered_in_the_end() {
        let start = Instant::now();
        let mut watch = serving(start);
        let mut now = start;
        while !watch.answers(now) {
            assert!(now < start + policy().unsound_limit + seconds(10));
            watch.started(now);
            watch.ready(now);
            now += Duration::from_millis(300);
            watch.died(Death::Harmless, now);
        }
        assert!(now >= start + policy().unsound_limit);
    }

    #[test]
    fn a_worker_that_falls_silent_is_killed_and_was_not_sound() {
        let start = Instant::now();
        let mut watch = serving(start);
        assert_eq!(watch.duty(start + seconds(1000)), Duty::Wait, "it never gave a sign of life");
        let mut now = start + seconds(1000);
        while !watch.answers(now) {
            assert!(now < start + seconds(2000), "one that hangs every worker is told in the end");
            watch.alive(now);
            let silent = now + policy().silent_limit;
            assert_eq!((watch.duty(now), watch.next_look(now)), (Duty::Wait, Some(silent)));
            now = silent;
            assert_eq!(watch.duty(now), Duty::Kill);
            watch.condemned();
            watch.died(Death::Harmless, now);
            if let Some(next) = watch.next_look(now) {
                now = next;
            }
            if !watch.answers(now) {
                watch.started(now);
                watch.ready(now);
            }
        }
        watch.started(now);
        watch.ready(now);
        now += seconds(10);
        watch.alive(now);
        watch.died(Death::Harmless, now);
        assert!(!watch.answers(now), "one that was killed by others while it was well was sound");
    }

    #[test]
    fn a_worker_that_never_gets_ready_or_never_stops_is_killed() {
        let start = Instant::now();
        let mut watch = Watch::new(policy(), start);
        watch.started(start);
        assert_eq!(watch.duty(start + seconds(1)), Duty::Wait);
        assert_eq!(watch.duty(start + policy().ready_within), Duty::Kill);
        watch.condemned();
        assert_eq!(watch.duty(start + policy().ready_within), Duty::Wait, "once is enough");

        let mut watch = serving(start);
        assert_eq!(watch.next_look(start), None);
        watch.stopping(start + seconds(5));
        watch.stopping(start + seconds(9));
        assert_eq!(watch.next_look(start), Some(start + seconds(5) + policy().stop_within));
        assert_eq!(watch.duty(start + seconds(5) + policy().stop_within), Duty::Kill);
    }
}
