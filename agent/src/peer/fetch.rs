//! How a piece gets here: whom to ask, and when to ask somebody else. Pure: it decides, and
//! [`Transfer`] acts.
//!
//! ```text
//! owner ranks above oneself, at most 3         mode owner: reads through
//!    `-> 307: a peer that it has served        mode holder; if that fails, back to the owner
//! the next 3 ranks                             mode cached: only what is there already
//! the registry
//! ```
//!
//! A dead member does not count: the next in rank takes its place, so that all nodes that have lost
//! the same members agree on the same owner, and find what the living have.
//!
//! A [`Fetch`] receives what happened ([`Event`]) and returns what to do next ([`Action`]). It
//! reads no clock and draws no random numbers, so that a simulation drives the same code as the
//! client. One source is asked at a time; the next one is asked for what is still missing.
//!
//! **No deadlock.** A fetch waits for an owner that ranks above oneself, for a peer that the owner
//! had begun to serve earlier, or for a node whose fetch from the registry is under way. Nodes that
//! disagree about the ranks could still wait for each other: a node that is asked by the very node
//! that it waits for answers that it has nothing (see `uploads`), longer chains end by [`HOPS`],
//! and longer circles by `LONGEST_WAIT`.
//!
//! **Resuming.** What arrived before a sender stopped is kept, and the next one is asked for the
//! rest, unless the sender has never delivered a piece that was right: [`Action::Ask`] and
//! [`Action::Registry`] say from which byte on, and 0 means to drop what is there.
//!
//! **Slowness.** A transfer is given up for being slow only within the budget of [`Standing`]: when
//! everything is slow, asking more often makes it worse. A silent or trickling sender is given up
//! without one. A sender that is itself still receiving the piece is as fast as the registry, so
//! less is asked of it.
//!
//! [`Transfer`]: super::exchange

mod steps;
mod words;

use std::time::Duration;

use super::member::MemberId;
use super::placement::mix;
use super::standing::{Moment, Standing};
use steps::Steps;

pub use words::{Action, Ask, Event, Mode, Upstream};

/// How many owner ranks are asked to read through.
pub const OWNERS: usize = 3;
/// How many ranks behind them are asked for what they have.
pub const PROBES: usize = 3;
/// How many ranks a fetch needs to know: oneself, and more than are asked, since some may be dead.
pub const RANKS: usize = 2 * (OWNERS + PROBES) + 1;
/// How often a request may be passed on.
pub const HOPS: u8 = 2;
/// How often a fetch under way wants to hear [`Event::Tick`].
pub const TICK: Duration = Duration::from_millis(250);

/// How long without a byte until somebody else may be asked, within the budget.
const WAIT: Duration = Duration::from_secs(3);
/// How long without a byte until somebody else is asked in any case.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The pace, in bytes per second, below which a sender that has the whole piece is slow.
const SLOW: u64 = 5_000_000;
/// The pace, in bytes per second, below which any sender is given up.
const TRICKLE: u64 = 16 * 1024;
/// The time over which the pace of a sender that has the whole piece is measured.
const SLOW_OVER: Duration = Duration::from_secs(1);
/// The shortest pause before a member is asked again after an answer without bytes.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause that a member may demand.
const MOST_PAUSE: Duration = Duration::from_secs(1);
/// How many redirects are followed before the member that named the others is asked again.
const REDIRECTS: u8 = 8;
/// How often all members with the piece may be found busy.
const ROUNDS: u8 = 30;
/// The pause after all members with the piece were found busy.
const CROWDED: Duration = Duration::from_millis(100);
/// After more cut-off transfers than this an owner is not asked again.
const CUTS: u8 = 3;
/// The number of wrong attempts after which the piece is given up.
const WRONG: u8 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Member(MemberId),
    Registry,
    /// A transfer was cut off: perhaps its sender had noticed that its bytes were wrong.
    Cut,
}

/// The member that is being asked.
#[derive(Debug)]
struct Current {
    member: MemberId,
    mode: Mode,
    /// When the waiting for its next byte began.
    since: Moment,
    /// When it was asked the last time.
    asked: Moment,
    paused: bool,
    receiving: Option<Receiving>,
}

/// The pace of a transfer.
#[derive(Debug)]
struct Receiving {
    arriving: bool,
    /// The beginning of the present measurement, and the bytes since.
    since: Moment,
    bytes: u64,
}

/// One piece on its way here.
#[derive(Debug)]
pub struct Fetch {
    own: MemberId,
    hop: u8,
    seed: u64,
    steps: Steps,
    /// The member that is asked again when a holder fails.
    named_by: Option<(MemberId, Mode)>,
    current: Option<Current>,
    tried: Vec<MemberId>,
    redirects: u8,
    rounds: u8,
    wrong: u8,
    cuts: u8,
    received: u64,
    origins: Vec<Origin>,
}

