//! The two processes of an owner: how they are wired.
//!
//! The keeper locks the cache, makes the runtime directory, the content mounts and the control
//! socket, and starts the worker, which does everything else. See
//! [`undermount_fs::session`] for what happens when either dies.

mod continuity;
mod lock;
mod node;
mod opened;
mod worker;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use undermount_fs::fill::Patience;
use undermount_fs::object::Verify;
use undermount_fs::session::keeper::{
    Ending, Keeper, KeeperConfig, MountKind, MountSpec, RestartPolicy, WorkerConfig,
};
use undermount_fs::session::{DataMode, Lookups, SessionError};

pub use self::continuity::Continuity;
pub use self::lock::CacheLock;
pub use self::opened::upkeep;
pub use self::worker::work;

use super::cache::CacheError;
use super::layers::ShelfError;
use super::owner::Owner;
use super::peers::PeersConfig;
use super::starts::Recorded;
use crate::control::Runtime;
use crate::mirror::MirrorConfig;
use crate::registry::client::ClientConfig;

const SOCKET: &str = "control";
const LOCK: &str = "lock";
const PLAIN: &str = "plain";
const XATTR: &str = "xattr";
const STORE: &str = "store";
const LOOKUPS: &str = "lookups";

/// How an owner behaves.
#[derive(Debug, Clone)]
pub struct OwnerConfig {
    /// The cache directory.
    pub cache: PathBuf,
    /// Bytes of file contents that it may hold; `None` for no limit.
    pub quota: Option<u64>,
    /// Bytes of the file system that stay free; `None` for a twentieth of it, at most 1 GiB.
    pub reserve: Option<u64>,
    /// Whether files of mounted and complete images may be dropped and fetched again.
    pub evict_complete: bool,
    /// When file contents are hashed.
    pub verify: Verify,
    /// How long a read may wait for bytes, and what becomes of it when they cannot be fetched.
    pub patience: Patience,
    /// How long a mounted image may take to become fully local; zero to leave it as it is read.
    pub complete_within: Duration,
    /// What becomes of the starts of images.
    pub recorded_starts: Recorded,
    /// How registries are spoken to.
    pub client: ClientConfig,
    /// The mirror that an agent serves, if any.
    pub mirror: Option<MirrorConfig>,
    /// Where an agent tells its metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// How an agent shares what it fetches, if at all.
    pub peers: Option<PeersConfig>,
}

/// An owner cannot be started or kept.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The cache directory cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Another process owns the cache.
    #[error("another process owns the cache {}", cache.display())]
    Owned {
        /// The cache directory.
        cache: PathBuf,
    },
    /// The runtime directory cannot be used.
    #[error("runtime directory {} cannot be used (this takes root)", path.display())]
    Runtime {
        /// The directory, or what is in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mounts cannot be made or served.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// What podman is offered cannot be kept.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// The keeper handed over too little.
    #[error("the keeper handed over no {what}")]
    Inheritance {
        /// What is missing.
        what: &'static str,
    },
    /// The worker cannot start its threads.
    #[error("cannot start the worker")]
    Start(#[source] io::Error),
}

/// What a keeper starts, and what its mounts are like for as long as they live.
#[derive(Debug, Clone)]
pub struct KeeperSettings {
    /// The program of the worker.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where podman's additional layer store is mounted, if this is the agent of the node. An
    /// agent stays when there is nothing to do.
    pub store: Option<PathBuf>,
    /// How the kernel gets the bytes of files.
    pub data_mode: DataMode,
    /// The features of the kernel that may be used, see [`KeeperConfig::init_mask`].
    pub init_mask: u64,
    /// The SELinux context of what is mounted, see [`KeeperConfig::context`].
    pub context: Option<String>,
}

/// Keeps the mounts of the owner of `lock` until its worker has nothing more to do. Calls
/// `on_ready` once requests are answered. The process must have one thread.
///
/// # Errors
/// [`ProcessError`] where the mounts cannot be made or served; nothing is left behind.
pub fn keep(
    lock: &CacheLock,
    settings: KeeperSettings,
    mut continuity: Option<Continuity>,
    on_ready: impl FnMut(),
) -> Result<(), ProcessError> {
    let runtime = Runtime::of(&lock.cache);
    let worker = WorkerConfig {
        program: settings.program.clone(),
        arguments: settings.arguments.clone(),
        policy: RestartPolicy::default(),
    };
    let inherited = continuity.as_mut().and_then(|continuity| continuity.take_over(&worker));
    let keeper = match inherited {
        Some(keeper) => keeper,
        None => {
            let mut keeper = mount(lock, settings, &runtime, worker)?;
            if let Some(continuity) = continuity {
                continuity.entrust(&mut keeper);
            }
            keeper
        }
    };
    let ending = keeper.run(on_ready);
    if !matches!(ending, Ok(Ending::HandedOver)) {
        dismantle(&runtime);
    }
    ending?;
    Ok(())
}

/// A keeper with mounts of its own.
fn mount(
    lock: &CacheLock,
    settings: KeeperSettings,
    runtime: &Runtime,
    worker: WorkerConfig,
) -> Result<Keeper, ProcessError> {
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| ProcessError::Runtime { path, source }
    };
    runtime.create().map_err(unusable(runtime.root()))?;
    Owner::clear(runtime);
    let socket = runtime.socket();
    // The owner before has no use for it: it does not hold the lock any more.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(unusable(&socket))?;
    let shared_lock = lock.share().map_err(unusable(runtime.root()))?;
    let data = settings.data_mode;
    let spec = |name: &str, xattrs| {
        let (name, dir) = (name.to_owned(), runtime.content(xattrs));
        MountSpec { name, dir, kind: MountKind::Content, data }
    };
    let store = settings.store.map(|dir| {
        let (name, kind) = (STORE.to_owned(), MountKind::Control);
        MountSpec { name, dir, kind, data: DataMode::default() }
    });
    let lookups = Lookups::create().and_then(|lookups| lookups.memory());
    let lookups = lookups.map_err(|source| SessionError::Memory { source })?;
    let keepsakes = [(SOCKET, listener.into()), (LOCK, shared_lock), (LOOKUPS, lookups)];
    let keepsakes = keepsakes.map(|(name, fd)| (name.to_owned(), fd)).into();
    Ok(Keeper::mount(KeeperConfig {
        mounts: [spec(PLAIN, false), spec(XATTR, true)].into_iter().chain(store).collect(),
        worker,
        keepsakes,
        store: lock.cache.clone(),
        init_mask: settings.init_mask,
        context: settings.context,
    })?)
}

/// Takes away what an owner that ends has mounted for its users, which nobody serves any more,
/// and its runtime directory.
fn dismantle(runtime: &Runtime) {
    Owner::clear(runtime);
    tidy(runtime);
}

/// Removes what the runtime directory holds, but for a log with words in it. What is still in
/// use stays.
fn tidy(runtime: &Runtime) {
    let empty_log = std::fs::metadata(runtime.log()).is_ok_and(|log| log.len() == 0);
    let log = empty_log.then(|| runtime.log());
    let tables = [runtime.slots(), runtime.layers(), runtime.store_nodes(), runtime.starts()];
    for file in [runtime.socket(), runtime.mounts()].into_iter().chain(tables).chain(log) {
        let _ = std::fs::remove_file(file);
    }
    let content = runtime.root().join("content");
    for dir in [&runtime.content(false), &runtime.content(true), &content, runtime.root()] {
        let _ = std::fs::remove_dir(dir);
    }
}
