//! A cluster on loopback: nodes with their HTTP servers, and a seed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use http::StatusCode;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::faults::Network;
use crate::peer::keys::ClusterKeys;
use crate::peer::keys::testing::keys;
use crate::peer::member::MemberId;
use crate::peer::membership::{HttpConfig, Listen, Membership, MembershipConfig, PROTOCOL, seed};

/// How long a condition in a test may take to become true, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a condition to become true.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A free port of loopback.
pub fn reserve_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub struct Cluster {
    pub nodes: Vec<TestNode>,
    pub network: Network,
    /// How the next node is configured.
    pub listen: SocketAddr,
    pub seeds: Vec<String>,
    pub members: Vec<SocketAddr>,
    pub protocol: (u16, u16),
    pub drained: bool,
    pub keys_of_next: ClusterKeys,
    pub seed_keys: ClusterKeys,
    seed: Option<AbortOnDropHandle<()>>,
}

pub struct TestNode {
    pub membership: Membership,
    pub keys: ClusterKeys,
    config: MembershipConfig,
    dir: TempDir,
    /// Holds the port until it is served.
    listener: Option<std::net::TcpListener>,
    server: Option<AbortOnDropHandle<()>>,
}

impl Cluster {
    /// Nodes that know nothing of each other.
    pub fn alone() -> Self {
        Self {
            nodes: Vec::new(),
            network: Network::new(),
            listen: "127.0.0.1:0".parse().unwrap(),
            seeds: Vec::new(),
            members: Vec::new(),
            protocol: PROTOCOL,
            drained: false,
            keys_of_next: keys(1),
            seed_keys: keys(1),
            seed: None,
        }
    }

    /// Nodes with a seed.
    pub async fn with_seed() -> Self {
        let mut cluster = Self::alone();
        let address = reserve_port();
        cluster.seeds = vec![format!("http://{address}/undermount")];
        cluster.serve_seed_at(address).await;
        cluster
    }

    pub async fn serve_seed_at(&mut self, address: SocketAddr) {
        let app = Router::new().nest("/undermount", seed::router(self.seed_keys.clone()));
        self.seed = Some(serve(listen(address).await, app));
    }

    pub fn stop_seed(&mut self) {
        self.seed = None;
    }

    pub async fn add(&mut self, count: usize) {
        for _ in 0..count {
            self.add_without_waiting();
            self.serve_last().await;
        }
    }

    /// A node whose network may not be there.
    pub fn add_without_waiting(&mut self) {
        let dir = tempfile::tempdir().unwrap();
        let keys = own_copy(&self.keys_of_next);
        let listener = std::net::TcpListener::bind(self.listen).unwrap();
        let config = MembershipConfig {
            keys: keys.clone(),
            listen: Listen::At(vec![listener.local_addr().unwrap()]),
            advertise: None,
            seeds: self.seeds.clone(),
            members: self.members.clone(),
            http: HttpConfig { members: client(), scheme: "http", seeds: client() },
            protocol: self.protocol,
            drained: self.drained,
            directory: dir.path().to_owned(),
            bind: self.network.bind(),
        };
        let membership = Membership::start(config.clone(), &Handle::current()).unwrap();
        let listener = Some(listener);
        self.nodes.push(TestNode { membership, keys, config, dir, listener, server: None });
    }

    /// Serves HTTP where the last node listens.
    pub async fn serve_last(&mut self) {
        let network = self.network.clone();
        self.nodes.last_mut().unwrap().serve(network).await;
    }

    /// Ends a node without a word and starts it again at the same address.
    pub async fn restart(&mut self, at: usize) {
        let node = self.nodes.remove(at);
        let listen = Listen::At(node.membership.bound().await);
        node.membership.stop().await;
        drop(node.server);
        let config = MembershipConfig { listen, ..node.config };
        let membership = Membership::start(config.clone(), &Handle::current()).unwrap();
        let (keys, dir) = (node.keys, node.dir);
        let mut again = TestNode { membership, keys, config, dir, listener: None, server: None };
        again.serve(self.network.clone()).await;
        self.nodes.insert(at, again);
    }

    /// Waits until these nodes see so many members.
    pub async fn sees(&self, count: usize, nodes: &[usize]) {
        let see = || nodes.iter().all(|at| self.nodes[*at].count() == count);
        eventually(&format!("{nodes:?} see {count}"), see).await;
    }

    /// Waits until every node sees so many members.
    pub async fn sees_all(&self, count: usize) {
        let what = format!("all see {count}");
        eventually(&what, || self.nodes.iter().all(|node| node.count() == count)).await;
    }
}

impl TestNode {
    pub fn id(&self) -> MemberId {
        self.membership.roster().own
    }

    pub fn epoch(&self) -> u64 {
        let members = self.membership.roster().members();
        members.get(&self.id()).map_or(0, |own| own.epoch)
    }

    pub fn count(&self) -> usize {
        self.membership.roster().members().len()
    }

    async fn serve(&mut self, network: Network) {
        let address = self.membership.bound().await[0];
        let own = self.id();
        let cut = from_fn(move |request: Request, next: Next| {
            let cut = caller(&request).is_some_and(|caller| network.separates(caller, own));
            async move {
                if cut { StatusCode::BAD_GATEWAY.into_response() } else { next.run(request).await }
            }
        });
        let listener = match self.listener.take() {
            Some(listener) => {
                listener.set_nonblocking(true).unwrap();
                TcpListener::from_std(listener).unwrap()
            }
            None => listen(address).await,
        };
        self.server = Some(serve(listener, self.membership.router().layer(cut)));
    }

    /// Waits until the list of members that the next life reads has so many.
    pub async fn has_written_members_down(&self, count: usize) {
        let path = self.dir.path().join("members.json");
        eventually("members are written down", || written(&path) == count).await;
    }

    /// Watches how many members the node sees at least, from now on.
    pub fn watch_lowest_count(&self) -> Watched {
        let lowest = Arc::new(AtomicUsize::new(self.count()));
        let (seen, roster) = (lowest.clone(), self.membership.roster());
        let task = tokio::spawn(async move {
            loop {
                seen.fetch_min(roster.members().len(), Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Watched { lowest, _task: AbortOnDropHandle::new(task) }
    }
}

pub struct Watched {
    lowest: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Watched {
    pub fn lowest(&self) -> usize {
        self.lowest.load(Ordering::SeqCst)
    }
}

/// Keys that are rotated without those of other nodes.
fn own_copy(keys: &ClusterKeys) -> ClusterKeys {
    let byte = (0..=255).find(|byte| crate::peer::keys::testing::keys(*byte).ids() == keys.ids());
    crate::peer::keys::testing::keys(byte.expect("a key of tests"))
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// The member in whose name a request is sent.
fn caller(request: &Request) -> Option<MemberId> {
    let header = request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?;
    header.split(':').nth(1)?.parse().ok()
}

/// Listens on an address that another socket may still hold for a moment.
async fn listen(address: SocketAddr) -> TcpListener {
    for _ in 0..100 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{address} stays in use");
}

fn serve(listener: TcpListener, app: Router) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        axum::serve(listener, app).await.unwrap();
    }))
}

fn written(path: &Path) -> usize {
    let json = std::fs::read(path).unwrap_or_default();
    let list: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    list["members"].as_array().map_or(0, Vec::len)
}
