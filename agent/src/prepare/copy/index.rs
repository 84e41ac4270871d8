//! The indexes of layers, each built once for a whole run.
//!
//! An index is built while its layer is copied. A layer that the destination had already is
//! read from there. Until the last image is done, indexes lie on disk: those of a release would
//! not fit into memory, and a run that was killed need not build them again.
//!
//! ```text
//! file   := SHA-256 of the rest, 32 bytes | length of the tree, u64 little-endian | tree | spans
//! ```

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};
use undermount_fs::layer::{Indexer, LayerError, LayerIndex};

use crate::image::artifact::LayerBlobs;
use crate::registry::client::{BlobSource, Fault, Listener, RegistryError};

/// Chunks between a copy and the indexer that listens to it.
const QUEUE: usize = 8;
const HEAD: usize = 32 + 8;

/// Why there is no index of a layer.
#[derive(Debug, thiserror::Error)]
pub enum IndexFailure {
    /// The layer cannot be read.
    #[error(transparent)]
    Source(#[from] RegistryError),
    /// The blob is not a layer, or one that cannot be indexed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The scratch directory failed.
    #[error(transparent)]
    Scratch(#[from] io::Error),
}

/// The indexes that were built in this run, and by those that were killed before it.
#[derive(Debug)]
pub struct Indexes {
    directory: PathBuf,
    built: Mutex<HashMap<Digest, Arc<OnceCell<()>>>>,
}

impl Indexes {
    /// The indexes in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, built: Mutex::default() }
    }

    /// Whether the index of `layer` is there.
    pub async fn has(&self, layer: &Digest) -> bool {
        let cell = self.cell(layer);
        if !cell.initialized() && self.read(layer).await.is_some() {
            // Another task that noticed it too has said so.
            let _ = cell.set(());
        }
        cell.initialized()
    }

    /// Keeps the index of a layer.
    ///
    /// # Errors
    /// Where the disk fails.
    pub async fn keep(&self, index: LayerIndex) -> io::Result<()> {
        let cell = self.cell(&index.layer);
        cell.get_or_try_init(|| self.write(index)).await.map(drop)
    }

    /// The index of `layer`, which `source` has. Where it is not there yet the layer is read
    /// once for all who ask.
    ///
    /// # Errors
    /// [`IndexFailure`] where the layer cannot be read or indexed.
    pub async fn get(
        &self,
        layer: &Digest,
        source: &dyn BlobSource,
    ) -> Result<LayerBlobs, IndexFailure> {
        let cell = self.cell(layer);
        cell.get_or_try_init(|| async {
            if self.read(layer).await.is_none() {
                self.write(build(layer, source).await?).await?;
            }
            Ok::<_, IndexFailure>(())
        })
        .await?;
        let gone = || io::Error::other("the index was damaged or taken away");
        Ok(self.read(layer).await.ok_or_else(gone)?)
    }

    /// The index in its file, if it is there and whole.
    async fn read(&self, layer: &Digest) -> Option<LayerBlobs> {
        let file = Bytes::from(tokio::fs::read(self.path(layer)).await.ok()?);
        let (digest, mut rest) = file.split_at_checked(32)?;
        if Digest::of(rest).as_bytes() != digest {
            return None;
        }
        let tree_length = usize::try_from(rest.try_get_u64_le().ok()?).ok()?;
        let parts = file.slice(HEAD..);
        let (tree, spans) = (tree_length <= parts.len())
            .then(|| (parts.slice(..tree_length), parts.slice(tree_length..)))?;
        Some(LayerBlobs { layer: *layer, tree, spans })
    }

    async fn write(&self, index: LayerIndex) -> io::Result<()> {
        let path = self.path(&index.layer);
        let write = move || {
            let length = (index.tree.len() as u64).to_le_bytes();
            let mut hasher = Hasher::default();
            let parts: [&[u8]; 3] = [&length, &index.tree, &index.spans];
            parts.iter().for_each(|part| hasher.update(part));
            let digest = hasher.finish();
            let bytes = [digest.as_bytes().as_slice(), parts[0], parts[1], parts[2]].concat();
            super::blob_file::write(&path, &bytes)
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.directory.join(layer.hex())
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

/// Reads `layer` from `source` and indexes it.
async fn build(layer: &Digest, source: &dyn BlobSource) -> Result<LayerIndex, IndexFailure> {
    let listening = Listening::new(|_| {});
    let mut chunks = source.open(0);
    while let Some(chunk) = chunks.next().await.transpose()? {
        // A listener that is gone tells why below.
        let _ = listening.listener.send(chunk).await;
    }
    let index = listening.finish().await?;
    if index.layer == *layer {
        return Ok(index);
    }
    let wrong = WrongDigest { expected: *layer, actual: index.layer };
    Err(Fault::WrongDigest(wrong).of(&source.subject()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(text: &'static [u8]) -> LayerIndex {
        let mut indexer = Indexer::new();
        indexer.write_bytes(Bytes::from_static(text)).unwrap();
        indexer.finish().unwrap()
    }

    #[tokio::test]
    async fn an_index_outlives_its_run_and_a_damaged_one_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        let new = || Indexes::new(root.path().to_owned());
        let index = index(&[0; 1024]);
        new().keep(index.clone()).await.unwrap();
        let (next, layer) = (new(), index.layer);
        assert!(next.has(&layer).await);
        let read = next.read(&layer).await.unwrap();
        assert_eq!((&read.tree, &read.spans), (&index.tree, &index.spans));
        let path = root.path().join(layer.hex());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(!new().has(&layer).await);
    }
}
