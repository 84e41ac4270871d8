//! Nodes that share, over real connections, with members that misbehave.

use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use nix::sys::stat::{Mode, SFlag, mknod};
use undermount_fs::source::Piece;

use super::*;
use crate::peer::member::{Member, MemberId};
use crate::peer::pieces::PieceLimits;
use crate::peer::testing::{
    Node, NodeSpec, Registry, blob, cluster, id, introduce, member, owner, serve, wanted,
};

/// How often a test that depends on the speed of the machine is tried.
const TRIES: usize = 6;

/// Tries until there is nothing to complain of. On a machine that stalls, nodes take each other for
/// slow and ask the registry as well; a real fault shows each time.
async fn in_some_try<T>(attempt: impl AsyncFn() -> Result<T, String>) -> T {
    let mut complaints = Vec::new();
    for _ in 0..TRIES {
        match attempt().await {
            Ok(outcome) => return outcome,
            Err(complaint) => complaints.push(complaint),
        }
    }
    panic!("each time: {complaints:?}")
}

/// A complaint if the registry has given more than so many bytes.
fn at_most(most: u64, given: u64) -> Result<(), String> {
    if given <= most { Ok(()) } else { Err(format!("the registry gave {given} bytes")) }
}

async fn read_all(nodes: &[Node], pieces: &[Piece]) {
    let reads = nodes.iter().map(|node| async move {
        let fetches = pieces.iter().map(|piece| node.get(piece));
        let fetched: Vec<_> = stream::iter(fetches).buffered(8).collect().await;
        for (piece, fetched) in pieces.iter().zip(fetched) {
            assert_eq!(*fetched.unwrap().digest(), piece.digest);
        }
    });
    join_all(reads).await;
}

