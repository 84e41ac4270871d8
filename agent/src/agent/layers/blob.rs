//! The compressed bytes of a layer, for `podman push` and `podman save`.
//!
//! ```text
//! read(offset, length) -> fetched already? -> bytes of the file
//!                           ` no: stream the blob -> unnamed file + hash -> digest right -> file
//! file not read for a minute -> dropped
//! ```
//!
//! podman copies a layer that it never downloaded by reading `blob` from beginning to end. The
//! bytes are not in the cache, which keeps the contents of files. They are therefore fetched whole
//! and verified before the first of them is handed out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::digest::{Digest, Hasher};
use undermount_fs::disk::is_full;
use undermount_fs::fill::Blob;
use undermount_fs::object::Store;
use undermount_fs::source::{BlobRequest, Priority, Source, SourceError};

use crate::blocking::blocking;

/// How long the first byte of a blob may take.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// How long a fetched blob is kept after it was last read.
const KEPT: Duration = Duration::from_secs(60);

/// Why a layer's bytes cannot be handed out.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// They cannot be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// They do not have the digest of the layer.
    #[error("blob {expected} hashes to {actual}")]
    Wrong {
        /// The digest of the layer.
        expected: Digest,
        /// The digest of what was fetched.
        actual: Digest,
    },
    /// They cannot be written to disk or read back.
    #[error("cannot put down a blob in {}", dir.display())]
    Disk {
        /// The directory of the file.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

struct Fetched {
    cell: Arc<OnceCell<Arc<File>>>,
    used: Instant,
}

impl Fetched {
    /// Whether somebody reads it just now, or waits for it.
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.cell) > 1
    }
}

/// Fetched blobs, and the task that drops those which nobody has read for a while, since their
/// files take room on the disk.
#[derive(Default)]
struct Shelf {
    blobs: HashMap<Digest, Fetched>,
    sweeper: Option<AbortOnDropHandle<()>>,
}

/// The blobs that podman reads.
pub struct Blobs {
    source: Arc<dyn Source>,
    store: Arc<Store>,
    dir: PathBuf,
    shelf: Arc<Mutex<Shelf>>,
    kept: Duration,
}

impl Blobs {
    /// Blobs that are fetched from `source` into unnamed files in `dir`, where the objects of `store`
    /// make room for them.
    pub fn new(source: Arc<dyn Source>, store: Arc<Store>, dir: PathBuf) -> Self {
        Self { source, store, dir, shelf: Arc::default(), kept: KEPT }
    }

    /// Reads up to `length` bytes of `blob` from byte `offset`. The first reader fetches all of the
    /// blob, the others wait for that.
    ///
    /// # Errors
    /// [`BlobError`] where it cannot be fetched; the next reader tries again.
    pub async fn read(&self, blob: &Blob, offset: u64, length: u32) -> Result<Bytes, BlobError> {
        if offset >= blob.size {
            return Ok(Bytes::new());
        }
        let cell = self.cell(blob.digest);
        let file = cell.get_or_try_init(|| self.fetch(blob)).await?.clone();
        let length = u64::from(length).min(blob.size.saturating_sub(offset)) as usize;
        let read = blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes.into())
        });
        let read = read.await.map_err(|source| self.disk_error(source));
        // The fetch may have taken longer than a blob is kept.
        if let Some(fetched) = lock(&self.shelf).blobs.get_mut(&blob.digest) {
            fetched.used = Instant::now();
        }
        read
    }

    /// The cell of a blob, which is empty until the blob is fetched.
    fn cell(&self, digest: Digest) -> Arc<OnceCell<Arc<File>>> {
        let now = Instant::now();
        let mut shelf = lock(&self.shelf);
        if shelf.sweeper.is_none() {
            let sweeping = sweep(Arc::downgrade(&self.shelf), self.kept);
            shelf.sweeper = Some(AbortOnDropHandle::new(tokio::spawn(sweeping)));
        }
        let fetched = shelf.blobs.entry(digest);
        let blob = fetched.or_insert_with(|| Fetched { cell: Arc::default(), used: now });
        blob.used = now;
        blob.cell.clone()
    }

    /// Fetches a blob. On a full disk, blobs that nobody reads just now and objects give way to it.
    async fn fetch(&self, blob: &Blob) -> Result<Arc<File>, BlobError> {
        match self.fetch_once(blob).await {
            Err(BlobError::Disk { source, .. }) if is_full(&source) => {
                tracing::info!(layer = %blob.digest, "making room for a layer's bytes");
                lock(&self.shelf).blobs.retain(|_, blob| blob.is_used());
                let (store, size) = (self.store.clone(), blob.size);
                // Where that fails, so does the second try.
                let _ = blocking(move || store.make_room(size)).await;
                self.fetch_once(blob).await
            }
            outcome => outcome,
        }
    }

    async fn fetch_once(&self, blob: &Blob) -> Result<Arc<File>, BlobError> {
        let dir = self.dir.clone();
        let file = blocking(move || tempfile::tempfile_in(&dir)).await;
        let mut arriving = Arriving {
            file: file.map_err(|source| self.disk_error(source))?,
            hasher: Hasher::default(),
        };
        let request = BlobRequest {
            scope: blob.scope.clone(),
            blob: blob.digest,
            size: blob.size,
            pieces: Arc::default(),
            priority: Priority::Demand,
            deadline: Instant::now() + FIRST_BYTE,
        };
        let mut stream = self.source.stream(request).await?;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            let with_chunk = blocking(move || arriving.with(&chunk)).await;
            arriving = with_chunk.map_err(|source| self.disk_error(source))?;
        }
        let actual = arriving.hasher.finish();
        if actual != blob.digest {
            return Err(BlobError::Wrong { expected: blob.digest, actual });
        }
        Ok(Arc::new(arriving.file))
    }

    fn disk_error(&self, source: io::Error) -> BlobError {
        BlobError::Disk { dir: self.dir.clone(), source }
    }
}

/// A blob as far as it has arrived.
struct Arriving {
    file: File,
    hasher: Hasher,
}

impl Arriving {
    fn with(mut self, chunk: &[u8]) -> io::Result<Self> {
        self.hasher.update(chunk);
        self.file.write_all(chunk)?;
        Ok(self)
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops blobs that nobody has read for the time `kept`, again and again until there are none.
async fn sweep(shelf: Weak<Mutex<Shelf>>, kept: Duration) {
    loop {
        tokio::time::sleep(kept).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let mut shelf = lock(&shelf);
        shelf.blobs.retain(|_, blob| blob.is_used() || blob.used.elapsed() < kept);
        if shelf.blobs.is_empty() {
            shelf.sweeper = None;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::images;
    use crate::registry::client::testing::{Reply, Server};

    #[tokio::test]
    async fn regression_a_blob_that_nobody_reads_any_more_gives_its_room_back() {
        let bytes = Bytes::from_static(b"the bytes of a layer");
        let blob = bytes.clone();
        let server = Server::start(move |seen| Reply::blob(seen, &blob)).await;
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        let (source, store) = (images.filler().source().clone(), images.filler().store().clone());
        let mut blobs = Blobs::new(source, store, cache.path().to_owned());
        blobs.kept = Duration::from_millis(10);
        let scope = server.repository().scope();
        let blob = Blob { scope, digest: Digest::of(&bytes), size: bytes.len() as u64 };
        for _ in 0..2 {
            assert_eq!(blobs.read(&blob, 4, 100).await.unwrap(), bytes[4..]);
            let gone = async {
                while !lock(&blobs.shelf).blobs.is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
        }
    }
}
