//! The registry: the OCI distribution-spec 1.1 over a directory.
//!
//! ```text
//! listen -> api (auth, limit, target, page, range) -> library -> { storage, image_serve }
//!            error: what each refusal looks like       -> { upload, body, indexing, garbage } -> storage
//! ```

mod api;
mod auth;
mod body;
mod digest;
mod error;
mod garbage;
mod image_serve;
mod indexing;
mod library;
mod limit;
pub mod listen;
mod manifest;
mod metrics;
mod name;
mod observe;
mod packing;
mod page;
mod random;
pub(crate) mod range;
mod storage;
mod target;
mod tls;
mod upload;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::routing::{get, post};
use http::HeaderMap;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blocking::blocking;
use api::{Registry, Writer};
use auth::{Gate, Users};
use image_serve::ImageServeTree;
use indexing::Indexing;
use library::Library;
use limit::ReadLimit;
use listen::Peer;
use metrics::Metrics;
use packing::Packing;
use storage::Storage;
use upload::Sessions;

use crate::registry::{Collected, GarbageRules};

pub use auth::UsersError;
pub use garbage::GarbageError;
pub use storage::StorageError;
pub use tls::{TlsError, TlsFiles};

/// An upload that nobody continues is forgotten after this time.
const UPLOAD_IDLE: Duration = Duration::from_secs(60 * 60);
/// How often forgotten uploads are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// What a registry serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of its own, made if there is none.
    Directory(PathBuf),
    /// The tree of an Apache, which is left as it is: nobody can push.
    ImageServe(PathBuf),
}

/// How a registry serves.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What it serves.
    pub source: Source,
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Who may push and delete.
    pub push: PushPolicy,
    /// Who may pull.
    pub pull: PullPolicy,
    /// An htpasswd file (bcrypt) with those who can log in.
    pub users: Option<PathBuf>,
    /// Certificate and key; without, connections are not encrypted.
    pub tls: Option<TlsFiles>,
    /// Whether and how the layers of pushed images are indexed.
    pub index: IndexPolicy,
    /// Whether profiles of starts are taken from those who pull, and packs made of them.
    pub profiles: bool,
    /// Whether manifests are taken that name blobs or manifests which were never pushed.
    pub sparse: bool,
    /// So many blobs can one client read at a time; `None` for any number.
    pub reads_per_client: Option<NonZeroUsize>,
    /// How often garbage is collected, and by which rules; `None` if only when asked for.
    pub garbage: Option<(Duration, GarbageRules)>,
    /// Whether each request is logged, as an event of `undermount::access`.
    pub access_log: bool,
    /// How long requests in progress may take to end at shutdown.
    pub grace: Duration,
}

/// Who may change what the registry holds. Who has logged in always may, unless nobody can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushPolicy {
    /// Clients on the registry's own host, and nobody for whom a proxy on it asks.
    OwnHost,
    /// Every client.
    Any,
    /// Only who has logged in.
    Users,
    /// Nobody.
    None,
}

/// Who may read what the registry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Every client.
    Any,
    /// Only who has logged in.
    Users,
}

/// What happens to the layers of pushed images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexPolicy {
    /// They are indexed. The push, and queries of what belongs to the image, wait for the index
    /// at most this long; after that the work goes on without them.
    Wait(Duration),
    /// Nothing.
    Off,
}

