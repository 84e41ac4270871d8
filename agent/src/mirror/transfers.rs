//! Blobs on their way: one fetch for all who want the same one.
//!
//! A fetch writes a temporary file, and each reader follows it as far as it has come. The last
//! byte can be read when the digest is known to be right. A fetch goes on when its readers have
//! gone: the next one will want the blob too.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use tempfile::NamedTempFile;
use tokio::sync::{OnceCell, watch};
use undermount_fs::digest::{Digest, Hasher};

use super::MirrorError;
use super::store::{MirrorStore, StoreError};
use crate::blocking::blocking;
use crate::control::Failure;
use crate::image::Repository;
use crate::registry::client::{BlobReader, Client};

/// How long a registry may take to say how large a blob is.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes that are sent at a time.
const PIECE: u64 = 256 << 10;

/// How far a transfer is.
#[derive(Debug, Clone)]
enum Progress {
    /// So many bytes can be read.
    Readable(u64),
    /// All of them can, for they are right.
    Whole,
    /// It was given up.
    Failed(String),
}

/// A blob, whole or on its way.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
    progress: watch::Receiver<Progress>,
}

type Shared = Arc<OnceCell<Incoming>>;

/// All transfers.
pub(super) struct Transfers {
    store: Arc<MirrorStore>,
    client: Client,
    running: Arc<Mutex<HashMap<Digest, Shared>>>,
}

impl Transfers {
    pub(super) fn new(store: Arc<MirrorStore>, client: Client) -> Self {
        Self { store, client, running: Arc::default() }
    }

    /// The size of a blob, without fetching it.
    pub(super) async fn size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, MirrorError> {
        match self.stored(digest).await {
            Some(here) => Ok(here.size),
            None => self.size_upstream(repository, digest).await,
        }
    }

