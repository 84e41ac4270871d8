//! The keeper: a small process that owns what must not die with a worker.
//!
//! ```text
//! mount, or inherit what the previous keeper left
//!   -> run: start a worker -> hand it the mounts -> poll: messages, signals, exit of the worker
//!             ^                                       | worker died: requests back into the queue;
//!             `---------------------------------------'   none serves for too long: EIO
//!   -> unmount, or leave the mounts to the next keeper
//! ```
//!
//! It makes the mounts, holds their `/dev/fuse` descriptors and whatever else the caller wants kept
//! (a listening socket, a lock), and replaces the worker when it dies.
//!
//! The keeper has one thread, no runtime, and no knowledge of what is in the mounts. It never
//! touches them by path, since such a request would wait for its own worker.
//!
//! If the keeper itself is killed, its worker notices, detaches the mounts and exits. If both are
//! killed, the mounts stay in the mount table without a server: every access fails with ENOTCONN
//! until they are detached (`umount -l DIR`) or the next keeper for the same directory does it.
//!
//! A keeper that has [entrusted](Keeper::entrust) its descriptors to a store leaves the mounts to
//! the next keeper instead, which [goes on](Keeper::inherit) with them. This happens when the
//! keeper is killed, and when SIGTERM arrives while the store says that a successor follows.

mod child;
mod estate;
mod held;
mod succession;
mod watch;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::child::Worker;
use self::estate::Deposit;
use self::held::HeldMount;
use self::watch::{Duty, Watch};
use super::SessionError;
use super::link::{History, ToKeeper, ToWorker};

pub use self::estate::{DescriptorStore, Estate};
pub use self::held::{MountKind, MountSpec};
pub use self::watch::RestartPolicy;

/// What a keeper keeps and starts.
#[derive(Debug)]
pub struct KeeperConfig {
    /// The mounts to make.
    pub mounts: Vec<MountSpec>,
    /// What serves them.
    pub worker: WorkerConfig,
    /// Further descriptors that every worker gets, by name.
    pub keepsakes: Vec<(String, OwnedFd)>,
    /// The directory of the object store, for mounts in passthrough mode.
    pub store: PathBuf,
    /// `FUSE_INIT` flags that may be used, as in [`fuser::InitFlags`]; all of them by default. A
    /// smaller mask makes this kernel behave like an older one.
    pub init_mask: u64,
    /// The SELinux context of all files in the mounts (`context=` of mount(8)); with `None` the
    /// policy labels them.
    pub context: Option<String>,
}

/// How workers are started, and started again.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The program of the worker. It is started with the connection to its keeper as standard
    /// input; an upgrade replaces this path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How to deal with workers that die.
    pub policy: RestartPolicy,
}

/// What has become of the mounts when a keeper ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// They are gone.
    Unmounted,
    /// They wait for the next keeper.
    HandedOver,
}

