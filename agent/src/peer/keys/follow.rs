//! Keys that follow their file: every 5 s its stamp is compared, and a new file is read.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ClusterKeys, KeyFile};

/// The pause between two looks at the file.
const PAUSE: Duration = Duration::from_secs(5);

/// Replaces `keys` by what the file at `path` holds whenever the file was replaced, for as long as
/// this is polled. A file that cannot be used changes nothing and is logged.
pub async fn follow(keys: ClusterKeys, path: PathBuf) {
    let mut seen = stamp(&path);
    loop {
        tokio::time::sleep(PAUSE).await;
        look(&keys, &path, &mut seen);
    }
}

/// Reads the file if it is not the one that was seen last.
fn look(keys: &ClusterKeys, path: &Path, seen: &mut Option<Stamp>) {
    let now = stamp(path);
    if now != std::mem::replace(seen, now) {
        take(keys, path);
    }
}

/// Inode, time of the last change and length of a file.
type Stamp = (u64, i64, i64, u64);

fn take(keys: &ClusterKeys, path: &Path) {
    match KeyFile::read(path) {
        Ok(file) if keys.replace(&file) => {
            tracing::info!(keys = ?keys.ids(), "the cluster key was replaced");
        }
        Ok(_) => {}
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the cluster key stays as it was");
        }
    }
}

/// What changes when a file is replaced; `None` where there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::super::SecretKey;
    use super::*;

    #[test]
    fn a_replaced_file_is_used_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
        file.write(&path).unwrap();
        let (keys, mut seen) = (ClusterKeys::new(&file), stamp(&path));
        let mut look = || {
            look(&keys, &path, &mut seen);
            keys.ids().len()
        };
        assert_eq!(look(), 1);
        file.rotate(SecretKey::from_bytes([2; 32]));
        file.write(&path).unwrap();
        assert_eq!(look(), 2);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(), 2);
        std::fs::write(&path, "no key").unwrap();
        assert_eq!(look(), 2);
    }
}