#[tokio::test]
async fn eight_nodes_that_read_the_same_cost_the_registry_each_byte_about_once() {
    in_some_try(async || {
        let (bytes, pieces) = blob(40, 100_000);
        let registry = Registry::slow(&bytes, Duration::from_millis(2));
        let mut nodes = cluster(8, &registry).await;
        read_all(&nodes, &pieces).await;
        // The simulation checks this to the byte.
        let (given, size) = (registry.given(), bytes.len() as u64);
        assert!(given >= size, "{given} of {size}");
        at_most(size * 3 / 2, given)?;
        let traffic: Vec<Traffic> = nodes.iter().map(|node| node.exchange.traffic()).collect();
        assert!(traffic.iter().all(|traffic| traffic.lies == 0));
        if traffic.iter().any(|traffic| !traffic.shunned.is_empty()) {
            return Err(format!("somebody is shunned: {traffic:?}"));
        }
        let peers: u64 = traffic.iter().map(|traffic| traffic.peer.bytes).sum();
        assert!(peers >= 8 * size - given, "everything else came from peers: {peers}");

        // A ninth node joins when all is done: it owns some pieces now, and others have them.
        nodes.push(NodeSpec::new(8).start(&registry).await);
        introduce(&nodes, &[]);
        read_all(&nodes[8..], &pieces).await;
        // It costs the registry nothing.
        at_most(size / 10, registry.given() - given)?;
        let before = nodes[8].exchange.traffic().peer;
        read_all(&nodes[8..], &pieces).await;
        assert_eq!(nodes[8].exchange.traffic().peer, before, "a second time costs nobody anything");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_owner_without_room_on_disk_reads_each_piece_once_all_the_same() {
    let (bytes, pieces) = blob(10, 50_000);
    let registry = Registry::with(&bytes);
    let mut nodes = Vec::new();
    for number in 0..3 {
        let pieces = PieceLimits { reserve: u64::MAX / 2, ..PieceLimits::default() };
        nodes.push(NodeSpec { pieces, ..NodeSpec::new(number) }.start(&registry).await);
    }
    introduce(&nodes, &[]);
    for node in 0..3 {
        read_all(&nodes[node..=node], &pieces).await;
    }
    assert_eq!(registry.given(), bytes.len() as u64);
}

#[tokio::test]
async fn full_owners_redirect_and_the_registry_is_spared() {
    in_some_try(async || {
        let (bytes, pieces) = blob(1, 400_000);
        let registry = Registry::slow(&bytes, Duration::from_millis(20));
        let limits = UploadLimits { slots: 2, per_member: 2 };
        let mut nodes = Vec::new();
        for number in 0..10 {
            let spec = NodeSpec { limits, ..NodeSpec::new(number) };
            nodes.push(spec.start(&registry).await);
        }
        introduce(&nodes, &[]);
        read_all(&nodes, &pieces).await;
        at_most(2 * bytes.len() as u64, registry.given())?;
        let redirected: u64 = nodes.iter().map(|node| node.exchange.traffic().redirected).sum();
        if redirected > 0 { Ok(()) } else { Err("nobody was redirected".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn a_piece_is_passed_on_while_it_arrives() {
    let (bytes, pieces) = blob(1, 400_000);
    let registry = Registry::hesitant(&bytes, 1);
    let nodes = cluster(2, &registry).await;
    let members: Vec<Member> = nodes.iter().map(|node| node.member.clone()).collect();
    let (owners, others): (Vec<Node>, Vec<Node>) =
        nodes.into_iter().partition(|node| node.member.id == owner(&pieces[0], &members));
    let (owner, asker) = (&owners[0], &others[0]);
    let passed_on = async {
        while registry.given() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut answer = answer_to(asker.member.id, 1, asker, owner, &pieces[0]).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let mut came = answer.chunk().await.unwrap().unwrap().to_vec();
        assert!(!came.is_empty() && registry.given() < bytes.len() as u64, "the rest is to come");
        registry.chunks.as_ref().unwrap().add_permits(1000);
        while let Some(chunk) = answer.chunk().await.unwrap() {
            came.extend_from_slice(&chunk);
        }
        assert!(came == bytes);
    };
    let (fetched, ()) = tokio::join!(owner.get(&pieces[0]), passed_on);
    assert_eq!(*fetched.unwrap().digest(), pieces[0].digest);
}

#[tokio::test]
async fn with_the_registry_down_peers_give_what_they_have() {
    let (bytes, pieces) = blob(10, 50_000);
    let registry = Registry::with(&bytes);
    let mut nodes = cluster(4, &registry).await;
    read_all(&nodes[..1], &pieces).await;
    registry.down.store(true, Ordering::SeqCst);
    nodes.push(NodeSpec::new(4).start(&registry).await);
    introduce(&nodes, &[]);
    read_all(&nodes[4..], &pieces).await;
    let (_, other) = blob(1, 1000);
    let error = nodes[4].get(&other[0]).await.unwrap_err();
    assert!(error.to_string().contains("down"), "{error}");
}

#[tokio::test]
async fn regression_a_piece_that_cannot_be_read_now_is_refused_at_once() {
    let (bytes, pieces) = blob(1, 100_000);
    let registry = Registry::with(&bytes);
    let nodes = cluster(2, &registry).await;
    read_all(&nodes, &pieces).await;
    let members = [nodes[0].member.clone(), nodes[1].member.clone()];
    let is_owner = |node: &&Node| node.member.id == owner(&pieces[0], &members);
    let (owners, others): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(is_owner);
    owners[0].exchange.settled().await;
    // What cannot be opened, as a file without a free descriptor, and is no damage.
    let kept = std::fs::read_dir(owners[0].dir.path().join("own")).unwrap().next();
    let kept = kept.unwrap().unwrap().path();
    std::fs::remove_file(&kept).unwrap();
    mknod(&kept, SFlag::S_IFSOCK, Mode::S_IRUSR, 0).unwrap();
    let asked = async {
        let error = owners[0].get(&pieces[0]).await.unwrap_err();
        assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
        assert_eq!(asks(others[0], owners[0], &pieces[0]).await, StatusCode::BAD_GATEWAY);
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap();
}

#[tokio::test]
async fn dead_owners_cost_half_a_second_once_and_the_next_rank_takes_over() {
    in_some_try(async || {
        let (bytes, pieces) = blob(30, 50_000);
        let registry = Registry::with(&bytes);
        let nodes = cluster(3, &registry).await;
        // An address that does not answer, and one where nothing listens.
        let dead = [
            member(id(100), "192.0.2.1:9".parse().unwrap()),
            member(id(101), "127.0.0.1:1".parse().unwrap()),
        ];
        introduce(&nodes, &dead);
        let begin = Instant::now();
        read_all(&nodes, &pieces).await;
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        at_most(bytes.len() as u64 * 3 / 2, registry.given())
    })
    .await;
}

/// The time for what waits for no other node, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(30);
/// A peer is waited for at most ten seconds, and of its pieces some are begun only after others.
const TWO_WAITS: Duration = Duration::from_secs(90);

/// Answers every request in one way.
struct Rogue {
    member: Member,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

async fn rogue<F>(answer: F) -> Rogue
where
    F: Fn(u64) -> axum::response::Response + Clone + Send + Sync + 'static,
{
    let app = Router::new().fallback(move |request: axum::extract::Request| {
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let call = crate::peer::wanted::PieceCall::parse(target).unwrap();
        let response = answer(call.wanted.size() - call.offset);
        async move { response }
    });
    let (address, task) = serve(app).await;
    Rogue { member: member(id(66), address), _task: task }
}

fn sized(length: u64, body: Body) -> axum::response::Response {
    ([(CONTENT_LENGTH, length)], body).into_response()
}

/// Reads all pieces at two nodes beside a rogue; all must arrive right, each at most twice from the
/// registry, and fast enough. Returns what the first node reports of the rogue.
async fn beside(rogue: impl AsyncFn() -> Rogue, within: Duration) -> Option<String> {
    in_some_try(async || try_beside(&rogue().await, within).await).await
}

async fn try_beside(rogue: &Rogue, within: Duration) -> Result<Option<String>, String> {
    let (bytes, pieces) = blob(20, 50_000);
    let registry = Registry::with(&bytes);
    let nodes = cluster(2, &registry).await;
    introduce(&nodes, std::slice::from_ref(&rogue.member));
    let members: Vec<Member> =
        [&nodes[0].member, &nodes[1].member, &rogue.member].map(Clone::clone).to_vec();
    let of_rogue = pieces.iter().filter(|piece| owner(piece, &members) == rogue.member.id).count();
    assert!(of_rogue > 2, "the rogue owns {of_rogue} pieces");
    let begin = Instant::now();
    read_all(&nodes, &pieces).await;
    assert!(begin.elapsed() < within, "{:?}", begin.elapsed());
    at_most(bytes.len() as u64 * 3 / 2, registry.given())?;
    let mut shunned = nodes[0].exchange.traffic().shunned.into_iter();
    Ok(shunned.find(|exile| exile.member == rogue.member.id).map(|exile| exile.reason))
}

#[tokio::test]
async fn a_peer_that_sends_wrong_bytes_is_banned() {
    let rogue = async || rogue(|size| sized(size, Body::from(vec![7; size as usize]))).await;
    let reason = beside(rogue, AT_ONCE).await.unwrap();
    assert!(reason.starts_with("sent wrong bytes: the bytes hash to"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_answers_200_to_everything_is_banned() {
    let rogue = async || rogue(|_| sized(2, Body::from("ok"))).await;
    let reason = beside(rogue, AT_ONCE).await.unwrap();
    assert!(reason.contains("offered 2 bytes instead of 50000"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_sends_without_end_is_banned() {
    let endless = || {
        Body::from_stream(
            stream::repeat(()).map(|()| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 4096]))),
        )
    };
    let rogue = async || rogue(move |_| endless().into_response()).await;
    let reason = beside(rogue, AT_ONCE).await.unwrap();
    assert!(reason.contains("offered an unknown number of bytes"), "{reason}");
}

#[tokio::test]
async fn a_peer_of_another_version_is_left_alone() {
    let rogue = async || rogue(|_| StatusCode::MISDIRECTED_REQUEST.into_response()).await;
    let reason = beside(rogue, AT_ONCE).await.unwrap();
    assert_eq!(reason, "is of another cluster or version");
}

#[tokio::test]
async fn a_peer_that_makes_one_wait_forever_is_left() {
    let rogue = async || rogue(|_| StatusCode::ACCEPTED.into_response()).await;
    let reason = beside(rogue, TWO_WAITS).await.unwrap();
    assert_eq!(reason, "does not answer");
}

#[tokio::test]
async fn a_peer_that_stalls_in_the_middle_is_left() {
    let rogue = async || {
        rogue(|size| {
            let begin = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1000]))]);
            sized(size, Body::from_stream(begin.chain(stream::pending())))
        })
        .await
    };
    beside(rogue, TWO_WAITS).await;
}

#[tokio::test]
async fn a_peer_that_trickles_is_left() {
    let rogue = async || {
        rogue(|size| {
            let trickle = stream::repeat(()).then(|()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok::<_, std::io::Error>(Bytes::from_static(&[0; 100]))
            });
            sized(size, Body::from_stream(trickle))
        })
        .await
    };
    beside(rogue, TWO_WAITS).await;
}

#[tokio::test]
async fn a_peer_that_redirects_in_circles_is_left() {
    let names = (200..203).map(|n| id(n).to_string()).collect::<Vec<_>>().join(",");
    let rogue = async || {
        let names = names.clone();
        rogue(move |_| {
            (StatusCode::TEMPORARY_REDIRECT, [("undermount-peers", names.clone())]).into_response()
        })
        .await
    };
    beside(rogue, TWO_WAITS).await;
}

/// The answer of `asked` to `asker` about a piece.
async fn asks(asker: &Node, asked: &Node, piece: &Piece) -> StatusCode {
    asks_as(asker.member.id, 1, asker, asked, piece).await
}

async fn asks_as(from: MemberId, key: u8, asker: &Node, asked: &Node, piece: &Piece) -> StatusCode {
    answer_to(from, key, asker, asked, piece).await.status()
}

async fn answer_to(
    from: MemberId,
    key: u8,
    asker: &Node,
    asked: &Node,
    piece: &Piece,
) -> reqwest::Response {
    use crate::peer::fetch::{Ask, Mode};
    use crate::peer::keys::{Call, testing::keys};
    let (member, now) = (asked.member.id, std::time::SystemTime::now());
    let ask = Ask { member, mode: Mode::Cached, hop: 0, tried: vec![], offset: 0 };
    let target = crate::peer::wanted::PieceCall::new(&wanted(piece), &ask).target();
    let call = Call { to: Some(member), method: "GET", target: &target, body: b"" };
    let signed = keys(key).sign(from, &call, now);
    let ticket = asker.exchange.realms().ticket(&wanted(piece).scope, member, now).await;
    let mut request = asker
        .http
        .get(format!("http://{}{target}", asked.address))
        .header("authorization", signed.header);
    if let Some(ticket) = ticket {
        request = request.header("undermount-ticket", ticket.to_string());
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_private_piece_goes_to_holders_of_the_same_credential_only() {
    let (bytes, pieces) = blob(4, 50_000);
    let registry = Registry::with(&bytes);
    let spec = |number, password| NodeSpec { password, ..NodeSpec::new(number) };
    let holder = spec(1, Some("secret")).start(&registry).await;
    let same = spec(2, Some("secret")).start(&registry).await;
    let other = spec(3, Some("other")).start(&registry).await;
    let nobody = spec(4, None).start(&registry).await;
    holder.get(&pieces[0]).await.unwrap();
    holder.exchange.settled().await;
    assert_eq!(asks(&same, &holder, &pieces[0]).await, StatusCode::OK);
    assert_eq!(asks(&other, &holder, &pieces[0]).await, StatusCode::FORBIDDEN);
    assert_eq!(asks(&nobody, &holder, &pieces[0]).await, StatusCode::FORBIDDEN);
    // Nor does a ticket open what a node without the credential has, which is public.
    nobody.get(&pieces[0]).await.unwrap();
    assert_eq!(asks(&same, &nobody, &pieces[0]).await, StatusCode::FORBIDDEN);
    assert_eq!(holder.exchange.traffic().refused, 2);
}

#[tokio::test]
async fn a_host_outside_the_cluster_gets_nothing() {
    let (bytes, pieces) = blob(1, 50_000);
    let registry = Registry::with(&bytes);
    let nodes = cluster(2, &registry).await;
    nodes[0].get(&pieces[0]).await.unwrap();
    let [asker, asked] = [&nodes[1], &nodes[0]];
    assert_eq!(asks_as(id(1), 1, asker, asked, &pieces[0]).await, StatusCode::OK);
    assert_eq!(asks_as(id(1), 2, asker, asked, &pieces[0]).await, StatusCode::UNAUTHORIZED);
    let plain = format!("http://{}/v1/pieces/{}", asked.address, pieces[0].digest.hex());
    assert_eq!(reqwest::get(plain).await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn three_hundred_requests_at_once_take_no_more_than_the_slots() {
    let (bytes, pieces) = blob(1, 1 << 20);
    let registry = Registry::with(&bytes);
    let nodes = cluster(2, &registry).await;
    nodes[0].get(&pieces[0]).await.unwrap();
    nodes[0].exchange.settled().await;
    let most = UploadLimits::default().slots;
    let watch = async {
        let mut seen = 0;
        loop {
            seen = seen.max(nodes[0].exchange.uploads().running());
            assert!(seen <= most, "{seen}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let requests = (0..300).map(|number: u64| {
        let (asker, asked, piece) = (&nodes[1], &nodes[0], &pieces[0]);
        let from = id((number % 100) as u8);
        async move { Ok::<_, ()>(asks_as(from, 1, asker, asked, piece).await) }
    });
    let statuses = tokio::select! {
        never = watch => never,
        statuses = try_join_all(requests) => statuses.unwrap(),
    };
    let counted = |status| statuses.iter().filter(|seen| **seen == status).count();
    let [served, redirected, busy] =
        [200, 307, 503].map(|code| counted(StatusCode::from_u16(code).unwrap()));
    assert_eq!(served + redirected + busy, 300);
    assert!(served > 0 && redirected + busy > 0, "{served} {redirected} {busy}");
}
