//! One mount in the hands of the keeper, and what becomes of its requests between workers.
//!
//! ```text
//! make:    open /dev/fuse -> mount(2) -> FUSE_INIT -> read-ahead -> tables
//! inherit: device and tables of the previous keeper -> still mounted?
//! worker died -> recall: requests in hand back into the queue, or EIO
//! none serves for too long -> answer: every waiting request gets EIO, until stop_answering
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fuser::InitFlags;

use crate::session::device::Device;
use crate::session::handshake::{Agreement, DataMode, MAX_READAHEAD};
use crate::session::inflight::Table;
use crate::session::link::StartMount;
use crate::session::mountpoint::MountPoint;
use crate::session::opens::OpenTable;
use crate::session::{SessionError, backing, wire};

use super::KeeperConfig;
use super::estate::{self, Bequest, unusable};

/// A mount that a keeper is to make.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// The name by which the worker knows it.
    pub name: String,
    /// The directory to mount on; created with mode 0700 if missing.
    pub dir: PathBuf,
    /// Whether its content may change.
    pub kind: MountKind,
    /// How the kernel gets the bytes of its files. It cannot be changed while the mount lives.
    pub data: DataMode,
}

/// What a mount holds, and so what the kernel may assume of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Trees that never change: read-only, and the kernel caches every answer.
    Content,
    /// Names that come and go and can be written to: the kernel asks each time.
    Control,
}

impl MountKind {
    /// The [`InitFlags`] that may be used for it.
    fn flags(self) -> u64 {
        match self {
            Self::Content => u64::MAX,
            Self::Control => !FOR_CONTENT.bits(),
        }
    }
}

/// Flags that are right only where nothing ever changes.
const FOR_CONTENT: InitFlags = InitFlags::FUSE_CACHE_SYMLINKS
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA);

/// Requests that are answered in one go, before the keeper looks for signals and messages again.
const BATCH: usize = 256;

/// A live mount. Its fields are dropped in order: the mount is detached before its device is
/// closed, so that nobody meets a mount without a server.
#[derive(Debug)]
pub(super) struct HeldMount {
    name: String,
    point: MountPoint,
    device: Device,
    agreement: Agreement,
    /// Where requests in hand are recorded, if the kernel cannot send them again.
    table: Option<Table>,
    /// Which files are open, in passthrough mode.
    opens: Option<OpenTable>,
    answering: Answering,
}

/// Whether the keeper answers requests in place of a worker.
#[derive(Debug)]
enum Answering {
    No,
    /// It does, through a descriptor of its own whose reads do not block.
    With(Device),
    /// It should but cannot, most likely because somebody has unmounted the mount.
    Failed,
}

impl HeldMount {
    /// Makes the mount and answers `FUSE_INIT`, which no worker can change later.
    pub(super) fn make(spec: &MountSpec, config: &KeeperConfig) -> Result<Self, SessionError> {
        let device = Device::open()?;
        let read_only = spec.kind == MountKind::Content;
        let context = config.context.as_deref();
        let point = MountPoint::attach(&spec.dir, &device, read_only, context)?;
        let agreement = device.shake_hands(spec.data, config.init_mask & spec.kind.flags())?;
        if let Err(error) = point.raise_readahead(MAX_READAHEAD) {
            tracing::debug!(dir = %spec.dir.display(), %error, "read-ahead stays as it is");
        }
        let memory = |source| SessionError::Memory { source };
        let table = (!agreement.resends()).then(Table::create).transpose().map_err(memory)?;
        let opens = match spec.data {
            DataMode::Cached => None,
            DataMode::Passthrough => {
                check_passthrough(&device, &agreement, &config.store)?;
                Some(OpenTable::create().map_err(memory)?)
            }
        };
        tracing::debug!(mount = spec.name, dir = %spec.dir.display(), ?agreement, "mounted");
        let name = spec.name.clone();
        Ok(Self { name, point, device, agreement, table, opens, answering: Answering::No })
    }

    /// Goes on with a mount of the previous keeper. `take` returns the descriptor that was left
    /// under a name.
    pub(super) fn inherit(
        bequest: Bequest,
        mut take: impl FnMut(&str) -> Result<OwnedFd, SessionError>,
    ) -> Result<Self, SessionError> {
        let Bequest { mount: StartMount { name, dir, agreement, recorded, passthrough }, .. } =
            bequest;
        let memory = |source| SessionError::Memory { source };
        let device = Device::inherit(take(&estate::device(&name))?);
        let table = recorded.then(|| take(&estate::inflight(&name))).transpose()?;
        let table = table.map(Table::open).transpose().map_err(memory)?;
        let opens = passthrough.then(|| take(&estate::opens(&name))).transpose()?;
        let opens = opens.map(OpenTable::open).transpose().map_err(memory)?;
        if !device.is_connected() {
            return Err(unusable(format!("the connection of {} has ended", dir.display())));
        }
        let point = MountPoint::inherit(dir, &bequest.device_number)?;
        Ok(Self { name, point, device, agreement, table, opens, answering: Answering::No })
    }

