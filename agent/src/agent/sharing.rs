//! Sharing what this node fetches: the exchange of pieces, and the port where other nodes ask.
//!
//! Other nodes reach one port for everything, pieces and members alike. It is listened to where
//! membership has found the peer network, as soon as it has.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::peers::{Peers, PeersConfig, PeersError, PeersTls, member_client};
use super::process::OwnerConfig;
use crate::peer::client::PeerClient;
use crate::peer::exchange::{Exchange, Parts};
use crate::peer::keys::ClusterKeys;
use crate::peer::link::half_of_link;
use crate::peer::member::Weight;
use crate::peer::pace::{SPAN, Share};
use crate::peer::pieces::{PieceLimits, Pieces};
use crate::peer::profiles::Shelf;
use crate::peer::realm::Realms;
use crate::peer::server::PieceServer;
use crate::peer::tls::{PeerTlsError, acceptor};
use crate::peer::uploads::UploadLimits;
use crate::registry::client::PlainHttp;
use crate::registry::server::listen;
use crate::supply::{PeerSource, RegistryOrigin, RegistrySource};

/// Where the pieces are, in the cache.
const PIECES: &str = "pieces";
/// Where the profiles are that it keeps for others.
const PROFILES: &str = "profiles-of-peers";
/// How long a node waits until it tries again to listen.
const PAUSE: Duration = Duration::from_millis(200);
/// How long answers in progress may take when the agent ends.
const GRACE: Duration = Duration::from_millis(500);

