//! What a keeper leaves to the next one.
//!
//! ```text
//! keeper: Deposit::make -> descriptor store -> keeper ends -> next keeper: Estate::open
//!                                                              -> end_worker -> take_mounts
//! ```
//!
//! A FUSE connection ends with the last descriptor of its device, so a keeper that is killed would
//! take its mounts along. Where something keeps descriptors for a service across its restarts (the
//! descriptor store of systemd, `FileDescriptorStoreMax=`), the keeper leaves a copy of all of its
//! own there, each under a name. The next keeper receives them and goes on: programs that use the
//! mounts notice no more than a delay.
//!
//! ```text
//! will             memfd, JSON: the mounts, what was agreed about them, a note of the caller
//! worker           memfd, native byte order: magic "UMWORK01", process id, start time
//! device.MOUNT     the /dev/fuse of a mount
//! inflight.MOUNT   its table of requests in hand, if there is one
//! opens.MOUNT      its table of open files, if there is one
//! keep.NAME        a keepsake
//! ```
//!
//! No request may be answered twice. The next keeper therefore ends the worker of the previous one,
//! if that is still there, before it does anything else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::held::HeldMount;
use crate::session::link::StartMount;
use crate::session::shared::SharedWords;
use crate::session::{SessionError, detach};

const WILL: &str = "will";
const WORKER: &str = "worker";

/// The version of the will. A will of another version is refused.
const VERSION: u32 = 1;

/// Something that keeps descriptors for the process that follows this one.
pub trait DescriptorStore: std::fmt::Debug {
    /// Keeps a copy of `fd` under `name`, beside descriptors that already have that name.
    ///
    /// # Errors
    /// Where the store cannot be reached.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// Drops all descriptors that are kept under `name`.
    ///
    /// # Errors
    /// Where the store cannot be reached.
    fn close(&self, name: &str) -> io::Result<()>;

    /// Whether a successor will start and receive the descriptors, asked after this process was
    /// told to end.
    fn successor_follows(&self) -> bool;
}

#[derive(Debug, Serialize, Deserialize)]
struct Will {
    version: u32,
    mounts: Vec<Bequest>,
    keepsakes: Vec<String>,
    note: String,
}

/// A mount as it is left to the next keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Bequest {
    /// The mount as it is described to a worker.
    #[serde(flatten)]
    pub(super) mount: StartMount,
    /// The device number of its file system, `major:minor`, which tells whether it is still mounted
    /// on its directory.
    pub(super) device_number: String,
}

/// The names in the store of what belongs to a mount: here its device.
pub(super) fn device(mount: &str) -> String {
    format!("device.{mount}")
}

/// The name of its table of requests in hand.
pub(super) fn inflight(mount: &str) -> String {
    format!("inflight.{mount}")
}

/// The name of its table of open files.
pub(super) fn opens(mount: &str) -> String {
    format!("opens.{mount}")
}

fn keepsake(name: &str) -> String {
    format!("keep.{name}")
}

/// What the previous keeper left.
#[derive(Debug)]
pub struct Estate {
    will: Will,
    descriptors: BTreeMap<String, OwnedFd>,
}

impl Estate {
    /// Reads the will among `descriptors`.
    ///
    /// # Errors
    /// [`SessionError::Estate`] where there is none, or one that is not understood.
    pub fn open(mut descriptors: BTreeMap<String, OwnedFd>) -> Result<Self, SessionError> {
        let will = descriptors.remove(WILL).ok_or_else(|| unusable("there is no will"))?;
        let will = read_will(will).map_err(|error| unusable(format!("its will: {error}")))?;
        if will.version != VERSION {
            return Err(unusable(format!("its will has version {}, not {VERSION}", will.version)));
        }
        Ok(Self { will, descriptors })
    }

    /// The note that was passed to [`Keeper::entrust`](super::Keeper::entrust).
    pub fn note(&self) -> &str {
        &self.will.note
    }

