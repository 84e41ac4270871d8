//! A disk whose power is cut between two steps.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use undermount_fs::disk::{Disk, LocalDisk, Space};

/// What the disk makes of what was written but not synced when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is there: only the process died.
    Nothing,
    /// The files are empty.
    Emptied,
    /// The files have their sizes and hold zeros.
    Zeroed,
}

/// Carries out so many steps, then no more. A write is two steps, each of a half.
pub struct Cut {
    steps: AtomicUsize,
    limit: usize,
    unsynced: Mutex<HashMap<u64, File>>,
}

impl Cut {
    pub fn after(limit: usize) -> Self {
        Self { steps: AtomicUsize::new(0), limit, unsynced: Mutex::default() }
    }

    /// How many steps were asked for.
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// Lets what was not synced suffer `loss`.
    pub fn lose(&self, loss: Loss) {
        for file in self.unsynced.lock().unwrap().values() {
            let size = file.metadata().unwrap().len();
            if loss != Loss::Nothing {
                file.set_len(0).unwrap();
            }
            if loss == Loss::Zeroed {
                file.set_len(size).unwrap();
            }
        }
    }

    fn step(&self) -> io::Result<()> {
        if self.steps.fetch_add(1, Ordering::SeqCst) < self.limit {
            Ok(())
        } else {
            Err(io::Error::other("the power is off"))
        }
    }

    fn note(&self, file: &File) {
        let inode = file.metadata().unwrap().ino();
        let path =
            PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
        let own = OpenOptions::new().write(true).open(path).unwrap();
        self.unsynced.lock().unwrap().entry(inode).or_insert(own);
    }
}

impl Disk for Cut {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        LocalDisk.make_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        LocalDisk.create(path)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let half = bytes.len() / 2;
        self.step()?;
        self.note(file);
        file.write_all_at(&bytes[..half], offset)?;
        self.step()?;
        file.write_all_at(&bytes[half..], offset + half as u64)
    }

    fn set_len(&self, file: &File, size: u64) -> io::Result<()> {
        self.step()?;
        LocalDisk.set_len(file, size)
    }

    fn punch(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        self.step()?;
        LocalDisk.punch(file, offset, length)
    }

    fn set_modified(&self, file: &File, time: SystemTime) -> io::Result<()> {
        self.step()?;
        LocalDisk.set_modified(file, time)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step()?;
        self.unsynced.lock().unwrap().remove(&file.metadata()?.ino());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        LocalDisk.remove(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        LocalDisk.space(path)
    }
}
