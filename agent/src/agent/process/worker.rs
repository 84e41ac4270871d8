//! The worker of an owner: serves what its keeper hands over, and answers on the control socket.

use std::mem::ManuallyDrop;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use undermount_fs::memory::give_back_when_freed;
use undermount_fs::session::worker::{Farewell, Inheritance, Worker, end_process_on_panic};
use undermount_fs::session::{SessionError, detach};

use super::node::{Mounts, Node};
use super::{OwnerConfig, ProcessError, SOCKET, dismantle};
use crate::agent::api::Api;
use crate::agent::figures::{self, Figures};
use crate::agent::health;
use crate::agent::owner::Owner;
use crate::agent::sharing;
use crate::control::{Failure, Runtime, Status, StoreStatus};
use crate::mirror;
use crate::registry::client::Client;

/// An owner without mounts and requests goes away after this time.
const IDLE: Duration = Duration::from_secs(3);

/// How long a worker that ends goes on to write what it has fetched: what is not written by then is
/// fetched again.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// How long a worker that makes room for another one still answers.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Serves the mounts that a keeper hands over on standard input, until it says farewell or there
/// is nothing left to do.
///
/// # Errors
/// [`ProcessError`] where this process cannot serve; the keeper is told.
pub fn work(config: OwnerConfig) -> Result<(), ProcessError> {
    end_process_on_panic();
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
    let (runtime, threads) = (Runtime::of(&config.cache), threads()?);
    let missing = |what| move || ProcessError::Inheritance { what };
    let socket = inheritance.keepsakes.remove(SOCKET).ok_or_else(missing("control socket"))?;
    let dirs: Vec<PathBuf> =
        inheritance.mounts.values().map(|mount| mount.dir().to_owned()).collect();
    let mounts = Mounts::of(&mut inheritance).ok_or_else(missing("mounts"))?;
    let node = Node::new(&config, &runtime, &mounts, threads.handle())?;

    threads.block_on(node.restore());
    if let Err(error) = worker.ready() {
        if worker.without_keeper() == Farewell::Orphaned {
            take_down(&dirs, &runtime)?;
        }
        return Err(error.into());
    }
    let store = mounts.store_dir();
    mounts.serve(&node, &runtime, threads.handle())?;
    let over = CancellationToken::new();
    if store.is_some() {
        let figures = node.figures(inheritance.pulse.clone(), worker.history().restarts);
        begin_services(&config, &node, figures, &over, threads.handle());
    }
    threads.spawn(health::beat(worker.clone(), inheritance.pulse));
    let farewell = await_farewell(worker.clone());
    let listener = UnixListener::from(socket);
    let stay = if store.is_some() { Stay::Always } else { Stay::WhileNeeded };
    let status = status(config.cache, store, &node, worker);
    let (api, upgrades) = Api::new(node.services.clone(), status);
    let until = Until { end: farewell.clone(), upgrades, stay };
    threads.block_on(answer(&node.services.owner, api, listener, worker, until));
    over.cancel();
    let _ = threads.block_on(async { timeout(LAST_WRITES, node.written()).await });
    if let Some(peers) = &node.services.peers {
        // A worker that makes room for another one has nobody to say good-bye to.
        threads.block_on(peers.end(farewell.reason().is_some()));
    }
    if let Some(Farewell::Orphaned) = farewell.reason() {
        take_down(&dirs, &runtime)?;
    }
    Ok(())
}

/// The threads that drive the tasks of a worker. They are never dropped: a runtime that ends drops
/// what waits for the network, and a question of the kernel that is dropped is answered with EIO. What
/// this process leaves unanswered is its successor's, or nobody's any more.
fn threads() -> Result<ManuallyDrop<tokio::runtime::Runtime>, ProcessError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let threads = builder.worker_threads(2).enable_all().build();
    threads.map(ManuallyDrop::new).map_err(ProcessError::Start)
}

/// What `undermount status` says of a worker that has just begun, whose layer store is at `store`.
fn status(cache: PathBuf, store: Option<PathBuf>, node: &Node, worker: &Worker) -> Status {
    Status {
        cache,
        worker: std::process::id(),
        program: own_program(),
        data_mode: node.services.owner.data_mode(),
        restarts: worker.history().restarts,
        last_exit: worker.history().last_exit.clone(),
        store: store.map(|dir| StoreStatus { dir, ..StoreStatus::default() }),
        ..Status::default()
    }
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
    threads.spawn(node.services.layers.clone().let_go_forever());
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
            let _ = timeout(IDLE, until.end.token.cancelled()).await;
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
    let mut idleness = Idleness::default();
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let mounted = owner.notice_unmounts().await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "cannot look after the mounts");
            1
        });
        let has_work = stay == Stay::Always || mounted > 0 || api.busy() > 0;
        if idleness.is_long(has_work, api.pings()) {
            return;
        }
    }
}

/// Whether there was nothing to do at one look, nor at the one before.
#[derive(Debug, Default)]
struct Idleness {
    was_idle: bool,
    /// Pings until the last look.
    pings: u64,
}

impl Idleness {
    /// Looks; `pings` have come so far. Who has just asked whether there is an owner wants
    /// something of it, and would find it gone.
    fn is_long(&mut self, has_work: bool, pings: u64) -> bool {
        let is_idle = !has_work && pings == self.pings;
        let was_idle = std::mem::replace(&mut self.was_idle, is_idle);
        self.pings = pings;
        is_idle && was_idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_idle_after_two_looks_at_nothing() {
        let mut idleness = Idleness::default();
        assert!(!idleness.is_long(false, 0));
        assert!(idleness.is_long(false, 0));
        assert!(!idleness.is_long(true, 0), "something is mounted");
        assert!(!idleness.is_long(false, 0));
        assert!(idleness.is_long(false, 0));
    }

    /// It ended between the question whether it is there and the mount that it was asked for.
    #[test]
    fn regression_a_worker_that_was_just_asked_for_is_not_idle() {
        let mut idleness = Idleness::default();
        assert!(!idleness.is_long(false, 0));
        assert!(!idleness.is_long(false, 1));
        assert!(!idleness.is_long(false, 2));
        assert!(!idleness.is_long(false, 2));
        assert!(idleness.is_long(false, 2));
    }
}
