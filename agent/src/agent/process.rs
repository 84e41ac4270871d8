//! The two processes of an owner: how they are wired.
//!
//! The keeper locks the cache, makes the runtime directory, the content mounts and the control
//! socket, and starts the worker, which does everything else. See
//! [`undermount_fs::session`] for what happens when either dies.

mod continuity;
mod lock;
mod node;
mod opened;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use undermount_fs::fill::Patience;
use undermount_fs::memory::give_back_when_freed;
use undermount_fs::object::Verify;
use undermount_fs::session::keeper::{
    Ending, Keeper, KeeperConfig, MountKind, MountSpec, RestartPolicy, WorkerConfig,
};
use undermount_fs::session::worker::{Farewell, Inheritance, Worker, end_process_on_panic};
use undermount_fs::session::{DataMode, SessionError, detach};

pub use self::continuity::Continuity;
pub use self::lock::CacheLock;
pub use self::opened::upkeep;

use self::node::{Mounts, Node};
use super::api::Api;
use super::cache::CacheError;
use super::figures::{self, Figures};
use super::health;
use super::layers::ShelfError;
use super::owner::Owner;
use super::peers::PeersConfig;
use super::sharing;
use super::starts::Recorded;
use crate::control::{Failure, Runtime, Status, StoreStatus};
use crate::mirror::{self, MirrorConfig};
use crate::registry::client::{Client, ClientConfig};

const SOCKET: &str = "control";
const LOCK: &str = "lock";
const PLAIN: &str = "plain";
const XATTR: &str = "xattr";
const STORE: &str = "store";

/// Threads that take requests from the kernel, for each mount.
const FUSE_THREADS: usize = 2;

/// An owner without mounts and requests goes away after this time.
const IDLE: Duration = Duration::from_secs(3);

