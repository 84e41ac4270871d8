//! The worker's side: take over the mounts of a keeper and serve them.
//!
//! ```text
//! from_stdin: start message + descriptors -> InheritedMount -> serve: a fuser session
//! ready -> alive, alive, ... -> wait_for_farewell -> exit
//! ```
//!
//! `fuser` knows only how to begin a session. To resume one, it is given a socket, on which it
//! finds a `FUSE_INIT` that repeats what keeper and kernel agreed on; after that handshake the real
//! device takes the place of the socket under the same descriptor number.
//!
//! Two rules follow from how a worker may die:
//! - A worker holds its [`Worker`] until it exits: the keeper kills a worker whose connection
//!   closes.
//! - Answers are given from memory that the process has already written to. Where the kernel would
//!   have to fault a page in (an untouched part of a mapped file, say) while the process is being
//!   killed, it answers the caller with EIO and nobody can take that back.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{panic, process};

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use nix::fcntl::OFlag;
use nix::unistd::{dup2_stdin, dup3};

use super::SessionError;
use super::handshake::{Agreement, DataMode};
use super::inflight::{Inflight, Table};
use super::link::{History, Link, PROTOCOL, Start, StartMount, ToKeeper, ToWorker};
use super::opens::{OpenTable, Opens};
use super::pulse::Pulse;
use super::wire;

/// How long a thread that panicked may take to answer its request: a moment, unless others want
/// its processor. A request without an answer is sent to the next worker.
const UNWIND_WITHIN: Duration = Duration::from_millis(500);
/// The exit status of a worker that panicked, as of any Rust program.
const PANICKED: i32 = 101;

/// The connection of a worker to its keeper.
#[derive(Debug)]
pub struct Worker {
    link: Link,
    history: History,
    /// Whether another keeper goes on with the mounts when this one is gone.
    entrusted: bool,
}

/// What a worker receives from its keeper.
#[derive(Debug)]
pub struct Inheritance {
    /// The mounts to be served, by name.
    pub mounts: BTreeMap<String, InheritedMount>,
    /// Counts the requests that the threads of all mounts are at.
    pub pulse: Arc<Pulse>,
    /// The descriptors that the caller of the keeper wanted kept, by name.
    pub keepsakes: BTreeMap<String, OwnedFd>,
}

/// A mount that is to be served.
#[derive(Debug)]
pub struct InheritedMount {
    dir: PathBuf,
    agreement: Agreement,
    device: OwnedFd,
    inflight: Inflight,
    opens: Option<Arc<Opens>>,
    pulse: Arc<Pulse>,
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Serving {
    notifier: Notifier,
    thread: JoinHandle<io::Result<()>>,
}

/// Why a worker is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The keeper asks for it, and unmounts afterwards.
    Stop,
    /// The keeper is gone. Nobody will unmount, so the worker should.
    Orphaned,
    /// The keeper is gone, and another one goes on with the mounts: the worker leaves them as they
    /// are.
    Succeeded,
}

impl Worker {
    /// Takes the connection from standard input, which becomes /dev/null, and waits for the start
    /// message.
    ///
    /// # Errors
    /// [`SessionError`] if standard input is not a keeper's, or a keeper's of another protocol.
    pub fn from_stdin() -> Result<(Self, Inheritance), SessionError> {
        let no_keeper = |source| SessionError::NoKeeper { source };
        let link = io::stdin().as_fd().try_clone_to_owned().map_err(no_keeper)?;
        let null = std::fs::File::open("/dev/null").map_err(no_keeper)?;
        dup2_stdin(null).map_err(|errno| no_keeper(errno.into()))?;
        Self::from_link(Link::from_fd(link))
    }

    fn from_link(link: Link) -> Result<(Self, Inheritance), SessionError> {
        let no_keeper = |source| SessionError::NoKeeper { source };
        let received = link.receive().map_err(no_keeper)?;
        let Some((ToWorker::Start(start), descriptors)) = received else {
            return Err(no_keeper(io::Error::other("the connection begins with no start message")));
        };
        let worker = Self { link, history: start.history.clone(), entrusted: start.entrusted };
        let inherited = inherit(start, descriptors);
        if let Err(error) = &inherited {
            worker.failed(&error.to_string())?;
        }
        Ok((worker, inherited?))
    }