impl Fetch {
    /// A fetch by `own` of a piece with this `ranking` (at least [`RANKS`] of it, where there are
    /// so many), in the name of a request that was passed on `hop` times, 0 for one of its own.
    /// `seed` decides between equals.
    pub fn new(own: MemberId, ranking: &[MemberId], hop: u8, seed: u64) -> Self {
        Self {
            own,
            hop,
            seed,
            steps: Steps::new(own, ranking, hop),
            named_by: None,
            current: None,
            tried: Vec::new(),
            redirects: 0,
            rounds: 0,
            wrong: 0,
            cuts: 0,
            received: 0,
            origins: Vec::new(),
        }
    }

    /// The first thing to do.
    pub fn start(&mut self, now: Moment, standing: &mut Standing) -> Action {
        standing.begin();
        self.advance(now, standing)
    }

    /// The source that it waits for.
    pub fn asks(&self) -> Upstream {
        match &self.current {
            None => Upstream::Registry,
            Some(current) if current.mode == Mode::Cached => Upstream::Probe(current.member),
            Some(current) => Upstream::Member(current.member),
        }
    }

    /// The bytes that have arrived and count.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Notes that the piece is whole and right. A member that sent all of it has proved itself.
    pub fn finished(&self, standing: &mut Standing) {
        if let [Origin::Member(member)] = self.origins.as_slice() {
            standing.proved(*member);
        }
    }

    /// Takes `event` and returns what to do; `None` to go on as before.
    pub fn on(&mut self, event: Event, now: Moment, standing: &mut Standing) -> Option<Action> {
        match event {
            Event::RegistryFailed => return Some(Action::GiveUp),
            Event::Wrong(words) => return Some(self.start_over(words, now, standing)),
            Event::Bytes(count) => {
                self.came(count, now, standing);
                return None;
            }
            _ => {}
        }
        let current = self.current.as_mut()?;
        let member = current.member;
        Some(match event {
            Event::Answered { arriving } => {
                current.receiving = Some(Receiving { arriving, since: now, bytes: 0 });
                return None;
            }
            Event::Tick if current.paused => self.ask_again(now),
            Event::Tick => return self.check_pace(now, standing),
            Event::Waiting => self.ask_later(LEAST_PAUSE, now, standing),
            Event::Busy(_) if current.mode == Mode::Holder => self.leave(now, standing),
            Event::Busy(pause) => self.ask_later(pause.min(MOST_PAUSE), now, standing),
            Event::NoAnswer if !standing.is_silent(&member, current.asked) => {
                self.ask_later(LEAST_PAUSE, now, standing)
            }
            Event::Redirect(to) => self.follow(to, now, standing),
            Event::Foreign => {
                standing.foreign(member, now);
                self.pass_over(now, standing)
            }
            Event::Broken => self.broken(now, standing),
            Event::Unreachable | Event::NoAnswer => {
                standing.unreachable(member, now);
                self.pass_over(now, standing)
            }
            _ => self.leave(now, standing),
        })
    }

    fn came(&mut self, count: u64, now: Moment, standing: &mut Standing) {
        self.received += count;
        let origin = match &mut self.current {
            Some(current) => {
                standing.delivered(current.member, now);
                current.since = now;
                if let Some(receiving) = &mut current.receiving {
                    receiving.bytes += count;
                }
                Origin::Member(current.member)
            }
            None => Origin::Registry,
        };
        if !self.origins.contains(&origin) {
            self.origins.push(origin);
        }
    }

    /// The next step of the plan.
    fn advance(&mut self, now: Moment, standing: &Standing) -> Action {
        if let Some((member, mode)) = self.steps.next(|member| standing.shuns(member, now)) {
            self.named_by = Some((member, mode));
            return self.ask(member, mode, now);
        }
        self.current = None;
        Action::Registry { offset: self.received }
    }

    fn ask(&mut self, member: MemberId, mode: Mode, now: Moment) -> Action {
        let same = self.current.as_ref().filter(|current| current.member == member);
        let since = same.map_or(now, |current| current.since);
        self.current =
            Some(Current { member, mode, since, asked: now, paused: false, receiving: None });
        let (hop, tried, offset) = (self.hop, self.tried.clone(), self.received);
        Action::Ask(Ask { member, mode, hop, tried, offset })
    }

    fn ask_again(&mut self, now: Moment) -> Action {
        match &self.current {
            Some(Current { member, mode, .. }) => self.ask(*member, *mode, now),
            None => Action::Registry { offset: self.received },
        }
    }

    /// Asks the same member once more, `pause` after it was asked, unless that took too long.
    fn ask_later(&mut self, pause: Duration, now: Moment, standing: &mut Standing) -> Action {
        if self.waited_too_long(now, standing) {
            return self.leave(now, standing);
        }
        let jitter = Duration::from_millis(self.draw() % 16);
        let Some(current) = &mut self.current else { return self.advance(now, standing) };
        let due = current.asked + pause + jitter;
        if due <= now {
            return self.ask_again(now);
        }
        current.paused = true;
        current.receiving = None;
        Action::Pause(due)
    }

