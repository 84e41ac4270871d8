//! The directory that a registry serves. No HTTP here.
//!
//! ```text
//! <root>/VERSION                                   the format's number
//!        LOCK                                      held (flock) by the one process that serves
//!        uploads/<session>, *.tmp                  what is not finished; emptied at start
//!        blobs/<algorithm>/<2 digits>/<hex>        every blob and manifest, once
//!        repositories/<name>/_blobs/<alg>-<hex>            empty: the repository has the blob
//!                           /_manifests/<alg>-<hex>        the manifest's media type
//!                           /_tags/<tag>                   the digest it points to
//!                           /_referrers/<subject>/<alg>-<hex>   descriptor of a referrer
//!                           /_profiles/<name>.json         what starts of its images read
//!        indexes/v<format>/<hex of layer>          where the index of a layer is, as JSON
//! ```
//!
//! A blob gets its name only when all its bytes are on disk and hash to it, a repository knows
//! a manifest only when everything below it is there. So a crash at any moment leaves complete
//! files, or nothing that is served. A push is acknowledged by its manifest: when that returns,
//! it and all its blobs survive a power cut.

mod blobs;
mod durable;
mod indexes;
mod repositories;
mod sweep;
#[cfg(test)]
pub mod testing;
mod upload;
mod usage;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::name::Repository;
use durable::Dirs;
use usage::Usage;

pub use blobs::{Blob, open_blob};
pub use durable::{list, read};
pub use repositories::{Referrer, StoredManifest};
pub use sweep::{Aged, Sweep};
pub use upload::{CommitError, Mark, Upload};

/// The format that this version writes.
const VERSION: u32 = 1;
/// Repositories share so many locks.
const LOCKS: usize = 64;

/// The storage of a registry.
#[derive(Debug)]
pub struct Storage {
    root: PathBuf,
    dirs: Dirs,
    /// Changes to a repository's links exclude each other; which lock is chosen by its name.
    locks: [Mutex<()>; LOCKS],
    usage: Usage,
    _lock: Flock<File>,
}

/// The right to change what a repository has; nobody else has it meanwhile.
pub struct Change<'a> {
    storage: &'a Storage,
    repository: &'a Repository,
    _turn: MutexGuard<'a, ()>,
}

/// Why the storage could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Another process serves the directory.
    #[error("`{}` is served by another registry process", root.display())]
    InUse {
        /// The registry's directory.
        root: PathBuf,
    },
    /// A newer version wrote the directory.
    #[error("`{}` has format {found}, this version knows {VERSION}: use a newer undermount",
        root.display())]
    Newer {
        /// The registry's directory.
        root: PathBuf,
        /// The format it has.
        found: u32,
    },
    /// The directory holds something else.
    #[error("`{}` holds other files: a registry wants an empty directory or its own", root.display())]
    Foreign {
        /// The directory.
        root: PathBuf,
    },
    /// The directory holds no registry.
    #[error("`{}` is no registry's directory: it has no file `VERSION`", root.display())]
    Missing {
        /// The directory.
        root: PathBuf,
    },
    /// The directory holds no tree that an Apache could serve.
    #[error("`{}` is no image-serve tree: it has no directory `v2`", root.display())]
    NoTree {
        /// The directory.
        root: PathBuf,
    },
    /// A file does not hold what the registry wrote there.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl StorageError {
    /// Wraps the refusal to do `action` to `path`; for `map_err`.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl Storage {
    /// Opens the registry at `root`, made if there is none, and clears what a former process
    /// left unfinished.
    ///
    /// # Errors
    /// [`StorageError`]; in particular `InUse`, `Newer` and `Foreign`.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        fs::create_dir_all(root).map_err(StorageError::io("make", root))?;
        let root = root.canonicalize().map_err(StorageError::io("open", root))?;
        let ours = check_version(&root)?;
        let lock = lock(&root)?;
        let dirs = Dirs::new(root.join("uploads"));
        for dir in ["uploads", "blobs", "repositories"] {
            dirs.ensure(&root.join(dir))?;
        }
        clear(&root.join("uploads"))?;
        if !ours {
            dirs.write(&root.join("VERSION"), format!("{VERSION}\n").as_bytes())?;
        }
        let locks = std::array::from_fn(|_| Mutex::new(()));
        Ok(Self { root, dirs, locks, usage: Usage::default(), _lock: lock })
    }

    /// Opens the registry at `root`, which must be there.
    ///
    /// # Errors
    /// [`StorageError`]; in particular `InUse`, `Newer` and `Missing`.
    pub fn open_existing(root: &Path) -> Result<Self, StorageError> {
        if !root.join("VERSION").is_file() {
            return Err(StorageError::Missing { root: root.to_owned() });
        }
        Self::open(root)
    }

    /// Where profiles of the repository's images are kept.
    pub fn profiles_dir(&self, repository: &Repository) -> PathBuf {
        self.repository_path(repository).join("_profiles")
    }

    /// A directory for what is not finished, emptied at the next start.
    pub fn uploads_dir(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// Waits for the right to change `repository`. A lock protects no memory, so one poisoned by
    /// a panic is as good as any.
    pub fn change<'a>(&'a self, repository: &'a Repository) -> Change<'a> {
        let sum = repository
            .as_str()
            .bytes()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let lock = self.locks.get(sum % LOCKS).unwrap_or(&self.locks[0]);
        let turn = lock.lock().unwrap_or_else(PoisonError::into_inner);
        Change { storage: self, repository, _turn: turn }
    }
}

