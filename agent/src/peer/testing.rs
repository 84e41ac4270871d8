//! For tests: clusters of nodes on loopback, and a registry in memory that counts the bytes that it
//! gives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{BlobStream, Piece, Priority, Scope, SourceError};

use super::client::PeerClient;
use super::exchange::{Exchange, Parts};
use super::keys::testing::keys;
use super::member::{Member, MemberId, Members, Roster, Weight};
use super::origin::{Login, Origin, Password};
use super::pieces::{PieceLimits, Pieces};
use super::placement::{PROTOCOL, ranking};
use super::profiles::Shelf;
use super::realm::Realms;
use super::server::PieceServer;
use super::uploads::UploadLimits;
use super::wanted::{Kind, Wanted};

pub const SCOPE: &str = "r.example:8787/nova/nova-api";

/// A blob of `count` pieces of `size` bytes.
pub fn blob(count: usize, size: usize) -> (Bytes, Vec<Piece>) {
    let words =
        (0..count * size / 4).flat_map(|n| (n as u32).wrapping_mul(0x9e37_79b9).to_le_bytes());
    let bytes: Bytes = words.collect::<Vec<u8>>().into();
    let digest = Digest::of(&bytes);
    let piece = |n: usize| {
        let range = n * size..(n + 1) * size;
        let piece = Digest::of(&bytes[range.clone()]);
        Piece { blob: digest, range: range.start as u64..range.end as u64, digest: piece }
    };
    let pieces = (0..count).map(piece).collect();
    (bytes, pieces)
}

pub fn wanted(piece: &Piece) -> Wanted {
    let (scope, priority) = (Scope::new(SCOPE), Priority::Demand);
    Wanted { scope, piece: piece.clone(), priority, kind: Kind::Blob }
}

pub fn id(number: u8) -> MemberId {
    MemberId::from_bytes([number; 16])
}

/// A registry.
#[derive(Default)]
pub struct Registry {
    pub blobs: Mutex<HashMap<Digest, Bytes>>,
    /// Bytes that it gave.
    pub given: AtomicU64,
    pub down: AtomicBool,
    /// The pause before each chunk.
    pub pause: Duration,
    /// How many more chunks it gives; `None` for no limit.
    pub chunks: Option<Semaphore>,
}

impl Registry {
    pub fn with(blob: &Bytes) -> Arc<Self> {
        Self::slow(blob, Duration::ZERO)
    }

    pub fn slow(blob: &Bytes, pause: Duration) -> Arc<Self> {
        let registry = Self { pause, ..Self::default() };
        registry.blobs.lock().unwrap().insert(Digest::of(blob), blob.clone());
        Arc::new(registry)
    }

    /// One that gives `chunks` chunks, and more when they are added.
    pub fn hesitant(blob: &Bytes, chunks: usize) -> Arc<Self> {
        let registry = Self { chunks: Some(Semaphore::new(chunks)), ..Self::default() };
        registry.blobs.lock().unwrap().insert(Digest::of(blob), blob.clone());
        Arc::new(registry)
    }

    pub fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }
}

/// A node's way to it.
pub struct Way {
    registry: Arc<Registry>,
    login: Option<Login>,
}

impl Origin for Way {
    fn reaches(&self, scope: &Scope) -> bool {
        scope.as_str().starts_with("r.example:8787/")
    }

    fn login<'a>(&'a self, _: &'a Scope) -> BoxFuture<'a, Option<Login>> {
        std::future::ready(self.login.clone()).boxed()
    }

    fn read<'a>(
        &'a self,
        wanted: &'a Wanted,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        async move {
            let origin = "registry".to_owned();
            if self.registry.down.load(Ordering::SeqCst) {
                return Err(SourceError::Unavailable { origin, reason: "down".to_owned() });
            }
            let Piece { blob, range, .. } = &wanted.piece;
            let bytes = self.registry.blobs.lock().unwrap().get(blob).cloned();
            let bytes = bytes.ok_or(SourceError::NotFound { origin, blob: *blob })?;
            let rest = bytes.slice((range.start + offset) as usize..range.end as usize);
            let (registry, chunks) = (self.registry.clone(), rest.len().div_ceil(16 << 10));
            let chunk = move |n: usize| rest.slice(n << 14..rest.len().min((n + 1) << 14));
            Ok(stream::iter((0..chunks).map(chunk))
                .then(move |chunk| {
                    let registry = registry.clone();
                    async move {
                        tokio::time::sleep(registry.pause).await;
                        if let Some(chunks) = &registry.chunks {
                            chunks.acquire().await.unwrap().forget();
                        }
                        registry.given.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                        Ok(chunk)
                    }
                })
                .boxed())
        }
        .boxed()
    }

    fn brought(&self, _: &Scope, _: u64) {}
}

