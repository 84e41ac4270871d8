//! Copying a blob into a repository, in one pass that others can listen to.
//!
//! Both sides may break at any byte. A source goes on by itself (a registry by Range); when the
//! target breaks, it is asked how much it has, and the source is opened again from there. What
//! the listener hears is every byte once and in order, whatever had to be repeated.

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, iter, unfold};
use tokio::sync::mpsc;
use tokio::time::sleep;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use crate::image::{Descriptor, Repository};

use super::Client;
use super::error::{Fault, RegistryError, Subject};
use super::upload::{Upload, UploadWriter};

/// Bytes in memory are sent in pieces of this size, so that it shows where a target stalls.
const PIECE: usize = 256 << 10;

/// Whoever wants the bytes of a copied blob as well. The copy waits for a slow listener and
/// goes on without one that hangs up.
pub type Listener = mpsc::Sender<Bytes>;

/// Bytes in order, until they end or fail for good.
pub type BlobStream = BoxStream<'static, Result<Bytes, RegistryError>>;

/// One blob, wherever it is: in a repository, or in a file of this host. It may be opened again.
pub trait BlobSource: Send + Sync {
    /// The bytes from `offset` to the end. They are not verified; whoever reads them hashes them.
    fn open(&self, offset: u64) -> BlobStream;
    /// What an error about its bytes is about.
    fn subject(&self) -> Subject;
}

/// A blob of a repository.
#[derive(Debug, Clone)]
pub struct RemoteBlob {
    /// Who reads it.
    pub client: Client,
    /// Where it is.
    pub repository: Repository,
    /// Which it is.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

impl RemoteBlob {
    /// `blob` of `repository`, read by `client`.
    pub fn new(client: &Client, repository: &Repository, blob: &Descriptor) -> Self {
        let (client, repository) = (client.clone(), repository.clone());
        Self { client, repository, digest: blob.digest, size: blob.size }
    }
}

impl BlobSource for RemoteBlob {
    fn open(&self, offset: u64) -> BlobStream {
        let reader = self.client.read_blob(&self.repository, &self.digest, self.size, offset);
        unfold(reader, |mut reader| async {
            let chunk = reader.next().await.transpose()?;
            Some((chunk, reader))
        })
        .boxed()
    }

    fn subject(&self) -> Subject {
        Subject::Blob(self.repository.clone(), self.digest)
    }
}

/// A blob in memory.
#[derive(Debug, Clone)]
pub struct MemoryBlob(pub Bytes);

impl BlobSource for MemoryBlob {
    fn open(&self, offset: u64) -> BlobStream {
        let rest = self.0.slice(to_usize(offset).min(self.0.len())..);
        let starts = (0..rest.len()).step_by(PIECE);
        let pieces = starts.map(move |at| Ok(rest.slice(at..rest.len().min(at + PIECE))));
        iter(pieces).boxed()
    }

    fn subject(&self) -> Subject {
        Subject::File("memory".into(), Digest::of(&self.0))
    }
}

impl Client {
    /// Copies `blob` from `source` to the repository `to`, through `upload` where one is open
    /// already ([`super::Mount::Opened`]).
    ///
    /// The bytes are hashed on the way: a source that sends wrong ones is named, and the target
    /// does not get the last of them. What `listener` heard is worth something only on success.
    ///
    /// # Errors
    /// [`RegistryError`] about the source's blob, or the target's.
    pub async fn copy_blob(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        to: &Repository,
        upload: Option<Upload>,
        listener: Option<Listener>,
    ) -> Result<(), RegistryError> {
        let mut upload = match upload {
            Some(upload) => upload,
            None => self.start_upload(to).await?,
        };
        let mut copy = Copy { blob, source, heard: Heard::new(listener) };
        let mut budget = self.shared.config.retry.budget();
        loop {
            let heard_before = copy.heard.bytes;
            let mut writer = upload.writer(&blob.digest, blob.size);
            let error = match copy.rest(&mut writer).await {
                Ok(()) => return Ok(()),
                Err(Failure::Source(error)) => {
                    writer.cancel().await;
                    return Err(error);
                }
                Err(Failure::Target(error)) => error,
            };
            if copy.heard.bytes > heard_before {
                budget.refill();
            }
            let Some(pause) = budget.pause(&error.fault, self.deadline) else {
                writer.cancel().await;
                return Err(error);
            };
            tracing::debug!(error = %error.in_words(), ?pause, "going on with the upload");
            sleep(pause).await;
            upload = match writer.recover().await {
                Ok(upload) => upload,
                Err(_) => self.start_upload(to).await?,
            };
        }
    }
}

/// Where a copy failed: a source was tried again already, a target can be gone on with.
enum Failure {
    Source(RegistryError),
    Target(RegistryError),
}

struct Copy<'a> {
    blob: &'a Descriptor,
    source: &'a dyn BlobSource,
    heard: Heard,
}

impl Copy<'_> {
    /// Copies what the target does not have yet.
    async fn rest(&mut self, writer: &mut UploadWriter) -> Result<(), Failure> {
        let size = self.blob.size;
        let held = writer.offset();
        // What the target holds and nobody heard yet has to be heard.
        let mut position = held.min(self.heard.bytes);
        let mut chunks = self.source.open(position);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(Failure::Source)?;
            self.heard.hear(position, &chunk).await;
            let known = to_usize(held.saturating_sub(position)).min(chunk.len());
            position += chunk.len() as u64;
            if position == size {
                self.check().map_err(Failure::Source)?;
            }
            if known < chunk.len() {
                writer.write(chunk.slice(known..)).await.map_err(Failure::Target)?;
            }
        }
        writer.finish().await.map_err(Failure::Target)
    }

    /// All bytes were heard: are they the blob?
    fn check(&self) -> Result<(), RegistryError> {
        let (expected, actual) = (self.blob.digest, self.heard.digest());
        if expected == actual {
            return Ok(());
        }
        Err(Fault::WrongDigest(WrongDigest { expected, actual }).of(&self.source.subject()))
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Every byte of the blob once and in order.
struct Heard {
    bytes: u64,
    hasher: Hasher,
    listener: Option<Listener>,
}

impl Heard {
    fn new(listener: Option<Listener>) -> Self {
        Self { bytes: 0, hasher: Hasher::default(), listener }
    }

    /// Takes from `chunk`, which begins at byte `position`, what is new.
    async fn hear(&mut self, position: u64, chunk: &Bytes) {
        let known = to_usize(self.bytes.saturating_sub(position)).min(chunk.len());
        let new = chunk.slice(known..);
        if new.is_empty() {
            return;
        }
        self.bytes += new.len() as u64;
        self.hasher.update(&new);
        if let Some(listener) = &self.listener
            && listener.send(new).await.is_err()
        {
            self.listener = None;
        }
    }

    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }
}
