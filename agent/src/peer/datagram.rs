//! Datagrams between members: sealed, so that nobody outside the cluster reads, forges or repeats
//! one.
//!
//! ```text
//! payload -> Sealer::seal -> datagram -> Opener::open: for this node? new? authentic? -> payload
//!
//!  0   4  "UMD" and the version of this layout, 1
//!  4   8  KeyId: which cluster key
//! 12  16  the sender
//! 28  16  the receiver
//! 44   8  epoch: when the sender's agent started (Unix time, ms, big endian)
//! 52   8  counter: 0 for the first datagram of that epoch, big endian
//! 60   n  the payload, AES-256-GCM; the bytes before it are authenticated with it
//!     16  tag
//! ```
//!
//! Each life of a member (its id and epoch) seals with a key of its own, derived from the cluster
//! key, and never uses a counter twice, so no nonce repeats. As long as it runs, the receiver
//! remembers the latest epoch of each sender and the counters near the highest (`window`), and
//! takes each datagram once.
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

/// The length of the longest datagram, in bytes: what an IPv6 network of the smallest MTU (1280,
/// RFC 8200 section 5) carries in one piece, with room for tunnels.
pub const MAX_DATAGRAM: usize = 1200;

/// The length of the longest payload, in bytes.
pub const MAX_PAYLOAD: usize = MAX_DATAGRAM - HEADER - TAG;

const HEADER: usize = 60;
const TAG: usize = 16;
const MAGIC: &[u8; 3] = b"UMD";
const VERSION: u8 = 1;

/// The most senders that are remembered. Only holders of the key can become one.
const SENDERS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is longer than [`MAX_DATAGRAM`].
    Oversized,
    /// It does not have the layout of a datagram.
    Malformed,
    /// It has another version of the layout.
    Version,
    /// It is sealed with a key that this node does not have, such as another cluster's.
    Key,
    /// It is for another member.
    Misdirected,
    /// It was not sealed by a member of the cluster, or changed on its way.
    Forged,
    /// It was received before, or is too old to tell.
    Replayed,
}

/// How many datagrams were taken, and dropped for which reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Received {
    /// Opened.
    pub taken: u64,
    /// See [`Dropped::Oversized`].
    pub oversized: u64,
    /// See [`Dropped::Malformed`].
    pub malformed: u64,
    /// See [`Dropped::Version`].
    pub version: u64,
    /// See [`Dropped::Key`].
    pub key: u64,
    /// See [`Dropped::Misdirected`].
    pub misdirected: u64,
    /// See [`Dropped::Forged`].
    pub forged: u64,
    /// See [`Dropped::Replayed`].
    pub replayed: u64,
}

impl Received {
    fn count<T>(&mut self, outcome: &Result<T, Dropped>) {
        let counter = match outcome {
            Ok(_) => &mut self.taken,
            Err(Dropped::Oversized) => &mut self.oversized,
            Err(Dropped::Malformed) => &mut self.malformed,
            Err(Dropped::Version) => &mut self.version,
            Err(Dropped::Key) => &mut self.key,
            Err(Dropped::Misdirected) => &mut self.misdirected,
            Err(Dropped::Forged) => &mut self.forged,
            Err(Dropped::Replayed) => &mut self.replayed,
        };
        *counter += 1;
    }
}

/// Seals the datagrams that one life of a member sends.
pub struct Sealer {
    keys: ClusterKeys,
    from: MemberId,
    epoch: u64,
    counter: u64,
    /// The key of this life, and the cluster key that it was derived from.
    key: Option<(KeyId, LessSafeKey)>,
}

impl Sealer {
    /// A sealer for the life of `from` that began at `epoch`. There must never be two for the same
    /// life, since nonces would repeat.
    pub fn new(keys: ClusterKeys, from: MemberId, epoch: u64) -> Self {
        Self { keys, from, epoch, counter: 0, key: None }
    }

    /// Seals `payload` in a datagram to the member `to`; `None` where it is longer than
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
    /// The sender by its own word: every holder of the cluster key can send in its name.
    pub from: MemberId,
    /// When the agent of the sender started.
    pub epoch: u64,
    /// The payload.
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
    /// An opener for the member `own`.
    pub fn new(keys: ClusterKeys, own: MemberId) -> Self {
        let received = Received::default();
        Self { keys, own, lives: LruCache::new(SENDERS), received }
    }

    /// How many datagrams were taken and dropped so far.
    pub fn received(&self) -> Received {
        self.received
    }

    /// Opens `datagram`, and counts it in either case.
    ///
    /// # Errors
    /// [`Dropped`] where it must be ignored.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Opened, Dropped> {
        let opened = self.try_open(datagram);
        self.received.count(&opened);
        opened
    }

    fn try_open(&mut self, datagram: &[u8]) -> Result<Opened, Dropped> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Dropped::Oversized);
        }
        let (id, head, sealed) = Head::parse(datagram)?;
        if head.to != self.own {
            return Err(Dropped::Misdirected);
        }
        // A datagram that was seen is not worth opening. A new one is remembered only once it is
        // authentic.
        if self.lives.peek(&head.from).is_some_and(|life| life.knows(&head)) {
            return Err(Dropped::Replayed);
        }
        let ring = self.keys.ring();
        let key = head.key(ring.get(id).ok_or(Dropped::Key)?);
        let mut payload = sealed.to_vec();
        let length = key
            .open_in_place(head.nonce(), Aad::from(&datagram[..HEADER]), &mut payload)
            .map_err(|_| Dropped::Forged)?
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
    /// Whether a datagram with this head was received, or may have been.
    fn knows(&self, head: &Head) -> bool {
        match head.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => self.seen.contains(head.counter),
            std::cmp::Ordering::Greater => false,
        }
    }
}

/// The part of a datagram that everybody can read and nobody can change, without the name of the
/// key.
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

    /// Splits a datagram into the name of its key, its head and its sealed payload.
    fn parse(datagram: &[u8]) -> Result<(KeyId, Self, &[u8]), Dropped> {
        let mut rest = datagram;
        if *take::<3>(&mut rest)? != *MAGIC {
            return Err(Dropped::Malformed);
        }
        if *take(&mut rest)? != [VERSION] {
            return Err(Dropped::Version);
        }
        let key = KeyId::from_bytes(*take(&mut rest)?);
        let head = Self {
            from: MemberId::from_bytes(*take(&mut rest)?),
            to: MemberId::from_bytes(*take(&mut rest)?),
            epoch: u64::from_be_bytes(*take(&mut rest)?),
            counter: u64::from_be_bytes(*take(&mut rest)?),
        };
        if rest.len() < TAG { Err(Dropped::Malformed) } else { Ok((key, head, rest)) }
    }

    /// The key of the life that sent this.
    fn key(&self, derived: &Derived) -> LessSafeKey {
        derived.datagram(&[&self.from.as_bytes()[..], &self.epoch.to_be_bytes()].concat())
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Splits the next `N` bytes off `rest`.
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Dropped> {
    let (taken, left) = rest.split_first_chunk().ok_or(Dropped::Malformed)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests;
