//! The registry: the OCI distribution-spec 1.1 over a directory.
//!
//! ```text
//! listen -> api (target, page, range) -> { upload, body, indexing } -> storage -> digest, name
//!            error: what each refusal looks like on the wire
//! ```

mod api;
mod blocking;
mod body;
mod digest;
mod error;
mod indexing;
mod listen;
mod manifest;
mod name;
mod page;
mod range;
mod storage;
mod target;
mod upload;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use api::Registry;
use blocking::blocking;
use error::ApiError;
use indexing::Indexing;
use storage::Storage;
use upload::Sessions;

pub use storage::StorageError;

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
    /// Whether and how the layers of pushed images are indexed.
    pub index: IndexPolicy,
    /// How long requests in progress may take to end at shutdown.
    pub grace: Duration,
}

/// Who may change what the registry holds. Everyone may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushPolicy {
    /// Clients on the registry's own host.
    Loopback,
    /// Every client.
    Any,
    /// Nobody.
    None,
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
#[derive(Debug)]
pub struct Server {
    storage: Arc<Storage>,
    listener: TcpListener,
    address: SocketAddr,
    push: PushPolicy,
    index: IndexPolicy,
    grace: Duration,
}

impl ServerConfig {
    /// A registry on `root` that listens on `listen` and takes pushes from its own host.
    pub fn new(root: impl Into<PathBuf>, listen: impl Into<String>) -> Self {
        Self {
            root: root.into(),
            listen: listen.into(),
            push: PushPolicy::Loopback,
            index: IndexPolicy::Wait(Duration::from_secs(30)),
            grace: Duration::from_secs(10),
        }
    }
}

impl PushPolicy {
    /// Lets the client at `peer` change something, or says why not.
    fn admit(self, peer: SocketAddr) -> Result<(), ApiError> {
        match self {
            Self::Any => Ok(()),
            Self::Loopback if peer.ip().to_canonical().is_loopback() => Ok(()),
            Self::Loopback => Err(ApiError::PushDenied),
            Self::None => Err(ApiError::ReadOnly),
        }
    }
}

impl Server {
    /// Opens the directory and listens.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let ServerConfig { root, listen, push, index, grace } = config;
        let storage = Arc::new(blocking(move || Storage::open(&root)).await?);
        let failed = |source| ServerError::Listen { address: listen.clone(), source };
        let listener = TcpListener::bind(&listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { storage, listener, address, push, index, grace })
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
        let indexing = Arc::new(Indexing::new(storage, wait, tasks.clone(), shutdown.clone()));
        tasks.spawn(Arc::clone(&indexing).catch_up());
        let registry = Arc::new(Registry {
            sessions: Sessions::new(Arc::clone(&self.storage)),
            storage: self.storage,
            push: self.push,
            indexing,
            tasks: tasks.clone(),
            buffers: Arc::default(),
        });
        let app = Router::new().fallback(api::handle).with_state(Arc::clone(&registry));
        tokio::select! {
            () = listen::serve(self.listener, app, &shutdown, self.grace) => {}
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
            assert!(PushPolicy::Loopback.admit(peer).is_ok());
            assert!(matches!(PushPolicy::None.admit(peer), Err(ApiError::ReadOnly)));
        }
        assert!(matches!(PushPolicy::Loopback.admit(remote), Err(ApiError::PushDenied)));
        assert!(PushPolicy::Any.admit(remote).is_ok());
    }
}
