//! The one way out: where bytes come from that the cache does not hold.
//!
//! A request names *pieces* by digest and says on whose behalf (scope), how urgent (priority)
//! and until when (deadline). The implementations are the supply of the agent (cache, peers,
//! registry) and the faults of the tests; each of them hands out nothing but [`Verified`]
//! bytes, so that a lying peer or registry is noticed where another source can still be tried.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::digest::{Digest, Verified};

/// The repository in whose name a blob is fetched, `host[:port]/name`: it decides which
/// registry is asked, with which credentials, and which peers may serve the bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Arc<str>);

impl Scope {
    /// The scope of the repository `host[:port]/name`.
    pub fn new(repository: &str) -> Self {
        Self(repository.into())
    }

    /// `host[:port]/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `host[:port]`.
    pub fn host(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(host, _)| host)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who waits for the bytes. A more urgent request overtakes the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Completion of images that already run.
    Background,
    /// Start-up packs: needed within seconds.
    Pack,
    /// A process is blocked in a read.
    Demand,
}

/// A range of a blob that has a digest of its own: the unit of transfer and of sharing.
/// Spans of a layer, sections of an index, packs, manifests and configs are pieces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The blob as the registry knows it.
    pub blob: Digest,
    /// The bytes of the blob that make the piece.
    pub range: Range<u64>,
    /// The SHA-256 of exactly these bytes.
    pub digest: Digest,
}

/// Pieces that are wanted together: a source may merge neighbours into one transfer.
#[derive(Debug, Clone)]
pub struct PieceRequest {
    /// On behalf of which repository.
    pub scope: Scope,
    /// What is wanted; the answer has the same order.
    pub pieces: Vec<Piece>,
    /// Who waits.
    pub priority: Priority,
    /// When the caller stops waiting; the source answers with [`SourceError::Deadline`] by then.
    pub deadline: Instant,
}

/// A whole blob, wanted in order from its first byte.
#[derive(Debug, Clone)]
pub struct BlobRequest {
    /// On behalf of which repository.
    pub scope: Scope,
    /// The blob.
    pub blob: Digest,
    /// Its size in bytes, from the manifest.
    pub size: u64,
    /// The pieces that make it, in order, where they are known; neighbours may share bytes. A
    /// source that [shares](Source::shares) fetches these.
    pub pieces: Arc<[Piece]>,
    /// Who waits.
    pub priority: Priority,
    /// When the first byte must have arrived; later stalls are the source's to detect.
    pub deadline: Instant,
}

/// Why a source could not deliver.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// No source knows the blob.
    #[error("{origin} does not have blob {blob}")]
    NotFound {
        /// The registry or peer that said so.
        origin: String,
        /// The blob.
        blob: Digest,
    },
    /// Every source that answered sent other bytes than asked for.
    #[error("{origin} sent wrong bytes for {blob}: {reason}")]
    Wrong {
        /// The registry or peer.
        origin: String,
        /// The blob.
        blob: Digest,
        /// What was wrong: length, digest, status.
        reason: String,
    },
    /// The source could not be reached or refused to answer.
    #[error("{origin}: {reason}")]
    Unavailable {
        /// The registry or peer.
        origin: String,
        /// The chain of causes, in words.
        reason: String,
    },
    /// The request's deadline passed.
    #[error("{origin} did not deliver {blob} in time")]
    Deadline {
        /// The registry or peer that was being waited for.
        origin: String,
        /// The blob.
        blob: Digest,
    },
}

impl SourceError {
    /// The registry or peer that is to blame.
    pub fn culprit(&self) -> &str {
        match self {
            Self::NotFound { origin, .. }
            | Self::Wrong { origin, .. }
            | Self::Unavailable { origin, .. }
            | Self::Deadline { origin, .. } => origin,
        }
    }

    /// Whether it may go another time. A blob that nobody has does not come by waiting.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::NotFound { .. })
    }
}

/// The bytes of a whole blob in order, not yet verified: the reader hashes them as they come.
pub type BlobStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// Delivers pieces and blobs.
pub trait Source: Send + Sync + 'static {
    /// The pieces of `request`, verified, in the order of the request; all or an error.
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>>;

    /// The whole blob as a stream. Its digest is the reader's to check: a stream cannot be
    /// verified before its end.
    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>>;

    /// Whether whole blobs come in pieces, from wherever each of them is: then it is worth while
    /// to find out which ones make a blob.
    fn shares(&self) -> bool {
        false
    }
}
