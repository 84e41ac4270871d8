//! Telling whether a file was touched.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

/// An object's time of last use is written down when it is older than this, in seconds.
const USE_GRANULARITY: i64 = 60;

/// What changes when somebody touches a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    /// Bytes in the file.
    pub size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of `file` now; `None` where it cannot be asked for.
    pub fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some(Self { inode: metadata.ino(), size: metadata.len(), changed })
    }
}

/// Writes down that an object is used. The modification time holds that: its content never
/// changes.
pub fn note_use(file: &File) {
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let last = file.metadata().map_or(0, |metadata| metadata.mtime());
    let age = i64::try_from(since.as_secs()).unwrap_or(i64::MAX) - last;
    if !(0..USE_GRANULARITY).contains(&age) {
        // Without it, the object is only evicted earlier than it could be.
        let _ = file.set_modified(now);
    }
}
