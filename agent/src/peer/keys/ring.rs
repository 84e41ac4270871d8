//! One key for each purpose, derived from a cluster key by HKDF (RFC 5869).

use std::fmt;

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::hmac::{self, HMAC_SHA256};

use super::{KeyFile, SecretKey};

/// The salt of the extraction: keys of another format version have nothing in common with these.
const SALT: &[u8] = b"undermount cluster key v1";

/// The name of a cluster key, where it was used. It also tells clusters apart: each has its own
/// key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The id that these bytes spell.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys that are derived from one cluster key.
pub(in crate::peer) struct Derived {
    pub id: KeyId,
    datagram: Prk,
    answer: Prk,
    pub call: hmac::Key,
    pub join: hmac::Key,
    pub scope: hmac::Key,
}

impl Derived {
    fn of(key: &SecretKey) -> Self {
        let root = Salt::new(HKDF_SHA256, SALT).extract(key.expose());
        let prk = |purpose: &[u8]| Prk::from(expand(&root, &[purpose], HKDF_SHA256));
        let mac = |purpose: &[u8]| hmac::Key::from(expand(&root, &[purpose], HMAC_SHA256));
        let mut id = [0; 8];
        expand(&root, &[b"id"], Bytes(8)).fill(&mut id).expect("the length asked for");
        Self {
            id: KeyId(id),
            datagram: prk(b"datagram"),
            answer: prk(b"answer"),
            call: mac(b"call"),
            join: mac(b"join"),
            scope: mac(b"scope"),
        }
    }

    /// The key that seals the datagrams of one life of one member, named by `context`.
    pub fn datagram(&self, context: &[u8]) -> LessSafeKey {
        aead(&self.datagram, context)
    }

    /// The key that seals the answer to the call whose signature is `context`.
    pub fn answer(&self, context: &[u8]) -> LessSafeKey {
        aead(&self.answer, context)
    }
}

/// The length of a key.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<'a, L: KeyType>(prk: &'a Prk, info: &'a [&'a [u8]], length: L) -> ring::hkdf::Okm<'a, L> {
    prk.expand(info, length).expect("less than 255 hashes are asked for")
}

fn aead(prk: &Prk, context: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::from(expand(prk, &[context], &AES_256_GCM)))
}

/// The cluster key that is used, and another one that is accepted as well.
pub(in crate::peer) struct KeyRing {
    used: Derived,
    other: Option<Derived>,
}

impl KeyRing {
    /// The keys of a file.
    pub fn of(file: &KeyFile) -> Self {
        Self { used: Derived::of(file.used()), other: file.other().map(Derived::of) }
    }

    /// The key to use.
    pub fn used(&self) -> &Derived {
        &self.used
    }

    /// All keys that are accepted, the one that is used first.
    pub fn accepted(&self) -> impl Iterator<Item = &Derived> {
        std::iter::once(&self.used).chain(&self.other)
    }

    /// The accepted key of this name.
    pub fn get(&self, id: KeyId) -> Option<&Derived> {
        self.accepted().find(|key| key.id == id)
    }

    /// The names of the keys that are accepted, the one that is used first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.accepted().map(|key| key.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_same_name_everywhere_and_another_key_another() {
        let [one, same, other] =
            [1, 1, 2].map(|byte| Derived::of(&SecretKey::from_bytes([byte; 32])).id);
        assert_eq!(one, same);
        assert_ne!(one, other);
    }

    #[test]
    fn each_purpose_has_its_own_key() {
        let key = Derived::of(&SecretKey::from_bytes([1; 32]));
        let [call, join, scope] =
            [&key.call, &key.join, &key.scope].map(|key| hmac::sign(key, b"x").as_ref().to_vec());
        assert!(call != join && join != scope && call != scope);
    }
}
