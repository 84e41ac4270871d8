//! The indexes of layers, each built once for a whole run.
//!
//! An index is built while its layer is copied. A layer that the destination had already is
//! read from there. Until the last image is done, indexes lie in a scratch directory: those of a
//! release would not fit into memory.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;
use undermount_fs::digest::{Digest, WrongDigest};
use undermount_fs::layer::{Indexer, LayerError, LayerIndex};

use crate::image::artifact::LayerBlobs;
use crate::image::{Descriptor, Repository};
use crate::registry::client::{Client, Fault, Listener, RegistryError, Subject};

/// Chunks between a copy and the indexer that listens to it.
const QUEUE: usize = 8;

/// Why there is no index of a layer.
#[derive(Debug, thiserror::Error)]
pub enum IndexFailure {
    /// The layer cannot be read from its registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The blob is not a layer, or one that cannot be indexed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The scratch directory failed.
    #[error(transparent)]
    Scratch(#[from] io::Error),
}

/// The indexes that were built in this run.
#[derive(Debug)]
pub struct Indexes {
    scratch: TempDir,
    built: Mutex<HashMap<Digest, Arc<OnceCell<()>>>>,
}

impl Indexes {
    /// No indexes yet; they will lie in a new directory below `scratch`.
    ///
    /// # Errors
    /// Where that directory cannot be made.
    pub fn new(scratch: &Path) -> io::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("undermount-prepare-").tempdir_in(scratch)?;
        Ok(Self { scratch, built: Mutex::default() })
    }

    /// Whether the index of `layer` is there.
    pub fn has(&self, layer: &Digest) -> bool {
        self.cell(layer).initialized()
    }

    /// Keeps the index of a layer.
    ///
    /// # Errors
    /// Where the disk fails.
    pub async fn keep(&self, index: LayerIndex) -> io::Result<()> {
        let cell = self.cell(&index.layer);
        cell.get_or_try_init(|| self.write(index)).await.map(drop)
    }

    /// The index of `layer`, which `repository` has. Where it is not there yet the layer is read
    /// once for all who ask.
    ///
    /// # Errors
    /// [`IndexFailure`] where the layer cannot be read or indexed.
    pub async fn get(
        &self,
        client: &Client,
        layer: &Descriptor,
        repository: &Repository,
    ) -> Result<LayerBlobs, IndexFailure> {
        let cell = self.cell(&layer.digest);
        cell.get_or_try_init(|| async {
            let index = build(client, layer, repository).await?;
            Ok::<_, IndexFailure>(self.write(index).await?)
        })
        .await?;
        let (tree, spans) = self.paths(&layer.digest);
        let bytes = async |path| tokio::fs::read(path).await.map(Bytes::from);
        Ok(LayerBlobs { layer: layer.digest, tree: bytes(tree).await?, spans: bytes(spans).await? })
    }

    async fn write(&self, index: LayerIndex) -> io::Result<()> {
        let (tree, spans) = self.paths(&index.layer);
        tokio::fs::write(tree, &index.tree).await?;
        tokio::fs::write(spans, &index.spans).await
    }

    fn paths(&self, layer: &Digest) -> (PathBuf, PathBuf) {
        let path = |kind| self.scratch.path().join(format!("{}.{kind}", layer.hex()));
        (path("tree"), path("spans"))
    }

    fn cell(&self, layer: &Digest) -> Arc<OnceCell<()>> {
        let mut built = self.built.lock().expect("no panic while it is held");
        Arc::clone(built.entry(*layer).or_default())
    }
}

/// An indexer that listens to a copy.
pub struct Listening {
    /// Where the copy sends the bytes of the layer.
    pub listener: Listener,
    indexer: JoinHandle<Result<LayerIndex, LayerError>>,
}

impl Listening {
    /// Begins to listen; `heard` is told how many bytes came.
    pub fn new(heard: impl Fn(u64) + Send + 'static) -> Self {
        let (listener, mut bytes) = mpsc::channel::<Bytes>(QUEUE);
        let indexer = tokio::task::spawn_blocking(move || {
            let mut indexer = Indexer::new();
            while let Some(chunk) = bytes.blocking_recv() {
                heard(chunk.len() as u64);
                // An indexer that takes no more has found the layer malformed: finish() says so,
                // and the rest of the copy is only counted.
                let _ = indexer.write_bytes(chunk);
            }
            indexer.finish()
        });
        Self { listener, indexer }
    }

    /// The index, after all bytes have come and the copy has let go of the listener.
    ///
    /// # Errors
    /// [`LayerError`] where the bytes are not a layer.
    pub async fn finish(self) -> Result<LayerIndex, LayerError> {
        drop(self.listener);
        self.indexer.await.unwrap_or(Err(LayerError::Stopped))
    }
}

/// Reads `layer` from `repository` and indexes it.
async fn build(
    client: &Client,
    layer: &Descriptor,
    repository: &Repository,
) -> Result<LayerIndex, IndexFailure> {
    let listening = Listening::new(|_| {});
    let mut reader = client.read_blob(repository, &layer.digest, layer.size, 0);
    while let Some(chunk) = reader.next().await? {
        // A listener that is gone tells why below.
        let _ = listening.listener.send(chunk).await;
    }
    let index = listening.finish().await?;
    if index.layer == layer.digest {
        return Ok(index);
    }
    let wrong = WrongDigest { expected: layer.digest, actual: index.layer };
    let subject = Subject::Blob(repository.clone(), layer.digest);
    Err(Fault::WrongDigest(wrong).of(&subject).into())
}
