//! Complete objects on disk, and the budget for all of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use tempfile::NamedTempFile;

use super::{Object, ObjectKey, Partial};
use crate::digest::{Digest, Verified};

/// Descriptors of objects that are kept open.
const HANDLES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Descriptors of incomplete objects that are kept open.
const PARTIALS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// An object's time of last use is written down when it is older than this.
const USE_GRANULARITY: Duration = Duration::from_secs(60);

/// Eviction goes on until this share of the quota is used, in per cent.
const EVICT_TO_PERCENT: u64 = 90;

/// The store cannot be used, or an object cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("object store: cannot {action} {path}")]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What the store may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of objects to keep; `None` for as many as there is room for.
    pub quota: Option<u64>,
}

/// What the store uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Bytes of objects and parts of objects.
    pub bytes: u64,
    /// Objects that were dropped to make room, since the store was opened.
    pub evicted: u64,
}

/// Objects by key.
pub struct Store {
    objects: PathBuf,
    partial: PathBuf,
    temporary: PathBuf,
    limits: StoreLimits,
    used: AtomicU64,
    evicted: AtomicU64,
    handles: Mutex<LruCache<ObjectKey, Arc<File>>>,
    partials: Mutex<LruCache<ObjectKey, Arc<Partial>>>,
    evictor: Mutex<()>,
}

impl Store {
    /// Opens the store in `root`, which is made where it is missing. The caller sees to it that
    /// nobody else uses the directory.
    ///
    /// # Errors
    /// [`StoreError`] where directories cannot be made or read.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<Self, StoreError> {
        let [objects, partial, temporary] =
            ["objects", "partial", "tmp"].map(|name| root.join(name));
        for directory in [&objects, &partial, &temporary] {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        for leftover in entries(&temporary)? {
            fs::remove_file(&leftover).map_err(failed("remove", &leftover))?;
        }
        for first in 0..=255_u8 {
            let directory = objects.join(format!("{first:02x}"));
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &directory)(error));
                }
                _ => {}
            }
        }
        let store = Self {
            objects,
            partial,
            temporary,
            limits,
            used: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            handles: Mutex::new(LruCache::new(HANDLES)),
            partials: Mutex::new(LruCache::new(PARTIALS)),
            evictor: Mutex::new(()),
        };
        let used = store.survey()?.iter().map(|object| object.size).sum();
        store.used.store(used, Ordering::Relaxed);
        Ok(store)
    }

    /// What is used.
    pub fn usage(&self) -> StoreUsage {
        StoreUsage {
            bytes: self.used.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        let hex = key.hex();
        self.objects.join(&hex[..2]).join(hex)
    }

    /// Whether the complete object is here.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        lock(&self.handles).contains(key) || self.path(key).exists()
    }

    /// The complete object of `size` bytes, `None` where it is not here. One of another size is
    /// damaged and goes.
    pub fn get(&self, key: &ObjectKey, size: u64) -> Option<Arc<File>> {
        if let Some(file) = lock(&self.handles).get(key) {
            return Some(file.clone());
        }
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        if metadata.len() != size {
            tracing::warn!(object = %key, found = metadata.len(), expected = size, "damaged object");
            self.remove(&path, metadata.blocks() * 512);
            return None;
        }
        note_use(&file, &metadata);
        let file = Arc::new(file);
        lock(&self.handles).put(*key, file.clone());
        Some(file)
    }

    /// Keeps `object`.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written; nothing of it stays.
    pub fn insert(&self, object: &Object) -> Result<(), StoreError> {
        let path = self.path(object.key());
        if path.exists() {
            return Ok(());
        }
        let mut file = self.temporary()?;
        file.write_all(object.bytes()).map_err(failed("write", file.path()))?;
        self.publish(file, object.key())
    }

    /// A file for an object that is written as it comes in; it goes when it is dropped.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be made.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        NamedTempFile::new_in(&self.temporary).map_err(failed("create a file in", &self.temporary))
    }

    /// Gives a file whose content was hashed to `key` its place.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be renamed.
    pub(crate) fn publish(&self, file: NamedTempFile, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path(key);
        let size = allocated(file.as_file());
        file.persist(&path).map_err(|error| failed("rename to", &path)(error.error))?;
        self.charge(size);
        Ok(())
    }

    /// The large object of `size` bytes while it is incomplete; made where it is missing.
    ///
    /// # Errors
    /// [`StoreError`] where its file cannot be opened.
    pub fn partial(&self, key: &ObjectKey, size: u64) -> Result<Arc<Partial>, StoreError> {
        let mut partials = lock(&self.partials);
        if let Some(partial) = partials.get(key) {
            return Ok(partial.clone());
        }
        let path = self.partial.join(key.hex());
        let partial = Arc::new(Partial::open(&path, size).map_err(failed("open", &path))?);
        partials.put(*key, partial.clone());
        Ok(partial)
    }

    /// Whether some of a large object may be here.
    pub fn has_partial(&self, key: &ObjectKey) -> bool {
        self.partial.join(key.hex()).exists()
    }

    /// Writes a chunk of a partial object, and moves the object to its place when it was the last
    /// one missing; `chunks` are the digests of all of them.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written or renamed.
    pub fn fill_chunk(
        &self,
        key: &ObjectKey,
        partial: &Partial,
        chunk: usize,
        bytes: &Verified,
        chunks: &[Digest],
    ) -> Result<(), StoreError> {
        let from = self.partial.join(key.hex());
        if partial.fill(chunk, bytes).map_err(failed("write", &from))? {
            self.charge(bytes.bytes().len() as u64);
        }
        if !partial.is_complete(chunks) {
            return Ok(());
        }
        let to = self.path(key);
        lock(&self.partials).pop(key);
        match fs::rename(&from, &to) {
            // Somebody else completed it, or it was evicted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(failed("rename to", &to)),
        }
    }

    /// Adds to what is used, and makes room where that is too much.
    fn charge(&self, size: u64) {
        let used = self.used.fetch_add(size, Ordering::Relaxed) + size;
        if self.limits.quota.is_some_and(|quota| used > quota)
            && let Err(error) = self.evict()
        {
            tracing::warn!(%error, "cannot make room in the object store");
        }
    }

    /// Drops what was not used for longest until a tenth of the quota is free.
    fn evict(&self) -> Result<(), StoreError> {
        let Some(quota) = self.limits.quota else { return Ok(()) };
        let Ok(_only_one) = self.evictor.try_lock() else { return Ok(()) };
        let mut objects = self.survey()?;
        objects.sort_unstable_by_key(|object| object.last_use);
        let mut used: u64 = objects.iter().map(|object| object.size).sum();
        self.used.store(used, Ordering::Relaxed);
        for object in objects {
            if used <= quota / 100 * EVICT_TO_PERCENT {
                break;
            }
            self.remove(&object.path, object.size);
            self.evicted.fetch_add(1, Ordering::Relaxed);
            used -= object.size.min(used);
        }
        Ok(())
    }

    fn remove(&self, path: &Path, size: u64) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(digest) = Digest::from_hex(name) {
            let key = ObjectKey::from_digest(digest);
            lock(&self.handles).pop(&key);
            lock(&self.partials).pop(&key);
        }
        if fs::remove_file(path).is_ok() {
            let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used.saturating_sub(size))
            });
        }
    }

    /// Every object and part of one on disk.
    fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        let mut found = Vec::new();
        let fans = entries(&self.objects)?;
        for directory in fans.iter().chain([&self.partial]) {
            for path in entries(directory)? {
                // What vanishes meanwhile was evicted or completed.
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                found.push(Surveyed {
                    size: metadata.blocks() * 512,
                    last_use: (metadata.mtime(), metadata.mtime_nsec()),
                    path,
                });
            }
        }
        Ok(found)
    }
}

