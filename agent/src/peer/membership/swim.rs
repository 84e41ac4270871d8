//! The state machine: who is a member, by SWIM (Das, Gupta, Motivala 2002), as the crate `foca`
//! implements it.
//!
//! ```text
//! datagrams, the time, states of others -> Swim -> datagrams to send, timers, a changed roster
//! ```
//!
//! This is a thin shell around `foca`, with the clock and the seed of its randomness as arguments:
//! the owner passes datagrams and the time, and sends what it returns. No sockets, no tasks.
//!
//! Gossip alone leaves stragglers: an update that was lost is not repeated. So full states are
//! compared now and then ([`Swim::digest`]) and merged ([`Swim::merge`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{AccumulatingRuntime, Config, Foca, NoCustomBroadcast, PeriodicParams};
use foca::{OwnedNotification, PostcardCodec, State, Timer};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use sha2::{Digest as _, Sha256};

use super::identity::Identity;
use crate::peer::datagram::MAX_PAYLOAD;
use crate::peer::member::{MemberId, Members, Weight};

/// What is known of a member: who it is, and whether it is alive, suspected or down.
pub type Record = foca::Member<Identity>;

/// Which members a state holds, so that two can be compared.
pub type StateDigest = [u8; 32];

/// How often members that are down are announced to, two at a time: this ends a partition.
const CALL_THE_DEAD: Duration = Duration::from_secs(10);

/// How often a member is asked for more members.
const ASK_FOR_MORE: Duration = Duration::from_secs(15);

/// The state of one member.
pub struct Swim {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    timers: BinaryHeap<Reverse<Due>>,
    scheduled: u64,
    /// The cluster size that the parameters are made for.
    sized_for: u32,
    left: bool,
    changed: bool,
}

/// A timer and when it is due.
struct Due {
    at: Duration,
    /// Of two that are due at once, the one that was set first goes first.
    order: (Timer<Identity>, u64),
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let kinds = || self.order.0.cmp(&other.order.0);
        self.at.cmp(&other.at).then_with(kinds).then(self.order.1.cmp(&other.order.1))
    }
}

/// Whether the word of another member is believed that somebody is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// It is: a member that has just joined knows less than all others.
    Newcomer,
    /// It is not, where this node thinks otherwise: the two may have been apart, each side
    /// believing that the other was down. The member in doubt must be asked itself.
    Doubting,
}

impl Swim {
    /// The member `own`, alone. Its random choices follow from `seed`.
    pub fn new(own: Identity, seed: u64) -> Self {
        let sized_for = 16;
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(own, config(sized_for), rng, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            scheduled: 0,
            sized_for,
            left: false,
            changed: true,
        }
    }

    /// Oneself, as of now.
    pub fn own(&self) -> &Identity {
        self.foca.identity()
    }

    /// Whether the cluster was left.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// Takes what another member has sent.
    ///
    /// # Errors
    /// Where `foca` cannot make sense of it.
    pub fn receive(&mut self, now: Duration, payload: &[u8]) -> Result<(), foca::Error> {
        let taken = self.foca.handle_data(payload, &mut self.runtime);
        self.settle(now);
        taken
    }

    /// Does what is due by `now`.
    pub fn advance(&mut self, now: Duration) {
        while let Some(Reverse(due)) = self.timers.pop_if_due(now) {
            if let Err(error) = self.foca.handle_timer(due.order.0, &mut self.runtime) {
                // After a pause of the process, a probe may be due before the previous one has
                // ended.
                tracing::debug!(%error, "a step of membership was late");
            }
            self.settle(now);
        }
    }