/// Why a registry cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directory cannot be used.
    #[error("cannot open the registry")]
    Storage(#[from] StorageError),
    /// The list of users cannot be used.
    #[error("cannot use the list of users")]
    Users(#[from] UsersError),
    /// Connections cannot be encrypted.
    #[error("cannot use the certificate")]
    Tls(#[from] TlsError),
    /// Nobody could do what only users may.
    #[error("only users may {0}, and there is no list of users")]
    NoUsers(&'static str),
    /// The address cannot be listened on.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address as configured.
        address: String,
        /// The refusal.
        source: io::Error,
    },
}

/// A registry that listens and does not answer yet.
pub struct Server {
    opened: Opened,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    gate: Gate,
    config: ServerConfig,
    extra: Router,
}

/// A [`Source`] that can be served.
enum Opened {
    Directory(Arc<Storage>),
    ImageServe(Arc<ImageServeTree>),
}

impl ServerConfig {
    /// A registry on `root` that listens on `listen` and takes pushes from its own host.
    pub fn new(root: impl Into<PathBuf>, listen: impl Into<String>) -> Self {
        Self {
            source: Source::Directory(root.into()),
            listen: listen.into(),
            push: PushPolicy::OwnHost,
            pull: PullPolicy::Any,
            users: None,
            tls: None,
            index: IndexPolicy::Wait(Duration::from_secs(30)),
            profiles: true,
            sparse: false,
            reads_per_client: None,
            garbage: None,
            access_log: false,
            grace: Duration::from_secs(10),
        }
    }
}

impl PushPolicy {
    /// Whether `peer`, who has not logged in, may change something by a request with `headers`.
    fn admits(self, peer: Peer, headers: &HeaderMap) -> bool {
        match self {
            Self::Any => true,
            Self::OwnHost => peer.is_local && !is_passed_on(headers),
            Self::Users | Self::None => false,
        }
    }
}

impl Server {
    /// Opens the directory and listens.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let users = config.users.as_deref().map(Users::read).transpose()?;
        match (&users, config.pull, config.push) {
            (None, PullPolicy::Users, _) => return Err(ServerError::NoUsers("pull")),
            (None, _, PushPolicy::Users) => return Err(ServerError::NoUsers("push")),
            _ => {}
        }
        let tls = config.tls.clone().map(tls::acceptor).transpose()?;
        let push = match config.source {
            Source::Directory(_) => config.push,
            Source::ImageServe(_) => PushPolicy::None,
        };
        let gate = Gate::new(config.pull, push, users, tls.is_some());
        let source = config.source.clone();
        let opened = blocking(move || Opened::open(&source)).await?;
        let failed = |source| ServerError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let extra = Router::new();
        Ok(Self { opened, listener, address, tls, gate, config, extra })
    }

    /// Answers these routes as well, to whoever they answer: the registry's own list of users does
    /// not guard them.
    #[must_use]
    pub fn with_routes(self, extra: Router) -> Self {
        Self { extra, ..self }
    }

    /// Where clients find the registry.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The address that the registry listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled and the requests in progress have ended.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { opened, listener, tls, gate, config, extra, .. } = self;
        let tasks = TaskTracker::new();
        let metrics = Arc::new(Metrics::default());
        let library = opened.library();
        let writer = opened.writer(&config, &metrics, &tasks, &shutdown);
        let registry = Arc::new(Registry {
            library,
            writer,
            gate,
            reads: Arc::new(ReadLimit::new(config.reads_per_client.map(NonZeroUsize::get))),
            metrics,
            access_log: config.access_log,
            tasks: tasks.clone(),
            buffers: Arc::default(),
        });
        // Who only serves a tree has no garbage.
        let garbage = config.garbage.filter(|_| registry.writer.is_some());
        let app = Router::new()
            .route("/token", get(api::token))
            .route("/metrics", get(api::metrics))
            .route("/gc", post(api::collect_garbage))
            .fallback(api::handle)
            .with_state(Arc::clone(&registry))
            .merge(extra);
        tokio::select! {
            () = listen::serve(listener, tls, app, &shutdown, config.grace) => {}
            () = registry.expire_uploads() => {}
            () = registry.collect_regularly(garbage) => {}
        }
        // The connections have ended, and with them the bodies that tasks wait for.
        tasks.close();
        tasks.wait().await;
    }
}

impl Opened {
    fn open(source: &Source) -> Result<Self, StorageError> {
        Ok(match source {
            Source::Directory(root) => Self::Directory(Arc::new(Storage::open(root)?)),
            Source::ImageServe(root) => Self::ImageServe(Arc::new(ImageServeTree::open(root)?)),
        })
    }

