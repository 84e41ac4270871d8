//! The control socket: requests in, events out (see [`crate::control`]).

mod keep;
mod packs;

use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::fill::Progress;
use undermount_fs::view::View;

use super::layers::LayerShelf;
use super::owner::{Owner, OwnerError};
use super::packing::Packer;
use super::peers::Peers;
use super::pins::Pins;
use super::recordings::Recordings;
use super::sharing::Sharing;
use super::slow::slowest_reads;
use crate::control::{
    CollectRequest, Event, ExplainRequest, Failure, MountRequest, PullRequest, Status, StoreStatus,
    Transfer, UnmountRequest, UpgradeRequest,
};
use crate::image::Reference;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);

/// What a worker can be asked for.
#[derive(Clone)]
pub struct Services {
    /// What is shown.
    pub view: Arc<View>,
    /// Mounts.
    pub owner: Arc<Owner>,
    /// The layers that podman is offered.
    pub layers: LayerShelf,
    /// Images that stay local.
    pub pins: Arc<Pins>,
    /// Starts that are being recorded.
    pub recordings: Recordings,
    /// Makes packs of them.
    pub packer: Packer,
    /// The other nodes, where anything is shared with them.
    pub peers: Option<Arc<Peers>>,
    /// What is shared with them.
    pub sharing: Option<Sharing>,
}

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    services: Services,
    /// What of a status does not change.
    base: Arc<Status>,
    busy: Arc<AtomicUsize>,
    pings: Arc<AtomicU64>,
    upgrades: mpsc::Sender<PathBuf>,
}

impl Api {
    /// The API of a worker; `base` holds the process's part of a status. Programs that are to take
    /// over come out of the channel.
    pub fn new(services: Services, base: Status) -> (Self, mpsc::Receiver<PathBuf>) {
        let (upgrades, asked_for) = mpsc::channel(1);
        let (base, busy, pings) = (Arc::new(base), Arc::default(), Arc::default());
        let api = Self { services, base, busy, pings, upgrades };
        (api, asked_for)
    }

    /// Requests that are being worked on.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// How often somebody asked whether there is an owner.
    pub fn pings(&self) -> u64 {
        self.pings.load(Ordering::SeqCst)
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/ping", get(ping))
            .route("/v1/status", get(status))
            .route("/v1/mounts", post(mount).delete(unmount))
            .route("/v1/pulls", post(pull))
            .route("/v1/cache", get(cache))
            .route("/v1/cache/verifications", post(verify))
            .route("/v1/cache/collections", post(collect))
            .nest("/v1", packs::routes())
            .route("/v1/upgrade", post(upgrade))
            .route("/v1/explain", post(explain))
            .route("/v1/pins", post(keep::pin).delete(keep::unpin))
            .route("/v1/drain", post(keep::drain))
            .route("/v1/peers", get(keep::peers))
            .with_state(self)
    }

    async fn store(&self) -> Option<StoreStatus> {
        let StoreStatus { dir, .. } = self.base.store.clone()?;
        let layers = &self.services.layers;
        let (images, refused) = (layers.images().await, layers.refusals());
        let (drained, layers) = (layers.is_drained(), layers.census());
        Some(StoreStatus { dir, drained, layers, images, refused })
    }

    fn enter(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self.busy.clone())
    }
}

/// Who asks this wants something next.
async fn ping(State(api): State<Api>) -> StatusCode {
    api.pings.fetch_add(1, Ordering::SeqCst);
    StatusCode::NO_CONTENT
}

/// Counts a request until it is dropped.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn status(State(api): State<Api>) -> Json<Status> {
    let _busy = api.enter();
    let services = &api.services;
    Json(Status {
        cache_bytes: services.owner.cache_bytes(),
        mounts: services.owner.mounts().await,
        pins: services.pins.status().await,
        store: api.store().await,
        slowest_reads: slowest_reads(&services.view, &services.owner).await,
        ..(*api.base).clone()
    })
}

