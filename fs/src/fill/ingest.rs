//! A whole blob, once, in order: hashed, indexed, and all its contents kept.
//!
//! This is how a layer without an index gets one, how an image becomes fully local, and how an
//! index that was fetched is checked: the blob is the only thing whose digest the image itself
//! names.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::extract::note_unkept;
use super::{Filler, Layer};
use crate::digest::Digest;
use crate::disk::Draft;
use crate::layer::{Indexer, LayerError, LayerIndex, ObjectSink};
use crate::object::{CHUNK, Object, ObjectKey, Store, StoreError};
use crate::source::{BlobRequest, BlobStream, Priority, Scope, SourceError};

/// Chunks that have arrived and wait to be indexed.
const CHUNKS: usize = 8;

/// Why a blob could not be taken in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// It could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not a layer.
    #[error("layer {layer} cannot be unpacked")]
    Layer {
        /// The digest by which the manifest names it.
        layer: Digest,
        /// What is wrong with it.
        source: LayerError,
    },
    /// Its bytes are not those that the manifest names.
    #[error("layer {expected}: {size} bytes arrived that hash to {actual}")]
    WrongDigest {
        /// The digest by which the manifest names it.
        expected: Digest,
        /// The digest of what arrived.
        actual: Digest,
        /// How many bytes arrived.
        size: u64,
    },
    /// The index that was attached to the image is not the index of the layer.
    #[error("layer {layer}: the index that came with the image is not the one of its bytes")]
    WrongIndex {
        /// The layer.
        layer: Digest,
        /// The index that its bytes have.
        right: Arc<LayerIndex>,
    },
    /// The process is shutting down.
    #[error("layer {layer}: interrupted by a shutdown")]
    Interrupted {
        /// The layer.
        layer: Digest,
    },
}

/// How far one or several blobs have come, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes that have arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that are expected, as far as that is known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Notes that `bytes` more have arrived.
    pub fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that `bytes` more are expected.
    pub fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How a blob is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Who waits for it.
    pub priority: Priority,
    /// No more bytes than this arrive in a second.
    pub bytes_per_second: Option<u64>,
}

impl Pace {
    /// As fast as it goes.
    pub fn unlimited(priority: Priority) -> Self {
        Self { priority, bytes_per_second: None }
    }

    /// How long to wait before more is taken, `elapsed` after the beginning and with `bytes` here.
    fn wait(self, bytes: u64, elapsed: Duration) -> Duration {
        let Some(limit) = self.bytes_per_second else { return Duration::ZERO };
        Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64).saturating_sub(elapsed)
    }
}

/// A blob to be taken in.
#[derive(Debug, Clone)]
pub struct Blob {
    /// In whose name it is fetched.
    pub scope: Scope,
    /// The digest by which the manifest names it.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl Filler {
    /// Fetches the whole `blob`, keeps every file content in it and returns its index. Its first
    /// byte may take as long as a read waits.
    ///
    /// # Errors
    /// [`IngestError`] where the blob cannot be had, is not a layer, or has another digest.
    pub async fn ingest(
        &self,
        blob: &Blob,
        pace: Pace,
        progress: &Progress,
    ) -> Result<LayerIndex, IngestError> {
        let (scope, pieces) = (blob.scope.clone(), Arc::default());
        let deadline = Instant::now() + self.patience.timeout;
        let (blob, size, priority) = (blob.digest, blob.size, pace.priority);
        let request = BlobRequest { scope, blob, size, pieces, priority, deadline };
        self.take_in(request, pace, progress, Box::new(self.store_sink())).await
    }

    /// What puts contents into the store.
    pub(super) fn store_sink(&self) -> StoreSink {
        StoreSink { store: self.store.clone(), content: None }
    }