/// The node shares nothing.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// The HTTP client or its certificates cannot be used.
    #[error(transparent)]
    Client(#[from] PeersError),
    /// The certificates of the server cannot be used.
    #[error(transparent)]
    Tls(#[from] PeerTlsError),
    /// The directory of the pieces cannot be used.
    #[error("cannot keep pieces in {}", path.display())]
    Pieces {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a node shares, and how.
#[derive(Clone)]
pub struct Sharing {
    /// The pieces.
    pub exchange: Exchange,
    origin: Arc<RegistryOrigin>,
    tls: Option<TlsAcceptor>,
    bandwidth: Option<u64>,
}

impl Sharing {
    /// Shares with `peers` what comes from `registry`; `known` are the registries that the cache
    /// has images of.
    ///
    /// # Errors
    /// [`SharingError`] names the file or directory that cannot be used.
    pub fn new(
        config: &PeersConfig,
        owner: &OwnerConfig,
        peers: &Peers,
        registry: Arc<RegistrySource>,
        known: impl IntoIterator<Item = String>,
    ) -> Result<Self, SharingError> {
        let seeds = config.seeds.iter().map(|seed| host_of(seed).to_owned());
        let hosts = registries(owner).into_iter().chain(seeds).chain(known);
        let origin = Arc::new(RegistryOrigin::new(registry, hosts));
        let roster = peers.membership.roster();
        let (own, keys) = (roster.own, peers.keys.clone());
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let http = member_client(config.tls.as_ref())?;
        let exchange = Exchange::new(Parts {
            roster,
            client: PeerClient::new(own, keys.clone(), http, scheme),
            realms: Realms::new(keys, own, origin.clone()),
            origin: origin.clone(),
            pieces: pieces(owner)?,
            profiles: Shelf::new(owner.cache.join(PROFILES)),
            limits: UploadLimits::default(),
        });
        let tls = config.tls.as_ref().map(server_tls).transpose()?;
        Ok(Self { exchange, origin, tls, bandwidth: config.bandwidth })
    }

    /// The source that fetches with the help of the others, and from `registry`.
    pub fn source(&self, registry: Arc<RegistrySource>) -> PeerSource {
        PeerSource::new(self.exchange.clone(), registry, self.origin.clone())
    }

    /// What other nodes may ask for, at the `addresses` of this one.
    fn router(&self, keys: &ClusterKeys, addresses: &[SocketAddr]) -> Router {
        let rate = self.rate(addresses);
        tracing::info!(?addresses, bytes_per_second = rate, "pieces are served to peers");
        PieceServer::new(self.exchange.clone(), keys.clone(), rate).router()
    }

    /// What uploads may take together, in bytes per second: as configured, or half of the slowest
    /// link of `addresses` where that is known.
    fn rate(&self, addresses: &[SocketAddr]) -> Option<u64> {
        let links = || addresses.iter().filter_map(|address| half_of_link(address.ip())).min();
        self.bandwidth.or_else(links)
    }
}

/// Has the node own fewer pieces while it is slow.
async fn weigh(peers: &Peers, sharing: &Sharing, addresses: &[SocketAddr]) {
    let (rate, mut share) = (sharing.rate(addresses), Share::default());
    let mut weight = Weight::FULL;
    loop {
        tokio::time::sleep(SPAN).await;
        let now = sharing.exchange.now();
        let sample = sharing.exchange.sent().take(now);
        let next = share.after(sample.is_slow(rate));
        if next != weight {
            tracing::info!(
                from = weight.0,
                to = next.0,
                ?sample,
                "this node's share of the pieces"
            );
            peers.membership.set_weight(next);
            weight = next;
        }
    }
}

/// Answers `peers` until `shutdown`: who is there, and pieces, where any are shared.
pub async fn answer(peers: Arc<Peers>, sharing: Option<Sharing>, shutdown: CancellationToken) {
    let addresses = tokio::select! {
        addresses = peers.membership.bound() => addresses,
        () = shutdown.cancelled() => return,
    };
    let members = peers.membership.router();
    let (tls, app) = match &sharing {
        Some(sharing) => {
            let pieces = sharing.router(&peers.keys, &addresses);
            (sharing.tls.clone(), members.merge(pieces))
        }
        None => (None, members),
    };
    let _weighing = sharing.map(|sharing| {
        let (peers, addresses) = (peers.clone(), addresses.clone());
        let weigh = async move { weigh(&peers, &sharing, &addresses).await };
        AbortOnDropHandle::new(tokio::spawn(weigh))
    });
    let answering = addresses.into_iter().map(|address| {
        let (tls, app, shutdown) = (tls.clone(), app.clone(), shutdown.clone());
        async move {
            if let Some(listener) = bind(address, &shutdown).await {
                listen::serve(listener, tls, app, &shutdown, GRACE).await;
            }
        }
    });
    join_all(answering).await;
}

/// The registries that the configuration names: those that a peer may have this node read from
/// before it has used them itself.
fn registries(owner: &OwnerConfig) -> BTreeSet<String> {
    let client = &owner.client;
    let plain = match &client.plain_http {
        PlainHttp::Hosts(hosts) => hosts.as_slice(),
        PlainHttp::Never | PlainHttp::Always => &[],
    };
    let mirrored = owner.mirror.iter().flat_map(|mirror| &mirror.registries);
    plain.iter().chain(&client.unverified_tls).chain(mirrored).cloned().collect()
}

/// The `host[:port]` of a URL.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

fn pieces(owner: &OwnerConfig) -> Result<Pieces, SharingError> {
    let path = owner.cache.join(PIECES);
    let usual = PieceLimits::default();
    let limits = PieceLimits { reserve: owner.reserve.unwrap_or(usual.reserve), ..usual };
    Pieces::open(&path, limits).map_err(|source| SharingError::Pieces { path, source })
}

fn server_tls(files: &PeersTls) -> Result<TlsAcceptor, PeerTlsError> {
    acceptor(&files.certificate, &files.key, &files.ca)
}

/// Listens at `address`, as soon as that is possible; `None` at shutdown.
async fn bind(address: SocketAddr, shutdown: &CancellationToken) -> Option<TcpListener> {
    let mut reported = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            // A worker that makes room for this one has it for another moment.
            Err(error) if !std::mem::replace(&mut reported, true) => {
                tracing::warn!(%address, %error, "cannot answer peers yet");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = shutdown.cancelled() => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_its_registry() {
        for (url, host) in [
            ("http://uc.example:8787", "uc.example:8787"),
            ("https://[fd00::1]:8787/", "[fd00::1]:8787"),
            ("uc.example:8787/below", "uc.example:8787"),
        ] {
            assert_eq!(host_of(url), host);
        }
    }
}
