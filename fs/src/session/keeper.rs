//! The keeper: a small process that owns what must not die with a worker.
//!
//! It makes the mounts, holds their `/dev/fuse` descriptors and whatever else the caller wants
//! kept (a listening socket, a lock), starts the worker, hands it all of this and replaces it
//! when it dies. Between two workers it puts unanswered requests back into the queue; when that
//! lasts too long it answers them with EIO, so that nobody hangs.
//!
//! It has one thread, no runtime, and no knowledge of what is in the mounts; it never touches
//! them by path, because it would be waiting for its own worker.
//!
//! If the keeper itself is killed, its worker notices, detaches the mounts and exits. If both are
//! killed, the mounts stay in the mount table without a server: every access fails with ENOTCONN
//! until they are detached (`umount -l DIR`) or the next keeper for the same directory does it.

mod held;
mod watch;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::held::HeldMount;
use self::watch::{Death, Duty, Watch};
use super::SessionError;
use super::link::{History, Link, PROTOCOL, Start, ToKeeper, ToWorker};

pub use self::held::{MountKind, MountSpec};
pub use self::watch::RestartPolicy;

/// What a keeper keeps and starts.
#[derive(Debug)]
pub struct KeeperConfig {
    /// The mounts to make.
    pub mounts: Vec<MountSpec>,
    /// The program of the worker. It is started with the connection to its keeper as standard
    /// input; an upgrade replaces this path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Descriptors that every worker gets, by name.
    pub keepsakes: Vec<(String, OwnedFd)>,
    /// The directory of the objects that mounts in passthrough mode let the kernel read.
    pub store: PathBuf,
    /// How to deal with workers that die.
    pub policy: RestartPolicy,
    /// `FUSE_INIT` flags that may be used, as in [`fuser::InitFlags`]; all by default. Fewer make
    /// this kernel behave like an older one.
    pub init_mask: u64,
}

/// A keeper whose mounts are made.
#[derive(Debug)]
pub struct Keeper {
    // Dropped in order: the worker ends before its mounts do.
    worker: Option<Worker>,
    mounts: Vec<HeldMount>,
    keepsakes: Vec<(String, OwnedFd)>,
    program: PathBuf,
    /// The program before an upgrade, until the new one has proved itself.
    proven_program: Option<PathBuf>,
    arguments: Vec<OsString>,
    watch: Watch,
    history: History,
    signals: SignalFd,
}

/// A running worker, killed if its owner drops it.
#[derive(Debug)]
struct Worker {
    child: Child,
    /// `None` once it hung up.
    link: Option<Link>,
    /// Why it says that it cannot serve.
    complaint: Option<String>,
    /// It said that it will exit to make room for its successor.
    leaving: bool,
}

