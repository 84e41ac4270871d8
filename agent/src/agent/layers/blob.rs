//! The compressed bytes of a layer, for `podman push` and `podman save`.
//!
//! podman copies a layer that it never downloaded by reading `blob` from beginning to end. The
//! bytes are not in the cache, which keeps contents: they are fetched whole, hashed, and only
//! then handed out, from a file without a name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;
use undermount_fs::digest::{Digest, Hasher};
use undermount_fs::fill::Blob;
use undermount_fs::source::{BlobRequest, Priority, Source, SourceError};

/// How long the first byte of a blob may take.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// How long a fetched blob is kept after it was read last.
const KEPT: Duration = Duration::from_secs(60);

/// A layer's bytes cannot be handed out.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// They cannot be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// They are others.
    #[error("blob {expected} hashes to {actual}")]
    Wrong {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// They cannot be put down.
    #[error("cannot put down a blob in {}", dir.display())]
    Disk {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process is shutting down.
    #[error("interrupted by a shutdown")]
    Interrupted,
}

struct Fetched {
    cell: Arc<OnceCell<Arc<File>>>,
    used: Instant,
}

/// Blobs that are being read.
pub struct Blobs {
    source: Arc<dyn Source>,
    dir: PathBuf,
    fetched: Mutex<HashMap<Digest, Fetched>>,
}

impl Blobs {
    /// Blobs from `source`, put down in `dir`.
    pub fn new(source: Arc<dyn Source>, dir: PathBuf) -> Self {
        Self { source, dir, fetched: Mutex::default() }
    }

    /// Up to `length` bytes of `blob` from `offset` on. The first reader fetches all of it, the
    /// others wait for that.
    ///
    /// # Errors
    /// [`BlobError`] where it cannot be had; the next reader tries again.
    pub async fn read(&self, blob: &Blob, offset: u64, length: u32) -> Result<Bytes, BlobError> {
        let cell = self.cell(blob.digest);
        let file = cell.get_or_try_init(|| self.fetch(blob)).await?.clone();
        let dir = self.dir.clone();
        let length = u64::from(length).min(blob.size.saturating_sub(offset)) as usize;
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset)
                .map_err(|source| BlobError::Disk { dir, source })?;
            Ok(bytes.into())
        })
        .await
        .map_err(|_| BlobError::Interrupted)?
    }

    /// The place of a blob; blobs that nobody has read for a while go.
    fn cell(&self, digest: Digest) -> Arc<OnceCell<Arc<File>>> {
        let now = Instant::now();
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.retain(|other, blob| *other == digest || now - blob.used < KEPT);
        let blob =
            fetched.entry(digest).or_insert_with(|| Fetched { cell: Arc::default(), used: now });
        blob.used = now;
        blob.cell.clone()
    }

    async fn fetch(&self, blob: &Blob) -> Result<Arc<File>, BlobError> {
        let disk = |source| BlobError::Disk { dir: self.dir.clone(), source };
        let mut file = tempfile::tempfile_in(&self.dir).map_err(disk)?;
        let request = BlobRequest {
            scope: blob.scope.clone(),
            blob: blob.digest,
            size: blob.size,
            pieces: Arc::default(),
            priority: Priority::Demand,
            deadline: Instant::now() + FIRST_BYTE,
        };
        let mut stream = self.source.stream(request).await?;
        let mut hasher = Hasher::default();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(disk)?;
        }
        let actual = hasher.finish();
        if actual != blob.digest {
            return Err(BlobError::Wrong { expected: blob.digest, actual });
        }
        Ok(Arc::new(file))
    }
}
