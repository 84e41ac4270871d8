//! The registry: the OCI distribution-spec 1.1 over a directory.
//!
//! ```text
//! listen -> api (auth, target, page, range) -> { upload, body, indexing } -> storage -> digest, name
//!            error: what each refusal looks like on the wire
//! ```

mod api;
mod auth;
mod blocking;
mod body;
mod digest;
mod error;
mod indexing;
mod listen;
mod manifest;
mod metrics;
mod name;
mod observe;
mod page;
mod random;
mod range;
mod storage;
mod target;
mod tls;
mod upload;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use api::Registry;
use auth::{Gate, Users};
use blocking::blocking;
use indexing::Indexing;
use metrics::Metrics;
use storage::Storage;
use upload::Sessions;

pub use auth::UsersError;
pub use storage::StorageError;
pub use tls::{TlsError, TlsFiles};

/// An upload that nobody continues is forgotten after this time.
const UPLOAD_IDLE: Duration = Duration::from_secs(60 * 60);
/// How often forgotten uploads are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// How a registry serves.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The directory of the blobs and repositories.
    pub root: PathBuf,
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
    /// Whether each request is logged, as an event of `undermount::access`.
    pub access_log: bool,
    /// How long requests in progress may take to end at shutdown.
    pub grace: Duration,
}

/// Who may change what the registry holds. Who has logged in always may, unless nobody can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushPolicy {
    /// Clients on the registry's own host.
    Loopback,
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
    storage: Arc<Storage>,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    gate: Gate,
    index: IndexPolicy,
    access_log: bool,
    grace: Duration,
}

impl ServerConfig {
    /// A registry on `root` that listens on `listen` and takes pushes from its own host.
    pub fn new(root: impl Into<PathBuf>, listen: impl Into<String>) -> Self {
        Self {
            root: root.into(),
            listen: listen.into(),
            push: PushPolicy::Loopback,
            pull: PullPolicy::Any,
            users: None,
            tls: None,
            index: IndexPolicy::Wait(Duration::from_secs(30)),
            access_log: false,
            grace: Duration::from_secs(10),
        }
    }
}

impl PushPolicy {
    /// Whether a client at `peer` that has not logged in may change something.
    fn admits(self, peer: SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Loopback => peer.ip().to_canonical().is_loopback(),
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
        let ServerConfig { root, listen, push, pull, users, tls, index, access_log, grace } =
            config;
        let users = users.map(|path| Users::read(&path)).transpose()?;
        match (&users, pull, push) {
            (None, PullPolicy::Users, _) => return Err(ServerError::NoUsers("pull")),
            (None, _, PushPolicy::Users) => return Err(ServerError::NoUsers("push")),
            _ => {}
        }
        let tls = tls.map(tls::acceptor).transpose()?;
        let gate = Gate::new(pull, push, users, tls.is_some());
        let storage = Arc::new(blocking(move || Storage::open(&root)).await?);
        let failed = |source| ServerError::Listen { address: listen.clone(), source };
        let listener = TcpListener::bind(&listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { storage, listener, address, tls, gate, index, access_log, grace })
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
        let tasks = TaskTracker::new();
        let storage = Arc::clone(&self.storage);
        let wait = match self.index {
            IndexPolicy::Wait(wait) => Some(wait),
            IndexPolicy::Off => None,
        };
        let metrics = Arc::new(Metrics::default());
        let indexing =
            Indexing::new(storage, wait, Arc::clone(&metrics), tasks.clone(), shutdown.clone());
        let indexing = Arc::new(indexing);
        tasks.spawn(Arc::clone(&indexing).catch_up());
        let registry = Arc::new(Registry {
            sessions: Sessions::new(Arc::clone(&self.storage)),
            storage: self.storage,
            gate: self.gate,
            indexing,
            metrics,
            access_log: self.access_log,
            tasks: tasks.clone(),
            buffers: Arc::default(),
        });
        let app = Router::new()
            .route("/token", get(api::token))
            .route("/metrics", get(api::metrics))
            .fallback(api::handle)
            .with_state(Arc::clone(&registry));
        tokio::select! {
            () = listen::serve(self.listener, self.tls, app, &shutdown, self.grace) => {}
            () = expire_uploads(&registry.sessions) => {}
        }
        // The connections have ended, and with them the bodies that tasks wait for.
        tasks.close();
        tasks.wait().await;
    }
}

/// Forgets abandoned uploads from time to time; never returns.
async fn expire_uploads(sessions: &Sessions) {
    let mut ticks = tokio::time::interval(EXPIRE_INTERVAL);
    loop {
        ticks.tick().await;
        let forgotten = sessions.expire(Instant::now(), UPLOAD_IDLE);
        if forgotten > 0 {
            tracing::info!(forgotten, "uploads timed out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_push_policy_goes_by_the_address_of_the_client() {
        let local: [SocketAddr; 3] =
            ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.9]:1"].map(|peer| peer.parse().unwrap());
        let remote: SocketAddr = "192.0.2.1:1".parse().unwrap();
        for peer in local {
            assert!(PushPolicy::Loopback.admits(peer) && PushPolicy::Any.admits(peer));
            assert!(!PushPolicy::None.admits(peer) && !PushPolicy::Users.admits(peer));
        }
        assert!(PushPolicy::Any.admits(remote) && !PushPolicy::Loopback.admits(remote));
    }
}