/// A keeper whose mounts are made.
#[derive(Debug)]
pub struct Keeper {
    // Dropped in order: the worker ends before its mounts do.
    worker: Option<Worker>,
    mounts: Vec<HeldMount>,
    /// What lies in the descriptor store; `None` where nothing was entrusted.
    deposit: Option<Deposit>,
    /// Whether the next keeper goes on with the mounts once this one has ended.
    hands_over: bool,
    keepsakes: Vec<(String, OwnedFd)>,
    program: PathBuf,
    /// The program before an upgrade, until a worker of the new one is ready.
    proven_program: Option<PathBuf>,
    arguments: Vec<OsString>,
    watch: Watch,
    history: History,
    signals: SignalFd,
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
            .map(|spec| HeldMount::make(spec, &config))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(mounts, config.keepsakes, config.worker, signals))
    }

    /// Goes on with what the previous keeper left in `store`, after ending its worker.
    ///
    /// # Errors
    /// [`SessionError`] where that is not possible; the mounts are detached then.
    pub fn inherit(
        estate: Estate,
        worker: WorkerConfig,
        store: Arc<dyn DescriptorStore>,
    ) -> Result<Self, SessionError> {
        let dirs = estate.dirs();
        let inherited = Self::try_inherit(estate, worker, store);
        if inherited.is_err() {
            estate::detach_all(&dirs);
        }
        inherited
    }

    fn try_inherit(
        mut estate: Estate,
        worker: WorkerConfig,
        store: Arc<dyn DescriptorStore>,
    ) -> Result<Self, SessionError> {
        let signals = wanted_signals().map_err(|errno| SessionError::system("signalfd", errno))?;
        let names = estate.names();
        let before = estate.end_worker()?;
        let last_exit = if before.is_clear() { History::HANDED_OVER } else { History::KEEPER_LOST };
        let deposit = Deposit::inherited(store, names, before);
        let mounts = estate.take_mounts()?;
        mounts.iter().for_each(HeldMount::recall);
        let mut keeper = Self::new(mounts, estate.take_keepsakes()?, worker, signals);
        keeper.deposit = Some(deposit);
        keeper.history = History { restarts: 1, last_exit: Some(last_exit.to_owned()) };
        Ok(keeper)
    }

    fn new(
        mounts: Vec<HeldMount>,
        keepsakes: Vec<(String, OwnedFd)>,
        worker: WorkerConfig,
        signals: SignalFd,
    ) -> Self {
        Self {
            worker: None,
            mounts,
            deposit: None,
            hands_over: false,
            keepsakes,
            program: worker.program,
            proven_program: None,
            arguments: worker.arguments,
            watch: Watch::new(worker.policy, Instant::now()),
            history: History::default(),
            signals,
        }
    }

    /// Leaves a copy of all descriptors in `store`, so that the mounts outlive this process; the
    /// next keeper finds `note` with them.
    ///
    /// # Errors
    /// [`SessionError::Deposit`]; nothing is left there then.
    pub fn entrust(
        &mut self,
        store: Arc<dyn DescriptorStore>,
        note: String,
    ) -> Result<(), SessionError> {
        let deposit = Deposit::make(store, &self.mounts, &self.keepsakes, note);
        self.deposit = Some(deposit.map_err(|source| SessionError::Deposit { source })?);
        Ok(())
    }

    /// Keeps the mounts served until a worker says that it is done or SIGTERM or SIGINT arrives,
    /// then unmounts, unless the next keeper goes on with them. `on_ready` is called once, when
    /// the first worker serves.
    ///
    /// # Errors
    /// [`SessionError`] if the first worker cannot serve, or if the system refuses what the
    /// keeper itself needs. The mounts are gone in either case.
    pub fn run(mut self, mut on_ready: impl FnMut()) -> Result<Ending, SessionError> {
        // Inherited mounts are in use: nothing is given up because of a worker that fails.
        let mut proven = self.history.restarts > 0;
        let mut told = false;
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
            if !told && self.watch.is_serving() {
                (proven, told) = (true, true);
                on_ready();
            }
            self.bury_worker(proven, now)?;
            if self.watch.is_stopping() && self.worker.is_none() {
                return Ok(self.end());
            }
        }
    }

    /// Takes the mounts away, or leaves them to the next keeper.
    fn end(self) -> Ending {
        let Self { mounts, deposit, hands_over, .. } = self;
        match deposit.filter(|_| hands_over) {
            Some(deposit) => {
                mounts.into_iter().for_each(HeldMount::leave);
                deposit.stay();
                Ending::HandedOver
            }
            None => Ending::Unmounted,
        }
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
                ToKeeper::Done => {
                    self.watch.stopping(now);
                    self.ask_worker_to_stop();
                }
                ToKeeper::Replace { program } => self.plan_upgrade(program),
                ToKeeper::Failed { reason } => {
                    if let Some(worker) = &mut self.worker {
                        worker.complaint = Some(reason);
                    }
                }
            }
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
                self.hands_over = info.ssi_signo == Signal::SIGTERM as u32
                    && self.deposit.as_ref().is_some_and(Deposit::successor_follows);
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
}

fn wanted_signals() -> nix::Result<SignalFd> {
    let mask: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