    /// The directories that the mounts lie on.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.will.mounts.iter().map(|bequest| bequest.mount.dir.clone()).collect()
    }

    /// A copy of the keepsake `name`.
    ///
    /// # Errors
    /// [`SessionError::Estate`] where there is none, or no descriptor is left to copy it to.
    pub fn keepsake(&self, name: &str) -> Result<OwnedFd, SessionError> {
        let fd = self.descriptors.get(&keepsake(name));
        let copy = fd.map(|fd| fd.try_clone());
        copy.transpose().ok().flatten().ok_or_else(|| unusable(format!("it holds no {name}")))
    }

    /// Detaches the mounts instead of going on with them, and empties `store`.
    pub fn renounce(mut self, store: &dyn DescriptorStore) {
        if let Err(error) = self.end_worker() {
            tracing::warn!(%error, "the worker of the keeper before is still there");
        }
        detach_all(&self.dirs());
        for name in self.names() {
            forget(store, &name);
        }
    }

    /// All names under which something was left.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.descriptors.keys().map(String::as_str);
        names.chain([WILL, WORKER]).map(str::to_owned).collect()
    }

    /// Ends the worker of the previous keeper and waits until it is gone. Returns the note in which
    /// the next worker is to be written down.
    pub(super) fn end_worker(&mut self) -> Result<WorkerNote, SessionError> {
        let note = self.take(WORKER).and_then(|memory| {
            WorkerNote::open(memory).map_err(|error| unusable(error.to_string()))
        })?;
        note.end().map_err(|error| unusable(format!("its worker: {error}")))?;
        Ok(note)
    }

    /// Takes the mounts out of the estate, with what belongs to them.
    pub(super) fn take_mounts(&mut self) -> Result<Vec<HeldMount>, SessionError> {
        let bequests = std::mem::take(&mut self.will.mounts);
        let take = |bequest: Bequest| HeldMount::inherit(bequest, |name| self.take(name));
        bequests.into_iter().map(take).collect()
    }

    /// Takes the keepsakes out of the estate.
    pub(super) fn take_keepsakes(&mut self) -> Result<Vec<(String, OwnedFd)>, SessionError> {
        let names = std::mem::take(&mut self.will.keepsakes);
        names.into_iter().map(|name| Ok((name.clone(), self.take(&keepsake(&name))?))).collect()
    }

    fn take(&mut self, name: &str) -> Result<OwnedFd, SessionError> {
        self.descriptors.remove(name).ok_or_else(|| unusable(format!("it holds no {name}")))
    }
}

/// The error of an estate that cannot be used for this reason.
pub(super) fn unusable(reason: impl Into<String>) -> SessionError {
    SessionError::Estate { reason: reason.into() }
}