async fn unmount(State(api): State<Api>, Json(request): Json<UnmountRequest>) -> Response {
    let _busy = api.enter();
    match api.services.owner.unmount(&request).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            let status = match &error {
                OwnerError::NotMounted { .. } => StatusCode::NOT_FOUND,
                OwnerError::Bind(_) => StatusCode::CONFLICT,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refused(status, &error)
        }
    }
}

async fn mount(State(api): State<Api>, Json(request): Json<MountRequest>) -> Response {
    let owner = api.services.owner.clone();
    follow(&api, |progress| async move { owner.mount(&request, &progress).await })
}

async fn pull(State(api): State<Api>, Json(request): Json<PullRequest>) -> Response {
    let owner = api.services.owner.clone();
    follow(&api, |progress| async move { owner.pull(&request, &progress).await })
}

async fn upgrade(State(api): State<Api>, Json(request): Json<UpgradeRequest>) -> Response {
    let program = request.program;
    let file = std::fs::metadata(&program);
    if !file.is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0) {
        let error = format!("{} is no program that can be run", program.display());
        return (StatusCode::CONFLICT, Json(Failure { error, cause: None })).into_response();
    }
    // A second one before the first was followed changes nothing.
    let _ = api.upgrades.try_send(program);
    StatusCode::ACCEPTED.into_response()
}

async fn explain(State(api): State<Api>, Json(request): Json<ExplainRequest>) -> Response {
    let _busy = api.enter();
    let reference = match request.reference.parse::<Reference>() {
        Ok(reference) => reference,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    match api.services.layers.explain(&reference).await {
        Ok(explanation) => Json(explanation).into_response(),
        Err(refusal) => refused(StatusCode::BAD_GATEWAY, &refusal),
    }
}

fn refused(status: StatusCode, error: &dyn Error) -> Response {
    (status, Json(Failure::of(error))).into_response()
}

async fn cache(State(api): State<Api>) -> Response {
    let _busy = api.enter();
    match api.services.owner.upkeep().await.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn verify(State(api): State<Api>) -> Response {
    let owner = api.services.owner.clone();
    follow(&api, |progress| async move { owner.upkeep().await.verify(&progress).await })
}

async fn collect(State(api): State<Api>, Json(request): Json<CollectRequest>) -> Response {
    let Services { owner, layers, .. } = api.services.clone();
    follow(&api, |_| async move {
        layers.let_go().await;
        owner.upkeep().await.collect(request).await
    })
}

/// Runs `work` in a task of its own and streams how far it is. When the client goes away, the
/// stream is dropped and the task with it.
fn follow<F, T, E>(api: &Api, work: impl FnOnce(Arc<Progress>) -> F) -> Response
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Into<Event>,
    E: Error + Send,
{
    let busy = api.enter();
    let progress = Arc::new(Progress::default());
    let (done, outcome) = mpsc::channel(1);
    let work = work(progress.clone());
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let event = match work.await {
            Ok(end) => end.into(),
            Err(error) => Event::Failed(Failure::of(&error)),
        };
        // Nobody listens only when the stream, and with it this task, is about to go.
        let _ = done.send(event).await;
    }));
    let events = Events { outcome: Some(outcome), progress, _task: task, _busy: busy };
    let stream = unfold(events, |mut events| async move {
        let event = events.next().await?;
        let mut line = serde_json::to_vec(&event).expect("events are plain data");
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), events))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(stream)).into_response()
}

/// What a client hears of a task.
struct Events {
    /// `None` once the end was told.
    outcome: Option<mpsc::Receiver<Event>>,
    progress: Arc<Progress>,
    _task: AbortOnDropHandle<()>,
    _busy: Busy,
}

impl Events {
    async fn next(&mut self) -> Option<Event> {
        let outcome = self.outcome.as_mut()?;
        match tokio::time::timeout(TICK, outcome.recv()).await {
            Ok(last) => {
                self.outcome = None;
                Some(last.unwrap_or_else(|| Event::Failed(Failure::of(&OwnerError::Interrupted))))
            }
            Err(_) => {
                let (bytes, total) = (self.progress.bytes(), self.progress.total());
                Some(Event::Progress(Transfer { bytes, total }))
            }
        }
    }
}
