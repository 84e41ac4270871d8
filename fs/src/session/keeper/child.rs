//! The process of a worker, as its keeper sees it: start, messages, end.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::task::Poll;

use nix::sys::signal::Signal;

use super::watch::Death;
use crate::session::link::{Link, ToKeeper};

/// A running worker, killed if its owner drops it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) child: Child,
    /// The connection to it; `None` once it hung up.
    pub(super) link: Option<Link>,
    /// Why it cannot serve, in its own words.
    pub(super) complaint: Option<String>,
    /// Whether it has said that it will exit to make room for its successor.
    pub(super) leaving: bool,
}

impl Worker {
    /// Starts a worker, which waits on standard input for [`ToWorker::Start`].
    ///
    /// [`ToWorker::Start`]: crate::session::link::ToWorker::Start
    pub(super) fn start(program: &PathBuf, arguments: &[OsString]) -> std::io::Result<Self> {
        let (link, far) = Link::pair()?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(far))
            // Ctrl-C is for the keeper, which stops the worker in its own time.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, link: Some(link), complaint: None, leaving: false })
    }

    /// The next message, if there is one. A worker that hangs up or sends something unreadable is
    /// killed.
    pub(super) fn next_message(&mut self) -> Option<ToKeeper> {
        let reason = match self.link.as_ref()?.try_receive() {
            Ok(Poll::Ready(Some((message, _)))) => return Some(message),
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(None)) => "it has hung up".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(pid = self.child.id(), reason, "lost the worker");
        self.link = None;
        // It fails only for a child that has ended already.
        let _ = self.child.kill();
        None
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a child that is gone and buried.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the end of a worker says about the next one. SIGKILL, SIGTERM and SIGINT come from outside;
/// every other end is a crash, but for a success that the worker had announced (`leaving`).
pub(super) fn judge(status: ExitStatus, leaving: bool) -> Death {
    match status.signal() {
        Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT) => Death::Harmless,
        _ if leaving && status.success() => Death::Harmless,
        _ => Death::Crash,
    }
}

/// How a worker ended, in words: its own complaint, or else its signal or exit status.
pub(super) fn obituary(status: ExitStatus, complaint: Option<&str>) -> String {
    match (complaint, status.signal().map(Signal::try_from)) {
        (Some(complaint), _) => complaint.to_owned(),
        (None, Some(Ok(signal))) => format!("the worker was ended by {signal}"),
        (None, _) => format!("the worker ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obituary_prefers_the_workers_own_words() {
        let killed = ExitStatus::from_raw(libc::SIGKILL);
        let failed = ExitStatus::from_raw(3 << 8);
        assert_eq!(obituary(killed, None), "the worker was ended by SIGKILL");
        assert_eq!(obituary(failed, None), "the worker ended with exit status: 3");
        assert_eq!(obituary(failed, Some("no room")), "no room");
    }

    #[test]
    fn only_faults_of_its_own_count_as_crashes() {
        let judge = |status, leaving| judge(ExitStatus::from_raw(status), leaving);
        assert_eq!(judge(libc::SIGKILL, false), Death::Harmless);
        assert_eq!(judge(0, true), Death::Harmless);
        assert_eq!(judge(0, false), Death::Crash, "nobody asked it to go");
        assert_eq!(judge(libc::SIGSEGV, true), Death::Crash);
        assert_eq!(judge(1 << 8, true), Death::Crash);
    }
}