fn read_will(will: OwnedFd) -> io::Result<Will> {
    let mut file = File::from(will);
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Detaches what is mounted on `dirs`, and logs where that fails.
pub(super) fn detach_all(dirs: &[PathBuf]) {
    for dir in dirs {
        if let Err(error) = detach(dir) {
            tracing::error!(error = &error as &dyn std::error::Error, "mount stays behind");
        }
    }
}

fn forget(store: &dyn DescriptorStore, name: &str) {
    if let Err(error) = store.close(name) {
        tracing::warn!(name, %error, "a descriptor stays with the service manager");
    }
}

/// What this keeper has left in a store. Dropping it empties the store again.
#[derive(Debug)]
pub(super) struct Deposit {
    store: Arc<dyn DescriptorStore>,
    names: Vec<String>,
    worker: WorkerNote,
}

impl Deposit {
    /// Leaves a copy of everything in `store`, with `note` for the caller of the next keeper.
    pub(super) fn make(
        store: Arc<dyn DescriptorStore>,
        mounts: &[HeldMount],
        keepsakes: &[(String, OwnedFd)],
        note: String,
    ) -> io::Result<Self> {
        let will = Will {
            version: VERSION,
            mounts: mounts.iter().map(HeldMount::bequest).collect::<io::Result<_>>()?,
            keepsakes: keepsakes.iter().map(|(name, _)| name.clone()).collect(),
            note,
        };
        let mut file = File::from(memfd_create("undermount-will", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&will)?)?;
        let worker = WorkerNote::create()?;
        let mut deposit = Self { store, names: Vec::new(), worker };
        let memory = deposit.worker.0.memory().try_clone_to_owned()?;
        for (name, fd) in mounts.iter().flat_map(HeldMount::named_descriptors) {
            deposit.leave(name, fd)?;
        }
        for (name, fd) in keepsakes {
            deposit.leave(keepsake(name), fd.as_fd())?;
        }
        deposit.leave(WORKER.to_owned(), memory.as_fd())?;
        // Last: a keeper that finds a will finds the rest as well.
        deposit.leave(WILL.to_owned(), file.as_fd())?;
        Ok(deposit)
    }

    /// What the previous keeper left, which stays in `store` for the next one.
    pub(super) fn inherited(
        store: Arc<dyn DescriptorStore>,
        names: Vec<String>,
        worker: WorkerNote,
    ) -> Self {
        Self { store, names, worker }
    }

    fn leave(&mut self, name: String, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.store.keep(&name, fd)?;
        self.names.push(name);
        Ok(())
    }

    /// Notes which process serves the mounts now.
    pub(super) fn note_worker(&self, process: u32) {
        self.worker.write(process);
    }

    /// See [`DescriptorStore::successor_follows`].
    pub(super) fn successor_follows(&self) -> bool {
        self.store.successor_follows()
    }

    /// Leaves everything in the store, and notes that no worker runs.
    pub(super) fn stay(mut self) {
        self.worker.clear();
        self.names.clear();
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        // The will first: it must not name what is gone.
        for name in self.names.iter().rev() {
            forget(&*self.store, name);
        }
    }
}

/// Which process is the worker, for a keeper that is not its parent. The start time tells it from
/// another process that got the same id later.
#[derive(Debug)]
pub(super) struct WorkerNote(SharedWords);

impl WorkerNote {
    const MAGIC: &[u8; 8] = b"UMWORK01";
    const PROCESS: usize = 8;
    const START: usize = 16;
    const SIZE: usize = 24;
    /// How long a process that was killed may take to be gone.
    const GONE_WITHIN: Duration = Duration::from_secs(10);

    fn create() -> io::Result<Self> {
        SharedWords::create("undermount-worker", Self::MAGIC, Self::SIZE).map(Self)
    }

    fn open(memory: OwnedFd) -> io::Result<Self> {
        SharedWords::open(memory, Self::MAGIC, Self::SIZE).map(Self)
    }

    fn write(&self, process: u32) {
        let start = start_time(process).unwrap_or(0);
        self.0.word(Self::PROCESS).store(0, Ordering::Release);
        self.0.word(Self::START).store(start, Ordering::Release);
        self.0.word(Self::PROCESS).store(process.into(), Ordering::Release);
    }

    fn clear(&self) {
        self.0.word(Self::PROCESS).store(0, Ordering::Release);
    }

    /// Whether no worker is noted: the previous keeper ended as it should, after its worker.
    pub(super) fn is_clear(&self) -> bool {
        self.0.word(Self::PROCESS).load(Ordering::Acquire) == 0
    }

    /// Kills the process that is noted, if it is still there, and waits until it is gone.
    fn end(&self) -> io::Result<()> {
        let word = |offset| self.0.word(offset).load(Ordering::Acquire);
        let Ok(process) = u32::try_from(word(Self::PROCESS)) else { return Ok(()) };
        let start = word(Self::START);
        let end = Instant::now() + Self::GONE_WITHIN;
        // Another process that has got its number since has another start time.
        while process != 0 && start_time(process) == Some(start) {
            if Instant::now() >= end {
                return Err(io::Error::other(format!("process {process} does not end")));
            }
            // It fails only for a process that has just ended by itself.
            let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// When `process` was started, in clock ticks since boot (`starttime`, field 22 of
/// proc_pid_stat(5)); `None` for a process that has ended.
fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat"));
    let stat = stat.ok()?;
    // The command name in front is in parentheses and may hold anything, even `)`.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_process_that_is_noted_is_ended_and_no_other() {
        let note = WorkerNote::create().unwrap();
        note.end().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        note.write(child.id());
        let same = WorkerNote::open(note.0.memory().try_clone_to_owned().unwrap()).unwrap();
        same.end().unwrap();
        assert!(!child.wait().unwrap().success());

        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        note.write(other.id());
        // As if the number had been given to another process since.
        note.0.word(WorkerNote::START).fetch_add(1, Ordering::Relaxed);
        note.end().unwrap();
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn what_is_no_will_is_refused_with_the_reason() {
        let open = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let named = BTreeMap::from([(WILL.to_owned(), file.into())]);
            Estate::open(named).unwrap_err().to_string()
        };
        let newer = r#"{"version":2,"mounts":[],"keepsakes":[],"note":""}"#;
        assert!(open(newer).ends_with("its will has version 2, not 1"), "{}", open(newer));
        assert!(open("{").contains("its will: "), "{}", open("{"));
        let none = Estate::open(BTreeMap::new()).unwrap_err().to_string();
        assert!(none.ends_with("there is no will"), "{none}");
    }
}
