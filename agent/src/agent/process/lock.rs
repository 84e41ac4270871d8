//! The lock of a cache directory: who holds it is its owner.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use undermount_fs::session::keeper::Estate;

use super::{LOCK, ProcessError};
use crate::agent::cache::CacheError;

/// The one and only owner of a cache directory, for as long as this lives.
pub struct CacheLock {
    /// The cache directory without symbolic links.
    pub cache: PathBuf,
    lock: Flock<File>,
}

impl CacheLock {
    /// Makes the cache directory where it is missing, and becomes its owner.
    ///
    /// # Errors
    /// [`ProcessError`] where it cannot be used, or somebody else owns it.
    pub fn take(cache: &Path) -> Result<Self, ProcessError> {
        let unusable = |source| CacheError::Io { path: cache.to_owned(), source };
        std::fs::create_dir_all(cache).map_err(unusable)?;
        let cache = cache.canonicalize().map_err(unusable)?;
        let file = File::create(cache.join("lock")).map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { cache, lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(ProcessError::Owned { cache }),
            Err((_, errno)) => Err(unusable(errno.into()).into()),
        }
    }

    /// The lock that the keeper before has left in `estate`, on the cache directory `cache`.
    ///
    /// # Errors
    /// [`ProcessError`] where it is not there.
    pub fn inherit(estate: &Estate, cache: &Path) -> Result<Self, ProcessError> {
        let cache = cache.to_owned();
        // It is held already; asking for it again changes nothing.
        match Flock::lock(File::from(estate.keepsake(LOCK)?), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { cache, lock }),
            Err(_) => Err(ProcessError::Owned { cache }),
        }
    }

    /// A descriptor that keeps the lock also when this process is gone.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.lock.as_fd().try_clone_to_owned()
    }
}
