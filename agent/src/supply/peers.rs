//! The supply of a node that shares: its own pieces, then peers, then the registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Priority, Source, SourceError,
};

use super::{RegistryOrigin, RegistrySource};
use crate::image::{Descriptor, Repository};
use crate::peer::exchange::Exchange;
use crate::peer::wanted::{Kind, Wanted};
use crate::registry::client::Elsewhere;

/// Pieces of one request that are on their way at a time.
const WINDOW: usize = 16;
/// How long a stream waits for one of its pieces.
const STREAM_PIECE: Duration = Duration::from_secs(120);

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
            let wanted = Wanted { scope: scope.clone(), piece, priority, kind: Kind::Blob };
            async move { self.fetch_one(wanted, deadline).await }
        });
        iter(fetches).buffered(WINDOW).try_collect().await
    }

    async fn fetch_one(&self, wanted: Wanted, deadline: Instant) -> Result<Verified, SourceError> {
        if wanted.fits() {
            return self.exchange.fetch(&wanted, deadline).await;
        }
        let Wanted { scope, piece, priority, .. } = wanted;
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
            let part = |(piece, skip)| {
                let (scope, priority, kind) = (scope.clone(), *priority, Kind::Blob);
                (Wanted { scope, piece, priority, kind }, skip)
            };
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

impl Elsewhere for PeerSource {
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Descriptor,
        deadline: Instant,
    ) -> BoxFuture<'a, Option<Verified>> {
        let (scope, priority, kind) = (repository.scope(), Priority::Demand, Kind::Manifest);
        self.origin.learn(&scope);
        let (digest, range) = (manifest.digest, 0..manifest.size);
        let piece = Piece { blob: digest, range, digest };
        let wanted = Wanted { scope, piece, priority, kind };
        async move {
            // Where nobody has it, the registry is asked in the ordinary way, and says why not.
            if wanted.fits() { self.exchange.fetch(&wanted, deadline).await.ok() } else { None }
        }
        .boxed()
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

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::super::origin::PEERS;
    use super::*;
    use crate::image::media_type;
    use crate::peer::testing::{Node, NodeSpec, introduce};
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

    /// Four nodes that share what `server` has.
    async fn sharing(server: &Server) -> (Vec<Node>, Vec<PeerSource>) {
        let (mut nodes, mut sources) = (Vec::new(), Vec::new());
        for number in 0..4 {
            let registry = Arc::new(RegistrySource::new(client(|_| ()), Arc::default()));
            let hosts = [server.host.clone()];
            let origin = Arc::new(RegistryOrigin::new(registry.clone(), hosts));
            let node = NodeSpec::new(number).start_with(origin.clone()).await;
            sources.push(PeerSource::new(node.exchange.clone(), registry, origin));
            nodes.push(node);
        }
        introduce(&nodes, &[]);
        (nodes, sources)
    }

    #[tokio::test]
    async fn a_manifest_is_read_from_the_registry_once_and_as_a_manifest() {
        let kind = media_type::OCI_INDEX;
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[]}}"#);
        let served = text.clone();
        let server = Server::start(move |_| {
            Reply::new(200, served.clone()).header("Content-Type", media_type::OCI_INDEX)
        })
        .await;
        let (_nodes, sources) = sharing(&server).await;
        let digest = Digest::of(text.as_bytes());
        let manifest = Descriptor::new(kind, digest, text.len() as u64);
        for source in &sources {
            let deadline = Instant::now() + Duration::from_secs(20);
            let found = source.manifest(&server.repository(), &manifest, deadline).await;
            assert_eq!(found.unwrap().bytes(), text.as_bytes());
        }
        let asked: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
        assert_eq!(asked, [format!("/v2/a/b/manifests/{digest}")]);
    }

    #[tokio::test]
    async fn nodes_that_stream_the_same_blob_at_once_cost_the_registry_its_bytes_once() {
        let (bytes, pieces) = blob();
        let served = bytes.clone();
        let server = Server::start(move |seen| Reply::blob(seen, &served)).await;
        let scope = server.repository().scope();
        let (_nodes, sources) = sharing(&server).await;
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
