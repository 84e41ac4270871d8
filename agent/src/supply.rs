//! The node's supply of bytes: the implementations of [`Source`] that the cache is filled from.
//!
//! ```text
//! PieceRequest -> transfers (plan) -> a slot each (gate) -> registry -> Verified -> in order
//! ```
//!
//! [`RegistrySource`] asks the registry of each request's scope. Pieces of one blob that touch
//! or nearly touch travel in one Range request; what somebody waits for goes before what is
//! fetched ahead of time; every piece is verified before it is handed out; and a [`Ledger`]
//! keeps the account of what came from where.
//!
//! Where the node shares with others, [`PeerSource`] stands before it: each piece comes from the
//! node's own pieces, from a peer, or from the registry through [`RegistryOrigin`].

mod gate;
mod ledger;
mod origin;
mod peers;
mod plan;

use std::future::ready;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::{StreamExt as _, once, try_unfold};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Priority, Scope, Source, SourceError,
};
use undermount_fs::trail::{self, Origin};

use crate::image::Repository;
use crate::peer::wanted::Wanted;
use crate::registry::client::{BlobReader, Client, Credential, Fault, Meter, RegistryError};

pub use gate::Queue;
pub use ledger::{Entry, Ledger};
pub use origin::RegistryOrigin;
pub use peers::PeerSource;

use gate::{Gate, Slot};
use plan::{Transfer, plan};

/// Range requests that are under way at the same time, whoever they are for.
const SLOTS: usize = 8;
/// How often pieces with wrong bytes are asked for, all in all.
const TRIES: usize = 3;
/// The same for packs: nobody needs them so much that others should wait for it.
const PACK_TRIES: usize = 1;
/// How long a background stream holds back for demand reads at each chunk, at most: even a busy
/// node completes its images.
const COURTESY: Duration = Duration::from_millis(250);

/// Fetches from the registries that scopes name.
pub struct RegistrySource {
    client: Client,
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
}

impl RegistrySource {
    /// A source that asks through `client` and accounts to `ledger`.
    pub fn new(client: Client, ledger: Arc<Ledger>) -> Self {
        Self { client, ledger, gate: Gate::new(SLOTS) }
    }

    /// What was fetched so far.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// What waits to be fetched.
    pub fn queue(&self) -> Queue {
        Queue::of(&self.gate)
    }

    async fn fetch_pieces(&self, request: PieceRequest) -> Result<Vec<Verified>, SourceError> {
        let Some(first) = request.pieces.first() else { return Ok(Vec::new()) };
        let meter = self.ledger.meter(&request.scope, request.scope.host());
        let errand = self.errand(&request.scope, first.blob, request.deadline, meter)?;
        let transfers = plan(&request.pieces);
        let fetched = transfers.iter().map(|transfer| {
            let (errand, pieces) = (&errand, &request.pieces);
            async move { errand.carry_out(&self.gate, transfer, pieces, request.priority).await }
        });
        let mut slots: Vec<Option<Verified>> = vec![None; request.pieces.len()];
        for (transfer, pieces) in transfers.iter().zip(try_join_all(fetched).await?) {
            for (place, piece) in transfer.pieces.iter().zip(pieces) {
                slots[*place] = Some(piece);
            }
        }
        Ok(slots.into_iter().map(|slot| slot.expect("each piece is in one transfer")).collect())
    }

    async fn open_stream(&self, request: BlobRequest) -> Result<BlobStream, SourceError> {
        let BlobRequest { scope, blob, size, priority, deadline, .. } = request;
        let meter = self.ledger.meter(&scope, scope.host());
        let errand = self.errand(&scope, blob, deadline, meter)?;
        let reader = errand.client.read_blob(&errand.repository, &blob, size, 0);
        let (stream, _) = self.open(errand, reader, blob, priority).await?;
        Ok(stream.into_stream())
    }

