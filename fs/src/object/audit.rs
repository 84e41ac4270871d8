//! Looking at objects that nobody asks for: each one is read from the disk and hashed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::store::Store;
use super::survey::{State, Surveyed};
use super::{CHUNK, LargeName, ObjectKey};
use crate::digest::Digest;
use crate::disk::{Access, is_damage, open_regular};

/// What an audit found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audited {
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Whether there was damage. It is gone, and a miss from now on.
    pub damaged: bool,
}

impl Store {
    /// Hashes a complete object. A damaged one goes; of a large one those chunks stay that a
    /// reader will find right.
    pub fn audit(&self, object: &Surveyed) -> Audited {
        let Some(key) = object.key.filter(|_| object.state == State::Complete) else {
            // A name that no object has.
            let damaged = object.key.is_none();
            if damaged {
                self.discard(object);
            }
            return Audited { bytes: 0, damaged };
        };
        let hashed = match open_regular(&object.path, Access::Read) {
            Ok(file) => key_of(&file),
            Err(error) if is_damage(&error) => None,
            // Evicted meanwhile, or not to be opened just now.
            Err(_) => return Audited::default(),
        };
        let damaged = hashed != Some(key);
        if damaged {
            match object.length > CHUNK {
                true => self.doubt_large(&key),
                false => self.drop_damaged(&key, &object.path),
            }
        }
        Audited { bytes: object.length, damaged }
    }

    /// Hashes what is here of an incomplete object. A damaged chunk becomes a hole; returns what
    /// was found and the damaged chunks, or `None` where the name is not right.
    pub fn audit_incomplete(&self, name: LargeName<'_>) -> Option<(Audited, Vec<usize>)> {
        let LargeName { key, size, chunks } = name;
        if !name.is_right() {
            return None;
        }
        let mut audited = Audited::default();
        let mut holes = Vec::new();
        let path = self.layout.incomplete(key);
        let Ok(file) = open_regular(&path, Access::Write) else { return Some((audited, holes)) };
        let mut buffer = Vec::new();
        for (number, digest) in chunks.iter().enumerate() {
            let start = number as u64 * CHUNK;
            let length = size.saturating_sub(start).min(CHUNK);
            if !has_data(&file, start, length) {
                continue;
            }
            audited.bytes += length;
            buffer.resize(length as usize, 0);
            let read = file.read_exact_at(&mut buffer, start);
            if read.is_ok() && Digest::of(&buffer) == *digest {
                continue;
            }
            audited.damaged = true;
            holes.push(number);
            if let Err(error) = self.disk.punch(&file, start, length) {
                tracing::warn!(path = %path.display(), %error, "cannot drop a damaged chunk");
            }
        }
        forget_pages(&file);
        Some((audited, holes))
    }
}

/// The key that the content of `file` has; `None` where it cannot be read.
fn key_of(file: &File) -> Option<ObjectKey> {
    let size = file.metadata().ok()?.len();
    let mut buffer = vec![0; size.min(CHUNK) as usize];
    let mut chunks = Vec::new();
    for start in (0..size.max(1)).step_by(CHUNK as usize) {
        buffer.truncate(size.saturating_sub(start).min(CHUNK) as usize);
        file.read_exact_at(&mut buffer, start).ok()?;
        if size <= CHUNK {
            forget_pages(file);
            return Some(ObjectKey::small(&buffer));
        }
        chunks.push(Digest::of(&buffer));
    }
    forget_pages(file);
    Some(ObjectKey::large(size, &chunks))
}

/// Whether the file holds anything but a hole in this range.
fn has_data(file: &File, start: u64, length: u64) -> bool {
    let Ok(offset) = i64::try_from(start) else { return false };
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => u64::try_from(data).is_ok_and(|data| data < start.saturating_add(length)),
        Err(nix::Error::ENXIO) => false,
        // A file system that cannot tell: what is a hole then counts as damage.
        Err(_) => true,
    }
}

/// An audit reads everything once: it must not push out of memory what is in use.
fn forget_pages(file: &File) {
    // Where that fails, the kernel forgets them in its own time.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}
