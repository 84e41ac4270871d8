//! Members of the cluster as the rest of the agent sees them.
//!
//! ```text
//! membership -> Roster (replaced as a whole) -> placement, client, server
//! ```
//!
//! A roster is replaced as a whole, so that one decision sees one state.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The name of a node, random, kept in its cache directory for as long as that lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId([u8; 16]);

impl MemberId {
    /// The id that these bytes spell.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not the id of a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no member id: 32 hex digits are")]
pub struct BadMemberId(String);

impl FromStr for MemberId {
    type Err = BadMemberId;

    fn from_str(text: &str) -> Result<Self, BadMemberId> {
        let bad = || BadMemberId(text.to_owned());
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or_else(bad)
    }
}

impl Serialize for MemberId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How many of the pieces a member owns, in hundredths of an ordinary share: 0 while it drains,
/// less than [`Weight::FULL`] while it is slow or busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(pub u8);

impl Weight {
    /// An ordinary share.
    pub const FULL: Self = Self(100);
    /// No share: the member leaves, or only receives.
    pub const NONE: Self = Self(0);
}

/// A node of the cluster that is believed to be alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub id: MemberId,
    /// The addresses at which it answers, UDP and TCP alike, the best first; at least one, IPv4 or
    /// IPv6.
    pub addresses: Vec<SocketAddr>,
    /// When its agent started (Unix time, ms): of two members with one id, the later counts.
    pub epoch: u64,
    /// The versions of the peer protocol that it speaks.
    pub protocol: RangeInclusive<u16>,
    /// Its share of the pieces.
    pub weight: Weight,
}

/// The members that are believed to be alive, oneself included, by ascending id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

impl Members {
    /// These members; of two with one id the later epoch stays.
    pub fn new(mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id).then(b.epoch.cmp(&a.epoch)));
        members.dedup_by_key(|member| member.id);
        Self(members)
    }

    /// The member of this name.
    pub fn get(&self, id: &MemberId) -> Option<&Member> {
        self.0.binary_search_by_key(id, |member| member.id).ok().map(|place| &self.0[place])
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no member, not even this node.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The members as they are known now, and oneself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Oneself.
    pub own: MemberId,
    members: watch::Receiver<Arc<Members>>,
}

impl Roster {
    /// A roster, and the way to replace what it shows.
    pub fn new(own: MemberId, members: Members) -> (watch::Sender<Arc<Members>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(members));
        (sender, Self { own, members: receiver })
    }

    /// The members now.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8, epoch: u64) -> Member {
        Member {
            id: MemberId::from_bytes([id; 16]),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8788))],
            epoch,
            protocol: 1..=1,
            weight: Weight::FULL,
        }
    }

    #[test]
    fn an_id_reads_back_and_nothing_else_is_one() {
        let id = MemberId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00", "+0112233445566778899aabbccddeeff", &"g".repeat(32), &"0".repeat(33)]
        {
            assert!(bad.parse::<MemberId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn of_two_lives_of_a_member_the_later_counts() {
        let members = Members::new(vec![member(2, 5), member(1, 7), member(2, 9)]);
        assert_eq!(members.iter().map(|member| member.epoch).collect::<Vec<_>>(), [7, 9]);
        assert_eq!(members.get(&MemberId::from_bytes([2; 16])).map(|member| member.epoch), Some(9));
    }

    #[test]
    fn a_roster_shows_what_was_put_there_last() {
        let (sender, roster) = Roster::new(MemberId::from_bytes([1; 16]), Members::default());
        assert!(roster.members().is_empty());
        sender.send_replace(Arc::new(Members::new(vec![member(1, 1)])));
        assert_eq!(roster.members().len(), 1);
    }
}
