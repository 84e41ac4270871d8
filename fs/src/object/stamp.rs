//! Telling whether a file was touched.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::disk::Disk;

/// An object's time of last use is written down when it is older than this, in seconds.
const USE_GRANULARITY: i64 = 60;

/// Kernels before 6.13 take a change's time from a clock that ticks this slowly at most: two
/// changes within a tick look like one.
const TICK: Duration = Duration::from_millis(20);

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

    /// Whether a change of the file at `now` or later gives it another stamp.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH);
        let (Ok(now), Ok(seconds), Ok(nanos)) =
            (since(now), u64::try_from(self.changed.0), u32::try_from(self.changed.1))
        else {
            return false;
        };
        now > Duration::new(seconds, nanos) + TICK
    }
}

/// Writes down that an object is used. The modification time holds that: its content never
/// changes.
pub fn note_use(disk: &dyn Disk, file: &File) {
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let last = file.metadata().map_or(0, |metadata| metadata.mtime());
    let age = i64::try_from(since.as_secs()).unwrap_or(i64::MAX) - last;
    if !(0..USE_GRANULARITY).contains(&age) {
        // Without it, the object is only evicted earlier than it could be.
        let _ = disk.set_modified(file, now);
    }
}
