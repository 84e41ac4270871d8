//! The supply of a node that shares: its own pieces, then peers, then the registry.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Scope, Source, SourceError,
};

use super::RegistrySource;
use crate::image::Repository;
use crate::peer::exchange::Exchange;
use crate::peer::origin::{Login, Origin, Password};
use crate::peer::wanted::Wanted;
use crate::registry::client::Credentials;

/// Pieces of one request that are on their way at a time.
const WINDOW: usize = 16;
/// How long a stream waits for one of its pieces.
const STREAM_PIECE: Duration = Duration::from_secs(120);
/// How long the registry may take for the first byte of a piece that others may wait for, too.
const ORIGIN: Duration = Duration::from_secs(60);
/// A credential is looked up again after this time.
const LOGIN_LIFE: Duration = Duration::from_secs(5);
/// What peers brought stands in the account under this name.
const PEERS: &str = "peers";

/// Fetches through an exchange with other nodes; what does not travel between nodes, from the
/// registry.
pub struct PeerSource {
    exchange: Exchange,
    registry: Arc<RegistrySource>,
    origin: Arc<RegistryOrigin>,
}

impl PeerSource {
    /// A source that fetches through `exchange`, which reads from the registries by `origin`.
    pub fn new(
        exchange: Exchange,
        registry: Arc<RegistrySource>,
        origin: Arc<RegistryOrigin>,
    ) -> Self {
        Self { exchange, registry, origin }
    }

    async fn fetch_pieces(&self, request: PieceRequest) -> Result<Vec<Verified>, SourceError> {
        let PieceRequest { scope, pieces, priority, deadline } = request;
        self.origin.learn(&scope);
        let fetches = pieces.into_iter().map(|piece| {
            let wanted = Wanted { scope: scope.clone(), piece, priority };
            async move { self.fetch_one(wanted, deadline).await }
        });
        iter(fetches).buffered(WINDOW).try_collect().await
    }

    async fn fetch_one(&self, wanted: Wanted, deadline: Instant) -> Result<Verified, SourceError> {
        if wanted.fits() {
            return self.exchange.fetch(&wanted, deadline).await;
        }
        let Wanted { scope, piece, priority } = wanted;
        let blob = piece.blob;
        let request =
            PieceRequest { scope: scope.clone(), pieces: vec![piece], priority, deadline };
        let fetched = self.registry.fetch(request).await?.into_iter().next();
        fetched.ok_or_else(|| SourceError::NotFound { origin: scope.to_string(), blob })
    }

    async fn open_stream(&self, request: BlobRequest) -> Result<BlobStream, SourceError> {
        self.origin.learn(&request.scope);
        let BlobRequest { scope, blob, size, pieces, priority, .. } = &request;
        let parts = parts(*blob, *size, pieces).map(|parts| {
            let part =
                |(piece, skip)| (Wanted { scope: scope.clone(), piece, priority: *priority }, skip);
            parts.into_iter().map(part).collect::<Vec<_>>()
        });
        match parts {
            Some(parts) if parts.iter().all(|(wanted, _)| wanted.fits()) => {
                Ok(stream_of(self.exchange.clone(), parts))
            }
            _ => self.registry.stream(request).await,
        }
    }
}

impl Source for PeerSource {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        self.fetch_pieces(request).boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.open_stream(request).boxed()
    }

    fn shares(&self) -> bool {
        true
    }
}

/// What a blob is fetched in, and how many bytes at the start of each part the one before has
/// brought: `pieces`, or all as one where none are known. `None` where they leave something out.
fn parts(blob: Digest, size: u64, pieces: &[Piece]) -> Option<Vec<(Piece, u64)>> {
    if pieces.is_empty() {
        return Some(vec![(Piece { blob, range: 0..size, digest: blob }, 0)]);
    }
    let mut end = 0;
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let skip = u64::checked_sub(end, piece.range.start)?;
        if piece.blob != blob || piece.range.end <= end {
            return None;
        }
        end = piece.range.end;
        parts.push((piece.clone(), skip));
    }
    (end == size).then_some(parts)
}

/// The parts one after the other, some of them on their way at a time.
fn stream_of(exchange: Exchange, parts: Vec<(Wanted, u64)>) -> BlobStream {
    let fetches = parts.into_iter().map(move |(wanted, skip)| {
        let exchange = exchange.clone();
        async move {
            let piece = exchange.fetch(&wanted, Instant::now() + STREAM_PIECE).await?;
            Ok(piece.into_bytes().slice(skip as usize..))
        }
    });
    iter(fetches).buffered(WINDOW).boxed()
}

