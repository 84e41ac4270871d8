//! What a node answers to a peer that wants a piece: serve it, name others that it has served,
//! begin to get it, or say that there is nothing to be had.
//!
//! Only so many uploads run at a time. A peer that asks when all slots are taken is sent to a peer
//! that was served before, which has slots of its own: a tree grows by itself. Like [`Fetch`], this
//! decides and does nothing else.
//!
//! ```text
//! nothing here     -> mode owner: Begin          else: Missing
//! on its way       -> waits for the asker: Missing
//!                     nothing arrived: Wait      for a probe: Missing, unless from the registry
//! some here, whole -> a free slot: Serve         served before: Redirect     else: Busy
//! ```
//!
//! [`Fetch`]: super::fetch::Fetch

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use undermount_fs::digest::Digest;

use super::fetch::{HOPS, Mode, Upstream};
use super::member::MemberId;
use super::placement::mix;
use super::standing::Moment;

/// The most members that a redirect names.
const NAMED: usize = 3;
/// How many members are remembered as served, for each piece.
const SERVED: usize = 32;
/// For how many pieces it is remembered who was served.
const PIECES: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// The shortest pause that a busy node asks for, and the longest.
const PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time over which requests are counted that found no slot.
const CROWD: Duration = Duration::from_millis(250);

/// How many uploads may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// The most at a time, in all.
    pub slots: usize,
    /// The most at a time, to one member.
    pub per_member: usize,
}

impl Default for UploadLimits {
    /// 16 slots, 12 of them for one member.
    fn default() -> Self {
        Self { slots: 16, per_member: 12 }
    }
}

/// A request for a piece.
#[derive(Debug, Clone)]
pub struct Request {
    /// The piece.
    pub piece: Digest,
    /// The member that wants it.
    pub asker: MemberId,
    /// What to do where it is not here.
    pub mode: Mode,
    /// How often the request was passed on.
    pub hop: u8,
    /// Members that the answer need not name.
    pub tried: Vec<MemberId>,
}

/// How much of a piece is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Have {
    /// Nothing.
    Nothing,
    /// It is on its way.
    Arriving {
        /// Whether some of it has arrived.
        begun: bool,
        /// The source that it waits for.
        from: Upstream,
    },
    /// All of it.
    Whole,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send it (200). The slot is taken until [`Uploads::ended`].
    Serve,
    /// These have it or are getting it (307).
    Redirect(Vec<MemberId>),
    /// It has not begun to arrive (202).
    Wait,
    /// Begin to get it; then as [`Answer::Wait`].
    Begin,
    /// It is not here (404).
    Missing,
    /// Come back after this time (503).
    Busy(Duration),
}

/// The uploads of a node.
#[derive(Debug)]
pub struct Uploads {
    limits: UploadLimits,
    running: usize,
    by_member: HashMap<MemberId, usize>,
    served: LruCache<Digest, VecDeque<MemberId>>,
    crowd: Crowd,
    seed: u64,
}

/// Requests that found no slot, in the present stretch of time and in the one before.
#[derive(Debug, Default)]
struct Crowd {
    since: Moment,
    now: usize,
    before: usize,
}