    /// The bytes `range` of a blob, unverified; the first of them arrives until `deadline`. Other
    /// than a whole blob it keeps its slot to the end: pieces that come one after the other are
    /// sooner of use than all of them at once.
    async fn open_range(
        &self,
        wanted: &Wanted,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<BlobStream, SourceError> {
        let blob = wanted.piece.blob;
        let meter = self.ledger.known_meter(&wanted.scope, wanted.scope.host());
        let errand = self.errand(&wanted.scope, blob, deadline, meter)?;
        let reader = errand.client.read_range(&errand.repository, &blob, range);
        let (stream, slot) = self.open(errand, reader, blob, wanted.priority).await?;
        Ok(Streaming { _slot: Some(slot), ..stream }.into_stream())
    }

    /// A manifest from byte `offset` on, all of it at once.
    async fn open_manifest(
        &self,
        wanted: &Wanted,
        offset: u64,
        deadline: Instant,
    ) -> Result<BlobStream, SourceError> {
        let digest = wanted.piece.digest;
        let meter = self.ledger.known_meter(&wanted.scope, wanted.scope.host());
        let errand = self.errand(&wanted.scope, digest, deadline, meter)?;
        let _slot = errand.slot(&self.gate, digest, wanted.priority).await?;
        let manifest = errand.client.manifest(&errand.repository.at(digest)).await;
        let bytes = manifest.map_err(|error| errand.error(digest, error))?.bytes;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(once(ready(Ok(bytes.slice(from..)))).boxed())
    }

    async fn open(
        &self,
        errand: Errand,
        mut reader: BlobReader,
        blob: Digest,
        priority: Priority,
    ) -> Result<(Streaming, Slot), SourceError> {
        let slot = errand.slot(&self.gate, blob, priority).await?;
        let first = errand.next(&mut reader, blob).await?;
        // From here on stalls are told by the pace of the transfer.
        reader.set_deadline(None);
        let courtesy = (priority == Priority::Background).then(|| Arc::clone(&self.gate));
        Ok((Streaming { errand, reader, blob, first, courtesy, _slot: None }, slot))
    }

    /// The credentials that reading in the name of `scope` takes; none where everybody may.
    async fn shown_for(&self, scope: &Scope) -> Result<Vec<Credential>, Fault> {
        let repository: Result<Repository, _> = scope.as_str().parse();
        match repository {
            Ok(repository) => self.client.shown_for(&repository).await,
            // Nothing is ever read in that name.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// What all fetches of one request have in common.
    fn errand(
        &self,
        scope: &Scope,
        blob: Digest,
        by: Instant,
        meter: Meter,
    ) -> Result<Errand, SourceError> {
        let repository: Repository = scope.as_str().parse().map_err(|error| {
            let origin = scope.to_string();
            SourceError::Unavailable { origin, reason: format!("cannot fetch {blob}: {error}") }
        })?;
        let client = self.client.until(by).metered(meter);
        Ok(Errand { client, repository, by })
    }
}

impl Source for RegistrySource {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        self.fetch_pieces(request).boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.open_stream(request).boxed()
    }
}

/// Fetches in the name of one repository and until one deadline.
struct Errand {
    client: Client,
    repository: Repository,
    by: Instant,
}

impl Errand {
    /// The pieces of one transfer, verified. Wrong bytes are asked for again: they may have
    /// been damaged on the way.
    async fn carry_out(
        &self,
        gate: &Arc<Gate>,
        transfer: &Transfer,
        pieces: &[Piece],
        priority: Priority,
    ) -> Result<Vec<Verified>, SourceError> {
        let mut wrong = None;
        let tries = if priority == Priority::Pack { PACK_TRIES } else { TRIES };
        for _ in 0..tries {
            let slot = self.slot(gate, transfer.blob, priority).await?;
            let fetched =
                self.client.blob_range(&self.repository, &transfer.blob, transfer.range.clone());
            let bytes = fetched.await.map_err(|error| self.error(transfer.blob, error))?;
            drop(slot);
            trail::delivered(Origin::Registry, self.repository.host(), bytes.len() as u64);
            match transfer.verify(bytes, pieces).await {
                Ok(verified) => return Ok(verified),
                Err(reason) => wrong = Some(reason),
            }
            let (blob, repository) = (transfer.blob, &self.repository);
            tracing::warn!(%repository, %blob, range = ?transfer.range, "wrong bytes");
        }
        let (origin, blob) = (self.origin(), transfer.blob);
        Err(SourceError::Wrong { origin, blob, reason: wrong.unwrap_or_default() })
    }

    async fn slot(
        &self,
        gate: &Arc<Gate>,
        blob: Digest,
        priority: Priority,
    ) -> Result<Slot, SourceError> {
        let late = |_| SourceError::Deadline { origin: self.origin(), blob };
        tokio::time::timeout_at(self.by.into(), gate.enter(priority)).await.map_err(late)
    }

    async fn next(
        &self,
        reader: &mut BlobReader,
        blob: Digest,
    ) -> Result<Option<Bytes>, SourceError> {
        let chunk = reader.next().await.map_err(|error| self.error(blob, error))?;
        let length = chunk.as_ref().map_or(0, Bytes::len) as u64;
        trail::delivered(Origin::Registry, self.repository.host(), length);
        Ok(chunk)
    }

    fn origin(&self) -> String {
        self.repository.host().to_owned()
    }

    fn error(&self, blob: Digest, error: RegistryError) -> SourceError {
        let (origin, reason) = (self.origin(), error.fault.in_words());
        match error.fault {
            Fault::NotFound(_) => SourceError::NotFound { origin, blob },
            Fault::Deadline(_) => SourceError::Deadline { origin, blob },
            Fault::Size { .. }
            | Fault::Short { .. }
            | Fault::WrongDigest(_)
            | Fault::WrongRange { .. }
            | Fault::Encoded(_) => SourceError::Wrong { origin, blob, reason },
            _ => SourceError::Unavailable {
                origin,
                reason: format!("cannot fetch blob {blob}: {reason}"),
            },
        }
    }
}

/// A blob on its way.
struct Streaming {
    errand: Errand,
    reader: BlobReader,
    blob: Digest,
    first: Option<Bytes>,
    /// Where demand is seen that a background stream gives way to between its chunks.
    courtesy: Option<Arc<Gate>>,
    /// Held until the end.
    _slot: Option<Slot>,
}

impl Streaming {
    fn into_stream(self) -> BlobStream {
        let next =
            |mut stream: Self| async { Ok(stream.next().await?.map(|chunk| (chunk, stream))) };
        try_unfold(self, next).boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let chunk = match self.first.take() {
            Some(first) => Some(first),
            None => self.errand.next(&mut self.reader, self.blob).await?,
        };
        if let (Some(_), Some(gate)) = (&chunk, &self.courtesy) {
            // It is enough to have tried.
            let _ = tokio::time::timeout(COURTESY, gate.without_demand()).await;
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests;
