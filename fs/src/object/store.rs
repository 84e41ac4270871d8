//! The store: opened, asked for small objects, and given new ones.
//!
//! ```text
//! get:     open descriptor, unchanged since it was hashed? else open -> hash (prove) -> keep open
//! insert:  room (keep) -> draft in tmp/ -> rename into objects/ (place)
//! ```
//!
//! Large objects are in [`large`](super::large), what is held in memory in [`fresh`](super::fresh),
//! making room in [`evict`](super::evict).

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lru::LruCache;

use super::evict::{Evictor, Pins};
use super::fresh::Held;
use super::stamp::{self, Stamp};
use super::survey::{Layout, Surveyed, entries};
use super::{CHUNK, Object, ObjectKey, Partial, StoreError, StoreLimits};
use crate::disk::{Access, Disk, Draft, LocalDisk, Space, is_damage, is_regular, open_regular};

/// Descriptors of objects that are kept open.
const HANDLES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Descriptors of large objects that are kept open.
const PARTIALS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Small objects that are known to be undamaged without being hashed again.
const PROVEN: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not zero");

/// When an object is hashed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// When a process first uses it, and whenever its file was touched.
    #[default]
    Boot,
    /// When it comes in; later the disk is trusted with all complete objects.
    Insert,
}

/// What the store uses, and what befell it since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Bytes of objects and parts of objects.
    pub bytes: u64,
    /// Objects that were dropped to make room.
    pub evicted: u64,
    /// Objects and chunks that there was no room for.
    pub unkept: u64,
    /// Objects that were found damaged.
    pub damaged: u64,
}

/// The proof that an object's file has the right content.
#[derive(Clone, Copy)]
struct Proof {
    /// The file when it was hashed.
    stamp: Stamp,
    /// Whether every later change shows in the stamp.
    settled: bool,
}

/// Objects by key.
pub struct Store {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: Layout,
    pub(super) limits: StoreLimits,
    pub(super) verify: Verify,
    pub(super) used: AtomicU64,
    pub(super) evicted: AtomicU64,
    unkept: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) handles: Mutex<LruCache<ObjectKey, Arc<File>>>,
    /// Small objects that were hashed by this process.
    proven: Mutex<LruCache<ObjectKey, Proof>>,
    pub(super) partials: Mutex<LruCache<ObjectKey, Arc<Partial>>>,
    pub(super) pins: Mutex<Option<Arc<dyn Pins>>>,
    pub(super) evictor: Mutex<Evictor>,
    pub(super) held: Held,
}

