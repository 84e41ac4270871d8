//! A service manager, as far as one of its services sees of it: it hears what the service says,
//! keeps descriptors for it and hands them to its next process (sd_notify(3), sd_listen_fds(3)),
//! and `systemctl` tells what it is about to do.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tempfile::TempDir;

use crate::process::{Running, like};

/// The unit of its one service.
pub const UNIT: &str = "undermount-agent.service";

/// The first descriptor that a service is given.
const FIRST: RawFd = 3;
/// Above every descriptor that is handed over.
const ASIDE: RawFd = 100;

/// A service manager with one service.
pub struct Manager {
    dir: TempDir,
    store: Arc<Store>,
}

/// What it keeps, and where it hears of more.
struct Store {
    socket: UnixDatagram,
    kept: Mutex<Vec<(String, OwnedFd)>>,
}

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}

impl Manager {
    /// One that has nothing to do.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let systemctl = dir.path().join("systemctl");
        let jobs = dir.path().join("jobs");
        fs::write(&systemctl, format!("#!/bin/sh\nexec cat {}\n", jobs.display())).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(jobs, "").unwrap();
        let store = Arc::new(Store { socket, kept: Mutex::default() });
        let listener = Arc::downgrade(&store);
        // A queue of few messages must not hold up the service.
        thread::spawn(move || {
            while let Some(store) = listener.upgrade() {
                drop(store.read_mail());
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { dir, store }
    }

    /// What it is about to do with the unit: `stop`, `restart`.
    pub fn plan(&self, job: &str) {
        let jobs = format!("  7 {UNIT} {job} running\n");
        fs::write(self.dir.path().join("jobs"), jobs).unwrap();
    }

    /// Starts `command` as the service, with what it has kept for it.
    #[track_caller]
    pub fn start(&self, command: &Command) -> Running {
        let names = self.kept();
        // Whoever is to find its own number in its environment has to be there first.
        let mut service = Command::new("sh");
        service.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
        service.arg(command.get_program());
        let mut service = like(service, command);
        let path = std::env::var("PATH").unwrap_or_default();
        service.env("PATH", format!("{}:{path}", self.dir.path().display()));
        service.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        service.env("LISTEN_FDS", names.len().to_string());
        service.env("LISTEN_FDNAMES", names.join(":"));
        let kept = self.store.read_mail();
        let numbers: Vec<RawFd> = kept.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: it only duplicates descriptors, which is allowed between fork and exec.
        unsafe { service.pre_exec(move || place(&numbers)) };
        Running::start(&mut service)
    }

    /// The names of what it keeps by now.
    pub fn kept(&self) -> Vec<String> {
        self.store.read_mail().iter().map(|(name, _)| name.clone()).collect()
    }

    /// A file in which the service can be configured.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }
}

impl Store {
    /// Does what the service has asked for by now.
    fn read_mail(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((words, fd)) = self.next_message() {
            let value = |key: &str| words.lines().find_map(|line| line.strip_prefix(key));
            let name = value("FDNAME=").unwrap_or_default().to_owned();
            if value("FDSTOREREMOVE=") == Some("1") {
                kept.retain(|(known, _)| *known != name);
            } else if let (Some("1"), Some(fd)) = (value("FDSTORE="), fd) {
                kept.push((name, fd));
            }
        }
        kept
    }

    fn next_message(&self) -> Option<(String, Option<OwnedFd>)> {
        let mut bytes = [0; 4096];
        let mut space = cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags);
        let message = match message {
            Err(Errno::EAGAIN) => return None,
            other => other.unwrap(),
        };
        let fd = message.cmsgs().unwrap().find_map(|rights| match rights {
            // SAFETY: the kernel has just made it for this process.
            ControlMessageOwned::ScmRights(fds) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
            _ => None,
        });
        let length = message.bytes;
        Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), fd))
    }
}

/// Gives the descriptors the numbers from [`FIRST`] on, open across exec(2).
fn place(numbers: &[RawFd]) -> std::io::Result<()> {
    // All of them out of the way first: they may have each other's numbers.
    for (n, &number) in (ASIDE..).zip(numbers) {
        // SAFETY: both are plain numbers, and nothing in this process uses those above ASIDE.
        Errno::result(unsafe { libc::dup3(number, n, libc::O_CLOEXEC) })?;
    }
    for n in 0..numbers.len() as RawFd {
        // SAFETY: as above; what the numbers from FIRST on were is not needed any more.
        Errno::result(unsafe { libc::dup2(ASIDE + n, FIRST + n) })?;
    }
    Ok(())
}
