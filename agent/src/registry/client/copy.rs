//! Copying a blob from one repository to another, in one pass that others can listen to.
//!
//! Both sides may break at any byte. The reader goes on by Range; when the target breaks, it
//! is asked how much it has, and the source is read again from there. What the listener hears
//! is every byte once and in order, whatever had to be repeated.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use crate::image::{Descriptor, Repository};

use super::Client;
use super::error::{Fault, RegistryError, Subject};
use super::upload::{Upload, UploadWriter};

/// Whoever wants the bytes of a copied blob as well. The copy waits for a slow listener and
/// goes on without one that hangs up.
pub type Listener = mpsc::Sender<Bytes>;

impl Client {
    /// Copies `blob` from the repository `from` to the repository `to`, which may be on another
    /// registry, through `upload` where one is open already ([`super::Mount::Opened`]).
    ///
    /// The bytes are hashed on the way: a source that sends wrong ones is named, and the target
    /// does not get the last of them. What `listener` heard is worth something only on success.
    ///
    /// # Errors
    /// [`RegistryError`] about the source's blob, or the target's.
    pub async fn copy_blob(
        &self,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        upload: Option<Upload>,
        listener: Option<Listener>,
    ) -> Result<(), RegistryError> {
        let mut upload = match upload {
            Some(upload) => upload,
            None => self.start_upload(to).await?,
        };
        let mut copy = Copy { client: self, blob, from, heard: Heard::new(listener) };
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
    client: &'a Client,
    blob: &'a Descriptor,
    from: &'a Repository,
    heard: Heard,
}

impl Copy<'_> {
    /// Copies what the target does not have yet.
    async fn rest(&mut self, writer: &mut UploadWriter) -> Result<(), Failure> {
        let Descriptor { digest, size, .. } = self.blob;
        let held = writer.offset();
        // What the target holds and nobody heard yet has to be heard.
        let mut position = held.min(self.heard.bytes);
        let mut reader = self.client.read_blob(self.from, digest, *size, position);
        while let Some(chunk) = reader.next().await.map_err(Failure::Source)? {
            self.heard.hear(position, &chunk).await;
            let known = to_usize(held.saturating_sub(position)).min(chunk.len());
            position += chunk.len() as u64;
            if position == *size {
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
        let subject = Subject::Blob(self.from.clone(), expected);
        Err(Fault::WrongDigest(WrongDigest { expected, actual }).of(&subject))
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
