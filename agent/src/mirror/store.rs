//! Blobs and tags that were mirrored, on disk.
//!
//! ```text
//! blobs/<hex>    a whole blob or manifest
//! tags/<hex>     which manifest a name meant last, by the digest of the name: JSON
//! tmp/           what is being fetched; emptied when the store is opened
//! ```
//!
//! A blob is hashed when this process first serves it, so what a crash or the disk did to it is a
//! miss. The least recently used go first; open files outlive their names.

use std::fs::{self, File, FileTimes};
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use lru::LruCache;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use undermount_fs::digest::{Digest, Hasher};

/// Blobs that are known to be undamaged without another look.
const PROVEN: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not zero");
/// Eviction frees this part of the quota at once, lest each new blob look through all others.
const SLACK: u64 = 10;

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the mirror cannot {action} {}", path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    /// For a file of [`MirrorStore::begin`] that does not open a second time.
    pub(super) fn reopen(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        failed("open", path)
    }
}

/// The store. One process uses its directory at a time.
pub struct MirrorStore {
    root: PathBuf,
    quota: u64,
    proven: Mutex<LruCache<Digest, Stamp>>,
}

/// A file as it was when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Tag {
    name: String,
    manifest: Digest,
}

impl MirrorStore {
    /// Opens the store in `root`, made where it is missing, with room for `quota` bytes of blobs.
    ///
    /// # Errors
    /// [`StoreError`] where the directory cannot be used.
    pub fn open(root: &Path, quota: u64) -> Result<Self, StoreError> {
        let temporary = root.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("empty", &temporary)(error));
            }
            _ => {}
        }
        for name in ["blobs", "tags", "tmp"] {
            let directory = root.join(name);
            fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        }
        let proven = Mutex::new(LruCache::new(PROVEN));
        Ok(Self { root: root.to_owned(), quota, proven })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// The blob and its size, if it is here and undamaged. Reads it whole the first time.
    pub(super) fn get(&self, digest: &Digest) -> Option<(File, u64)> {
        let path = self.blob(digest);
        let file = File::open(&path).ok()?;
        let stamp = Stamp::of(&file).ok()?;
        let known = self.proven().get(digest) == Some(&stamp);
        if !known && !has_digest(&file, digest) {
            tracing::warn!(path = %path.display(), "damaged blob removed");
            // Where it cannot be removed it stays a miss.
            let _ = fs::remove_file(&path);
            return None;
        }
        self.touch(digest, &file);
        Some((file, stamp.size))
    }

    /// Notes that the blob was used, for the order in which they go, and that it is undamaged.
    fn touch(&self, digest: &Digest, file: &File) {
        // A wrong order is no harm. The time of the change moves with it, hence the new stamp.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        if let Ok(stamp) = Stamp::of(file) {
            self.proven().put(*digest, stamp);
        }
    }

    fn proven(&self) -> std::sync::MutexGuard<'_, LruCache<Digest, Stamp>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file for a blob that is to be kept.
    pub(super) fn begin(&self) -> Result<NamedTempFile, StoreError> {
        let directory = self.root.join("tmp");
        NamedTempFile::new_in(&directory).map_err(failed("write in", &directory))
    }

    /// Keeps a blob that was written to a file of [`Self::begin`] and has this digest.
    pub(super) fn keep(&self, file: NamedTempFile, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob(digest);
        let file = file.persist(&path).map_err(|error| failed("keep", &path)(error.error))?;
        self.touch(digest, &file);
        self.evict(digest);
        Ok(())
    }

    /// Keeps a small blob.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = self.begin()?;
        file.write_all(bytes).map_err(failed("write", file.path()))?;
        self.keep(file, &Digest::of(bytes))
    }

    /// The manifest that `name` meant last.
    pub(super) fn tag(&self, name: &str) -> Option<Digest> {
        let tag: Tag = serde_json::from_slice(&fs::read(self.tag_path(name)).ok()?).ok()?;
        (tag.name == name).then_some(tag.manifest)
    }

    /// Notes which manifest `name` means.
    pub(super) fn put_tag(&self, name: &str, manifest: &Digest) -> Result<(), StoreError> {
        let tag = Tag { name: name.to_owned(), manifest: *manifest };
        let json = serde_json::to_vec(&tag).expect("a tag is plain data");
        let path = self.tag_path(name);
        let mut file = self.begin()?;
        file.write_all(&json).map_err(failed("write", file.path()))?;
        file.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
        Ok(())
    }

    fn tag_path(&self, name: &str) -> PathBuf {
        self.root.join("tags").join(Digest::of(name.as_bytes()).hex())
    }

    /// Makes room, but not by the blob that was kept last.
    fn evict(&self, last: &Digest) {
        let Ok(mut blobs) = self.by_use() else { return };
        let mut used: u64 = blobs.iter().map(|blob| blob.size).sum();
        if used <= self.quota {
            return;
        }
        let last = self.blob(last);
        blobs.retain(|blob| blob.path != last);
        for blob in blobs {
            if used <= self.quota - self.quota / SLACK {
                break;
            }
            if fs::remove_file(&blob.path).is_ok() {
                used = used.saturating_sub(blob.size);
            }
        }
    }

    /// All blobs, the least recently used first.
    fn by_use(&self) -> io::Result<Vec<Kept>> {
        let mut blobs = Vec::new();
        for entry in fs::read_dir(self.root.join("blobs"))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let used = (metadata.mtime(), metadata.mtime_nsec());
            blobs.push(Kept { used, size: metadata.len(), path: entry.path() });
        }
        blobs.sort();
        Ok(blobs)
    }
}