    /// What happened to the workers before this one.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Tells the keeper that all mounts are about to be served. From then on the keeper answers no
    /// requests itself.
    ///
    /// # Errors
    /// [`SessionError::LostKeeper`] here and below: there is no keeper any more.
    pub fn ready(&self) -> Result<(), SessionError> {
        self.tell(&ToKeeper::Ready)
    }

    /// Gives the keeper a sign of life. After the first one the next has to follow within
    /// [`RestartPolicy::silent_limit`], or the keeper replaces this worker.
    ///
    /// [`RestartPolicy::silent_limit`]: super::keeper::RestartPolicy::silent_limit
    #[expect(clippy::missing_errors_doc, reason = "see `ready`")]
    pub fn alive(&self) -> Result<(), SessionError> {
        self.tell(&ToKeeper::Alive)
    }

    /// Tells the keeper why this worker will exit without having served. If it is the first worker,
    /// the keeper fails with these words.
    #[expect(clippy::missing_errors_doc, reason = "see `ready`")]
    pub fn failed(&self, reason: &str) -> Result<(), SessionError> {
        self.tell(&ToKeeper::Failed { reason: reason.to_owned() })
    }

    /// Tells the keeper that there is nothing more to do. The keeper answers [`Farewell::Stop`],
    /// and unmounts once this worker has exited.
    #[expect(clippy::missing_errors_doc, reason = "see `ready`")]
    pub fn done(&self) -> Result<(), SessionError> {
        self.tell(&ToKeeper::Done)
    }

    /// Tells the keeper to start `program` from now on. Exit with success after this to make room
    /// for it; where it does not come up, the keeper goes back to the present program.
    #[expect(clippy::missing_errors_doc, reason = "see `ready`")]
    pub fn replace(&self, program: &Path) -> Result<(), SessionError> {
        self.tell(&ToKeeper::Replace { program: program.to_owned() })
    }

    /// Blocks the calling thread until this worker is to end.
    pub fn wait_for_farewell(&self) -> Farewell {
        loop {
            match self.link.receive() {
                Ok(Some((ToWorker::Stop, _))) => return Farewell::Stop,
                Ok(Some((ToWorker::Start(_), _))) => tracing::warn!("started twice; ignored"),
                Ok(None) => return self.without_keeper(),
                Err(error) => {
                    tracing::error!(%error, "the connection to the keeper is broken");
                    return self.without_keeper();
                }
            }
        }
    }

    /// The reason to end once the connection to the keeper is lost.
    pub fn without_keeper(&self) -> Farewell {
        if self.entrusted { Farewell::Succeeded } else { Farewell::Orphaned }
    }

    fn tell(&self, message: &ToKeeper) -> Result<(), SessionError> {
        self.link.send(message, &[]).map_err(|source| SessionError::LostKeeper { source })
    }
}

