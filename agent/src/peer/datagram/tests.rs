//! Right datagrams, and every way in which one can be wrong.

use proptest::prelude::*;

use super::*;
use crate::peer::keys::testing::keys;
use crate::peer::keys::{KeyFile, SecretKey};

const ALICE: MemberId = MemberId::from_bytes([1; 16]);
const BOB: MemberId = MemberId::from_bytes([2; 16]);
const EPOCH: u64 = 1_700_000_000_000;

fn sealer(epoch: u64) -> Sealer {
    Sealer::new(keys(1), ALICE, epoch)
}

fn opener() -> Opener {
    Opener::new(keys(1), BOB)
}

#[test]
fn what_is_sealed_opens_once() {
    let datagram = sealer(EPOCH).seal(BOB, b"hello").unwrap();
    assert!(!datagram.windows(5).any(|bytes| bytes == b"hello"));
    let mut bob = opener();
    let opened = bob.open(&datagram).unwrap();
    assert_eq!((opened.from, opened.epoch, &opened.payload[..]), (ALICE, EPOCH, &b"hello"[..]));
    assert_eq!(bob.open(&datagram), Err(Dropped::Replayed));
    let received = Received { taken: 1, replayed: 1, ..Received::default() };
    assert_eq!(bob.received(), received);
}

#[test]
fn the_longest_payload_makes_the_longest_datagram() {
    let mut alice = sealer(EPOCH);
    assert_eq!(alice.seal(BOB, &[0; MAX_PAYLOAD]).unwrap().len(), MAX_DATAGRAM);
    assert!(alice.seal(BOB, &[0; MAX_PAYLOAD + 1]).is_none());
}

#[test]
fn each_way_to_be_wrong_is_dropped_and_counted() {
    let mut bob = opener();
    let good = sealer(EPOCH).seal(BOB, b"x").unwrap();
    let with = |at: usize, byte: u8| {
        let mut datagram = good.clone();
        datagram[at] = byte;
        datagram
    };
    for (datagram, reason) in [
        (vec![0; MAX_DATAGRAM + 1], Dropped::Oversized),
        (Vec::new(), Dropped::Malformed),
        (vec![0; 100], Dropped::Malformed),
        (good[..HEADER + TAG - 1].to_vec(), Dropped::Malformed),
        (with(3, 2), Dropped::Version),
        (Sealer::new(keys(2), ALICE, EPOCH).seal(BOB, b"x").unwrap(), Dropped::Key),
        (sealer(EPOCH).seal(ALICE, b"x").unwrap(), Dropped::Misdirected),
        (with(HEADER, good[HEADER] ^ 1), Dropped::Forged),
    ] {
        assert_eq!(bob.open(&datagram), Err(reason));
    }
    let each = Received {
        taken: 0,
        oversized: 1,
        malformed: 3,
        version: 1,
        key: 1,
        misdirected: 1,
        forged: 1,
        replayed: 0,
    };
    assert_eq!(bob.received(), each);
    assert!(bob.open(&good).is_ok(), "none of that keeps the good one out");
}

#[test]
fn a_later_life_ends_the_ones_before() {
    let mut bob = opener();
    let (mut first, mut second) = (sealer(EPOCH), sealer(EPOCH + 1));
    let held_back = first.seal(BOB, b"old").unwrap();
    bob.open(&first.seal(BOB, b"a").unwrap()).unwrap();
    bob.open(&second.seal(BOB, b"b").unwrap()).unwrap();
    assert_eq!(bob.open(&held_back), Err(Dropped::Replayed));
    assert!(bob.open(&second.seal(BOB, b"c").unwrap()).is_ok());
}

#[test]
fn a_forged_later_life_ends_nothing() {
    let mut bob = opener();
    let mut alice = sealer(EPOCH);
    let mut forged = alice.seal(BOB, b"x").unwrap();
    forged[44..52].copy_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(bob.open(&forged), Err(Dropped::Forged));
    assert!(bob.open(&alice.seal(BOB, b"y").unwrap()).is_ok());
}

#[test]
fn datagrams_cross_a_rotation() {
    let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
    let (of_alice, of_bob) = (ClusterKeys::new(&file), ClusterKeys::new(&file));
    let mut alice = Sealer::new(of_alice.clone(), ALICE, EPOCH);
    let mut bob = Opener::new(of_bob.clone(), BOB);
    for _ in 0..3 {
        file.rotate(SecretKey::from_bytes([2; 32]));
        of_bob.replace(&file);
        assert!(bob.open(&alice.seal(BOB, b"x").unwrap()).is_ok(), "bob is a step ahead");
        of_alice.replace(&file);
        assert!(bob.open(&alice.seal(BOB, b"x").unwrap()).is_ok(), "both are there");
    }
    assert_eq!(bob.received().taken, 6);
}

proptest! {
    #[test]
    fn a_datagram_that_differs_in_any_bit_is_dropped(
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut datagram = sealer(EPOCH).seal(BOB, &payload).unwrap();
        let at = at.index(datagram.len());
        datagram[at] ^= 1 << bit;
        prop_assert!(opener().open(&datagram).is_err());
    }

    #[test]
    fn no_bytes_make_the_opener_panic(
        datagram in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM + 10),
    ) {
        let mut datagram = datagram;
        prop_assert!(opener().open(&datagram).is_err());
        if datagram.len() > 4 {
            datagram[..3].copy_from_slice(MAGIC);
            datagram[3] = VERSION;
            prop_assert!(opener().open(&datagram).is_err());
        }
    }
}