/// How long a worker that makes room for another one still answers.
const LAST_WORDS: Duration = Duration::from_millis(100);

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
    let keepsakes = vec![(SOCKET.to_owned(), listener.into()), (LOCK.to_owned(), shared_lock)];
    Ok(Keeper::mount(KeeperConfig {
        mounts: [spec(PLAIN, false), spec(XATTR, true)].into_iter().chain(store).collect(),
        worker,
        keepsakes,
        store: lock.cache.clone(),
        init_mask: settings.init_mask,
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

/// Serves the mounts that a keeper hands over on standard input, until it says farewell or there
/// is nothing left to do.
///
/// # Errors
/// [`ProcessError`] where this process cannot serve; the keeper is told.
pub fn work(config: OwnerConfig) -> Result<(), ProcessError> {
    end_process_on_panic();
    health::keep_heap_small();
    health::raise_descriptor_limit();
    give_back_when_freed();
    let (worker, inheritance) = Worker::from_stdin()?;
    let worker = Arc::new(worker);
    let served = serve(config, &worker, inheritance);
    if let Err(error) = &served {
        let reason = Failure::of(error).to_json();
        // A keeper that is gone needs no reason.
        let _ = worker.failed(&reason);
    }
    served
}

fn serve(
    config: OwnerConfig,
    worker: &Arc<Worker>,
    mut inheritance: Inheritance,
) -> Result<(), ProcessError> {
    let runtime = Runtime::of(&config.cache);
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ProcessError::Start)?;
    let missing = |what| move || ProcessError::Inheritance { what };
    let socket = inheritance.keepsakes.remove(SOCKET).ok_or_else(missing("control socket"))?;
    let dirs: Vec<PathBuf> =
        inheritance.mounts.values().map(|mount| mount.dir().to_owned()).collect();
    let mounts = Mounts::of(&mut inheritance).ok_or_else(missing("mounts"))?;
    let node = Node::new(&config, &runtime, &mounts, threads.handle())?;

    threads.block_on(node.restore());
    worker.ready()?;
    let store = mounts.store_dir();
    mounts.serve(&node, &runtime, threads.handle())?;
    let over = CancellationToken::new();
    if store.is_some() {
        let figures = node.figures(inheritance.pulse.clone(), worker.history().restarts);
        begin_services(&config, &node, figures, &over, threads.handle());
    }
    threads.spawn(health::beat(worker.clone(), inheritance.pulse));
    let status = Status {
        cache: config.cache,
        worker: std::process::id(),
        program: own_program(),
        data_mode: node.services.owner.data_mode(),
        restarts: worker.history().restarts,
        last_exit: worker.history().last_exit.clone(),
        store: store.map(|dir| StoreStatus { dir, ..StoreStatus::default() }),
        ..Status::default()
    };
    let farewell = await_farewell(worker.clone());
    let listener = UnixListener::from(socket);
    let stay = if status.store.is_some() { Stay::Always } else { Stay::WhileNeeded };
    let (api, upgrades) = Api::new(node.services.clone(), status);
    let until = Until { end: farewell.clone(), upgrades, stay };
    threads.block_on(answer(&node.services.owner, api, listener, worker, until));
    over.cancel();
    if let Some(peers) = &node.services.peers {
        // A worker that makes room for another one has nobody to say good-bye to.
        threads.block_on(peers.end(farewell.reason().is_some()));
    }
    if let Some(Farewell::Orphaned) = farewell.reason() {
        take_down(&dirs, &runtime)?;
    }
    // Reads that still wait for the network need not be waited for.
    threads.shutdown_background();
    Ok(())
}

/// Begins what only an agent does: its mirror, its metrics, and its answers to peers until `over`.
fn begin_services(
    config: &OwnerConfig,
    node: &Node,
    figures: Figures,
    over: &CancellationToken,
    threads: &Handle,
) {
    if let Some(mirror) = config.mirror.clone() {
        let root = config.cache.join("mirror");
        let client = Client::new(config.client.clone());
        threads.spawn(mirror::run(mirror, root, client, CancellationToken::new()));
    }
    if let Some(address) = config.metrics {
        threads.spawn(figures::run(address, figures, CancellationToken::new()));
    }
    if let Some(peers) = node.services.peers.clone() {
        threads.spawn(sharing::answer(peers, node.services.sharing.clone(), over.clone()));
    }
}

/// Takes the mounts at `dirs` down in place of the keeper, which is gone. Its lock is still ours.
fn take_down(dirs: &[PathBuf], runtime: &Runtime) -> Result<(), SessionError> {
    let detached: Result<Vec<()>, _> = dirs.iter().map(|dir| detach(dir)).collect();
    dismantle(runtime);
    detached.map(drop)
}

/// When a worker that nobody ends may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// When there is nothing to do.
    WhileNeeded,
    /// Never.
    Always,
}

/// What ends a worker.
struct Until {
    /// The keeper.
    end: End,
    /// Somebody who wants another program in its place.
    upgrades: mpsc::Receiver<PathBuf>,
    /// That there is nothing to do.
    stay: Stay,
}

/// The end of the worker, when the keeper asks for it.
#[derive(Clone, Default)]
struct End {
    token: CancellationToken,
    farewell: Arc<std::sync::OnceLock<Farewell>>,
}

impl End {
    fn reason(&self) -> Option<Farewell> {
        self.farewell.get().copied()
    }
}

fn await_farewell(worker: Arc<Worker>) -> End {
    let end = End::default();
    let ended = end.clone();
    std::thread::spawn(move || {
        let _ = ended.farewell.set(worker.wait_for_farewell());
        ended.token.cancel();
    });
    end
}

/// Answers requests until the end, or until there was nothing to do for a while.
async fn answer(
    owner: &Owner,
    api: Api,
    listener: UnixListener,
    worker: &Worker,
    mut until: Until,
) {
    let listener =
        listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen on the control socket"),
    };
    let server = axum::serve(listener, api.clone().router()).into_future();
    tokio::select! {
        outcome = server => tracing::error!(?outcome, "the control socket failed"),
        () = until.end.token.cancelled() => {}
        Some(program) = until.upgrades.recv() => make_room(worker, &program).await,
        () = until_idle(owner, &api, until.stay) => {
            if let Err(error) = worker.done() {
                tracing::error!(%error, "cannot say good-bye to the keeper");
            }
            // The keeper answers by ending us; if it does not, we go all the same.
            let _ = tokio::time::timeout(IDLE, until.end.token.cancelled()).await;
        }
    }
}

/// Has the keeper start `program` in place of this process, which is to end now. What it has in
/// hand is answered by its successor.
async fn make_room(worker: &Worker, program: &Path) {
    if let Err(error) = worker.replace(program) {
        tracing::error!(%error, "cannot tell the keeper of an upgrade");
    }
    // Whoever asked for it has yet to hear that it was understood.
    tokio::time::sleep(LAST_WORDS).await;
}

/// The program that this process runs.
fn own_program() -> PathBuf {
    std::fs::read_link("/proc/self/exe").unwrap_or_default()
}

/// Returns when nothing has been mounted and nothing asked for during [`IDLE`]; never for who is
/// to stay.
async fn until_idle(owner: &Owner, api: &Api, stay: Stay) {
    let mut idle = false;
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let mounted = owner.notice_unmounts().await.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look after the mounts");
            1
        });
        let still = stay == Stay::WhileNeeded && mounted == 0 && api.busy() == 0;
        if still && idle {
            return;
        }
        idle = still;
    }
}