/// Whether `root` is a registry's directory already; an empty one is not, but may become one.
fn check_version(root: &Path) -> Result<bool, StorageError> {
    let path = root.join("VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if may_become_ours(root)? {
                Ok(false)
            } else {
                Err(StorageError::Foreign { root: root.to_owned() })
            };
        }
        Err(error) => return Err(StorageError::io("read", &path)(error)),
    };
    let damaged = |_| StorageError::Damaged { path: path.clone(), reason: format!("`{text}`") };
    match text.trim().parse::<u32>().map_err(damaged)? {
        VERSION => Ok(true),
        found => Err(StorageError::Newer { root: root.to_owned(), found }),
    }
}

/// Whether `root` holds nothing but what a file system puts there, or what a first start made
/// that was killed before it wrote VERSION.
fn may_become_ours(root: &Path) -> Result<bool, StorageError> {
    let harmless = ["lost+found", "LOCK", "uploads", "blobs", "repositories"];
    for entry in fs::read_dir(root).map_err(StorageError::io("list", root))? {
        let entry = entry.map_err(StorageError::io("list", root))?;
        if !harmless.iter().any(|name| entry.file_name() == *name) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(root: &Path) -> Result<Flock<File>, StorageError> {
    let path = root.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(StorageError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            StorageError::InUse { root: root.to_owned() }
        } else {
            StorageError::io("lock", &path)(errno.into())
        }
    })
}

/// Removes everything in `uploads`: the sessions that files belong to, and the packs that
/// directories are for, ended with their process.
fn clear(uploads: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(uploads).map_err(StorageError::io("list", uploads))? {
        let entry = entry.map_err(StorageError::io("list", uploads))?;
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(StorageError::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_serves_a_root() {
        let root = tempfile::tempdir().unwrap();
        let first = Storage::open(root.path()).unwrap();
        let error = Storage::open(root.path()).unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
        drop(first);
        Storage::open(root.path()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused() {
        let root = tempfile::tempdir().unwrap();
        drop(Storage::open(root.path()).unwrap());
        fs::write(root.path().join("VERSION"), "2\n").unwrap();
        let error = Storage::open(root.path()).unwrap_err();
        assert!(matches!(error, StorageError::Newer { found: 2, .. }), "{error}");
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("notes.txt"), "mine").unwrap();
        let error = Storage::open(root.path()).unwrap_err();
        assert!(matches!(error, StorageError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing was added");
    }

    #[test]
    fn a_first_start_that_was_killed_can_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("uploads")).unwrap();
        fs::write(root.path().join("LOCK"), "").unwrap();
        Storage::open(root.path()).unwrap();
    }

    #[test]
    fn leftovers_of_a_killed_process_are_cleared_at_start() {
        let root = tempfile::tempdir().unwrap();
        drop(Storage::open(root.path()).unwrap());
        let left = root.path().join("uploads/0123456789abcdef0123456789abcdef");
        fs::write(&left, "half a lay").unwrap();
        let pack = root.path().join("uploads/undermount-pack-x1");
        fs::create_dir_all(pack.join("blobs")).unwrap();
        fs::write(pack.join("blobs/part"), "half a pa").unwrap();
        Storage::open(root.path()).unwrap();
        assert!(!left.exists() && !pack.exists());
    }
}