struct Surveyed {
    path: PathBuf,
    /// Bytes on disk.
    size: u64,
    last_use: (i64, i64),
}

/// The modification time of an object is the time of its last use: its content never changes.
fn note_use(file: &File, metadata: &fs::Metadata) {
    let now = SystemTime::now();
    let recent = metadata
        .modified()
        .is_ok_and(|last| now.duration_since(last).is_ok_and(|age| age < USE_GRANULARITY));
    if !recent {
        let keep = TimeSpec::new(0, libc::UTIME_OMIT);
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = TimeSpec::nanoseconds(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        let follow = UtimensatFlags::FollowSymlink;
        // Without it, the object is only evicted earlier than it could be.
        let _ = utimensat(nix::fcntl::AT_FDCWD, path.as_str(), &keep, &now, follow);
    }
}

fn allocated(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    read().map_err(failed("read", directory))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError { action, path, source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use bytes::Bytes;

    fn object(text: &str) -> Object {
        Object::name(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn open(root: &Path) -> Store {
        Store::open(root, StoreLimits::default()).unwrap()
    }

    #[test]
    fn objects_read_back_also_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let object = object("content");
        open(root.path()).insert(&object).unwrap();
        let store = open(root.path());
        let file = store.get(object.key(), 7).unwrap();
        let mut bytes = [0; 7];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"content");
        assert!(store.usage().bytes > 0);
        assert!(store.get(&ObjectKey::small(b"other"), 5).is_none());
    }

    #[test]
    fn an_object_of_another_size_is_a_miss_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let object = object("content");
        let store = open(root.path());
        store.insert(&object).unwrap();
        fs::write(store.path(object.key()), "cut").unwrap();
        assert!(store.get(object.key(), 7).is_none());
        assert!(!store.path(object.key()).exists());
        store.insert(&object).unwrap();
        assert!(store.get(object.key(), 7).is_some());
    }

    #[test]
    fn leftovers_of_a_crash_go_at_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        drop(open(root.path()));
        let leftover = root.path().join("tmp/half");
        fs::write(&leftover, "ha").unwrap();
        drop(open(root.path()));
        assert!(!leftover.exists());
    }

    #[test]
    fn a_quota_drops_what_was_not_used_for_longest() {
        let root = tempfile::tempdir().unwrap();
        let limits = StoreLimits { quota: Some(40 * 4096) };
        let store = Store::open(root.path(), limits).unwrap();
        let objects: Vec<Object> = (0..60).map(|i| object(&format!("object {i}"))).collect();
        for (i, object) in objects.iter().enumerate() {
            store.insert(object).unwrap();
            let file = File::options().write(true).open(store.path(object.key())).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + i as u64);
            file.set_modified(time).unwrap();
        }
        assert!(store.usage().bytes <= 40 * 4096, "{:?}", store.usage());
        assert!(store.usage().evicted >= 20);
        assert!(store.contains(objects[59].key()));
        assert!(!store.contains(objects[0].key()));
    }
}