/// A blob on disk, ordered by its last use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    used: (i64, i64),
    size: u64,
    path: PathBuf,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(Self { inode: metadata.ino(), size: metadata.len(), changed })
    }
}

fn has_digest(mut file: &File, digest: &Digest) -> bool {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finish() == *digest,
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(root: &Path, quota: u64) -> MirrorStore {
        MirrorStore::open(root, quota).unwrap()
    }

    #[test]
    fn what_was_kept_is_found_again_and_what_was_not_finished_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = store(dir.path(), 1000);
        first.put(b"blob").unwrap();
        first.put_tag("host/name:tag", &Digest::of(b"blob")).unwrap();
        first.begin().unwrap().keep().unwrap();
        let second = store(dir.path(), 1000);
        assert_eq!(second.get(&Digest::of(b"blob")).unwrap().1, 4);
        assert_eq!(second.tag("host/name:tag"), Some(Digest::of(b"blob")));
        assert_eq!(second.tag("host/name:other"), None);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_is_a_miss_also_when_it_was_good_before() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"blob");
        let store = store(dir.path(), 1000);
        for _ in 0..2 {
            store.put(b"blob").unwrap();
            assert!(store.get(&digest).is_some());
            fs::write(store.blob(&digest), b"blub").unwrap();
            assert!(store.get(&digest).is_none());
        }
    }

    #[test]
    fn the_least_recently_used_make_room_and_the_newest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 250);
        let blobs: Vec<Vec<u8>> = (0..4_u8).map(|n| vec![n; 100]).collect();
        let old = SystemTime::UNIX_EPOCH;
        for (n, blob) in blobs[..2].iter().enumerate() {
            store.put(blob).unwrap();
            let file = File::open(store.blob(&Digest::of(blob))).unwrap();
            let used = old + std::time::Duration::from_secs(n as u64);
            file.set_times(FileTimes::new().set_modified(used)).unwrap();
        }
        store.put(&blobs[2]).unwrap();
        let here = |n: usize| store.get(&Digest::of(&blobs[n])).is_some();
        assert_eq!([0, 1, 2].map(here), [false, true, true]);
        // One that is larger than the quota serves at least until the next one.
        let large = vec![9; 300];
        store.put(&large).unwrap();
        assert!(store.get(&Digest::of(&large)).is_some());
    }
}