/// The registries as this node reaches them, for itself and for others.
pub struct RegistryOrigin {
    registry: Arc<RegistrySource>,
    credentials: Credentials,
    /// The registries that are read from for others, `host[:port]`.
    hosts: Mutex<HashSet<String>>,
    logins: Mutex<HashMap<Scope, (Instant, Option<Login>)>>,
    /// A password of this process alone.
    nobodys: String,
}

impl RegistryOrigin {
    /// The way through `registry`, with `credentials`. Reads for others go to `hosts`, which the
    /// configuration names, and to the registries that this node has used itself.
    pub fn new(
        registry: Arc<RegistrySource>,
        credentials: Credentials,
        hosts: impl IntoIterator<Item = String>,
    ) -> Self {
        let hosts = Mutex::new(hosts.into_iter().collect());
        let nobodys = crate::peer::keys::unguessable();
        Self { registry, credentials, hosts, logins: Mutex::default(), nobodys }
    }

    /// This node reads in the name of `scope` itself.
    fn learn(&self, scope: &Scope) {
        let host = host(scope);
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            hosts.insert(host.to_owned());
        }
    }

    async fn look_up(&self, scope: &Scope) -> Option<Login> {
        let known = self.logins().get(scope).cloned();
        if let Some((at, login)) = &known
            && at.elapsed() < LOGIN_LIFE
        {
            return login.clone();
        }
        let found = match self.credentials.lookup(scope.as_str()).await {
            Ok(found) => found,
            Err(error) => {
                // The registry client will say so, too, where it needs one.
                tracing::debug!(%scope, %error, "no credential");
                let known = known.and_then(|(_, login)| login);
                return Some(known.unwrap_or_else(|| self.nobodys(scope)));
            }
        };
        let login = found.map(|found| Login {
            registry: host(scope).to_owned(),
            user: found.user,
            password: Password::new(found.password.expose().to_owned()),
        });
        let mut logins = self.logins();
        logins.retain(|_, (at, _)| at.elapsed() < LOGIN_LIFE);
        logins.insert(scope.clone(), (Instant::now(), login.clone()));
        login
    }

    /// A login that no other node has: what may be private is not taken for public while nobody
    /// can tell.
    fn nobodys(&self, scope: &Scope) -> Login {
        let password = Password::new(self.nobodys.clone());
        Login { registry: host(scope).to_owned(), user: String::new(), password }
    }

    fn logins(&self) -> MutexGuard<'_, HashMap<Scope, (Instant, Option<Login>)>> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for RegistryOrigin {
    fn reaches(&self, scope: &Scope) -> bool {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        scope.as_str().parse::<Repository>().is_ok() && hosts.contains(host(scope))
    }

    fn login<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Option<Login>> {
        // What is never read from needs no credential, and no helper that is asked for it.
        async move { if self.reaches(scope) { self.look_up(scope).await } else { None } }.boxed()
    }

    fn read<'a>(
        &'a self,
        wanted: &'a Wanted,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        let range = wanted.piece.range.start + offset..wanted.piece.range.end;
        self.registry.open_range(wanted, range, Instant::now() + ORIGIN).boxed()
    }

    fn brought(&self, scope: &Scope, bytes: u64) {
        let meter = self.registry.ledger().meter(scope, PEERS);
        meter.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The registry of a scope.
fn host(scope: &Scope) -> &str {
    scope.as_str().split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use undermount_fs::source::Priority;

    use super::*;
    use crate::peer::testing::{NodeSpec, introduce};
    use crate::registry::client::testing::{Reply, Server, client};

    fn piece(range: std::ops::Range<u64>) -> Piece {
        Piece { blob: Digest::of(b"blob"), range, digest: Digest::of(b"piece") }
    }

    fn skips(size: u64, pieces: &[Piece]) -> Option<Vec<u64>> {
        let parts = parts(Digest::of(b"blob"), size, pieces)?;
        Some(parts.into_iter().map(|(_, skip)| skip).collect())
    }

    #[test]
    fn pieces_make_a_blob_where_they_leave_nothing_out() {
        assert_eq!(skips(30, &[piece(0..10), piece(9..20), piece(20..30)]), Some(vec![0, 1, 0]));
        assert_eq!(skips(30, &[]), Some(vec![0]), "all of it is one piece");
        for pieces in [
            &[piece(1..30)][..],
            &[piece(0..10), piece(11..30)],
            &[piece(0..29)],
            &[piece(0..31)],
            &[piece(0..30), piece(5..20)],
        ] {
            assert_eq!(skips(30, pieces), None, "{pieces:?}");
        }
        let foreign = Piece { blob: Digest::of(b"other"), ..piece(0..30) };
        assert_eq!(skips(30, &[foreign]), None);
    }

    #[test]
    fn nothing_is_read_for_others_from_registries_that_the_node_does_not_know() {
        let registry = Arc::new(RegistrySource::new(client(|_| ()), Arc::default()));
        let hosts = ["r.example:5000".to_owned()];
        let origin = RegistryOrigin::new(registry, Credentials::none(), hosts);
        let reaches = |scope: &str| origin.reaches(&Scope::new(scope));
        assert!(reaches("r.example:5000/nova/nova-api"));
        for foreign in
            ["r.example/a", "169.254.169.254/a", "r.example:5000", "", "r.example:5000/A"]
        {
            assert!(!reaches(foreign), "{foreign}");
        }
        origin.learn(&Scope::new("quay.io/own/image"));
        assert!(reaches("quay.io/another/image"));
    }

    #[tokio::test]
    async fn regression_what_may_be_private_is_not_public_while_nobody_can_tell() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("auth.json");
        std::fs::write(&file, "{").unwrap();
        let registry = Arc::new(RegistrySource::new(client(|_| ()), Arc::default()));
        let hosts = ["r.example".to_owned()];
        let credentials = Credentials::from_files(vec![file.clone()]);
        let origin = RegistryOrigin::new(registry, credentials, hosts);
        let scope = Scope::new("r.example/private");
        assert!(origin.login(&scope).await.is_some(), "it is taken for private");
        std::fs::write(&file, "{}").unwrap();
        assert!(origin.login(&scope).await.is_none(), "there is no login, and that is known");
        assert!(origin.login(&Scope::new("elsewhere.example/a")).await.is_none());
    }

    /// A blob of 40 pieces, neighbours sharing a byte.
    fn blob() -> (bytes::Bytes, Vec<Piece>) {
        let bytes: bytes::Bytes =
            (0..400_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
        let blob = Digest::of(&bytes);
        let piece = |start: usize| {
            let range = start.saturating_sub(1)..start + 40_000;
            let digest = Digest::of(&bytes[range.clone()]);
            Piece { blob, range: range.start as u64..range.end as u64, digest }
        };
        let pieces = (0..bytes.len()).step_by(40_000).map(piece).collect();
        (bytes, pieces)
    }

    #[tokio::test]
    async fn nodes_that_stream_the_same_blob_at_once_cost_the_registry_its_bytes_once() {
        let (bytes, pieces) = blob();
        let served = bytes.clone();
        let server = Server::start(move |seen| Reply::blob(seen, &served)).await;
        let scope = server.repository().scope();
        let (mut nodes, mut sources) = (Vec::new(), Vec::new());
        for number in 0..4 {
            let registry = Arc::new(RegistrySource::new(client(|_| ()), Arc::default()));
            let hosts = [server.host.clone()];
            let origin = RegistryOrigin::new(registry.clone(), Credentials::none(), hosts);
            let origin = Arc::new(origin);
            let node = NodeSpec::new(number).start_with(origin.clone()).await;
            sources.push(PeerSource::new(node.exchange.clone(), registry, origin));
            nodes.push(node);
        }
        introduce(&nodes, &[]);
        let request = BlobRequest {
            scope: scope.clone(),
            blob: Digest::of(&bytes),
            size: bytes.len() as u64,
            pieces: pieces.clone().into(),
            priority: Priority::Demand,
            deadline: Instant::now() + Duration::from_secs(20),
        };
        let reads = sources.iter().map(|source| async {
            let stream = source.stream(request.clone()).await.unwrap();
            let chunks: Vec<_> = stream.try_collect().await.unwrap();
            assert!(chunks.concat() == bytes, "all bytes, in order, none of them twice");
        });
        join_all(reads).await;
        let fetched = |origin: &str| -> u64 {
            let entries = sources.iter().flat_map(|source| source.registry.ledger().entries());
            entries.filter(|entry| entry.origin == origin).map(|entry| entry.bytes).sum()
        };
        let all: u64 = pieces.iter().map(|piece| piece.range.end - piece.range.start).sum();
        assert_eq!((fetched(&server.host), fetched(PEERS)), (all, 3 * all));
    }
}
