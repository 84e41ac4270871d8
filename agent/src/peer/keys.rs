//! The cluster key, and what each use gets of it.
//!
//! Every node of a cluster holds the same 32 bytes ([`KeyFile`]). The key is never used as it is:
//! HKDF (RFC 5869) derives one key for each purpose, so that what is seen of one use says nothing
//! about another.
//!
//! ```text
//! cluster key -+- "datagram" -> one AEAD key per sender and boot      peer::datagram
//!              +- "call"     -> who asks a member                     Call, Caller
//!              +- "join"     -> who asks a node whose name is unknown Call, Caller
//!              +- "answer"   -> one AEAD key per call                 seal_answer, open_answer
//!              +- "scope"    -> with a ScopeKey: who may have private Ticket
//!              +- "id"       -> names the key where it was used       KeyId
//! ```
//!
//! A ring holds one key or, during a rotation, two: the first is used, both are accepted. A key
//! must not be used before every node accepts it, or nodes that have only the other key would not
//! understand; the steps of [`KeyFile::rotate`] see to that.
//!
//! The key says that somebody belongs to the cluster, not which member it is: every holder can
//! sign as every member. Where that is not enough, mTLS is ([`crate::peer`]).

mod call;
mod file;
mod follow;
mod ring;
mod scope;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

pub use call::{Call, CallError, Caller, MAX_CLOCK_SKEW, SignedCall};
pub use file::{KeyFile, KeyFileError, SecretKey, Stage};
pub use follow::follow;
pub use ring::KeyId;
pub(in crate::peer) use ring::{Derived, KeyRing};
pub use scope::{ScopeKey, Ticket, TicketError};

/// A text that nobody else has: 32 random bytes as hex digits.
pub fn unguessable() -> String {
    call::random::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The keys of the cluster as they are now. Cheap to clone; all clones see a rotation at once.
#[derive(Clone)]
pub struct ClusterKeys(Arc<RwLock<Arc<KeyRing>>>);

impl ClusterKeys {
    /// The keys that a file holds.
    pub fn new(file: &KeyFile) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(KeyRing::of(file)))))
    }

    /// Uses the keys of `file` from now on. Returns whether that is a change.
    pub fn replace(&self, file: &KeyFile) -> bool {
        let ring = KeyRing::of(file);
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = !held.ids().eq(ring.ids());
        *held = Arc::new(ring);
        changed
    }

    /// The keys at this moment.
    pub(in crate::peer) fn ring(&self) -> Arc<KeyRing> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The names of the keys, the one that is used first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.ring().ids().collect()
    }
}

impl fmt::Debug for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClusterKeys").field(&self.ids()).finish()
    }
}

#[cfg(test)]
pub(in crate::peer) mod testing {
    use super::*;

    /// The keys of a cluster whose key is this byte all over.
    pub fn keys(byte: u8) -> ClusterKeys {
        ClusterKeys::new(&KeyFile::single(SecretKey::from_bytes([byte; 32])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_see_a_rotation() {
        let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
        let keys = ClusterKeys::new(&file);
        let clone = keys.clone();
        assert!(!keys.replace(&file));
        file.rotate(SecretKey::from_bytes([2; 32]));
        assert!(keys.replace(&file));
        assert_eq!(clone.ids().len(), 2);
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let secret = SecretKey::from_bytes([0x5a; 32]);
        let keys = ClusterKeys::new(&KeyFile::single(secret.clone()));
        let shown = format!("{secret:?} {keys:?} {:?}", ScopeKey::derive("r", "u", "hunter2"));
        assert!(!shown.contains("5a5a5a") && !shown.contains("90, 90"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
