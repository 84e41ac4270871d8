//! Blobs as files: hashed while they are written, there only when whole, and gone on with where
//! an earlier run was killed.
//!
//! ```text
//! <directory>/.undermount-<name>.partial    the first bytes, in order
//!             -> <directory>/<name>         by rename, once they have their digest
//! ```

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::mpsc;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use super::layout::Region;
use crate::blocking::blocking;
use crate::image::Descriptor;
use crate::registry::client::{BlobSource, Fault, Listener, RegistryError};

/// What the names of unfinished files begin with.
pub const TEMPORARY: &str = ".undermount-";
/// Chunks between whoever reads the source and whoever writes the file.
const QUEUE: usize = 8;
const CHUNK: usize = 256 << 10;

/// Why a blob did not become a file.
#[derive(Debug, thiserror::Error)]
pub enum BlobFileError {
    /// The file system failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The source failed, or has other bytes.
    #[error(transparent)]
    Source(#[from] RegistryError),
    /// What an earlier run left was damaged, and is gone now: trying again begins anew.
    #[error("{} was damaged by an interrupted run", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
    },
}

/// Files that were found whole, so that each is hashed once however many names it has.
#[derive(Debug, Default)]
pub struct Whole {
    files: Mutex<HashSet<(Digest, Identity)>>,
}

/// Device, inode and the time at which the content was last changed.
type Identity = (u64, u64, i64, i64);

impl Whole {
    /// Whether the file at `path` holds the blob, byte by byte.
    pub async fn is_whole(&self, path: &Path, blob: &Descriptor) -> bool {
        let (path, digest, size) = (path.to_owned(), blob.digest, blob.size);
        let Ok(metadata) = fs::metadata(&path) else { return false };
        let identity: Identity =
            (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        if metadata.len() != size {
            return false;
        }
        let known =
            || self.files.lock().expect("no panic while it is held").contains(&(digest, identity));
        if known() {
            return true;
        }
        // Hashing a large layer would keep the thread from everything else.
        let hashed =
            tokio::task::spawn_blocking(move || Region { path, start: 0, length: size }.hash());
        let hashed = hashed.await;
        let whole = hashed.is_ok_and(|hashed| hashed.is_ok_and(|actual| actual == digest));
        if whole {
            self.files.lock().expect("no panic while it is held").insert((digest, identity));
        }
        whole
    }
}

/// Writes a small file whole, by rename.
///
/// # Errors
/// Where the file system fails.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut partial = Partial::open(path)?;
    partial.file.set_len(0)?;
    partial.file.write_all(bytes)?;
    partial.publish(path)
}

