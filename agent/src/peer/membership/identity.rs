//! What members tell each other about a member.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::peer::member::{Member, MemberId, Weight};

/// The most addresses that a member may have.
pub const MAX_ADDRESSES: usize = 4;

/// A member as gossip carries it. Its layout is part of the datagram's version and of the answers
/// of [`super::inquiry`].
///
/// A member stays the same while its id does. Whatever else changes makes a later identity of it,
/// by epoch (the agent was started again) and revision (its weight changed, or it was declared down
/// and is not): of two, the later counts. The key that seals the message says which cluster it
/// belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Identity {
    /// Its name.
    pub id: MemberId,
    /// When its agent started (Unix time, ms).
    pub epoch: u64,
    /// Counts the changes since.
    pub revision: u32,
    /// The addresses at which it answers, the best first; 1 to [`MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// The versions of the peer protocol that it speaks, first and last.
    pub protocol: (u16, u16),
    /// Its share of the pieces.
    pub weight: Weight,
}

impl Identity {
    /// The age of this identity among those of its member: the greater counts.
    pub fn age(&self) -> (u64, u32) {
        (self.epoch, self.revision)
    }

    /// Returns the identity, if there can be such a member.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn checked(self) -> Result<Self, &'static str> {
        let odd = |address: &SocketAddr| address.port() == 0 || address.ip().is_unspecified();
        if !(1..=MAX_ADDRESSES).contains(&self.addresses.len()) {
            return Err("a member has one to four addresses");
        }
        if self.addresses.iter().any(odd) {
            return Err("a member answers at no such address");
        }
        if self.protocol.0 > self.protocol.1 {
            return Err("the oldest version of the protocol is later than the newest");
        }
        if self.weight > Weight::FULL {
            return Err("a weight is at most 100");
        }
        Ok(self)
    }

    /// The member, as the rest of the agent sees it. One that speaks none of the versions of `own`
    /// owns nothing.
    pub fn to_member(&self, own: (u16, u16)) -> Member {
        let (oldest, newest) = self.protocol;
        let understood = oldest <= own.1 && own.0 <= newest;
        Member {
            id: self.id,
            addresses: self.addresses.clone(),
            epoch: self.epoch,
            protocol: oldest..=newest,
            weight: if understood { self.weight } else { Weight::NONE },
        }
    }
}

impl foca::Identity for Identity {
    type Addr = MemberId;

    fn renew(&self) -> Option<Self> {
        Some(Self { revision: self.revision.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> MemberId {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.age() > adversary.age()
    }
}

/// An [`Identity`] in the order and types of the wire.
#[derive(Serialize, Deserialize)]
struct Wire {
    id: [u8; 16],
    epoch: u64,
    revision: u32,
    addresses: Vec<SocketAddr>,
    protocol: (u16, u16),
    weight: u8,
}

impl From<Identity> for Wire {
    fn from(identity: Identity) -> Self {
        let Identity { id, epoch, revision, addresses, protocol, weight } = identity;
        Self { id: *id.as_bytes(), epoch, revision, addresses, protocol, weight: weight.0 }
    }
}

impl TryFrom<Wire> for Identity {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, &'static str> {
        let Wire { id, epoch, revision, addresses, protocol, weight } = wire;
        let (id, weight) = (MemberId::from_bytes(id), Weight(weight));
        Self { id, epoch, revision, addresses, protocol, weight }.checked()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A member with this number, at a port of its own.
    pub fn identity(number: u8) -> Identity {
        Identity {
            id: MemberId::from_bytes([number; 16]),
            epoch: 1_700_000_000_000,
            revision: 0,
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 9000 + u16::from(number)))],
            protocol: (1, 1),
            weight: Weight::FULL,
        }
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::testing::identity;
    use super::*;

    #[test]
    fn the_layout_is_pinned() {
        let mut identity = identity(1);
        identity.addresses.push("[fd00::2]:8788".parse().unwrap());
        let bytes = postcard::to_allocvec(&identity).unwrap();
        let ipv4 = [0, 127, 0, 0, 1, 0xa9, 0x46];
        let ipv6 = [&[1, 0xfd][..], &[0; 14], &[2, 0xd4, 0x44]].concat();
        let epoch = [0x80, 0xd0, 0x95, 0xff, 0xbc, 0x31];
        let expected = [&[1; 16][..], &epoch, &[0], &[2], &ipv4, &ipv6, &[1, 1], &[100]].concat();
        assert_eq!(bytes, expected);
        assert_eq!(postcard::from_bytes::<Identity>(&bytes).unwrap(), identity);
    }

    #[test]
    fn what_no_member_can_be_is_refused() {
        type Edit = fn(&mut Wire);
        let edits: [Edit; 6] = [
            |wire| wire.addresses.clear(),
            |wire| wire.addresses = vec![SocketAddr::from(([127, 0, 0, 1], 1)); 5],
            |wire| wire.addresses = vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            |wire| wire.addresses = vec![SocketAddr::from(([0, 0, 0, 0], 1))],
            |wire| wire.protocol = (2, 1),
            |wire| wire.weight = 101,
        ];
        for edit in edits {
            let mut wire = Wire::from(identity(1));
            edit(&mut wire);
            let bytes = postcard::to_allocvec(&wire).unwrap();
            assert!(postcard::from_bytes::<Identity>(&bytes).is_err());
        }
    }

    #[test]
    fn a_later_start_beats_any_revision() {
        let old = Identity { revision: 7, ..identity(1) };
        let new = Identity { epoch: old.epoch + 1, ..identity(1) };
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        assert!(old.renew().unwrap().win_addr_conflict(&old));
    }

    #[test]
    fn who_speaks_no_version_of_ours_owns_nothing() {
        for (theirs, ours, owns) in [
            ((1, 1), (1, 1), true),
            ((2, 3), (1, 2), true),
            ((1, 2), (2, 9), true),
            ((2, 3), (1, 1), false),
            ((1, 1), (2, 2), false),
        ] {
            let member = Identity { protocol: theirs, ..identity(1) }.to_member(ours);
            assert_eq!(member.weight != Weight::NONE, owns, "{theirs:?} {ours:?}");
        }
    }
}
