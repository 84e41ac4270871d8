//! What lies in the store's directories.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{ObjectKey, StoreError};
use crate::digest::Digest;

/// The directories of a store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Complete objects, in 256 directories by the first two digits of their keys.
    pub objects: PathBuf,
    /// Large objects of which chunks are missing.
    pub partial: PathBuf,
    /// Objects on their way.
    pub temporary: PathBuf,
}

impl Layout {
    /// The directories of the store in `root`.
    pub fn below(root: &Path) -> Self {
        let [objects, partial, temporary] =
            ["objects", "partial", "tmp"].map(|name| root.join(name));
        Self { objects, partial, temporary }
    }

    /// The place of a complete object.
    pub fn object(&self, key: &ObjectKey) -> PathBuf {
        let hex = key.hex();
        self.objects.join(&hex[..2]).join(hex)
    }

    /// The place of an incomplete object.
    pub fn incomplete(&self, key: &ObjectKey) -> PathBuf {
        self.partial.join(key.hex())
    }

    /// All objects and parts of objects.
    ///
    /// # Errors
    /// [`StoreError`] where a directory cannot be read.
    pub fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        let mut found = Vec::new();
        for directory in entries(&self.objects)? {
            self.survey_one(&directory, State::Complete, &mut found)?;
        }
        self.survey_one(&self.partial, State::Incomplete, &mut found)?;
        Ok(found)
    }

    fn survey_one(
        &self,
        directory: &Path,
        state: State,
        found: &mut Vec<Surveyed>,
    ) -> Result<(), StoreError> {
        for path in entries(directory)? {
            // What vanishes meanwhile was evicted or completed.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            found.push(Surveyed {
                key: Digest::from_hex(name).ok().map(ObjectKey::from_digest),
                state,
                length: metadata.len(),
                allocated: metadata.blocks() * 512,
                last_use: (metadata.mtime(), metadata.mtime_nsec()),
                path,
            });
        }
        Ok(())
    }
}

/// How much of an object a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of it.
    Complete,
    /// Some chunks.
    Incomplete,
}

/// A file of the store.
#[derive(Debug, Clone)]
pub struct Surveyed {
    /// The object; `None` for a name that no object has.
    pub key: Option<ObjectKey>,
    /// Whether all of it is there.
    pub state: State,
    /// Where.
    pub path: PathBuf,
    /// Bytes of the object.
    pub length: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// When it was used last: seconds and nanoseconds since 1970.
    pub last_use: (i64, i64),
}

impl Surveyed {
    /// Whether it was used last before `time`.
    pub fn is_older_than(&self, time: SystemTime) -> bool {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        self.last_use < (seconds, since.subsec_nanos().into())
    }
}

/// The paths in a directory; none where it is missing or not one.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    match listed {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(Vec::new())
        }
        listed => listed.map_err(StoreError::io("read", directory)),
    }
}
