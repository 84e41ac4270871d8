//! The registry source against a registry that misbehaves.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::registry::client::testing::{Reply, Seen, Server, client};

use super::*;

/// 4 MB in which no two words are alike.
fn blob() -> Bytes {
    static BLOB: LazyLock<Bytes> =
        LazyLock::new(|| (0..1_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into());
    BLOB.clone()
}

fn piece(range: std::ops::Range<u64>) -> Piece {
    let bytes = blob().slice(range.start as usize..range.end as usize);
    Piece { blob: Digest::of(&blob()), range, digest: Digest::of(&bytes) }
}

fn request(server: &Server, pieces: &[Piece], priority: Priority) -> PieceRequest {
    PieceRequest {
        scope: server.repository().scope(),
        pieces: pieces.to_vec(),
        priority,
        deadline: Instant::now() + Duration::from_secs(20),
    }
}

fn source() -> RegistrySource {
    RegistrySource::new(client(|_| ()), Arc::default())
}

async fn serving() -> Server {
    let blob = blob();
    Server::start(move |seen| Reply::blob(seen, &blob)).await
}

#[tokio::test]
async fn pieces_come_verified_in_the_order_of_the_request() {
    let server = serving().await;
    let source = source();
    let pieces = [piece(3_000_000..3_500_000), piece(0..1001), piece(1000..2001), piece(5..5)];
    let request = request(&server, &pieces, Priority::Demand);
    let scope = request.scope.clone();
    let fetched = source.fetch(request).await.unwrap();
    for (piece, fetched) in pieces.iter().zip(&fetched) {
        assert_eq!(fetched.digest(), &piece.digest);
    }
    let mut ranges: Vec<_> = server.seen().iter().filter_map(Seen::range).collect();
    ranges.sort_unstable();
    assert_eq!(ranges, [(0, 2000), (3_000_000, 3_499_999)], "neighbours travel together");
    assert_eq!(source.ledger().bytes_for(&scope), 502_001);
    assert_eq!(source.ledger().entries()[0].origin, server.host);
}

#[tokio::test]
async fn wrong_bytes_are_asked_for_again_and_never_handed_out() {
    let wrong = |seen: &Seen| {
        static WRONG: LazyLock<Bytes> = LazyLock::new(|| {
            let mut bytes = blob().to_vec();
            bytes[1500] ^= 1;
            bytes.into()
        });
        Reply::blob(seen, &WRONG)
    };
    let count = AtomicUsize::new(0);
    let server = Server::start(move |seen| match count.fetch_add(1, Ordering::SeqCst) {
        0 => wrong(seen),
        _ => Reply::blob(seen, &blob()),
    })
    .await;
    let pieces = [piece(1000..2000)];
    let fetched = source().fetch(request(&server, &pieces, Priority::Demand)).await.unwrap();
    assert_eq!(fetched[0].digest(), &pieces[0].digest);

    let server = Server::start(wrong).await;
    let error = source().fetch(request(&server, &pieces, Priority::Demand)).await.unwrap_err();
    let expected = format!("{} sent wrong bytes for {}", server.host, pieces[0].blob);
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(error.to_string().contains("bytes 1000 to 2000"), "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn errors_name_the_registry_and_the_blob() {
    type Says = fn(&SourceError) -> bool;
    let (late, soon) = (Duration::from_secs(60), Duration::from_millis(400));
    let cases: [(Reply, Duration, Says); 4] = [
        (Reply::new(404, ""), late, |error| matches!(error, SourceError::NotFound { .. })),
        (Reply::new(200, "short"), late, |error| matches!(error, SourceError::Wrong { .. })),
        (Reply::new(500, ""), late, |error| matches!(error, SourceError::Unavailable { .. })),
        (Reply { hangs: true, ..Reply::default() }, soon, |error| {
            matches!(error, SourceError::Deadline { .. })
        }),
    ];
    for (reply, within, says) in cases {
        let server = Server::start(move |_| reply.clone()).await;
        let mut request = request(&server, &[piece(10..20)], Priority::Demand);
        request.deadline = Instant::now() + within;
        let error = source().fetch(request).await.unwrap_err();
        assert!(says(&error), "{error:?}");
        let words = error.to_string();
        assert!(words.contains(&server.host), "{words}");
        assert!(words.contains(&Digest::of(&blob()).to_string()), "{words}");
    }
}

#[tokio::test]
async fn a_blob_streams_whole_and_is_counted() {
    let server = serving().await;
    let source = source();
    let scope = server.repository().scope();
    let (blob_digest, size) = (Digest::of(&blob()), blob().len() as u64);
    let request = BlobRequest {
        scope: scope.clone(),
        blob: blob_digest,
        size,
        pieces: Arc::default(),
        priority: Priority::Background,
        deadline: Instant::now() + Duration::from_secs(20),
    };
    let mut stream = source.stream(request.clone()).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(bytes, blob());
    assert_eq!(source.ledger().bytes_for(&scope), size);
    let missing = BlobRequest { blob: Digest::of(b""), size: 7, ..request };
    let error = source.stream(missing).await.err().unwrap();
    assert!(matches!(error, SourceError::Wrong { .. }), "{error}");
}

#[tokio::test]
async fn the_deadline_of_a_stream_is_for_its_first_byte_only() {
    let blob = blob();
    let server = Server::start(move |seen| {
        let mut reply = Reply::blob(seen, &blob.slice(..2000));
        reply.trickle = Some(Duration::from_millis(2));
        reply
    })
    .await;
    let request = BlobRequest {
        scope: server.repository().scope(),
        blob: Digest::of(b"any"),
        size: 2000,
        pieces: Arc::default(),
        priority: Priority::Demand,
        deadline: Instant::now() + Duration::from_secs(3),
    };
    let mut stream = source().stream(request.clone()).await.unwrap();
    let mut received = 0;
    while let Some(chunk) = stream.next().await {
        received += chunk.unwrap().len();
    }
    assert_eq!(received, 2000);
    assert!(Instant::now() > request.deadline, "it took longer than the deadline");
}

#[tokio::test]
async fn a_request_waits_for_its_slot_no_longer_than_its_deadline() {
    let server = Server::start(|_| Reply { hangs: true, ..Reply::default() }).await;
    let source = source();
    let mut request = request(&server, &[piece(0..10)], Priority::Background);
    request.deadline = Instant::now() + Duration::from_millis(300);
    let fetches = (0..5).map(|_| source.fetch(request.clone()));
    let outcomes = futures_util::future::join_all(fetches).await;
    assert!(Instant::now() < request.deadline + Duration::from_secs(60));
    assert!(outcomes.iter().all(|o| matches!(o, Err(SourceError::Deadline { .. }))));
}

#[tokio::test]
async fn a_background_stream_goes_on_under_constant_demand() {
    let server = serving().await;
    let source = source();
    let _demand = source.gate.enter(Priority::Demand).await;
    let request = BlobRequest {
        scope: server.repository().scope(),
        blob: Digest::of(&blob()),
        size: blob().len() as u64,
        pieces: Arc::default(),
        priority: Priority::Background,
        deadline: Instant::now() + Duration::from_secs(20),
    };
    let mut stream = source.stream(request).await.unwrap();
    let begin = Instant::now();
    for _ in 0..2 {
        stream.next().await.unwrap().unwrap();
    }
    assert!(begin.elapsed() >= COURTESY, "it holds back");
}
