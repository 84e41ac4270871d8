//! Mounts that outlive the process that serves them.
//!
//! A [`keeper`] is a small process that owns the `/dev/fuse` descriptors. A [`worker`] is the
//! process that answers requests. It may be killed, crash or be replaced by a newer binary at any
//! moment; as long as another one comes up, programs that use the mount notice a delay and, on
//! Linux 6.9 and later, no error.
//!
//! ```text
//!  programs ----> kernel: queue of requests <==== keeper: mounts, descriptors, socket, lock
//!                     |          ^                   |          ^
//!                     v          |                   | start    | "ready", "done",
//!                 requests    answers                v          | end of file
//!                     `--------> worker: fuser session, view, cache, network
//! ```
//!
//! When a worker dies, the keeper puts the requests that the worker had in hand back into the queue
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9 and later) or answers them with EIO (earlier kernels), and
//! starts another worker. It does so only once the dead process has been reaped, so no request is
//! ever answered twice.
//!
//! What a successor must know lies in memory that the keeper holds: requests in hand (`inflight`),
//! open files (`opens`), and what the kernel remembers ([`Lookups`]).

mod backing;
mod device;
mod handshake;
mod inflight;
pub mod keeper;
mod link;
mod lookups;
mod mountpoint;
mod opens;
mod pulse;
mod shared;
mod urgency;
mod wire;
pub mod worker;

use std::io;
use std::path::PathBuf;

pub use self::handshake::{Agreement, DataMode};
pub use self::inflight::{Inflight, Ticket, TooManyRequests};
pub use self::link::History;
pub use self::lookups::Lookups;
pub use self::mountpoint::detach;
pub use self::opens::{OpenError, Opened, Opens};
pub use self::pulse::{Pulse, Turn};

/// Why a session cannot be set up or kept.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel has no FUSE, or this container none of its devices.
    #[error("/dev/fuse is missing: load the kernel module `fuse`, or pass the device in")]
    NoDevice {
        /// What open(2) said.
        source: io::Error,
    },
    /// `/dev/fuse` is there but does not open.
    #[error("cannot open /dev/fuse")]
    OpenDevice {
        /// What open(2) said.
        source: io::Error,
    },
    /// The directory to mount on cannot be made.
    #[error("cannot create the directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("cannot mount on {} (this takes root, CAP_SYS_ADMIN)", dir.display())]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// The kernel rejects the SELinux context of a mount.
    #[error(
        "cannot mount on {} with the SELinux context {context}: this kernel has no SELinux, or its \
         policy does not know that context; name another one, or none",
        dir.display()
    )]
    Context {
        /// The mount point.
        dir: PathBuf,
        /// The context.
        context: String,
        /// What mount(2) said.
        source: io::Error,
    },
    /// umount2(2) failed.
    #[error("cannot detach what is mounted on {}", dir.display())]
    Detach {
        /// The mount point.
        dir: PathBuf,
        /// What umount2(2) said.
        source: io::Error,
    },
    /// Keeper and kernel did not complete `FUSE_INIT`.
    #[error("the handshake with the kernel failed: {reason}")]
    Handshake {
        /// What went wrong.
        reason: String,
    },
    /// The kernel has no `FUSE_PASSTHROUGH`, so it cannot read files of the store by itself.
    #[error(
        "data mode passthrough takes Linux 6.9 or later, and this kernel does not offer it: use \
         data mode cached"
    )]
    PassthroughUnknown,
    /// The kernel passes reads through, but not to files of this store.
    #[error(
        "data mode passthrough does not work with the store in {} (it takes CAP_SYS_ADMIN, and a \
         file system that is not stacked on another one, as overlayfs is): use data mode cached, \
         or another directory", store.display()
    )]
    PassthroughRefused {
        /// The directory.
        store: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Shared memory for requests in hand cannot be made or used.
    #[error("cannot share memory between keeper and worker")]
    Memory {
        /// Why.
        source: io::Error,
    },
    /// A system call failed that the keeper cannot do without.
    #[error("the keeper's {call} failed")]
    System {
        /// Its name.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The program of the worker does not start.
    #[error("cannot start {}", program.display())]
    StartWorker {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The first worker ended before it served any mount.
    #[error("{reason}")]
    FirstWorker {
        /// What the worker said of it, or else its exit status or signal.
        reason: String,
    },
    /// What the previous keeper left in a descriptor store cannot be used.
    #[error("cannot go on with the mounts of the keeper before: {reason}")]
    Estate {
        /// Why.
        reason: String,
    },
    /// The descriptor store takes nothing, so the next keeper would find nothing.
    #[error("cannot leave descriptors for the next keeper")]
    Deposit {
        /// What the store said.
        source: io::Error,
    },
    /// This process is no worker.
    #[error("standard input is not the connection to a keeper")]
    NoKeeper {
        /// What was wrong.
        source: io::Error,
    },
    /// The connection to the keeper is closed or broken.
    #[error("the connection to the keeper is lost")]
    LostKeeper {
        /// What the socket said.
        source: io::Error,
    },
    /// Keeper and worker speak different versions of the messages between them.
    #[error("the keeper speaks protocol {keeper}, this worker {worker}: restart the keeper")]
    Protocol {
        /// The keeper's.
        keeper: u32,
        /// The worker's.
        worker: u32,
    },
    /// A mount cannot be served.
    #[error("cannot resume the mount on {}", dir.display())]
    Resume {
        /// The mount point.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SessionError {
    fn system(call: &'static str, errno: nix::Error) -> Self {
        Self::System { call, source: errno.into() }
    }
}