    /// Streams the blob of `request` through an indexer, which hands its contents to `sink`.
    async fn take_in(
        &self,
        request: BlobRequest,
        pace: Pace,
        progress: &Progress,
        sink: Box<dyn ObjectSink>,
    ) -> Result<LayerIndex, IngestError> {
        let layer = request.blob;
        let interrupted = || IngestError::Interrupted { layer };
        let stream = self.source.stream(request).await?;
        let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS);
        let indexing = tokio::task::spawn_blocking(move || {
            let mut indexer = Indexer::with_sink(sink);
            while let Some(chunk) = chunks.blocking_recv() {
                if indexer.write_bytes(chunk).is_err() {
                    break;
                }
            }
            // A stream that was cut off gives an error here, and its own one below.
            indexer.finish()
        });
        let arrived = carry(stream, sender, pace, progress).await;
        let indexed = indexing.await.map_err(|_| interrupted())?;
        arrived?;
        let index = indexed.map_err(|source| IngestError::Layer { layer, source })?;
        if index.layer != layer {
            let (actual, size) = (index.layer, index.layer_size);
            return Err(IngestError::WrongDigest { expected: layer, actual, size });
        }
        Ok(index)
    }

    /// Brings in all of a layer, on behalf of whichever of its scopes can have it, and checks its
    /// index against what its bytes say; returns the index that its bytes have.
    ///
    /// # Errors
    /// [`IngestError`]; [`IngestError::WrongIndex`] means that the index must not be used.
    pub async fn complete(
        &self,
        layer: &Layer,
        pace: Pace,
        progress: &Progress,
    ) -> Result<LayerIndex, IngestError> {
        self.complete_into(layer, pace, progress, || Box::new(self.store_sink())).await
    }

    /// The same, with the contents going to a `sink` for each attempt.
    pub(super) async fn complete_into(
        &self,
        layer: &Layer,
        pace: Pace,
        progress: &Progress,
        sink: impl Fn() -> Box<dyn ObjectSink>,
    ) -> Result<LayerIndex, IngestError> {
        let (digest, size) = (layer.digest(), layer.tree.header().layer_size.get());
        let (known, priority) = (self.pieces(layer).await, pace.priority);
        let take_in = |scope, pieces, share| {
            let deadline = Instant::now() + share;
            let request = BlobRequest { scope, blob: digest, size, pieces, priority, deadline };
            self.take_in(request, pace, progress, sink())
        };
        let attempt = |scope: Scope, share| {
            let pieces = known.clone();
            let has_pieces = !pieces.is_empty();
            async move {
                let outcome = match take_in(scope.clone(), pieces, share).await {
                    // The pieces are the index's, which may lie about them. The blob has one digest.
                    Err(IngestError::Source(SourceError::Wrong { .. })) if has_pieces => {
                        progress.expect(size);
                        take_in(scope, Arc::default(), share).await
                    }
                    outcome => outcome,
                };
                // Only what the source is to blame for can be better on another's behalf.
                match outcome {
                    Err(IngestError::Source(error)) => Err(error),
                    outcome => Ok(outcome),
                }
            }
        };
        let index = layer.on_any_behalf(self.patience.timeout, attempt).await??;
        if index.tree != layer.tree.bytes() {
            return Err(IngestError::WrongIndex { layer: digest, right: Arc::new(index) });
        }
        layer.checked.store(true, Ordering::Release);
        Ok(index)
    }
}

/// Sends what comes out of `stream` on at `pace`, until its end or until nobody takes it any more.
async fn carry(
    mut stream: BlobStream,
    sender: mpsc::Sender<Bytes>,
    pace: Pace,
    progress: &Progress,
) -> Result<(), SourceError> {
    let (start, mut arrived) = (Instant::now(), 0);
    while let Some(chunk) = stream.next().await.transpose()? {
        arrived += chunk.len() as u64;
        progress.advance(chunk.len() as u64);
        let wait = pace.wait(arrived, start.elapsed());
        // A timer rounds up to a millisecond, which a whole blob pays for often.
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Puts contents into a store as they go by. What the store cannot take is left out.
pub(super) struct StoreSink {
    store: Arc<Store>,
    content: Option<Incoming>,
}

enum Incoming {
    Small(Vec<u8>),
    Large(Draft),
}

impl StoreSink {
    /// Gives up the current content where `step` fails.
    fn attempt(&mut self, step: impl FnOnce(&mut Incoming) -> io::Result<()>) {
        let Some(content) = &mut self.content else { return };
        if let Err(error) = step(content) {
            tracing::warn!(%error, "cannot keep a file content");
            self.content = None;
        }
    }

    fn keep(&self, content: Incoming, key: &ObjectKey) -> Result<(), StoreError> {
        match content {
            Incoming::Small(content) => self.store.insert(&Object::name(content.into())),
            Incoming::Large(draft) if !self.store.contains(key) => self.store.publish(draft, key),
            Incoming::Large(_) => Ok(()),
        }
    }
}

impl ObjectSink for StoreSink {
    fn begin(&mut self, size: u64) {
        self.content = if size <= CHUNK {
            Some(Incoming::Small(Vec::with_capacity(size as usize)))
        } else {
            match self.store.large_draft(size) {
                Ok(draft) => Some(Incoming::Large(draft)),
                Err(error) if error.is_full() => None,
                Err(error) => {
                    tracing::warn!(%error, "cannot keep a large file content");
                    None
                }
            }
        };
    }

    fn data(&mut self, bytes: &[u8]) {
        self.attempt(|content| match content {
            Incoming::Small(content) => {
                content.extend_from_slice(bytes);
                Ok(())
            }
            Incoming::Large(draft) => draft.append(bytes),
        });
    }

    fn zeros(&mut self, count: u64) {
        self.attempt(|content| match content {
            Incoming::Small(content) => {
                content.resize(content.len() + count as usize, 0);
                Ok(())
            }
            Incoming::Large(draft) => draft.skip(count),
        });
    }

    fn end(&mut self, key: ObjectKey) {
        let Some(content) = self.content.take() else { return };
        if let Err(error) = self.keep(content, &key) {
            note_unkept(&key, &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_on_average() {
        let pace = |bytes_per_second| Pace { priority: Priority::Background, bytes_per_second };
        let wait = |limit, bytes, elapsed| {
            pace(limit).wait(bytes, Duration::from_millis(elapsed)).as_millis()
        };
        assert_eq!(wait(Some(1000), 500, 100), 400);
        assert_eq!(wait(Some(1000), 500, 500), 0);
        assert_eq!(wait(Some(1000), 500, 9000), 0, "what was slow before may be made up for");
        assert_eq!(wait(Some(0), 2, 0), 2000, "no pace stands still");
        assert_eq!(wait(None, u64::MAX, 0), 0);
    }
}
