//! A unit of systemd, and the descriptors that it keeps for the processes of its service.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use undermount_fs::session::keeper::DescriptorStore;

use super::manager::Manager;
use super::program;

/// The first descriptor that a manager hands over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// How long systemctl(1) may take to tell what is to become of the unit.
const PATIENCE: Duration = Duration::from_secs(5);

/// The unit that this process is the main process of.
#[derive(Debug)]
pub struct Unit {
    name: String,
    manager: Manager,
}

impl Unit {
    /// The unit `name`, whose manager is `manager`.
    pub fn new(name: String, manager: Manager) -> Self {
        Self { name, manager }
    }
}

impl DescriptorStore for Unit {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.manager.keep(name, fd)
    }

    fn close(&self, name: &str) -> io::Result<()> {
        self.manager.close(name)
    }

    /// Asked for while the unit is being stopped, which is also the first half of a restart: only
    /// the manager's job tells the two apart. Without a job somebody has just sent a signal, and
    /// the unit is started again (`Restart=always`). Who cannot be asked gets no benefit of the
    /// doubt: mounts that nobody serves keep podman from working.
    fn successor_follows(&self) -> bool {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["list-jobs", "--plain", "--no-legend", "--no-pager"]);
        match program::run(&mut systemctl, PATIENCE) {
            Ok(Some(output)) if output.status.success() => {
                !is_stopped(&self.name, &String::from_utf8_lossy(&output.stdout))
            }
            Ok(output) => {
                tracing::warn!(?output, "systemctl does not tell whether this is a restart");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "systemctl does not run");
                false
            }
        }
    }
}

/// Whether the jobs, one a line (`ID UNIT TYPE STATE`), include one that stops `unit` for good.
fn is_stopped(unit: &str, jobs: &str) -> bool {
    let fields = |line: &str| -> Option<(String, String)> {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    jobs.lines().filter_map(fields).any(|(name, kind)| name == unit && kind == "stop")
}

/// The descriptors that a manager has handed to this process (sd_listen_fds(3)): `count` of them,
/// with `names` between colons. Of two with one name the last counts.
///
/// To be called once, with what the manager says, before anything else is opened.
pub fn take_descriptors(count: usize, names: &str) -> BTreeMap<String, OwnedFd> {
    let numbers = (FIRST..).take(count);
    numbers.zip(names.split(':')).filter_map(|(fd, name)| Some((name.into(), take(fd)?))).collect()
}

fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the manager has opened this descriptor for this process, where nobody else knows
    // of it; one that is not open is only asked for its flags.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: as above, and it is open.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_told_from_a_stop() {
        let jobs =
            |kind: &str| format!("  71 podman.service stop waiting\n 7 a.service {kind} running\n");
        for (kind, stopped) in [("stop", true), ("restart", false), ("start", false)] {
            assert_eq!(is_stopped("a.service", &jobs(kind)), stopped, "{kind}");
        }
        assert!(!is_stopped("a.service", "No jobs running.\n"));
        assert!(!is_stopped("a.service", ""));
    }

    #[test]
    fn what_is_not_open_is_not_handed_over() {
        // Far above what a test has open.
        assert!(take(1 << 19).is_none());
    }
}
