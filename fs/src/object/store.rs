//! Complete objects on disk, and the budget for all of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tempfile::NamedTempFile;

use super::stamp::{self, Stamp};
use super::{CHUNK, Object, ObjectKey, Partial};
use crate::digest::{Digest, Verified};

/// Descriptors of objects that are kept open.
const HANDLES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Descriptors of incomplete objects that are kept open.
const PARTIALS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Objects that are known to be undamaged without another look.
const PROVEN: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not zero");

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
    /// Small objects that were hashed by this process, as their files were then.
    proven: Mutex<LruCache<ObjectKey, Stamp>>,
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
            proven: Mutex::new(LruCache::new(PROVEN)),
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

    /// The complete object of at most 1 MiB and of `size` bytes; `None` where it is not here. It is
    /// hashed on its first use, and again after somebody has touched its file; a damaged one goes.
    pub fn get(&self, key: &ObjectKey, size: u64) -> Option<Arc<File>> {
        let proven = lock(&self.proven).get(key).copied();
        let handle = lock(&self.handles).get(key).cloned();
        if let Some(file) = handle.filter(|file| Stamp::of(file) == proven) {
            return Some(file);
        }
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        let stamp = Stamp::of(&file)?;
        let right = proven == Some(stamp) || stamp.size == size && hashes_to(&file, size, key);
        if !right {
            tracing::warn!(object = %key, path = %path.display(), "damaged object removed");
            self.remove(&path, size);
            return None;
        }
        stamp::note_use(&file);
        lock(&self.proven).put(*key, Stamp::of(&file)?);
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

    /// What is here of the large object of `size` bytes: all of it, some chunks, or nothing.
    pub fn large(&self, key: &ObjectKey, size: u64) -> Option<Arc<Partial>> {
        if let Some(partial) = lock(&self.partials).get(key)
            && !partial.is_touched()
        {
            return Some(partial.clone());
        }
        let complete = self.path(key);
        let path = if complete.exists() { complete } else { self.partial.join(key.hex()) };
        if !path.exists() {
            return None;
        }
        self.open_large(key, path, size).ok()
    }

    /// As [`Self::large`], for writing: made where nothing is here.
    ///
    /// # Errors
    /// [`StoreError`] where its file cannot be opened.
    pub fn large_or_new(&self, key: &ObjectKey, size: u64) -> Result<Arc<Partial>, StoreError> {
        match self.large(key, size) {
            Some(partial) => Ok(partial),
            None => self.open_large(key, self.partial.join(key.hex()), size),
        }
    }

    fn open_large(
        &self,
        key: &ObjectKey,
        path: PathBuf,
        size: u64,
    ) -> Result<Arc<Partial>, StoreError> {
        let mut partials = lock(&self.partials);
        if let Some(partial) = partials.get(key).filter(|partial| !partial.is_touched()) {
            return Ok(partial.clone());
        }
        let partial = Arc::new(Partial::open(&path, size).map_err(failed("open", &path))?);
        partials.put(*key, partial.clone());
        Ok(partial)
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
            // It is in its place already and was repaired, or it was evicted.
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

fn hashes_to(file: &File, size: u64, key: &ObjectKey) -> bool {
    let mut content = vec![0; usize::try_from(size.min(CHUNK)).unwrap_or_default()];
    file.read_exact_at(&mut content, 0).is_ok() && ObjectKey::small(&content) == *key
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
    use std::time::{Duration, SystemTime};

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
    fn a_damaged_object_of_the_right_size_is_a_miss_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let object = object("content");
        open(root.path()).insert(&object).unwrap();
        let store = open(root.path());
        fs::write(store.path(object.key()), "CONTENT").unwrap();
        assert!(store.get(object.key(), 7).is_none());
        assert!(!store.contains(object.key()));
    }

    #[test]
    fn an_object_that_was_touched_is_hashed_again() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (object("content"), object("other"));
        let store = open(root.path());
        for object in [&first, &second] {
            store.insert(object).unwrap();
            assert!(store.get(object.key(), object.bytes().len() as u64).is_some());
        }
        fs::write(store.path(first.key()), "CONTENT").unwrap();
        assert!(store.get(first.key(), 7).is_none());
        assert!(store.get(second.key(), 5).is_some());
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
