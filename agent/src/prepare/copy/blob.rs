//! One blob: already there, mounted from a neighbour, or streamed from the source.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use undermount_fs::layer::LayerError;

use crate::image::{Descriptor, Repository};
use crate::registry::client::{Client, Fault, Mount, RegistryError, Upload};

use super::index::{Indexes, Listening};
use super::ledger::{Ledger, Step};
use crate::prepare::progress::Progress;

/// Why a blob is not at its destination.
#[derive(Debug, thiserror::Error)]
pub enum BlobFailure {
    /// A registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layer arrived and is damaged.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The scratch directory failed.
    #[error(transparent)]
    Scratch(#[from] std::io::Error),
}

/// Moves blobs, whichever image needs them first.
pub struct BlobMover {
    client: Client,
    ledger: Ledger,
    streams: Semaphore,
    progress: Arc<dyn Progress>,
}

impl BlobMover {
    /// A mover with at most `streams` blobs under way.
    pub fn new(client: Client, streams: usize, progress: Arc<dyn Progress>) -> Self {
        let streams = Semaphore::new(streams.max(1));
        Self { client, ledger: Ledger::default(), streams, progress }
    }

    /// Sees to it that `to` has `blob`, which `from` has. A layer that is streamed is indexed
    /// into `indexes` on the way. Gives the bytes that were uploaded: none where it was there.
    ///
    /// # Errors
    /// [`BlobFailure`] where it cannot be read or written, or is a damaged layer.
    pub async fn bring(
        &self,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        indexes: Option<&Indexes>,
    ) -> Result<u64, BlobFailure> {
        let source = (from.host() == to.host()).then_some(from);
        match self.ledger.next(to, &blob.digest).await {
            Step::Here => Ok(0),
            Step::MountFrom(neighbour) => {
                let moved = self.mount_or_stream(blob, from, to, &neighbour, indexes).await?;
                self.ledger.add(to, &blob.digest);
                Ok(moved)
            }
            // Mounting a blob from its own repository asks in one request whether it is there
            // and opens an upload if it is not.
            Step::Move(claim) => {
                let neighbour = source.unwrap_or(to);
                let moved = self.mount_or_stream(blob, from, to, neighbour, indexes).await?;
                claim.done(to);
                Ok(moved)
            }
        }
    }

    async fn mount_or_stream(
        &self,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        neighbour: &Repository,
        indexes: Option<&Indexes>,
    ) -> Result<u64, BlobFailure> {
        let upload = match self.client.mount(to, &blob.digest, neighbour).await {
            Ok(Mount::Mounted) => return Ok(0),
            Ok(Mount::Opened(upload)) => Some(upload),
            // Not every registry mounts; then the long way is the only one.
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => {
                if self.client.blob_exists(to, &blob.digest).await? {
                    return Ok(0);
                }
                None
            }
            Err(error) => return Err(error.into()),
        };
        let _permit = self.streams.acquire().await.expect("the semaphore is never closed");
        self.progress.expected(blob.size);
        match indexes {
            Some(indexes) if !indexes.has(&blob.digest) => {
                self.stream_and_index(blob, from, to, upload, indexes).await?;
            }
            _ => self.stream(blob, from, to, upload).await?,
        }
        Ok(blob.size)
    }

    async fn stream(
        &self,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        upload: Option<Upload>,
    ) -> Result<(), BlobFailure> {
        let (listener, mut heard) = mpsc::channel::<bytes::Bytes>(8);
        let count = async {
            while let Some(chunk) = heard.recv().await {
                self.progress.moved(chunk.len() as u64);
            }
        };
        let copy = self.client.copy_blob(blob, from, to, upload, Some(listener));
        let (copied, ()) = tokio::join!(copy, count);
        Ok(copied?)
    }

    async fn stream_and_index(
        &self,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        upload: Option<Upload>,
        indexes: &Indexes,
    ) -> Result<(), BlobFailure> {
        let progress = Arc::clone(&self.progress);
        let listening = Listening::new(move |bytes| progress.moved(bytes));
        let listener = listening.listener.clone();
        self.client.copy_blob(blob, from, to, upload, Some(listener)).await?;
        match listening.finish().await {
            Ok(index) => Ok(indexes.keep(index).await?),
            Err(error) if is_damage(&error) => Err(error.into()),
            // A layer that others can unpack is copied all the same: without an index.
            Err(error) => {
                tracing::warn!(layer = %blob.digest, %error, "the layer cannot be indexed");
                Ok(())
            }
        }
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