/// Gives each descriptor the name that it has in the start message.
fn inherit(start: Start, descriptors: Vec<OwnedFd>) -> Result<Inheritance, SessionError> {
    if start.protocol != PROTOCOL {
        return Err(SessionError::Protocol { keeper: start.protocol, worker: PROTOCOL });
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = || {
        let missing = || io::Error::other("a descriptor is missing");
        descriptors.next().ok_or_else(missing).map_err(|source| SessionError::NoKeeper { source })
    };
    let pulse = Arc::new(Pulse::default());
    let mut mounts = BTreeMap::new();
    for mount in start.mounts {
        let name = mount.name.clone();
        mounts.insert(name, InheritedMount::take(mount, pulse.clone(), &mut next)?);
    }
    let keepsakes =
        start.keepsakes.into_iter().map(|name| Ok((name, next()?))).collect::<Result<_, _>>()?;
    Ok(Inheritance { mounts, pulse, keepsakes })
}

impl InheritedMount {
    /// The mount that `start` describes, with the descriptors that belong to it.
    fn take(
        start: StartMount,
        pulse: Arc<Pulse>,
        mut next: impl FnMut() -> Result<OwnedFd, SessionError>,
    ) -> Result<Self, SessionError> {
        let memory = |source| SessionError::Memory { source };
        let device = next()?;
        let inflight = if start.recorded {
            Inflight::recorded_in(Table::open(next()?).map_err(memory)?)
        } else {
            Inflight::unrecorded()
        };
        let opens = if start.passthrough {
            let table = OpenTable::open(next()?).map_err(memory)?;
            let device = device.try_clone().map_err(memory)?;
            Some(Arc::new(Opens::resume(table, device)))
        } else {
            None
        };
        Ok(Self { dir: start.dir, agreement: start.agreement, device, inflight, opens, pulse })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The recorder of requests in hand, which the file system has to use.
    pub fn inflight(&self) -> Inflight {
        self.inflight.clone()
    }

    /// Where each thread has to begin its [turn](Pulse::turn) with a request. All mounts of a
    /// worker share one.
    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// How the kernel gets the bytes of its files.
    pub fn data_mode(&self) -> DataMode {
        match self.opens {
            None => DataMode::Cached,
            Some(_) => DataMode::Passthrough,
        }
    }

    /// The open files of a mount in passthrough mode, through which the file system has to answer
    /// every OPEN; `None` in cached mode.
    pub fn opens(&self) -> Option<Arc<Opens>> {
        self.opens.clone()
    }

    /// Serves the mount with `file_system` in `threads` threads of their own. Returns at once.
    ///
    /// # Errors
    /// [`SessionError::Resume`] if `file_system` refuses what was agreed with the kernel, or no
    /// thread starts.
    pub fn serve<F: Filesystem>(
        self,
        file_system: F,
        threads: usize,
    ) -> Result<Serving, SessionError> {
        let Self { dir, agreement, device, .. } = self;
        let resume = || -> io::Result<_> {
            let session = resume(file_system, &agreement, device, threads)?;
            let notifier = session.notifier();
            let name = "fuse-session".to_owned();
            let thread = thread::Builder::new().name(name).spawn(|| session.run())?;
            Ok(Serving { notifier, thread })
        };
        resume().map_err(|source| SessionError::Resume { dir, source })
    }
}

impl Serving {
    /// Through which the kernel is told to drop what it caches. Not to be used while answering a
    /// request: the kernel may be waiting for that answer.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Waits until the mount is gone.
    ///
    /// # Errors
    /// Those of reading from the device.
    pub fn wait(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("a loop thread panicked")))
    }
}

/// Makes a panic in any thread end the process soon, so that the keeper replaces it. Meanwhile the
/// request at which it happened is answered with EIO as its thread unwinds, so that the request
/// does not kill the next worker as well.
pub fn end_process_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        thread::spawn(|| {
            thread::sleep(UNWIND_WITHIN);
            process::exit(PANICKED)
        });
    }));
}

/// A session on `device`, whose kernel side has long been initialised.
fn resume<F: Filesystem>(
    file_system: F,
    agreement: &Agreement,
    device: OwnedFd,
    threads: usize,
) -> io::Result<Session<F>> {
    // SEQPACKET keeps requests apart, as the device does.
    let (kernel, end) = Link::pair()?;
    kernel.send_raw(&wire::init_request(wire::UNIQUE_STEP, &agreement.as_offer()))?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    let session = Session::from_fd(file_system, end, SessionACL::All, config)?;
    let number = session.as_fd().as_raw_fd();
    // SAFETY: `number` is open and belongs to `session`, which outlives this borrowed view;
    // ManuallyDrop keeps the view from closing it.
    let mut place = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    dup3(device, &mut place, OFlag::O_CLOEXEC)?;
    Ok(session)
}