impl Store {
    /// Opens the store in `root`, which is made where it is missing. The caller sees to it that
    /// nobody else uses the directory.
    ///
    /// # Errors
    /// [`StoreError`] where directories cannot be made or read.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(LocalDisk), root, limits)
    }

    /// As [`Self::open`], with the steps of `disk`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        root: &Path,
        limits: StoreLimits,
    ) -> Result<Self, StoreError> {
        let layout = Layout::below(root);
        make_directories(&*disk, &layout)?;
        for leftover in entries(&layout.temporary)? {
            disk.remove(&leftover).map_err(StoreError::io("remove", &leftover))?;
        }
        let used = layout.survey()?.iter().map(|object| object.allocated).sum();
        Ok(Self {
            disk,
            layout,
            limits,
            verify: Verify::default(),
            used: AtomicU64::new(used),
            evicted: AtomicU64::new(0),
            unkept: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            handles: Mutex::new(LruCache::new(HANDLES)),
            proven: Mutex::new(LruCache::new(PROVEN)),
            partials: Mutex::new(LruCache::new(PARTIALS)),
            pins: Mutex::default(),
            evictor: Mutex::default(),
            held: Held::new(),
        })
    }

    /// The same store with another answer to when objects are hashed.
    #[must_use]
    pub fn with_verify(self, verify: Verify) -> Self {
        Self { verify, ..self }
    }

    /// Asks `pins` from now on which objects must stay when room is made.
    pub fn set_pins(&self, pins: Arc<dyn Pins>) {
        *lock(&self.pins) = Some(pins);
    }

    /// Whether and when objects are hashed.
    pub fn verify(&self) -> Verify {
        self.verify
    }

    /// All objects and parts of objects on disk.
    ///
    /// # Errors
    /// [`StoreError`] where a directory cannot be read.
    pub fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        self.layout.survey()
    }

    /// The room on the store's file system.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be told.
    pub fn space(&self) -> Result<Space, StoreError> {
        let root = &self.layout.objects;
        self.disk.space(root).map_err(StoreError::io("ask for the room below", root))
    }

    /// What the store may use.
    pub fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// What is used, and what happened.
    pub fn usage(&self) -> StoreUsage {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreUsage {
            bytes: count(&self.used),
            evicted: count(&self.evicted),
            unkept: count(&self.unkept),
            damaged: count(&self.damaged),
        }
    }

    /// Whether the complete object is here, damaged or not.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        is_regular(&self.layout.object(key))
    }

    /// The complete object of at most 1 MiB and of `size` bytes; `None` where it is not here. It is
    /// hashed on its first use, and again after somebody has touched its file; a damaged one goes.
    pub fn get(&self, key: &ObjectKey, size: u64) -> Option<Arc<File>> {
        let proof = lock(&self.proven).get(key).copied().filter(|proof| proof.settled);
        let stamp = proof.map(|proof| proof.stamp);
        let handle = lock(&self.handles).get(key).cloned();
        if let Some(file) = handle.filter(|file| stamp.is_some() && Stamp::of(file) == stamp) {
            return stamp.is_some_and(|stamp| stamp.size == size).then_some(file);
        }
        let path = self.layout.object(key);
        let file = match open_regular(&path, Access::Read) {
            Ok(file) => file,
            Err(error) => {
                self.note_unreadable(key, &path, &error);
                return None;
            }
        };
        if Stamp::of(&file) != stamp {
            self.prove(key, size, &path, &file)?;
        }
        let file = Arc::new(file);
        lock(&self.handles).put(*key, file.clone());
        (file.metadata().ok()?.len() == size).then_some(file)
    }

    /// Hashes an object, and drops it if it is damaged. A file that is larger than a small object can
    /// be is a miss, and stays: it may be a large object that somebody took for a small one.
    fn prove(&self, key: &ObjectKey, size: u64, path: &Path, file: &File) -> Option<()> {
        if file.metadata().ok()?.len() > CHUNK {
            return None;
        }
        stamp::note_use(&*self.disk, file);
        let stamp = Stamp::of(file)?;
        let settled = stamp.is_settled(SystemTime::now());
        let is_doubted = self.verify == Verify::Boot || stamp.size != size;
        if is_doubted && !hashes_to(file, stamp.size, key) {
            self.drop_damaged(key, path);
            return None;
        }
        lock(&self.proven).put(*key, Proof { stamp, settled });
        Some(())
    }

    /// Something else than a file is no object; what cannot be opened just now is a miss.
    pub(super) fn note_unreadable(&self, key: &ObjectKey, path: &Path, error: &io::Error) {
        if is_damage(error) {
            self.drop_damaged(key, path);
        } else if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "cannot open an object");
        }
    }

    pub(super) fn drop_damaged(&self, key: &ObjectKey, path: &Path) {
        tracing::warn!(object = %key, path = %path.display(), "damaged object removed");
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.remove(Some(key), path);
    }

    /// Keeps `object`.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written; nothing of it stays.
    pub fn insert(&self, object: &Object) -> Result<(), StoreError> {
        let (path, size) = (self.layout.object(object.key()), object.bytes().len() as u64);
        match std::fs::symlink_metadata(&path) {
            Ok(file) if file.is_file() && file.len() == size => return Ok(()),
            Ok(file) if file.is_file() => self.drop_damaged(object.key(), &path),
            _ => {}
        }
        self.keep(size, || {
            let mut draft = self.draft()?;
            draft
                .append(object.bytes())
                .map_err(StoreError::io("write", &self.layout.temporary))?;
            self.place(draft, object.key())
        })
    }

    /// Carries out `step`, which keeps `size` bytes, where there is room or room can be made.
    pub(super) fn keep<T>(
        &self,
        size: u64,
        step: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let kept = self.admit(size).and_then(|()| match step() {
            Err(error) if error.is_full() && self.make_room(size)? >= size => step(),
            result => result,
        });
        if kept.as_ref().is_err_and(StoreError::is_full)
            && self.unkept.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!("no room in the object store: reading goes on without it");
        }
        kept
    }

    pub(super) fn draft(&self) -> Result<Draft, StoreError> {
        let directory = &self.layout.temporary;
        Draft::new(&self.disk, directory).map_err(StoreError::io("create a file in", directory))
    }

    /// Gives a draft the place of the object `key`, where somebody else may have put the same.
    pub(super) fn place(&self, draft: Draft, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.layout.object(key);
        let size = draft.file().metadata().map_or(0, |file| allocated(&file));
        let replaced = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                self.drop_damaged(key, &path);
                0
            }
            Ok(found) => allocated(&found),
            Err(_) => 0,
        };
        draft.place(&path).map_err(StoreError::io("rename to", &path))?;
        self.used.fetch_add(size, Ordering::Relaxed);
        self.release(replaced);
        Ok(())
    }

    /// Counts `size` bytes out.
    fn release(&self, size: u64) {
        let less = |used: u64| Some(used.saturating_sub(size));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Drops an object that was found by a survey; returns how many bytes became free.
    pub fn discard(&self, object: &Surveyed) -> u64 {
        if self.remove(object.key.as_ref(), &object.path) { object.allocated } else { 0 }
    }

    /// Removes a file of the store; whether that went well.
    pub(super) fn remove(&self, key: Option<&ObjectKey>, path: &Path) -> bool {
        if let Some(key) = key {
            lock(&self.handles).pop(key);
            lock(&self.proven).pop(key);
            lock(&self.partials).pop(key);
        }
        let size = std::fs::symlink_metadata(path).map_or(0, |file| allocated(&file));
        let removed = self.disk.remove(path).is_ok();
        if removed {
            self.release(size);
        }
        removed
    }
}

fn make_directories(disk: &dyn Disk, layout: &Layout) -> Result<(), StoreError> {
    let fans = (0..=255_u8).map(|first| layout.objects.join(format!("{first:02x}")));
    for directory in fans.chain([layout.partial.clone(), layout.temporary.clone()]) {
        if directory.is_dir() {
            continue;
        }
        if std::fs::symlink_metadata(&directory).is_ok() {
            disk.remove(&directory).map_err(StoreError::io("remove", &directory))?;
        }
        disk.make_dir(&directory).map_err(StoreError::io("create", &directory))?;
    }
    Ok(())
}

fn hashes_to(file: &File, size: u64, key: &ObjectKey) -> bool {
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut content, 0).is_ok() && ObjectKey::small(&content) == *key
}

/// The bytes that a file takes on its disk.
fn allocated(file: &Metadata) -> u64 {
    file.blocks() * 512
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
