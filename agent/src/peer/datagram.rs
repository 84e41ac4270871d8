//! Datagrams between members: sealed, so that nobody outside the cluster reads, forges or repeats
//! one.
//!
//! ```text
//!  0   4  "UMD" and the version of this layout, 1
//!  4   8  KeyId: which cluster key
//! 12  16  who sends
//! 28  16  who is to receive
//! 44   8  epoch: when the sender's agent started (Unix time, ms, big endian)
//! 52   8  counter: 0 for the first datagram of that epoch, big endian
//! 60   n  the payload, AES-256-GCM; the bytes before it are authenticated with it
//!     16  tag
//! ```
//!
//! Each life of a member (its id and epoch) seals with a key of its own, made of the cluster key,
//! and never uses a counter twice: no nonce repeats. The receiver remembers the latest epoch of
//! each sender and the counters near the highest ([`window`]), and takes each datagram once.
//!
//! Everything here is a function of bytes; sockets are [`crate::peer::membership`]'s.

mod window;

use std::num::NonZeroUsize;

use lru::LruCache;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};

use self::window::Window;
use super::keys::{ClusterKeys, Derived, KeyId};
use super::member::MemberId;

/// The length of the longest datagram: what an IPv6 network of the smallest MTU carries in one
/// piece, with room for tunnels.
pub const MAX_DATAGRAM: usize = 1200;

/// The length of the longest payload.
pub const MAX_PAYLOAD: usize = MAX_DATAGRAM - HEADER - TAG;

const HEADER: usize = 60;
const TAG: usize = 16;
const MAGIC: &[u8; 3] = b"UMD";
const VERSION: u8 = 1;

/// Senders to remember. The key is needed to become one.
const SENDERS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// It is longer than [`MAX_DATAGRAM`].
    Oversized,
    /// It is no datagram of ours.
    Malformed,
    /// It has another version of the layout.
    Version,
    /// It is sealed with a key that this node does not have, such as another cluster's.
    Key,
    /// It is for another member.
    Misdirected,
    /// It was not sealed by a member of the cluster, or changed on its way.
    Forged,
    /// It was here before, or is too old to tell.
    Replayed,
}

/// How many datagrams were taken, and dropped for which reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Received {
    /// Opened.
    pub taken: u64,
    /// See [`Drop::Oversized`].
    pub oversized: u64,
    /// See [`Drop::Malformed`].
    pub malformed: u64,
    /// See [`Drop::Version`].
    pub version: u64,
    /// See [`Drop::Key`].
    pub key: u64,
    /// See [`Drop::Misdirected`].
    pub misdirected: u64,
    /// See [`Drop::Forged`].
    pub forged: u64,
    /// See [`Drop::Replayed`].
    pub replayed: u64,
}

impl Received {
    fn count<T>(&mut self, outcome: &Result<T, Drop>) {
        let counter = match outcome {
            Ok(_) => &mut self.taken,
            Err(Drop::Oversized) => &mut self.oversized,
            Err(Drop::Malformed) => &mut self.malformed,
            Err(Drop::Version) => &mut self.version,
            Err(Drop::Key) => &mut self.key,
            Err(Drop::Misdirected) => &mut self.misdirected,
            Err(Drop::Forged) => &mut self.forged,
            Err(Drop::Replayed) => &mut self.replayed,
        };
        *counter += 1;
    }
}

/// Seals what one life of a member sends.
pub struct Sealer {
    keys: ClusterKeys,
    from: MemberId,
    epoch: u64,
    counter: u64,
    /// The key of this life, as long as the cluster key of this name is used.
    key: Option<(KeyId, LessSafeKey)>,
}

impl Sealer {
    /// For the life of `from` that began at `epoch`. There must never be two for the same.
    pub fn new(keys: ClusterKeys, from: MemberId, epoch: u64) -> Self {
        Self { keys, from, epoch, counter: 0, key: None }
    }

    /// The datagram that takes `payload` to the member `to`; `None` where it is longer than
    /// [`MAX_PAYLOAD`].
    pub fn seal(&mut self, to: MemberId, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let head = Head { from: self.from, to, epoch: self.epoch, counter: self.counter };
        self.counter += 1;
        let ring = self.keys.ring();
        let used = ring.used();
        if self.key.as_ref().is_none_or(|(id, _)| *id != used.id) {
            self.key = Some((used.id, head.key(used)));
        }
        let (_, key) = self.key.as_ref()?;
        let mut datagram = head.to_bytes(used.id);
        let mut sealed = payload.to_vec();
        key.seal_in_place_append_tag(head.nonce(), Aad::from(&datagram[..]), &mut sealed).ok()?;
        datagram.extend(sealed);
        Some(datagram)
    }
}

/// A payload, and who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Who says it is the sender, which every holder of the cluster key can.
    pub from: MemberId,
    /// When the agent of the sender started.
    pub epoch: u64,
    /// What it sends.
    pub payload: Vec<u8>,
}

/// Opens what arrives for one member.
pub struct Opener {
    keys: ClusterKeys,
    own: MemberId,
    lives: LruCache<MemberId, Life>,
    received: Received,
}

