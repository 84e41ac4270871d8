//! What a node has received from other nodes and sent to them, since its agent started.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Pieces and bytes of one kind.
#[derive(Debug, Default)]
pub struct Tally {
    pieces: AtomicU64,
    bytes: AtomicU64,
}

/// A [`Tally`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// How many pieces, or uploads.
    pub pieces: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one piece of `bytes` bytes.
    pub fn count(&self, bytes: u64) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of a piece that is itself counted elsewhere.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn amount(&self) -> Amount {
        Amount {
            pieces: self.pieces.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// The counters of a node.
#[derive(Debug, Default)]
pub struct Counters {
    /// Wanted by this node and found among its own pieces.
    pub local: Tally,
    /// Pieces of which a peer sent at least the last byte, for this node or for another one.
    pub peer: Tally,
    /// Read from the registry, for this node or for another one.
    pub registry: Tally,
    /// Sent to peers; the pieces are the uploads that began.
    pub uploaded: Tally,
    /// Requests of peers that were sent elsewhere.
    pub redirected: AtomicU64,
    /// Requests of peers that were put off.
    pub busy: AtomicU64,
    /// Requests that were refused: not of the cluster, without a ticket, malformed.
    pub refused: AtomicU64,
}

/// The [`Counters`] at one moment, with what else is counted on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Found in one's own pieces.
    pub local: Amount,
    /// Brought by peers.
    pub peer: Amount,
    /// Read from the registry.
    pub registry: Amount,
    /// Sent to peers.
    pub uploaded: Amount,
    /// Requests of peers that were sent elsewhere.
    pub redirected: u64,
    /// Requests of peers that were put off.
    pub busy: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Transfers that were given up for being slow.
    pub hedged: u64,
    /// How often a peer was found lying.
    pub lies: u64,
    /// Uploads that run now.
    pub uploading: u64,
    /// Bytes of the pieces that the node owns.
    pub own_bytes: u64,
    /// Bytes of the other pieces that it keeps.
    pub held_bytes: u64,
    /// The members that are left alone, and why.
    pub shunned: Vec<Exile>,
}

/// A member that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exile {
    /// The member.
    pub member: super::member::MemberId,
    /// Why.
    pub why: Why,
    /// The same in words.
    pub reason: String,
    /// For how much longer, in seconds.
    pub seconds: u64,
}

/// Why a member is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It does not answer.
    Unreachable,
    /// It is of another cluster or version.
    Foreign,
    /// It sent wrong bytes.
    Banned,
}

impl Counters {
    /// The counters now; the other fields are the caller's to fill in.
    pub fn traffic(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            local: self.local.amount(),
            peer: self.peer.amount(),
            registry: self.registry.amount(),
            uploaded: self.uploaded.amount(),
            redirected: load(&self.redirected),
            busy: load(&self.busy),
            refused: load(&self.refused),
            ..Traffic::default()
        }
    }
}