/// A node; it is gone when this is dropped.
pub struct Node {
    pub exchange: Exchange,
    pub address: SocketAddr,
    pub member: Member,
    /// For requests that no honest node sends.
    pub http: reqwest::Client,
    /// Where its pieces are.
    pub dir: TempDir,
    _task: AbortOnDropHandle<()>,
    members: watch::Sender<Arc<Members>>,
}

/// How a node of a test is made.
pub struct NodeSpec {
    pub id: MemberId,
    /// Of the cluster key.
    pub key: u8,
    pub password: Option<&'static str>,
    pub limits: UploadLimits,
    pub pieces: PieceLimits,
}

impl NodeSpec {
    pub fn new(number: u8) -> Self {
        Self {
            id: id(number),
            key: 1,
            password: None,
            limits: UploadLimits::default(),
            pieces: PieceLimits::default(),
        }
    }

    pub async fn start(self, registry: &Arc<Registry>) -> Node {
        let login = self.password.map(|password| Login {
            registry: "r.example:8787".to_owned(),
            user: "nova".to_owned(),
            password: Password::new(password.to_owned()),
        });
        self.start_with(Arc::new(Way { registry: registry.clone(), login })).await
    }

    /// The same, with another way to the registries.
    pub async fn start_with(self, origin: Arc<dyn Origin>) -> Node {
        // Fails only where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Self { id, key, limits, pieces, .. } = self;
        let (members, roster) = Roster::new(id, Members::default());
        let dir = tempfile::tempdir().unwrap();
        let exchange = Exchange::new(Parts {
            roster,
            client: PeerClient::new(id, keys(key), http(), "http"),
            realms: Realms::new(keys(key), id, origin.clone()),
            origin,
            pieces: Pieces::open(dir.path(), pieces).unwrap(),
            profiles: Shelf::new(dir.path().join("profiles")),
            limits,
        });
        let server = PieceServer::new(exchange.clone(), keys(key), None);
        let (address, task) = serve(server.router()).await;
        let member = member(id, address);
        Node { exchange, address, member, http: reqwest::Client::new(), dir, _task: task, members }
    }
}

impl Node {
    /// A piece, as this node gets it.
    pub async fn get(&self, piece: &Piece) -> Result<Verified, SourceError> {
        self.exchange.fetch(&wanted(piece), Instant::now() + Duration::from_secs(30)).await
    }

    pub fn meets(&self, members: &[Member]) {
        self.members.send_replace(Arc::new(Members::new(members.to_vec())));
    }
}

pub fn member(id: MemberId, address: SocketAddr) -> Member {
    let (addresses, protocol) = (vec![address], PROTOCOL);
    Member { id, addresses, epoch: 1, protocol, weight: Weight::FULL }
}

/// Serves `router` on a port of its own.
pub async fn serve(router: Router) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, AbortOnDropHandle::new(task))
}

fn http() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    builder.connect_timeout(Duration::from_millis(500)).build().unwrap()
}

/// `count` nodes that know each other.
pub async fn cluster(count: u8, registry: &Arc<Registry>) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..count {
        nodes.push(NodeSpec::new(number).start(registry).await);
    }
    introduce(&nodes, &[]);
    nodes
}

/// Has all `nodes` know each other and the `others`.
pub fn introduce(nodes: &[Node], others: &[Member]) {
    let members: Vec<Member> =
        nodes.iter().map(|node| node.member.clone()).chain(others.iter().cloned()).collect();
    nodes.iter().for_each(|node| node.meets(&members));
}

/// The place of the owner of `piece` among `members`.
pub fn owner(piece: &Piece, members: &[Member]) -> MemberId {
    let members = Members::new(members.to_vec());
    ranking(&piece.digest, &members, &PROTOCOL, 1)[0]
}