    /// When [`Self::advance`] has something to do next.
    pub fn next_due(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse(due)| due.at)
    }

    /// What is to be sent, and to whom.
    pub fn take_sends(&mut self) -> Vec<(Identity, Bytes)> {
        std::iter::from_fn(|| self.runtime.to_send()).collect()
    }

    /// Whether there are other members, or other things to know of them, than at the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Tells `to` that this member is here, and asks it for members.
    pub fn announce(&mut self, now: Duration, to: Identity) {
        if let Err(error) = self.foca.announce(to, &mut self.runtime) {
            tracing::warn!(%error, "cannot announce this member");
        }
        self.settle(now);
    }

    /// Takes in a member that has just said that it is there.
    pub fn welcome(&mut self, now: Duration, member: Identity) {
        self.apply(now, vec![Record::alive(member)], true);
    }

    /// Takes in members that were known before this process started, without telling anybody.
    pub fn remember(&mut self, now: Duration, members: impl IntoIterator<Item = Identity>) {
        let own = self.own().id;
        let others = members.into_iter().filter(|member| member.id != own);
        self.apply(now, others.map(Record::alive).collect(), false);
    }

    /// Takes in what another member knows. Returns those that it believes to be down and this one
    /// does not, which must be asked themselves ([`Belief::Doubting`]).
    pub fn merge(&mut self, now: Duration, theirs: Vec<Record>, belief: Belief) -> Vec<Identity> {
        let known = |member: &Record| (member.id().age(), member.incarnation());
        let active: HashMap<MemberId, _> =
            self.foca.iter_members().map(|member| (member.id().id, known(member))).collect();
        let own = self.own().id;
        let (mut news, mut doubts) = (Vec::new(), Vec::new());
        for record in theirs {
            let id = record.id();
            match record.state() {
                // Mostly both know the same, and each record costs a walk over all members.
                State::Alive | State::Suspect if active.get(&id.id) == Some(&known(&record)) => {}
                // A suspicion is its finder's to follow up; that the member is known is news.
                State::Alive | State::Suspect => {
                    news.push(Record::new(id.clone(), record.incarnation(), State::Alive));
                }
                State::Down if id.id == own => news.push(record),
                State::Down => match active.get(&id.id) {
                    Some((age, _)) if *age > id.age() => {}
                    Some(_) if belief == Belief::Doubting => doubts.push(id.clone()),
                    Some(_) => news.push(record),
                    None => {}
                },
            }
        }
        self.apply(now, news, belief == Belief::Doubting);
        doubts
    }

    /// Notes that a member is down: it has said good-bye, or it does not answer and another member
    /// says so as well.
    pub fn give_up(&mut self, now: Duration, member: Identity) {
        self.apply(now, vec![Record::down(member)], true);
    }

    fn apply(&mut self, now: Duration, records: Vec<Record>, spread: bool) {
        if let Err(error) = self.foca.apply_many(records.into_iter(), spread, &mut self.runtime) {
            tracing::warn!(%error, "cannot take over what another member knows");
        }
        self.settle(now);
    }

    /// Changes the weight of this member.
    pub fn set_weight(&mut self, now: Duration, weight: Weight) {
        let own = self.own().clone();
        if own.weight != weight {
            self.become_later(now, Identity { weight, ..own });
        }
    }

    /// Comes back after [`Self::leave`].
    pub fn rejoin(&mut self, now: Duration) {
        if std::mem::take(&mut self.left) {
            self.become_later(now, self.own().clone());
        }
    }

    fn become_later(&mut self, now: Duration, identity: Identity) {
        let later = Identity { revision: identity.revision.saturating_add(1), ..identity };
        if let Err(error) = self.foca.change_identity(later, &mut self.runtime) {
            tracing::warn!(%error, "cannot change what other members know of this one");
        }
        self.changed = true;
        self.wake();
        self.settle(now);
    }

    /// Begins to probe under a new identity. Without this nothing happens until another member uses
    /// that identity.
    fn wake(&mut self) {
        if let Err(error) = self.foca.apply_many(std::iter::empty(), false, &mut self.runtime) {
            tracing::warn!(%error, "the new identity waits for somebody who knows it");
        }
    }

    /// Says good-bye. Nothing more is received or sent after that, until [`Self::rejoin`].
    pub fn leave(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.left, true) {
            if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
                tracing::warn!(%error, "cannot say good-bye to the other members");
            }
            self.changed = true;
            self.settle(now);
        }
    }

    /// The others that are believed to be alive.
    pub fn others(&self) -> impl Iterator<Item = &Identity> {
        self.foca.iter_members().map(Record::id)
    }

    /// How many others are believed to be alive.
    pub fn count_others(&self) -> usize {
        self.foca.num_members()
    }

    /// All that is known, oneself included, as [`Self::merge`] takes it.
    pub fn state(&self) -> Vec<Record> {
        let own = if self.left { Record::down } else { Record::alive };
        let others = self.foca.iter_membership_state();
        let others = others.filter(|record| record.id().id != self.own().id).cloned();
        others.chain([own(self.own().clone())]).collect()
    }

    /// The members that are believed to be alive, oneself included; none once this member has left.
    pub fn members(&self) -> Members {
        if self.left {
            return Members::default();
        }
        let own = self.own();
        let all = self.others().chain([own]);
        Members::new(all.map(|member| member.to_member(own.protocol)).collect())
    }

    /// A digest of which members are believed to be alive, oneself included, and of their ages:
    /// equal where two members know the same.
    pub fn digest(&self) -> StateDigest {
        let myself = (!self.left).then_some(self.own());
        let mut ages: Vec<(MemberId, (u64, u32))> =
            self.others().chain(myself).map(|member| (member.id, member.age())).collect();
        ages.sort_unstable();
        let mut hash = Sha256::new();
        for (id, (epoch, revision)) in ages {
            hash.update(id.as_bytes());
            hash.update(epoch.to_be_bytes());
            hash.update(revision.to_be_bytes());
        }
        hash.finalize().into()
    }

    /// Follows up on what the last step of `foca` has produced.
    fn settle(&mut self, now: Duration) {
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(_)
                | OwnedNotification::MemberDown(_)
                | OwnedNotification::Rename(..) => self.changed = true,
                OwnedNotification::Rejoin(own) => {
                    tracing::info!(revision = own.revision, "was declared down, is back");
                    self.changed = true;
                    self.wake();
                }
                OwnedNotification::Defunct if !self.left => {
                    tracing::error!("this member was declared down and cannot come back");
                }
                OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct => {}
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.scheduled += 1;
            let order = (timer, self.scheduled);
            self.timers.push(Reverse(Due { at: now + after, order }));
        }
        self.fit_size();
    }

    /// Adapts the parameters to the size of the cluster: how often news is repeated, and how long a
    /// suspect has to answer.
    fn fit_size(&mut self) {
        let size = u32::try_from(self.count_others()).unwrap_or(u32::MAX).max(16);
        if size > self.sized_for * 2 || size < self.sized_for / 2 {
            self.sized_for = size;
            if let Err(error) = self.foca.set_config(config(size)) {
                tracing::warn!(%error, "the parameters of membership stay as they are");
            }
        }
    }
}

/// Takes the first timer, if it is due.
trait PopIfDue {
    fn pop_if_due(&mut self, now: Duration) -> Option<Reverse<Due>>;
}

impl PopIfDue for BinaryHeap<Reverse<Due>> {
    fn pop_if_due(&mut self, now: Duration) -> Option<Reverse<Due>> {
        if self.peek()?.0.at <= now { self.pop() } else { None }
    }
}

fn config(size: u32) -> Config {
    let size = NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN);
    let every = |frequency, members| {
        let num_members = NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN);
        Some(PeriodicParams { frequency, num_members })
    };
    Config {
        max_packet_size: NonZeroUsize::new(MAX_PAYLOAD).expect("datagrams have room"),
        periodic_announce: every(ASK_FOR_MORE, 1),
        periodic_announce_to_down_members: every(CALL_THE_DEAD, 2),
        ..Config::new_lan(size)
    }
}

#[cfg(test)]
mod tests;