/// Gives the file `known` the name `path` too, in the place of whatever has it.
///
/// # Errors
/// Where the file system fails.
pub fn link(known: &Path, path: &Path) -> io::Result<()> {
    let partial = Partial::open(path)?;
    fs::remove_file(&partial.path)?;
    fs::hard_link(known, &partial.path)?;
    fs::rename(&partial.path, path)?;
    // Two names of one file are not renamed but left.
    match fs::remove_file(&partial.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits until all that was written to the file system of `root` is on the disk. Once for all files:
/// each of them for itself would wait for the disk a thousand times.
///
/// # Errors
/// Where the disk does not take it; a `root` that was never made has nothing to lose.
pub async fn sync(root: &Path) -> Result<(), BlobFileError> {
    let path = root.to_owned();
    let sync = move || match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened.and_then(|root| Ok(nix::unistd::syncfs(root)?)),
    };
    blocking(sync).await.map_err(|source| BlobFileError::Write { path: root.to_owned(), source })
}

/// Removes what a killed run left of the file `path`, which is there by other means.
pub fn discard_partial(path: &Path) {
    if let Ok(Some(partial)) = Partial::lock(partial_path(path, ""), false) {
        partial.remove();
    }
}

/// Brings the bytes of `blob` from `source` to the file `path`; `listener` hears all of them.
///
/// # Errors
/// [`BlobFileError`]; the file is then as it was.
pub async fn bring(
    path: &Path,
    blob: &Descriptor,
    source: &dyn BlobSource,
    listener: Option<Listener>,
) -> Result<(), BlobFileError> {
    let failed = |source| BlobFileError::Write { path: path.to_owned(), source };
    let partial = Partial::open(path).map_err(failed)?;
    match fill(partial, blob, source, listener).await {
        Ok((partial, digest)) if digest == blob.digest => partial.publish(path).map_err(failed),
        Ok((partial, actual)) => {
            let resumed = partial.known > 0;
            partial.remove();
            if resumed {
                return Err(BlobFileError::Stale { path: path.to_owned() });
            }
            let wrong = WrongDigest { expected: blob.digest, actual };
            Err(Fault::WrongDigest(wrong).of(&source.subject()).into())
        }
        Err(FillError::Source(error)) => Err(error.into()),
        Err(FillError::Write(error)) => Err(failed(error)),
    }
}

enum FillError {
    Source(RegistryError),
    Write(io::Error),
}

/// Reads what is missing of the file, on a thread that hashes and writes beside the source.
async fn fill(
    partial: Partial,
    blob: &Descriptor,
    source: &dyn BlobSource,
    mut listener: Option<Listener>,
) -> Result<(Partial, Digest), FillError> {
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let (echo, mut echoed) = mpsc::channel::<Bytes>(QUEUE);
    let (known, size) = (partial.known.min(blob.size), blob.size);
    let writer = tokio::task::spawn_blocking(move || partial.write(known, receiver, echo));
    // First what the file has already, which the listener has to hear too.
    while let Some(chunk) = echoed.recv().await {
        tell(&mut listener, &chunk).await;
    }
    let mut chunks = source.open(known);
    let mut missing = size - known;
    while missing > 0 {
        let Some(chunk) = chunks.next().await.transpose().map_err(FillError::Source)? else {
            break;
        };
        missing = missing.saturating_sub(chunk.len() as u64);
        tell(&mut listener, &chunk).await;
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    let written = writer.await.unwrap_or_else(|_| Err(io::Error::other("the writer ended")));
    written.map_err(FillError::Write)
}

async fn tell(listener: &mut Option<Listener>, chunk: &Bytes) {
    if let Some(open) = listener
        && open.send(chunk.clone()).await.is_err()
    {
        *listener = None;
    }
}

/// Where the unfinished file for `path` lies.
fn partial_path(path: &Path, mark: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}{mark}.partial"))
}

/// A file that is being written, by nobody else.
struct Partial {
    file: Flock<File>,
    path: PathBuf,
    /// The bytes of an earlier run.
    known: u64,
}

impl Partial {
    /// The unfinished file for `path`. Where another process writes it, one of our own.
    fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        if let Some(partial) = Self::lock(partial_path(path, ""), true)? {
            return Ok(partial);
        }
        let own = partial_path(path, &format!(".{}", std::process::id()));
        Self::lock(own, true)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// The file at `path`, unless somebody else has it.
    fn lock(path: PathBuf, create: bool) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(0o644);
        let Ok(file) = Flock::lock(options.open(&path)?, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        let known = file.metadata()?;
        // Whoever held the lock before us may have given the file its name.
        let same = fs::metadata(&path).is_ok_and(|at_path| at_path.ino() == known.ino());
        Ok(same.then(|| Self { file, path, known: known.len() }))
    }

    /// Hashes the first `known` bytes, which `echo` hears, and writes those of `receiver` after
    /// them.
    fn write(
        mut self,
        known: u64,
        mut receiver: mpsc::Receiver<Bytes>,
        echo: mpsc::Sender<Bytes>,
    ) -> io::Result<(Self, Digest)> {
        let mut hasher = Hasher::default();
        self.file.seek(SeekFrom::Start(0))?;
        let mut left = known;
        while left > 0 {
            let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            self.file.read_exact(&mut chunk)?;
            hasher.update(&chunk);
            left -= chunk.len() as u64;
            // Nobody listens any more where the copy was given up.
            let _ = echo.blocking_send(chunk.into());
        }
        drop(echo);
        self.file.set_len(known)?;
        while let Some(chunk) = receiver.blocking_recv() {
            hasher.update(&chunk);
            self.file.write_all(&chunk)?;
        }
        Ok((self, hasher.finish()))
    }

    fn publish(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }

    fn remove(self) {
        // What cannot be removed is found damaged by the next run.
        let _ = fs::remove_file(&self.path);
    }
}