    fn waited_too_long(&self, now: Moment, standing: &mut Standing) -> bool {
        let Some(current) = &self.current else { return false };
        let waited = now.saturating_sub(current.since);
        if waited < WAIT {
            return false;
        }
        if waited >= LONGEST_WAIT {
            if standing.is_silent(&current.member, now - LONGEST_WAIT) {
                standing.unreachable(current.member, now);
            }
            return true;
        }
        standing.may_hedge()
    }

    /// Whether the sender is too slow.
    fn check_pace(&mut self, now: Moment, standing: &mut Standing) -> Option<Action> {
        if self.waited_too_long(now, standing) {
            return Some(self.leave(now, standing));
        }
        let receiving = self.current.as_mut()?.receiving.as_mut()?;
        let over = if receiving.arriving { LONGEST_WAIT } else { SLOW_OVER };
        let elapsed = now.saturating_sub(receiving.since);
        if elapsed < over {
            return None;
        }
        let pace = (receiving.bytes as f64 / elapsed.as_secs_f64()) as u64;
        (receiving.since, receiving.bytes) = (now, 0);
        let slow = !receiving.arriving && pace < SLOW;
        let give_up = pace < TRICKLE || slow && standing.may_hedge();
        give_up.then(|| self.leave(now, standing))
    }

    /// A transfer was cut off. An owner may have begun anew; one that is dead says nothing when it
    /// is asked again.
    fn broken(&mut self, now: Moment, standing: &mut Standing) -> Action {
        self.cuts += 1;
        if self.received > 0 && !self.origins.contains(&Origin::Cut) {
            self.origins.push(Origin::Cut);
        }
        let is_owner = self.current.as_ref().is_some_and(|current| current.mode == Mode::Owner);
        if is_owner && self.cuts <= CUTS {
            return self.ask_later(LEAST_PAUSE, now, standing);
        }
        self.leave(now, standing)
    }

    /// Gives up the member that is being asked, as if it were not there.
    fn pass_over(&mut self, now: Moment, standing: &Standing) -> Action {
        if let Some(current) = &self.current {
            self.steps.pass_over(current.mode);
        }
        self.leave(now, standing)
    }

    /// Gives up the member that is being asked: from a holder back to the owner, else on.
    fn leave(&mut self, now: Moment, standing: &Standing) -> Action {
        let Some(current) = self.current.take() else { return self.advance(now, standing) };
        self.tried.push(current.member);
        let sole = self.origins.as_slice() == [Origin::Member(current.member)];
        if sole && !standing.is_proven(&current.member) {
            // Were these few bytes wrong, all that comes after them would be lost as well.
            self.received = 0;
            self.origins.clear();
        }
        match self.named_by {
            Some((owner, mode)) if current.mode == Mode::Holder && !standing.shuns(&owner, now) => {
                self.ask(owner, mode, now)
            }
            _ => self.advance(now, standing),
        }
    }

    /// Asks one of the members that were named or, where none of them is new, the member that named
    /// them.
    fn follow(&mut self, to: Vec<MemberId>, now: Moment, standing: &mut Standing) -> Action {
        self.redirects += 1;
        if self.redirects > REDIRECTS {
            return self.await_room(now, standing);
        }
        let is_new = |member: &MemberId| {
            *member != self.own && !self.tried.contains(member) && !standing.shuns(member, now)
        };
        let new: Vec<MemberId> = to.into_iter().filter(is_new).collect();
        if new.is_empty() {
            return self.ask_later(LEAST_PAUSE, now, standing);
        }
        if let Some(current) = self.current.as_ref().filter(|c| c.mode == Mode::Holder) {
            self.tried.push(current.member);
        }
        let chosen = new[self.draw() as usize % new.len()];
        self.ask(chosen, Mode::Holder, now)
    }

    /// All members that have the piece are busy, which is no reason to load the registry. The
    /// member that named them is asked again after a while, and those that were busy then may be
    /// named again.
    fn await_room(&mut self, now: Moment, standing: &mut Standing) -> Action {
        (self.redirects, self.rounds) = (0, self.rounds + 1);
        if self.rounds > ROUNDS {
            return self.leave(now, standing);
        }
        self.tried.clear();
        if let (Some((member, mode)), Some(current)) = (self.named_by, &mut self.current) {
            (current.member, current.mode, current.asked) = (member, mode, now);
        }
        self.ask_later(CROWDED, now, standing)
    }

    /// Begins again after wrong bytes. A member that sent all of them is a liar. Several senders
    /// spoil each other's bytes, so the next attempt takes all from one.
    fn start_over(&mut self, words: String, now: Moment, standing: &mut Standing) -> Action {
        let origins = std::mem::take(&mut self.origins);
        self.received = 0;
        self.wrong += 1;
        if self.wrong >= WRONG {
            return Action::GiveUp;
        }
        match (origins.as_slice(), &self.current) {
            ([Origin::Member(liar)], _) => {
                standing.lied(*liar, words, now);
                self.leave(now, standing)
            }
            (_, Some(current)) if current.mode == Mode::Owner => self.ask_again(now),
            _ => self.leave(now, standing),
        }
    }

    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.seed)
    }
}

#[cfg(test)]
mod tests;