    fn library(&self) -> Arc<dyn Library> {
        match self {
            Self::Directory(storage) => Arc::clone(storage) as _,
            Self::ImageServe(tree) => Arc::clone(tree) as _,
        }
    }

    /// What is pushed to, with the indexes of images that are there and have none being made.
    fn writer(
        self,
        config: &ServerConfig,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Option<Writer> {
        let Self::Directory(storage) = self else { return None };
        let wait = match config.index {
            IndexPolicy::Wait(wait) => Some(wait),
            IndexPolicy::Off => None,
        };
        let (tasks, stop) = (tasks.clone(), shutdown.clone());
        let indexing =
            Indexing::new(Arc::clone(&storage), wait, Arc::clone(metrics), tasks.clone(), stop);
        let packing = (config.profiles && wait.is_some())
            .then(|| Arc::new(Packing::new(Arc::clone(&storage), tasks.clone(), shutdown.clone())));
        let indexing = Arc::new(indexing.with_packing(packing.clone()));
        tasks.spawn(Arc::clone(&indexing).catch_up());
        let sessions = Arc::new(Sessions::new(Arc::clone(&storage)));
        let (sparse, stop) = (config.sparse, shutdown.clone());
        Some(Writer { storage, sessions, indexing, packing, sparse, stop })
    }
}

/// Collects the garbage of the registry in the directory `root`, which no process serves.
///
/// # Errors
/// [`GarbageError`]; in particular where a process serves the directory.
pub fn collect_garbage(root: &Path, rules: &GarbageRules) -> Result<Collected, GarbageError> {
    let storage = Storage::open_existing(root)?;
    garbage::collect(&storage, rules, SystemTime::now(), |_| false, &CancellationToken::new())
}

impl Registry {
    /// Forgets abandoned uploads from time to time; never returns.
    async fn expire_uploads(&self) {
        let mut ticks = tokio::time::interval(EXPIRE_INTERVAL);
        loop {
            ticks.tick().await;
            let Some(writer) = &self.writer else { continue };
            let forgotten = writer.sessions.expire(Instant::now(), UPLOAD_IDLE);
            if forgotten > 0 {
                tracing::info!(forgotten, "uploads timed out");
            }
        }
    }

    /// Collects garbage each time the interval has passed; never returns.
    async fn collect_regularly(&self, garbage: Option<(Duration, GarbageRules)>) {
        let Some((interval, rules)) = garbage else { return std::future::pending().await };
        loop {
            tokio::time::sleep(interval).await;
            if let Err(error) = self.collect(rules).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "garbage was not collected");
            }
        }
    }
}

/// Whether a proxy says that it asks for somebody else (RFC 9110 section 7.6.3, RFC 7239).
fn is_passed_on(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        matches!(name, "via" | "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_push_policy_goes_by_where_the_client_is() {
        let local = Peer::new("127.0.0.1:1".parse().unwrap(), None);
        let remote = Peer::new("192.0.2.1:1".parse().unwrap(), None);
        let nothing = HeaderMap::new();
        assert!(PushPolicy::OwnHost.admits(local, &nothing));
        assert!(!PushPolicy::OwnHost.admits(remote, &nothing));
        for peer in [local, remote] {
            assert!(PushPolicy::Any.admits(peer, &nothing));
            assert!(!PushPolicy::None.admits(peer, &nothing));
            assert!(!PushPolicy::Users.admits(peer, &nothing));
        }
    }

    #[test]
    fn who_asks_for_somebody_else_is_not_on_this_host() {
        let local = Peer::new("127.0.0.1:1".parse().unwrap(), None);
        for name in ["via", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"] {
            let name: http::HeaderName = name.parse().unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), "x".parse().unwrap())]);
            assert!(!PushPolicy::OwnHost.admits(local, &headers), "{name}");
            assert!(PushPolicy::Any.admits(local, &headers), "{name}");
        }
    }
}
