//! What this node thinks of the others: which members cannot be reached, lied or are silent, and
//! how many transfers may still be given up for being slow. Pure: it reads no clock.
//!
//! ```text
//! fetch, transfer -> unreachable, foreign, lied, delivered, proved -> Standing
//! shuns, is_silent, is_proven, may_hedge                           <-
//! ```

use std::collections::HashMap;
use std::time::Duration;

use super::member::MemberId;

/// A point in time, as the time since the beginning of the process or of a simulation.
pub type Moment = Duration;

/// How long a member that did not answer is left alone.
pub const UNREACHABLE: Duration = Duration::from_secs(30);
/// How long a member that sent wrong bytes is left alone.
pub const BAN: Duration = Duration::from_secs(300);
/// One transfer in so many may be given up for being slow.
const HEDGE_ONE_IN: u64 = 50;
/// How many transfers may be given up before there is a budget.
const HEDGE_BURST: u64 = 2;

/// Why a member is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It did not answer in time.
    Unreachable,
    /// It belongs to another cluster or speaks another version.
    Foreign,
    /// It sent wrong bytes, in words.
    Lied(String),
}

/// A member that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shunned {
    /// The member.
    pub member: MemberId,
    /// Why.
    pub reason: Reason,
    /// Until when.
    pub until: Moment,
}

#[derive(Debug, Default)]
struct Record {
    shunned: Option<(Reason, Moment)>,
    /// When it last delivered something.
    delivered: Option<Moment>,
    /// Whether it sent a whole piece that was right, and none since that was wrong.
    proven: bool,
}

/// The standing of all members with this node.
#[derive(Debug, Default)]
pub struct Standing {
    members: HashMap<MemberId, Record>,
    /// Transfers that began.
    begun: u64,
    /// Transfers that were given up for being slow.
    hedged: u64,
    /// How often members were found lying.
    lies: u64,
}

impl Standing {
    /// Whether `member` is to be left alone.
    pub fn shuns(&self, member: &MemberId, now: Moment) -> bool {
        let record = self.members.get(member);
        record.and_then(|record| record.shunned.as_ref()).is_some_and(|(_, until)| *until > now)
    }

    /// Notes that `member` does not answer.
    pub fn unreachable(&mut self, member: MemberId, now: Moment) {
        self.shun(member, Reason::Unreachable, now + UNREACHABLE);
    }

    /// Notes that `member` is of another cluster or version.
    pub fn foreign(&mut self, member: MemberId, now: Moment) {
        self.shun(member, Reason::Foreign, now + UNREACHABLE);
    }

    /// Notes that `member` sent wrong bytes, which nobody else can have spoilt.
    pub fn lied(&mut self, member: MemberId, words: String, now: Moment) {
        self.lies += 1;
        self.members.entry(member).or_default().proven = false;
        self.shun(member, Reason::Lied(words), now + BAN);
    }

    /// Leaves `member` alone until `until`; a later end that was set before stays.
    fn shun(&mut self, member: MemberId, reason: Reason, until: Moment) {
        let shunned = &mut self.members.entry(member).or_default().shunned;
        if shunned.as_ref().is_none_or(|(_, before)| *before <= until) {
            *shunned = Some((reason, until));
        }
    }

    /// Notes that `member` delivered something.
    pub fn delivered(&mut self, member: MemberId, now: Moment) {
        self.members.entry(member).or_default().delivered = Some(now);
    }

    /// Notes that a whole piece of `member` was right.
    pub fn proved(&mut self, member: MemberId) {
        self.members.entry(member).or_default().proven = true;
    }

    /// Whether `member` is trusted enough to keep its bytes when it stops in the middle.
    pub fn is_proven(&self, member: &MemberId) -> bool {
        self.members.get(member).is_some_and(|record| record.proven)
    }

    /// Whether `member` has delivered nothing, to any transfer, since `since`.
    pub fn is_silent(&self, member: &MemberId, since: Moment) -> bool {
        let delivered = self.members.get(member).and_then(|record| record.delivered);
        delivered.is_none_or(|delivered| delivered < since)
    }

    /// Notes that a transfer begins.
    pub fn begin(&mut self) {
        self.begun += 1;
    }

    /// Whether a transfer may be given up for being slow; it then counts as given up.
    pub fn may_hedge(&mut self) -> bool {
        let may = self.hedged < HEDGE_BURST + self.begun / HEDGE_ONE_IN;
        self.hedged += u64::from(may);
        may
    }

    /// How many transfers were given up for being slow.
    pub fn hedged(&self) -> u64 {
        self.hedged
    }

    /// How often somebody was found lying.
    pub fn lies(&self) -> u64 {
        self.lies
    }

    /// The members that are left alone now. Forgets why the others were.
    pub fn shunned(&mut self, now: Moment) -> Vec<Shunned> {
        let mut all = Vec::new();
        for (member, record) in &mut self.members {
            record.shunned.take_if(|(_, until)| *until <= now);
            if let Some((reason, until)) = record.shunned.clone() {
                all.push(Shunned { member: *member, reason, until });
            }
        }
        all.sort_by_key(|shunned| shunned.member);
        all
    }

    /// Forgets members that `is_member` does not know and that are not left alone any more.
    pub fn retain(&mut self, is_member: impl Fn(&MemberId) -> bool, now: Moment) {
        self.members.retain(|member, record| {
            let shunned = record.shunned.as_ref().is_some_and(|(_, until)| *until > now);
            shunned || is_member(member)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn one() -> MemberId {
        MemberId::from_bytes([1; 16])
    }

    #[test]
    fn a_ban_outlasts_a_timeout_that_comes_later() {
        let mut standing = Standing::default();
        standing.lied(one(), "wrong".into(), S);
        standing.unreachable(one(), 2 * S);
        assert!(standing.shuns(&one(), S + BAN - S / 2));
        assert!(!standing.shuns(&one(), S + BAN));
        let reasons: Vec<Reason> = standing.shunned(3 * S).into_iter().map(|s| s.reason).collect();
        assert_eq!(reasons, [Reason::Lied("wrong".into())]);
        assert!(standing.shunned(S + BAN).is_empty());
    }

    #[test]
    fn who_cannot_be_reached_is_tried_again_after_a_while() {
        let mut standing = Standing::default();
        standing.unreachable(one(), S);
        assert!(standing.shuns(&one(), 2 * S));
        assert!(!standing.shuns(&one(), S + UNREACHABLE));
    }

    #[test]
    fn a_liar_has_to_prove_itself_again() {
        let mut standing = Standing::default();
        assert!(!standing.is_proven(&one()));
        standing.proved(one());
        assert!(standing.is_proven(&one()));
        standing.lied(one(), String::new(), S);
        assert!(!standing.is_proven(&one()));
    }

    #[test]
    fn one_transfer_in_fifty_may_be_given_up() {
        let mut standing = Standing::default();
        for _ in 0..1000 {
            standing.begin();
        }
        let given_up = (0..1000).filter(|_| standing.may_hedge()).count();
        assert_eq!(given_up as u64, HEDGE_BURST + 1000 / HEDGE_ONE_IN);
    }

    #[test]
    fn silence_is_told_over_all_transfers() {
        let mut standing = Standing::default();
        assert!(standing.is_silent(&one(), S));
        standing.delivered(one(), 3 * S);
        assert!(!standing.is_silent(&one(), 2 * S));
        assert!(standing.is_silent(&one(), 4 * S));
    }
}