/// The latest life of a sender.
struct Life {
    epoch: u64,
    seen: Window,
}

impl Opener {
    /// For the member `own`.
    pub fn new(keys: ClusterKeys, own: MemberId) -> Self {
        let received = Received::default();
        Self { keys, own, lives: LruCache::new(SENDERS), received }
    }

    /// What was taken and dropped so far.
    pub fn received(&self) -> Received {
        self.received
    }

    /// What `datagram` carries. It is counted either way.
    ///
    /// # Errors
    /// [`Drop`] where it is not to be looked at.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Opened, Drop> {
        let opened = self.try_open(datagram);
        self.received.count(&opened);
        opened
    }

    fn try_open(&mut self, datagram: &[u8]) -> Result<Opened, Drop> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Drop::Oversized);
        }
        let (id, head, sealed) = Head::parse(datagram)?;
        if head.to != self.own {
            return Err(Drop::Misdirected);
        }
        // What was seen is not worth opening. What is new is only remembered once it is opened.
        if self.lives.peek(&head.from).is_some_and(|life| life.knows(&head)) {
            return Err(Drop::Replayed);
        }
        let ring = self.keys.ring();
        let key = head.key(ring.get(id).ok_or(Drop::Key)?);
        let mut payload = sealed.to_vec();
        let length = key
            .open_in_place(head.nonce(), Aad::from(&datagram[..HEADER]), &mut payload)
            .map_err(|_| Drop::Forged)?
            .len();
        payload.truncate(length);
        self.remember(&head);
        Ok(Opened { from: head.from, epoch: head.epoch, payload })
    }

    fn remember(&mut self, head: &Head) {
        let fresh = || Life { epoch: head.epoch, seen: Window::default() };
        let life = self.lives.get_or_insert_mut(head.from, fresh);
        if life.epoch < head.epoch {
            *life = fresh();
        }
        life.seen.insert(head.counter);
    }
}

impl Life {
    /// Whether a datagram with this head was here, or may have been.
    fn knows(&self, head: &Head) -> bool {
        match head.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => self.seen.contains(head.counter),
            std::cmp::Ordering::Greater => false,
        }
    }
}

/// The part of a datagram that can be read by all and changed by nobody, but for the key's name.
struct Head {
    from: MemberId,
    to: MemberId,
    epoch: u64,
    counter: u64,
}

impl Head {
    fn to_bytes(&self, key: KeyId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_DATAGRAM);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.extend(key.as_bytes());
        bytes.extend(self.from.as_bytes());
        bytes.extend(self.to.as_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(self.counter.to_be_bytes());
        bytes
    }

    /// Key, head and sealed payload of a datagram.
    fn parse(datagram: &[u8]) -> Result<(KeyId, Self, &[u8]), Drop> {
        let mut rest = datagram;
        if *take::<3>(&mut rest)? != *MAGIC {
            return Err(Drop::Malformed);
        }
        if *take(&mut rest)? != [VERSION] {
            return Err(Drop::Version);
        }
        let key = KeyId::from_bytes(*take(&mut rest)?);
        let head = Self {
            from: MemberId::from_bytes(*take(&mut rest)?),
            to: MemberId::from_bytes(*take(&mut rest)?),
            epoch: u64::from_be_bytes(*take(&mut rest)?),
            counter: u64::from_be_bytes(*take(&mut rest)?),
        };
        if rest.len() < TAG { Err(Drop::Malformed) } else { Ok((key, head, rest)) }
    }

    /// The key of the life that this is part of.
    fn key(&self, derived: &Derived) -> LessSafeKey {
        derived.datagram(&[&self.from.as_bytes()[..], &self.epoch.to_be_bytes()].concat())
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The next bytes of `rest`.
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Drop> {
    let (taken, left) = rest.split_first_chunk().ok_or(Drop::Malformed)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::testing::keys;
    use super::super::keys::{KeyFile, SecretKey};
    use super::*;

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
        assert_eq!(bob.open(&datagram), Err(Drop::Replayed));
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
            (vec![0; MAX_DATAGRAM + 1], Drop::Oversized),
            (Vec::new(), Drop::Malformed),
            (vec![0; 100], Drop::Malformed),
            (good[..HEADER + TAG - 1].to_vec(), Drop::Malformed),
            (with(3, 2), Drop::Version),
            (Sealer::new(keys(2), ALICE, EPOCH).seal(BOB, b"x").unwrap(), Drop::Key),
            (sealer(EPOCH).seal(ALICE, b"x").unwrap(), Drop::Misdirected),
            (with(HEADER, good[HEADER] ^ 1), Drop::Forged),
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
        assert_eq!(bob.open(&held_back), Err(Drop::Replayed));
        assert!(bob.open(&second.seal(BOB, b"c").unwrap()).is_ok());
    }

    #[test]
    fn a_forged_later_life_ends_nothing() {
        let mut bob = opener();
        let mut alice = sealer(EPOCH);
        let mut forged = alice.seal(BOB, b"x").unwrap();
        forged[44..52].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(bob.open(&forged), Err(Drop::Forged));
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
}
