//! An OCI image layout in one tar file as a destination.
//!
//! The file is written from front to back, one blob at a time, under a name of its own:
//!
//! ```text
//! <file>.partial   blobs/sha256/<hex> ...                         while images arrive
//! <file>           ... oci-layout, index.json, end of archive     by rename, when all are there
//! ```
//! A blob that does not arrive whole is cut off again, so what lies before the end of the
//! partial file is good. After a kill the next run reads it, keeps the blobs that have their
//! digest and goes on behind them. An archive without all of its images never gets its name.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Mutex;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use crate::image::Descriptor;
use crate::registry::client::{BlobSource, Fault, Listener, RawManifest};

use super::super::blob_file::BlobFileError;
use super::super::layout::{FileBlob, LayoutError, Region, archive};
use super::super::names::{Names, OCI_LAYOUT};
use super::{Attachment, Opened, StoreError, Taken};

/// The unit of a tar file.
const BLOCK: u64 = 512;

/// The archive at a path.
pub struct ArchiveStore {
    path: PathBuf,
    partial: PathBuf,
    /// Held while a blob is appended.
    tail: Mutex<Tail>,
    known: std::sync::Mutex<HashMap<Digest, Region>>,
}

/// The end of the partial file.
struct Tail {
    file: Flock<File>,
    end: u64,
    names: Names,
}

impl ArchiveStore {
    /// The archive at `path`, begun or gone on with.
    ///
    /// # Errors
    /// [`StoreError`] where the file cannot be written, or somebody else writes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let failed = |source| BlobFileError::Write { path: partial.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&partial);
        let file = Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock);
        let file = file.map_err(|_| StoreError::Busy(path.to_owned()))?;
        let known = whole_blobs(&partial);
        let end = known.values().map(|region| region.start + padded(region.length)).max();
        let end = end.unwrap_or_default();
        file.set_len(end).map_err(failed)?;
        let tail = Mutex::new(Tail { file, end, names: Names::default() });
        Ok(Self { path: path.to_owned(), partial, tail, known: known.into() })
    }

    pub(super) fn key(&self) -> String {
        format!("oci-archive:{}", self.path.display())
    }

    fn region(&self, digest: &Digest) -> Option<Region> {
        self.known.lock().expect("no panic while it is held").get(digest).cloned()
    }

    fn failed(&self, source: io::Error) -> StoreError {
        BlobFileError::Write { path: self.partial.clone(), source }.into()
    }

    pub(super) async fn take(&self, blob: &Descriptor) -> Taken {
        match self.region(&blob.digest) {
            Some(_) => Taken::Here,
            None => Taken::Missing(Opened::Append),
        }
    }

    pub(super) async fn receive(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        mut listener: Option<Listener>,
    ) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        if self.region(&blob.digest).is_some() {
            return Ok(());
        }
        let start = tail.begin(&member(&blob.digest), blob.size).map_err(|e| self.failed(e))?;
        let mut hasher = Hasher::default();
        let mut chunks = source.open(0);
        while let Some(chunk) = chunks.next().await.transpose()? {
            hasher.update(&chunk);
            tail.file.write_all(&chunk).map_err(|error| self.failed(error))?;
            if let Some(open) = &listener
                && open.send(chunk).await.is_err()
            {
                listener = None;
            }
        }
        let (expected, actual) = (blob.digest, hasher.finish());
        if expected != actual {
            let wrong = Fault::WrongDigest(WrongDigest { expected, actual });
            return Err(wrong.of(&source.subject()).into());
        }
        self.end(&mut tail, expected, start, blob.size)
    }

    /// Makes what was appended a part of the archive.
    fn end(
        &self,
        tail: &mut Tail,
        digest: Digest,
        start: u64,
        length: u64,
    ) -> Result<(), StoreError> {
        tail.finish(start, length).map_err(|error| self.failed(error))?;
        let region = Region { path: self.partial.clone(), start, length };
        self.known.lock().expect("no panic while it is held").insert(digest, region);
        Ok(())
    }

    pub(super) async fn put(&self, raw: &RawManifest) -> Result<bool, StoreError> {
        let mut tail = self.tail.lock().await;
        if self.region(&raw.digest).is_some() {
            return Ok(false);
        }
        let length = raw.bytes.len() as u64;
        let start = tail.append(&member(&raw.digest), &raw.bytes).map_err(|e| self.failed(e))?;
        self.end(&mut tail, raw.digest, start, length)?;
        Ok(true)
    }

    pub(super) async fn name(&self, name: &str, raw: &RawManifest) -> Result<bool, StoreError> {
        self.put(raw).await?;
        self.tail.lock().await.names.set(name, raw);
        Ok(true)
    }

    pub(super) async fn attach(
        &self,
        name: &Option<String>,
        attachment: &Attachment,
    ) -> Result<bool, StoreError> {
        self.put(&attachment.raw).await?;
        self.tail.lock().await.names.attach(name.as_deref(), attachment);
        Ok(true)
    }

    pub(super) fn blob(&self, blob: &Descriptor) -> Result<FileBlob, StoreError> {
        let (path, digest) = (self.partial.clone(), blob.digest);
        let region = self.region(&digest).ok_or(LayoutError::NoBlob { path, digest })?;
        Ok(FileBlob { region, digest })
    }

    /// Ends the archive and gives it its name.
    pub(super) async fn finish(&self) -> Result<(), StoreError> {
        let mut tail = self.tail.lock().await;
        let index = tail.names.to_bytes();
        let end = |tail: &mut Tail| {
            for (name, bytes) in [("oci-layout", OCI_LAYOUT.as_bytes()), ("index.json", &index)] {
                let start = tail.append(name, bytes)?;
                tail.finish(start, bytes.len() as u64)?;
            }
            tail.file.write_all(&[0; 2 * BLOCK as usize])?;
            tail.file.sync_all()?;
            fs::rename(&self.partial, &self.path)
        };
        end(&mut tail).map_err(|error| self.failed(error))
    }
}

impl Tail {
    /// Writes the header of a member behind what is there; gives where its bytes begin.
    fn begin(&mut self, name: &str, length: u64) -> io::Result<u64> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(length);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(header.as_bytes())?;
        Ok(self.end + BLOCK)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        let start = self.begin(name, bytes.len() as u64)?;
        self.file.write_all(bytes)?;
        Ok(start)
    }

    fn finish(&mut self, start: u64, length: u64) -> io::Result<()> {
        let end = start + padded(length);
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end))?;
        self.end = end;
        Ok(())
    }
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn padded(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

/// The blobs from the beginning of a partial file up to the first that is not whole.
fn whole_blobs(partial: &Path) -> HashMap<Digest, Region> {
    let mut regions: Vec<_> = archive::readable_members(partial).into_iter().collect();
    regions.sort_by_key(|(_, region)| region.start);
    let blob = |(name, region): (String, Region)| {
        let digest = Digest::from_hex(name.strip_prefix("blobs/sha256/")?).ok()?;
        (region.hash().ok()? == digest).then_some((digest, region))
    };
    regions.into_iter().map_while(blob).collect()
}
