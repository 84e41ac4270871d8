//! Where a piece is: rendezvous hashing (highest random weight; Thaler, Ravishankar 1998) over the
//! members. Pure.
//!
//! Each member has a score for each piece. The one with the highest score owns it, and the next
//! ones take its place when it is gone. Nobody has to be asked, and a member that joins or leaves
//! moves no pieces but its own. All nodes of a cluster must agree, whatever their version, so the
//! function is **frozen**: the tests pin its results.
//!
//! ```text
//! m     = mix(id[8..16] ^ mix(id[0..8]))                 once per member
//! score = mix(mix(digest[0..8] ^ m) + digest[8..16])     big-endian words, wrapping
//! stands for the piece, if mix(score) % 100 < weight
//! ```
//!
//! A member of weight 30 stands for 30 of 100 pieces, the same ones at each greater weight, so a
//! change of weight moves only the difference. A member that does not stand for a piece ranks
//! behind all that do; one without weight has no rank.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use undermount_fs::digest::Digest;

use super::member::{Member, MemberId, Members, Weight};

/// The versions of the peer protocol that this program speaks.
pub const PROTOCOL: RangeInclusive<u16> = 1..=1;

/// The rank of a member for a piece; the greater, the better.
type Rank = (bool, u64, Reverse<MemberId>);

/// The first `most` members for `piece`, the owner first, among those that speak one of the
/// `protocol` versions.
pub fn ranking(
    piece: &Digest,
    members: &Members,
    protocol: &RangeInclusive<u16>,
    most: usize,
) -> Vec<MemberId> {
    let mut best: Vec<Rank> = Vec::with_capacity(most + 1);
    for member in members.iter().filter(|member| is_eligible(member, protocol)) {
        let rank = rank(piece, member);
        if best.len() == most && best.last().is_some_and(|last| *last >= rank) {
            continue;
        }
        let place = best.partition_point(|better| *better > rank);
        best.insert(place, rank);
        best.truncate(most);
    }
    best.into_iter().map(|(_, _, Reverse(id))| id).collect()
}

fn is_eligible(member: &Member, protocol: &RangeInclusive<u16>) -> bool {
    let speaks = &member.protocol;
    let common = speaks.start() <= protocol.end() && protocol.start() <= speaks.end();
    member.weight > Weight::NONE && common
}

fn rank(piece: &Digest, member: &Member) -> Rank {
    let score = score(piece, &member.id);
    let stands = mix(score) % 100 < u64::from(member.weight.0);
    (stands, score, Reverse(member.id))
}

fn score(piece: &Digest, member: &MemberId) -> u64 {
    let (id, digest) = (member.as_bytes(), piece.as_bytes());
    let m = mix(word(id, 8) ^ mix(word(id, 0)));
    mix(mix(word(digest, 0) ^ m).wrapping_add(word(digest, 8)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u32) -> MemberId {
        let digest = Digest::of(&number.to_be_bytes());
        MemberId::from_bytes(digest.as_bytes()[..16].try_into().unwrap())
    }

    fn member(number: u32, weight: u8) -> Member {
        Member {
            id: id(number),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8788))],
            epoch: 1,
            protocol: PROTOCOL,
            weight: Weight(weight),
        }
    }

    fn members(weights: &[u8]) -> Members {
        Members::new((0..).zip(weights).map(|(n, weight)| member(n, *weight)).collect())
    }

    fn piece(number: u32) -> Digest {
        Digest::of(format!("piece {number}").as_bytes())
    }

    fn owner(piece: &Digest, members: &Members) -> Option<MemberId> {
        ranking(piece, members, &PROTOCOL, 1).first().copied()
    }

    /// How many of 10,000 pieces each member owns.
    fn shares(members: &Members) -> HashMap<MemberId, u32> {
        let mut shares = HashMap::new();
        for number in 0..10_000 {
            *shares.entry(owner(&piece(number), members).unwrap()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn the_function_is_frozen() {
        let golden = [
            ("a", "00000000000000000000000000000000", 0xb5fc_6a95_f60a_f427),
            ("b", "000102030405060708090a0b0c0d0e0f", 0x9bfa_d145_a57c_d741),
            ("", "ffffffffffffffffffffffffffffffff", 0xf884_62ce_a644_83fa),
        ];
        for (content, member, expected) in golden {
            let piece = Digest::of(content.as_bytes());
            let found = score(&piece, &member.parse().unwrap());
            assert_eq!(found, expected, "{content:?}: {found:#018x}");
        }
        let members = members(&[100, 100, 30, 0, 100]);
        let order: Vec<u32> = ranking(&piece(7), &members, &PROTOCOL, 9)
            .iter()
            .map(|ranked| (0..5).find(|number| id(*number) == *ranked).unwrap())
            .collect();
        assert_eq!(order, [0, 4, 1, 2]);
    }

    #[test]
    fn members_own_equal_shares() {
        let shares = shares(&members(&[100; 10]));
        assert!(shares.values().all(|share| (900..1100).contains(share)), "{shares:?}");
    }

    #[test]
    fn weight_is_the_part_of_the_pieces_that_one_stands_for() {
        let shares = shares(&members(&[100, 100, 100, 100, 100, 100, 100, 100, 50, 0]));
        let half = shares[&id(8)];
        assert!((450..700).contains(&half), "{half}");
        assert!(!shares.contains_key(&id(9)), "weight 0 owns nothing");
        let alone = members(&[1]);
        assert_eq!(owner(&piece(0), &alone), Some(id(0)), "somebody has to own it");
        assert_eq!(owner(&piece(0), &members(&[0])), None);
    }

    #[test]
    fn a_member_of_another_version_owns_nothing() {
        let mut foreign = member(0, 100);
        foreign.protocol = 2..=3;
        let mut both = member(1, 100);
        both.protocol = 1..=2;
        let members = Members::new(vec![foreign, both]);
        for number in 0..100 {
            assert_eq!(ranking(&piece(number), &members, &PROTOCOL, 5), [id(1)]);
        }
    }

    proptest! {
        #[test]
        fn who_comes_takes_pieces_from_nobody_but_to_itself(count in 1u32..20, number: u32) {
            let before: Vec<Member> = (0..count).map(|n| member(n, 100)).collect();
            let mut after = before.clone();
            after.push(member(count, 100));
            let (before, after) = (Members::new(before), Members::new(after));
            let (old, new) = (owner(&piece(number), &before), owner(&piece(number), &after));
            prop_assert!(new == old || new == Some(id(count)));
            // A member that leaves hands its pieces to the second in rank.
            let ranks = ranking(&piece(number), &after, &PROTOCOL, 2);
            if new == Some(id(count)) {
                prop_assert_eq!(old, ranks.get(1).copied());
            }
        }

        #[test]
        fn less_weight_moves_only_ones_own_pieces(weight in 1u8..100, less in 0u8..100, number: u32) {
            let less = less.min(weight);
            let at = |weight| owner(&piece(number), &members(&[100, 100, 100, weight]));
            let (before, after) = (at(weight), at(less));
            prop_assert!(before == after || before == Some(id(3)));
        }

        #[test]
        fn a_short_ranking_is_the_start_of_a_long_one(weights in proptest::collection::vec(0u8..=100, 0..30), most in 0usize..9, number: u32) {
            let members = members(&weights);
            let all = ranking(&piece(number), &members, &PROTOCOL, 100);
            prop_assert_eq!(all.len(), weights.iter().filter(|weight| **weight > 0).count());
            let short = ranking(&piece(number), &members, &PROTOCOL, most);
            prop_assert_eq!(&short[..], &all[..most.min(all.len())]);
        }
    }
}
