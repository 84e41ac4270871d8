//! One blob: already there, shared with a neighbour, or streamed from the source.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use undermount_fs::layer::{LayerError, LayerIndex};

use super::CopyError;
use super::blob_file::BlobFileError;
use super::index::{Indexes, Listening};
use super::journal::Journal;
use super::ledger::{Ledger, Step};
use super::origin::Origin;
use super::store::{BlobRole, Opened, Spot, StoreError, Taken};
use crate::image::{Descriptor, Repository};
use crate::prepare::progress::Progress;
use crate::registry::client::{BlobSource, Listener, MemoryBlob};

/// Why a blob is not at its destination.
#[derive(Debug, thiserror::Error)]
pub enum BlobFailure {
    /// Source or destination failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Files lack it.
    #[error(transparent)]
    Source(Box<CopyError>),
    /// The layer arrived and is damaged.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The scratch directory failed.
    #[error(transparent)]
    Scratch(#[from] std::io::Error),
}

/// Who has a blob.
#[derive(Clone, Copy)]
pub enum Supply<'a> {
    /// The source of the image.
    Origin(&'a Origin),
    /// We do: these are its bytes.
    Memory(&'a Bytes),
}

impl Supply<'_> {
    fn open(&self, blob: &Descriptor) -> Result<Box<dyn BlobSource>, CopyError> {
        match self {
            Self::Origin(origin) => origin.blob(blob),
            Self::Memory(bytes) => Ok(Box::new(MemoryBlob((*bytes).clone()))),
        }
    }

    /// The repository of the registry `host` that has it.
    fn repository_on(&self, host: &str) -> Option<&Repository> {
        match self {
            Self::Origin(origin) => origin.repository_on(host),
            Self::Memory(_) => None,
        }
    }
}

/// Moves blobs, whichever image needs them first.
pub struct BlobMover {
    ledger: Ledger,
    journal: Arc<Journal>,
    streams: Semaphore,
    progress: Arc<dyn Progress>,
}

impl BlobMover {
    /// A mover with at most `streams` blobs under way.
    pub fn new(journal: Arc<Journal>, streams: usize, progress: Arc<dyn Progress>) -> Self {
        let streams = Semaphore::new(streams.max(1));
        Self { ledger: Ledger::default(), journal, streams, progress }
    }

    /// Sees to it that `spot` has `blob`, which `from` has. A layer that is streamed is indexed
    /// into `indexes` on the way. Gives the bytes that moved: none where it was there.
    ///
    /// # Errors
    /// [`BlobFailure`] where it cannot be read or written, or is a damaged layer.
    pub async fn bring(
        &self,
        blob: &Descriptor,
        role: BlobRole,
        from: Supply<'_>,
        spot: &Spot,
        indexes: Option<&Indexes>,
    ) -> Result<u64, BlobFailure> {
        let to = spot.repository();
        let store = spot.store.key(to);
        match self.ledger.next(&store, to, &blob.digest).await {
            Step::Here => Ok(0),
            Step::ShareFrom(neighbour) => {
                let taken = spot.take(blob, role, Some(&neighbour)).await?;
                let moved = self.receive(taken, blob, from, spot, indexes).await?;
                self.ledger.add(&store, to, &blob.digest);
                Ok(moved)
            }
            Step::Move(claim) => {
                let taken = self.take(blob, role, from, spot, &store).await?;
                if matches!(taken, Taken::Missing(_)) {
                    self.journal.begin(&store, &blob.digest, to);
                }
                let moved = self.receive(taken, blob, from, spot, indexes).await?;
                claim.done(to);
                Ok(moved)
            }
        }
    }

    /// Takes the blob from where it may be: where earlier runs brought it, in the source's
    /// repository on the same registry, or there already.
    async fn take(
        &self,
        blob: &Descriptor,
        role: BlobRole,
        from: Supply<'_>,
        spot: &Spot,
        store: &str,
    ) -> Result<Taken, StoreError> {
        let to = spot.repository();
        let places = self.journal.places(store, &blob.digest);
        let elsewhere = places.iter().filter(|place| *place != to);
        let mut neighbour = None;
        for place in elsewhere {
            if !places.contains(to) && spot.store.has_blob(place, blob, role).await {
                neighbour = Some(place);
                break;
            }
        }
        let neighbour = neighbour.or_else(|| from.repository_on(to.host()));
        spot.take(blob, role, neighbour).await
    }

    async fn receive(
        &self,
        taken: Taken,
        blob: &Descriptor,
        from: Supply<'_>,
        spot: &Spot,
        indexes: Option<&Indexes>,
    ) -> Result<u64, BlobFailure> {
        let Taken::Missing(opened) = taken else { return Ok(0) };
        let source = from.open(blob).map_err(|error| BlobFailure::Source(Box::new(error)))?;
        let _permit = self.streams.acquire().await.expect("the semaphore is never closed");
        self.progress.expected(blob.size);
        let again = match &opened {
            Opened::File(path) => Some(Opened::File(path.clone())),
            _ => None,
        };
        let stream = Streaming { mover: self, blob, source: &*source, spot };
        let received = match (stream.receive(opened, indexes).await, again) {
            // What a killed run left of the file was not what it should be.
            (
                Err(BlobFailure::Store(StoreError::File(BlobFileError::Stale { .. }))),
                Some(again),
            ) => stream.receive(again, indexes).await,
            (received, _) => received,
        };
        received.map(|()| blob.size)
    }
}

/// A blob that is under way.
struct Streaming<'a> {
    mover: &'a BlobMover,
    blob: &'a Descriptor,
    source: &'a dyn BlobSource,
    spot: &'a Spot,
}

impl Streaming<'_> {
    async fn receive(&self, opened: Opened, indexes: Option<&Indexes>) -> Result<(), BlobFailure> {
        match indexes {
            Some(indexes) if !indexes.has(&self.blob.digest).await => {
                let index = self.received_and_indexed(opened).await?;
                if let Some(index) = index {
                    indexes.keep(index).await?;
                }
                Ok(())
            }
            _ => self.received(opened).await,
        }
    }

    async fn received(&self, opened: Opened) -> Result<(), BlobFailure> {
        let (listener, mut heard) = mpsc::channel::<Bytes>(8);
        let count = async {
            while let Some(chunk) = heard.recv().await {
                self.mover.progress.moved(chunk.len() as u64);
            }
        };
        let (received, ()) = tokio::join!(self.store(opened, listener), count);
        Ok(received?)
    }

    /// The index of the layer; none where it cannot be indexed but others can unpack it.
    async fn received_and_indexed(
        &self,
        opened: Opened,
    ) -> Result<Option<LayerIndex>, BlobFailure> {
        let progress = Arc::clone(&self.mover.progress);
        let listening = Listening::new(move |bytes| progress.moved(bytes));
        self.store(opened, listening.listener.clone()).await?;
        match listening.finish().await {
            Ok(index) => Ok(Some(index)),
            Err(error) if is_damage(&error) => Err(error.into()),
            Err(error) => {
                tracing::warn!(layer = %self.blob.digest, %error, "the layer cannot be indexed");
                Ok(None)
            }
        }
    }

    async fn store(&self, opened: Opened, listener: Listener) -> Result<(), StoreError> {
        self.spot.receive(opened, self.blob, self.source, Some(listener)).await
    }
}

/// Whether no program could unpack the layer.
pub fn is_damage(error: &LayerError) -> bool {
    use undermount_fs::codec::CodecError;
    matches!(
        error,
        LayerError::Codec(CodecError::Truncated { .. } | CodecError::Corrupt { .. })
            | LayerError::Truncated { .. }
    )
}
