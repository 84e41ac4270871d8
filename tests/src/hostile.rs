//! A member of a cluster that breaks the rules: it has the key and is heard of as every other
//! member, and answers what it likes to those who ask it for pieces.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use undermount::peer::keys::{ClusterKeys, KeyFile};
use undermount::peer::membership::{HttpConfig, Listen, Membership, MembershipConfig, udp};
use undermount::peer::wanted::PieceCall;
use undermount::registry::client::install_crypto_provider;

use crate::cluster::Cluster;
use crate::http::{Fault, Response, Server};
use crate::image::Image;
use crate::network::Host;

/// The port of peers.
const PORT: u16 = 8788;

/// What it does to those who ask for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdeed {
    /// Sends as many other bytes.
    Lies,
    /// Never says anything.
    IsSilent,
    /// Sends half of the piece and no more.
    Stalls,
    /// Sends a kilobyte in a second.
    Trickles,
    /// Sends without end.
    SendsWithoutEnd,
    /// Says 200 to everything, with a page of its own.
    AgreesToEverything,
    /// Says that it speaks another version of the protocol.
    ClaimsAnotherVersion,
}

/// The member; it is gone when dropped.
pub struct Hostile {
    asked: Arc<AtomicUsize>,
    // The membership needs the runtime, and what listens is to end on the host that it is on.
    membership: Option<Membership>,
    runtime: Option<Runtime>,
    server: Option<Server>,
    host: Host,
    _directory: TempDir,
}

impl Hostile {
    /// Joins `cluster`, whose nodes want pieces of `image`, to do `misdeed`.
    pub fn join(cluster: &Cluster, image: &Image, misdeed: Misdeed) -> Self {
        let host = cluster.host();
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from((host.address(), PORT));
        let asked = Arc::new(AtomicUsize::new(0));
        let (counted, image) = (asked.clone(), image.clone());
        let answer = move |request: &crate::http::Request| {
            let Ok(call) = PieceCall::parse(&request.path) else { return Response::new(404, "") };
            counted.fetch_add(1, Ordering::Relaxed);
            misdeed.answer(&call, &image)
        };
        let server = host.enter(|| Server::on(TcpListener::bind(address).unwrap(), answer));
        let config = config(cluster, address, misdeed, directory.path());
        let (runtime, membership) = host.enter(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().unwrap();
            let membership = Membership::start(config, runtime.handle()).unwrap();
            (runtime, membership)
        });
        Self {
            asked,
            membership: Some(membership),
            runtime: Some(runtime),
            server: Some(server),
            host,
            _directory: directory,
        }
    }

    /// How often it was asked for a piece.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let (membership, runtime, server) =
            (self.membership.take(), self.runtime.take(), self.server.take());
        self.host.enter(|| {
            drop(server);
            drop(membership);
            if let Some(runtime) = runtime {
                runtime.shutdown_timeout(Duration::from_secs(5));
            }
        });
    }
}

fn config(
    cluster: &Cluster,
    address: SocketAddr,
    misdeed: Misdeed,
    directory: &Path,
) -> MembershipConfig {
    install_crypto_provider();
    let client = || reqwest::Client::builder().no_proxy().build().unwrap();
    let other = misdeed == Misdeed::ClaimsAnotherVersion;
    MembershipConfig {
        keys: ClusterKeys::new(&KeyFile::read(&cluster.key_file()).unwrap()),
        listen: Listen::At(vec![address]),
        advertise: None,
        seeds: vec![format!("http://{}/undermount", cluster.registry_address())],
        members: Vec::new(),
        http: HttpConfig { members: client(), scheme: "http", seeds: client() },
        protocol: if other { (2, 3) } else { (1, 1) },
        drained: false,
        directory: directory.to_owned(),
        bind: udp(),
    }
}

impl Misdeed {
    fn answer(self, call: &PieceCall, image: &Image) -> Response {
        let range = &call.wanted.piece.range;
        let (start, end) = (range.start + call.offset, range.end);
        let right = image.blobs.get(&call.wanted.piece.blob).map(|blob| {
            let bound = |at: u64| usize::try_from(at).unwrap().min(blob.len());
            blob.slice(bound(start)..bound(end))
        });
        let right = right.unwrap_or_else(|| vec![7; (end - start) as usize].into());
        let half = right.len() / 2 + 1;
        let with = |body: Bytes, fault| Response { fault: Some(fault), ..Response::new(200, body) };
        match self {
            Self::Lies => Response::new(200, vec![b'!'; right.len()]),
            Self::IsSilent => with(right, Fault::Stall),
            Self::Stalls => with(right, Fault::Trickle(half, Duration::from_secs(120))),
            Self::Trickles => with(right, Fault::Trickle(100, Duration::from_millis(100))),
            Self::SendsWithoutEnd => with(right, Fault::Endless),
            Self::AgreesToEverything => Response::new(200, "<h1>It works!</h1>"),
            Self::ClaimsAnotherVersion => Response::new(421, "version 2 or 3 is spoken here"),
        }
    }
}
