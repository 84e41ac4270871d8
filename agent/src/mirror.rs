//! The pull-through mirror on a loopback address, for clients that pull whole images: docker,
//! podman since 5.1 with images that have no annotations, CRI-O since 1.31.
//!
//! ```text
//! client -> api -> upstream (whose is it?)
//!            |---> manifests: by tag the registry is asked, by digest the store first
//!            `---> transfers: one fetch for all who want a blob -> registry
//!                      `-> store: verified blobs on disk, the least used go first
//! ```
//!
//! A blob is sent while it is fetched, but for its last byte, which follows when the digest has
//! turned out right. So no client ever gets a whole blob that is wrong, however the registry lies.
//! What was fetched is served when the registry does not answer, tags as they were last.

mod api;
mod manifests;
mod store;
mod transfers;
pub mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::registry::client::{Client, RegistryError};
use crate::registry::server::listen;
use manifests::Manifests;
use transfers::Transfers;
use upstream::{UpstreamError, Upstreams};

pub use store::{MirrorStore, StoreError};

/// How long a mirror waits until it tries again to listen.
const PAUSE: Duration = Duration::from_secs(5);
/// How long answers in progress may take when the mirror ends.
const GRACE: Duration = Duration::from_secs(2);

/// What is mirrored, where, and in how much room.
#[derive(Debug, Clone)]
pub struct MirrorConfig {
    /// Where it listens; a loopback address.
    pub listen: SocketAddr,
    /// The registries that are mirrored, `host[:port]`.
    pub registries: Vec<String>,
    /// Bytes of blobs to keep.
    pub quota: u64,
}

/// Why a request is not answered as it wished.
#[derive(Debug, thiserror::Error)]
enum MirrorError {
    /// The path names nothing.
    #[error("`{path}` is not a manifest or blob of the distribution API")]
    Path {
        /// The path.
        path: String,
    },
    /// It only serves.
    #[error("{method} is not supported: this is a mirror, push to the registry itself")]
    Method {
        /// The method.
        method: http::Method,
    },
    /// The request is for another registry.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The registry has no such thing, refuses, lies or does not answer.
    #[error("{}", crate::control::Failure::of(.0).in_words())]
    Registry(#[from] RegistryError),
    /// The blob is here in part only: its transfer failed.
    #[error("{reason}")]
    Transfer {
        /// Why.
        reason: String,
    },
    /// The range lies beyond the blob.
    #[error("the blob has {size} bytes and none in this range")]
    Range {
        /// The size.
        size: u64,
    },
    /// The disk fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A mirror over a store.
#[derive(Clone)]
pub struct Mirror {
    upstreams: Arc<Upstreams>,
    manifests: Arc<Manifests>,
    transfers: Arc<Transfers>,
}

impl Mirror {
    /// A mirror of `registries`, `host[:port]`, which it reaches through `client`.
    pub fn new(store: MirrorStore, client: Client, registries: Vec<String>) -> Self {
        let store = Arc::new(store);
        Self {
            upstreams: Arc::new(Upstreams::new(registries)),
            manifests: Arc::new(Manifests::new(store.clone(), client.clone())),
            transfers: Arc::new(Transfers::new(store, client)),
        }
    }

    /// Serves on `listener` until `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: &CancellationToken) {
        listen::serve(listener, None, api::router(self), shutdown, GRACE).await;
    }
}

/// Mirrors as `config` says, over the directory `root`, until `shutdown`. What keeps it from that
/// is logged, and tried again: the node does its other work meanwhile.
pub async fn run(config: MirrorConfig, root: PathBuf, client: Client, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match open(&config, &root).await {
            Ok((store, listener)) => {
                tracing::info!(address = %config.listen, "the mirror listens");
                let mirror = Mirror::new(store, client.clone(), config.registries.clone());
                return mirror.serve(listener, &shutdown).await;
            }
            Err(error) => {
                let error = &*error as &dyn std::error::Error;
                tracing::error!(address = %config.listen, error, "the mirror cannot be served");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn open(
    config: &MirrorConfig,
    root: &Path,
) -> Result<(MirrorStore, TcpListener), Box<dyn std::error::Error + Send + Sync>> {
    let listener = TcpListener::bind(config.listen).await?;
    Ok((MirrorStore::open(root, config.quota)?, listener))
}