    /// Describes the mount to the next keeper.
    pub(super) fn bequest(&self) -> io::Result<Bequest> {
        let device_number = self.point.device_number()?;
        Ok(Bequest { mount: self.introduction(), device_number })
    }

    /// Its descriptors, each with the name under which the next keeper finds it.
    pub(super) fn named_descriptors(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        let name = &self.name;
        let device = (estate::device(name), self.device.as_fd());
        let table = self.table.as_ref().map(|table| (estate::inflight(name), table.memory()));
        let opens = self.opens.as_ref().map(|opens| (estate::opens(name), opens.memory()));
        std::iter::once(device).chain(table).chain(opens)
    }

    /// Leaves the mount to the next keeper.
    pub(super) fn leave(self) {
        self.point.leave();
    }

    /// The directory that it is mounted on.
    pub(super) fn dir(&self) -> &Path {
        self.point.dir()
    }

    /// Describes the mount to a worker.
    pub(super) fn introduction(&self) -> StartMount {
        StartMount {
            name: self.name.clone(),
            dir: self.dir().to_owned(),
            agreement: self.agreement,
            recorded: self.table.is_some(),
            passthrough: self.opens.is_some(),
        }
    }

    /// The descriptors that go with the introduction, in the order of [`StartMount`]: the device,
    /// and the tables that there are.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.device.as_fd())
            .chain(self.table.as_ref().map(Table::memory))
            .chain(self.opens.as_ref().map(OpenTable::memory))
    }

    /// Takes back what a dead worker had in hand: the requests go into the queue again or, where
    /// the kernel cannot do that, are answered with EIO.
    pub(super) fn recall(&self) {
        let result = match &self.table {
            None => self.device.resend(),
            Some(table) => self.fail_all(table),
        };
        if let Err(error) = result {
            tracing::error!(mount = self.name, %error, "requests of a dead worker stay unanswered");
        }
    }

    fn fail_all(&self, table: &Table) -> io::Result<()> {
        let mut failed = 0_u32;
        for unique in table.take_suspects() {
            failed += u32::from(self.device.fail(unique, libc::EIO)?);
        }
        if failed > 0 {
            tracing::warn!(mount = self.name, failed, "requests of a dead worker got EIO");
        }
        Ok(())
    }

    /// Answers up to [`BATCH`] waiting requests with EIO.
    pub(super) fn answer(&mut self) {
        if let Answering::No = self.answering {
            tracing::error!(mount = self.name, "no worker serves: requests get EIO");
        }
        if let Err(error) = self.try_answer() {
            tracing::error!(mount = self.name, %error, "requests stay unanswered");
            self.answering = Answering::Failed;
        }
    }

    fn try_answer(&mut self) -> io::Result<()> {
        if let Answering::No = self.answering {
            self.answering = Answering::With(self.device.nonblocking_clone()?);
        }
        let Answering::With(device) = &self.answering else { return Ok(()) };
        let mut buffer = [0; wire::READ_BUFFER];
        for _ in 0..BATCH {
            let Some(request) = device.next_request(&mut buffer)? else { break };
            if let Some(table) = &self.table {
                table.note(request.unique);
            }
            if request.wants_answer() {
                device.fail(request.unique, libc::EIO)?;
            }
        }
        Ok(())
    }

    /// Ends [`Self::answer`]: a worker serves again.
    pub(super) fn stop_answering(&mut self) {
        self.answering = Answering::No;
    }

    /// The descriptor that becomes readable when a request waits for the keeper's answer; `None`
    /// while a worker is to answer.
    pub(super) fn waiting_requests(&self) -> Option<BorrowedFd<'_>> {
        match &self.answering {
            Answering::With(device) => Some(device.as_fd()),
            Answering::No | Answering::Failed => None,
        }
    }
}

/// Checks at once, rather than at the first OPEN, whether the kernel reads files of `store` by
/// itself.
fn check_passthrough(
    device: &Device,
    agreement: &Agreement,
    store: &Path,
) -> Result<(), SessionError> {
    if !agreement.passes_through() {
        return Err(SessionError::PassthroughUnknown);
    }
    backing::probe(device.as_fd(), store)
        .map_err(|source| SessionError::PassthroughRefused { store: store.to_owned(), source })
}