impl Uploads {
    /// No uploads yet. `seed` decides between equals.
    pub fn new(limits: UploadLimits, seed: u64) -> Self {
        Self {
            limits,
            running: 0,
            by_member: HashMap::new(),
            served: LruCache::new(PIECES),
            crowd: Crowd::default(),
            seed,
        }
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// The answer to `request`, where `have` says how much of the piece is here.
    pub fn answer(&mut self, request: &Request, have: Have, now: Moment) -> Answer {
        match have {
            Have::Nothing => match request.mode {
                Mode::Owner if request.hop < HOPS => Answer::Begin,
                _ => Answer::Missing,
            },
            // The asker waits for this node, so this node must not wait for the asker.
            Have::Arriving { from: Upstream::Member(from), .. } if from == request.asker => {
                Answer::Missing
            }
            Have::Arriving { begun: false, from } => match request.mode {
                Mode::Cached if from != Upstream::Registry => Answer::Missing,
                _ => Answer::Wait,
            },
            Have::Arriving { begun: true, .. } | Have::Whole => self.admit(request, now),
        }
    }

    fn admit(&mut self, request: &Request, now: Moment) -> Answer {
        let of_asker = self.by_member.get(&request.asker).copied().unwrap_or_default();
        if of_asker >= self.limits.per_member {
            return Answer::Busy(PAUSE);
        }
        if self.running < self.limits.slots {
            self.begin(request);
            return Answer::Serve;
        }
        let others = self.others(request);
        if others.is_empty() { Answer::Busy(self.pause(now)) } else { Answer::Redirect(others) }
    }

    fn begin(&mut self, request: &Request) {
        self.running += 1;
        *self.by_member.entry(request.asker).or_default() += 1;
        let served = self.served.get_or_insert_mut(request.piece, VecDeque::new);
        served.retain(|member| *member != request.asker);
        if served.len() == SERVED {
            served.pop_front();
        }
        served.push_back(request.asker);
    }

    /// Notes that an upload to `member` is over.
    pub fn ended(&mut self, member: &MemberId) {
        self.running = self.running.saturating_sub(1);
        if let Some(count) = self.by_member.get_mut(member) {
            *count -= 1;
            if *count == 0 {
                self.by_member.remove(member);
            }
        }
    }

    /// Some of the members that were served the piece, chosen by chance.
    fn others(&mut self, request: &Request) -> Vec<MemberId> {
        let Some(served) = self.served.get(&request.piece) else { return Vec::new() };
        let is_new =
            |member: &&MemberId| **member != request.asker && !request.tried.contains(member);
        let mut others: Vec<MemberId> = served.iter().filter(is_new).copied().collect();
        while others.len() > NAMED {
            self.seed = self.seed.wrapping_add(1);
            others.swap_remove(mix(self.seed) as usize % others.len());
        }
        others
    }

    /// The pause to ask for: the more requests find no slot, the longer.
    fn pause(&mut self, now: Moment) -> Duration {
        let crowd = &mut self.crowd;
        let elapsed = now.saturating_sub(crowd.since);
        if elapsed >= CROWD {
            let before = if elapsed < 2 * CROWD { crowd.now } else { 0 };
            *crowd = Crowd { since: now, now: 0, before };
        }
        crowd.now += 1;
        let rounds = crowd.now.max(crowd.before) / self.limits.slots.max(1);
        (PAUSE * (1 + u32::try_from(rounds).unwrap_or(u32::MAX / 100))).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> MemberId {
        MemberId::from_bytes([number; 16])
    }

    fn request(asker: u8, mode: Mode) -> Request {
        let (piece, tried) = (Digest::of(b"piece"), Vec::new());
        Request { piece, asker: id(asker), mode, hop: 0, tried }
    }

    fn uploads(slots: usize) -> Uploads {
        Uploads::new(UploadLimits { slots, per_member: slots }, 7)
    }

    const ARRIVING: Have = Have::Arriving { begun: true, from: Upstream::Registry };

    #[test]
    fn only_an_owner_gets_what_is_not_here_and_not_without_end() {
        for (mode, hop, expected) in [
            (Mode::Owner, 0, Answer::Begin),
            (Mode::Owner, HOPS, Answer::Missing),
            (Mode::Holder, 0, Answer::Missing),
            (Mode::Cached, 0, Answer::Missing),
        ] {
            let request = Request { hop, ..request(1, mode) };
            let answer = uploads(4).answer(&request, Have::Nothing, Moment::ZERO);
            assert_eq!(answer, expected, "{mode:?} {hop}");
        }
    }

    #[test]
    fn nobody_waits_for_one_who_waits_for_it() {
        let from = |from| Have::Arriving { begun: false, from };
        let (member, probe) = (|n| from(Upstream::Member(id(n))), |n| from(Upstream::Probe(id(n))));
        let registry = from(Upstream::Registry);
        for (mode, have, expected) in [
            (Mode::Owner, member(1), Answer::Missing),
            (Mode::Owner, member(2), Answer::Wait),
            (Mode::Owner, registry, Answer::Wait),
            (Mode::Owner, probe(1), Answer::Wait),
            (Mode::Holder, member(2), Answer::Wait),
            (Mode::Cached, registry, Answer::Wait),
            (Mode::Cached, member(2), Answer::Missing),
            (Mode::Cached, probe(2), Answer::Missing),
        ] {
            let answer = uploads(4).answer(&request(1, mode), have, Moment::ZERO);
            assert_eq!(answer, expected, "{mode:?} {have:?}");
        }
    }

    #[test]
    fn who_finds_no_slot_is_sent_to_those_who_were_served() {
        let mut uploads = uploads(2);
        let mut ask = |asker, tried: Vec<MemberId>| {
            let request = Request { tried, ..request(asker, Mode::Owner) };
            uploads.answer(&request, ARRIVING, Moment::ZERO)
        };
        assert_eq!([ask(1, vec![]), ask(2, vec![])], [Answer::Serve, Answer::Serve]);
        assert_eq!(ask(3, vec![]), Answer::Redirect(vec![id(1), id(2)]));
        assert_eq!(ask(3, vec![id(1)]), Answer::Redirect(vec![id(2)]));
        assert!(matches!(ask(3, vec![id(1), id(2)]), Answer::Busy(_)));
        assert_eq!(ask(1, vec![]), Answer::Redirect(vec![id(2)]), "never to oneself");
        uploads.ended(&id(1));
        let answer = uploads.answer(&request(3, Mode::Owner), Have::Whole, Moment::ZERO);
        assert_eq!(answer, Answer::Serve);
    }

    #[test]
    fn a_redirect_names_three_of_the_last_that_were_served() {
        let mut uploads = uploads(200);
        for asker in 0..100 {
            uploads.answer(&request(asker, Mode::Owner), Have::Whole, Moment::ZERO);
        }
        uploads.limits.slots = 100;
        let answer = uploads.answer(&request(200, Mode::Owner), Have::Whole, Moment::ZERO);
        let Answer::Redirect(named) = answer else { panic!("{answer:?}") };
        assert_eq!(named.len(), NAMED);
        assert!(named.iter().all(|member| member.as_bytes()[0] >= 100 - SERVED as u8));
    }

    #[test]
    fn one_member_does_not_take_all_slots() {
        let mut uploads = Uploads::new(UploadLimits { slots: 4, per_member: 2 }, 7);
        let mut ask =
            |asker| uploads.answer(&request(asker, Mode::Owner), Have::Whole, Moment::ZERO);
        assert_eq!([ask(1), ask(1)], [Answer::Serve, Answer::Serve]);
        assert!(matches!(ask(1), Answer::Busy(_)));
        assert_eq!(ask(2), Answer::Serve);
        uploads.ended(&id(1));
        assert_eq!(uploads.running(), 2);
        assert_eq!(
            uploads.answer(&request(1, Mode::Owner), Have::Whole, Moment::ZERO),
            Answer::Serve
        );
    }

    #[test]
    fn the_larger_the_crowd_the_longer_the_pause() {
        let mut uploads = uploads(1);
        uploads.answer(&request(1, Mode::Owner), Have::Whole, Moment::ZERO);
        let mut ask = |now| {
            let other = Request { piece: Digest::of(b"other"), ..request(2, Mode::Owner) };
            match uploads.answer(&other, Have::Whole, now) {
                Answer::Busy(pause) => pause,
                answer => panic!("{answer:?}"),
            }
        };
        let first = ask(Moment::ZERO);
        let last = (0..1000).map(|_| ask(Moment::ZERO)).last().unwrap();
        assert!(first < Duration::from_millis(100) && last == LONGEST_PAUSE, "{first:?} {last:?}");
        assert!(ask(CROWD * 5) < Duration::from_millis(100), "it is forgotten");
    }
}