    /// A blob: from the store, from the transfer that runs, or from one that begins now.
    pub(super) async fn open(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Incoming, MirrorError> {
        if let Some(here) = self.stored(digest).await {
            return Ok(here);
        }
        self.join(repository, digest).await
    }

    /// A blob from the transfer that runs, or from one that begins now.
    async fn join(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Incoming, MirrorError> {
        let shared = self.running().entry(*digest).or_default().clone();
        let begun = shared.get_or_try_init(|| self.begin(repository, digest)).await;
        if begun.as_ref().map_or(true, |begun| begun.is_over()) {
            forget(&self.running, digest, &shared);
        }
        begun.cloned()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Shared>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stored(&self, digest: &Digest) -> Option<Incoming> {
        let (store, digest) = (self.store.clone(), *digest);
        let found = tokio::task::spawn_blocking(move || store.get(&digest)).await.ok()??;
        Some(Incoming::whole(found.0, found.1))
    }

    async fn size_upstream(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, MirrorError> {
        let client = self.client.until(Instant::now() + HEAD);
        Ok(client.blob_size(repository, digest).await?)
    }

    async fn begin(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Incoming, MirrorError> {
        // The transfer before may have ended since the store was asked.
        if let Some(here) = self.stored(digest).await {
            return Ok(here);
        }
        let size = self.size_upstream(repository, digest).await?;
        let store = self.store.clone();
        let (target, file) = blocking(move || {
            let target = store.begin()?;
            let file = target.reopen().map_err(StoreError::reopen(target.path()))?;
            Ok::<_, StoreError>((target, Arc::new(file)))
        })
        .await?;
        let (sender, progress) = watch::channel(Progress::Readable(0));
        let fetch = Fetch {
            reader: self.client.read_blob(repository, digest, size, 0),
            hasher: Hasher::default(),
            target,
            file: file.clone(),
            digest: *digest,
            size,
            progress: sender,
        };
        let (store, running) = (self.store.clone(), self.running.clone());
        tokio::spawn(async move {
            let digest = fetch.digest;
            fetch.carry_out(store).await;
            // Whoever comes now finds it in the store, or tries again.
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        });
        Ok(Incoming { file, size, progress })
    }
}

/// Takes away a transfer that did not begin, or has ended, unless another one runs in its place.
fn forget(running: &Mutex<HashMap<Digest, Shared>>, digest: &Digest, shared: &Shared) {
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    if running.get(digest).is_some_and(|present| {
        Arc::ptr_eq(present, shared) && present.get().is_none_or(Incoming::is_over)
    }) {
        running.remove(digest);
    }
}

/// A transfer in the hands of its task.
struct Fetch {
    reader: BlobReader,
    hasher: Hasher,
    target: NamedTempFile,
    /// The same file.
    file: Arc<File>,
    digest: Digest,
    size: u64,
    progress: watch::Sender<Progress>,
}

impl Fetch {
    async fn carry_out(mut self, store: Arc<MirrorStore>) {
        if let Err(reason) = self.fetch().await {
            tracing::warn!(blob = %self.digest, reason, "a blob could not be mirrored");
            self.progress.send_replace(Progress::Failed(reason));
            return;
        }
        let Self { target, digest, progress, .. } = self;
        let kept = tokio::task::spawn_blocking(move || store.keep(target, &digest)).await;
        if let Ok(Err(error)) = kept {
            // Those who read it now have it all the same.
            tracing::warn!(error = &error as &dyn std::error::Error, "a blob is not kept");
        }
        progress.send_replace(Progress::Whole);
    }

    async fn fetch(&mut self) -> Result<(), String> {
        let mut written = 0;
        while let Some(chunk) =
            self.reader.next().await.map_err(|error| Failure::of(&error).in_words())?
        {
            self.hasher.update(&chunk);
            let (file, at) = (self.file.clone(), written);
            written += chunk.len() as u64;
            // A slow disk must not hold up the threads that serve.
            let kept = blocking(move || file.write_all_at(&chunk, at)).await;
            kept.map_err(|error| format!("cannot be kept: {error}"))?;
            // The last byte waits for the digest.
            let readable = written.min(self.size.saturating_sub(1));
            self.progress.send_replace(Progress::Readable(readable));
        }
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual != self.digest {
            return Err(format!("the registry sent wrong bytes for {}: {actual}", self.digest));
        }
        Ok(())
    }
}

impl Incoming {
    /// Whether nothing more comes.
    fn is_over(&self) -> bool {
        self.progress.has_changed().is_err()
    }

    fn whole(file: File, size: u64) -> Self {
        let (_, progress) = watch::channel(Progress::Whole);
        Self { file: Arc::new(file), size, progress }
    }

    /// The bytes `range`, as they become readable. It ends with an error where they do not.
    pub(super) fn read(
        self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, MirrorError>> + Send + use<> {
        try_unfold((self, range), |(mut blob, mut rest)| async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let end = blob.readable_beyond(rest.start).await?.min(rest.end);
            let piece = rest.start..end.min(rest.start + PIECE);
            rest.start = piece.end;
            let file = blob.file.clone();
            let read = tokio::task::spawn_blocking(move || read(&file, &piece)).await;
            let bytes = read.map_err(io::Error::other).flatten().map_err(|error| {
                MirrorError::Transfer { reason: format!("the blob cannot be read: {error}") }
            })?;
            Ok(Some((bytes, (blob, rest))))
        })
    }

    /// Waits for byte `at`; the end of what can be read now.
    async fn readable_beyond(&mut self, at: u64) -> Result<u64, MirrorError> {
        let moved = self.progress.wait_for(|progress| match progress {
            Progress::Readable(end) => *end > at,
            Progress::Whole | Progress::Failed(_) => true,
        });
        let gone = || MirrorError::Transfer { reason: "the mirror is shutting down".to_owned() };
        match &*moved.await.map_err(|_| gone())? {
            Progress::Readable(end) => Ok(*end),
            Progress::Whole => Ok(self.size),
            Progress::Failed(reason) => Err(MirrorError::Transfer { reason: reason.clone() }),
        }
    }
}

fn read(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::registry::client::testing::{Reply, Server, client};

    #[tokio::test]
    async fn regression_a_blob_that_another_transfer_has_just_stored_does_not_stay_open() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(MirrorStore::open(directory.path(), 1 << 20).unwrap());
        let server = Server::start(|_| Reply::new(404, "")).await;
        let transfers = Transfers::new(store.clone(), client(|_| ()));
        store.put(b"blob").unwrap();
        let (repository, digest) = (server.repository(), Digest::of(b"blob"));
        let joined = transfers.join(&repository, &digest).await.unwrap();
        assert_eq!(joined.size, 4);
        assert!(transfers.running().is_empty());
    }

    #[tokio::test]
    async fn a_blob_is_fetched_once_for_all_who_want_it_and_then_is_in_the_store() {
        let blob = Bytes::from(vec![7; 300_000]);
        let (digest, body) = (Digest::of(&blob), blob.clone());
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(MirrorStore::open(directory.path(), 1 << 20).unwrap());
        let server = Server::start(move |seen| Reply::blob(seen, &body)).await;
        let transfers = Transfers::new(store.clone(), client(|_| ()));
        let repository = server.repository();
        let (first, second) = tokio::join!(
            transfers.open(&repository, &digest),
            transfers.open(&repository, &digest)
        );
        for incoming in [first.unwrap(), second.unwrap()] {
            let pieces: Vec<_> = incoming.read(0..300_000).collect().await;
            let bytes: Vec<u8> =
                pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect();
            assert_eq!(bytes, blob);
        }
        let asked: Vec<_> = server.seen().into_iter().map(|seen| seen.method).collect();
        assert_eq!(asked, ["HEAD", "GET"]);
        assert!(transfers.stored(&digest).await.is_some());
    }
}