impl Keeper {
    /// Makes the mounts. Blocks SIGTERM, SIGINT and SIGCHLD in the calling thread, which must be
    /// the only one.
    ///
    /// # Errors
    /// [`SessionError`] if a mount cannot be made; those that were made are gone again.
    pub fn mount(config: KeeperConfig) -> Result<Self, SessionError> {
        let signals = wanted_signals().map_err(|errno| SessionError::system("signalfd", errno))?;
        let mounts = config
            .mounts
            .iter()
            .map(|spec| HeldMount::make(spec, &config.store, config.init_mask))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            worker: None,
            mounts,
            keepsakes: config.keepsakes,
            program: config.program,
            proven_program: None,
            arguments: config.arguments,
            watch: Watch::new(config.policy, Instant::now()),
            history: History::default(),
            signals,
        })
    }

    /// Keeps the mounts served until a worker says that it is done or SIGTERM or SIGINT arrives,
    /// then unmounts. `on_ready` is called once, when the first worker serves.
    ///
    /// # Errors
    /// [`SessionError`] if the first worker cannot serve, or if the system refuses what the
    /// keeper itself needs. The mounts are gone in either case.
    pub fn run(mut self, mut on_ready: impl FnMut()) -> Result<(), SessionError> {
        let mut proven = false;
        loop {
            let now = Instant::now();
            match self.watch.duty(now) {
                Duty::Start => self.start_worker(proven, now)?,
                Duty::Kill => {
                    self.kill_worker("it takes too long, or has fallen silent");
                    self.watch.condemned();
                }
                Duty::Wait => {}
            }
            if self.watch.answers(now) {
                self.mounts.iter_mut().for_each(HeldMount::answer);
            }
            self.wait(now)?;
            let now = Instant::now();
            self.read_mail(now);
            self.obey_signals(now)?;
            if !proven && self.watch.is_serving() {
                proven = true;
                on_ready();
            }
            self.bury_worker(proven, now)?;
            if self.watch.is_stopping() && self.worker.is_none() {
                return Ok(());
            }
        }
    }

    fn start_worker(&mut self, proven: bool, now: Instant) -> Result<(), SessionError> {
        match Worker::start(&self.program, &self.arguments) {
            Ok(mut worker) => {
                if let Err(error) = self.introduce(&worker) {
                    tracing::error!(%error, "cannot hand the mounts to the worker");
                    worker.link = None;
                }
                tracing::info!(pid = worker.child.id(), restarts = self.history.restarts, "worker");
                self.worker = Some(worker);
                self.watch.started(now);
                Ok(())
            }
            Err(source) => {
                let error = SessionError::StartWorker { program: self.program.clone(), source };
                if !proven {
                    return Err(error);
                }
                tracing::error!(error = &error as &dyn std::error::Error, "no worker");
                self.fall_back();
                self.watch.start_failed(now);
                Ok(())
            }
        }
    }

    /// Tells a new worker everything and gives it the descriptors.
    fn introduce(&self, worker: &Worker) -> std::io::Result<()> {
        let Some(link) = &worker.link else { return Ok(()) };
        let start = Start {
            protocol: PROTOCOL,
            history: self.history.clone(),
            mounts: self.mounts.iter().map(HeldMount::introduction).collect(),
            keepsakes: self.keepsakes.iter().map(|(name, _)| name.clone()).collect(),
        };
        let descriptors: Vec<BorrowedFd<'_>> = self
            .mounts
            .iter()
            .flat_map(HeldMount::descriptors)
            .chain(self.keepsakes.iter().map(|(_, fd)| fd.as_fd()))
            .collect();
        link.send(&ToWorker::Start(start), &descriptors)
    }

    /// Sleeps until a signal, a message or a request arrives or something is due.
    fn wait(&self, now: Instant) -> Result<(), SessionError> {
        let link = self.worker.as_ref().and_then(|worker| worker.link.as_ref());
        let mut fds: Vec<PollFd<'_>> = [self.signals.as_fd()]
            .into_iter()
            .chain(link.map(AsFd::as_fd))
            .chain(self.mounts.iter().filter_map(HeldMount::waiting_requests))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = self.watch.next_look(now).map_or(PollTimeout::NONE, |at| {
            // Rounded up to the next millisecond, or the last one would be spent spinning.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(SessionError::system("poll", errno)),
        }
    }

    fn read_mail(&mut self, now: Instant) {
        while let Some(message) = self.worker.as_mut().and_then(Worker::next_message) {
            match message {
                ToKeeper::Ready => self.worker_is_ready(now),
                ToKeeper::Alive => self.watch.alive(now),
                ToKeeper::Done => self.watch.stopping(now),
                ToKeeper::Replace { program } => self.plan_upgrade(program),
                ToKeeper::Failed { reason } => {
                    if let Some(worker) = &mut self.worker {
                        worker.complaint = Some(reason);
                    }
                }
            }
        }
    }

    fn plan_upgrade(&mut self, program: PathBuf) {
        tracing::info!(program = %program.display(), "the next worker");
        let present = std::mem::replace(&mut self.program, program);
        self.proven_program.get_or_insert(present);
        if let Some(worker) = &mut self.worker {
            worker.leaving = true;
        }
    }

    fn worker_is_ready(&mut self, now: Instant) {
        self.watch.ready(now);
        self.proven_program = None;
        self.mounts.iter_mut().for_each(HeldMount::stop_answering);
    }

    fn obey_signals(&mut self, now: Instant) -> Result<(), SessionError> {
        while let Some(info) =
            self.signals.read_signal().map_err(|errno| SessionError::system("signalfd", errno))?
        {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                self.watch.stopping(now);
                self.ask_worker_to_stop();
            }
        }
        Ok(())
    }

    fn ask_worker_to_stop(&mut self) {
        let Some(worker) = &self.worker else { return };
        let asked = worker.link.as_ref().map(|link| link.send(&ToWorker::Stop, &[]));
        if !matches!(asked, Some(Ok(()))) {
            self.kill_worker("it cannot be asked to stop");
        }
    }

    fn kill_worker(&mut self, reason: &str) {
        if let Some(worker) = &mut self.worker {
            tracing::warn!(pid = worker.child.id(), reason, "killing the worker");
            // It fails only for a child that has ended already.
            let _ = worker.child.kill();
        }
    }

    /// If the worker has ended: takes care of the requests it had in hand and of its succession.
    fn bury_worker(&mut self, proven: bool, now: Instant) -> Result<(), SessionError> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        let ended = worker.child.try_wait();
        let Some(status) = ended.map_err(|source| SessionError::System { call: "wait", source })?
        else {
            return Ok(());
        };
        let complaint = worker.complaint.take();
        let death = judge(status, worker.leaving);
        self.worker = None;
        if self.watch.is_stopping() {
            return Ok(());
        }
        self.mounts.iter().for_each(HeldMount::recall);
        let obituary = obituary(status, complaint.as_deref());
        if !proven && death == Death::Crash {
            return Err(SessionError::FirstWorker { reason: obituary });
        }
        tracing::warn!(obituary, "the worker is gone");
        if !self.watch.is_serving() {
            self.fall_back();
        }
        self.watch.died(death, now);
        self.history.restarts += 1;
        self.history.last_exit = Some(obituary);
        Ok(())
    }

    /// Gives up an upgrade whose program did not come up.
    fn fall_back(&mut self) {
        if let Some(program) = self.proven_program.take() {
            tracing::error!(
                failed = %self.program.display(), program = %program.display(),
                "the new program does not come up; back to the one before"
            );
            self.program = program;
        }
    }
}

impl Worker {
    fn start(program: &PathBuf, arguments: &[OsString]) -> std::io::Result<Self> {
        let (link, far) = Link::pair()?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(far))
            // Ctrl-C is for the keeper, which stops the worker in its own time.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, link: Some(link), complaint: None, leaving: false })
    }

    /// The next message, if there is one. A worker that hangs up or talks nonsense is killed.
    fn next_message(&mut self) -> Option<ToKeeper> {
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

fn wanted_signals() -> nix::Result<SignalFd> {
    let mask: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Whether the next worker may fare better than the one that ended with `status`.
fn judge(status: ExitStatus, leaving: bool) -> Death {
    match status.signal() {
        Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT) => Death::Harmless,
        _ if leaving && status.success() => Death::Harmless,
        _ => Death::Crash,
    }
}

/// How a worker ended, in words.
fn obituary(status: ExitStatus, complaint: Option<&str>) -> String {
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
