//! Nodes that tell each other of starts, with members that misbehave.

use std::slice::from_ref;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::StatusCode;

use super::*;
use crate::peer::keys::testing::keys;
use crate::peer::keys::{Call, ClusterKeys};
use crate::peer::member::Members;
use crate::peer::profiles::PROFILES;
use crate::peer::testing::{
    Node, NodeSpec, Registry, SCOPE, cluster, id, introduce, member, serve,
};
use crate::profile::FileUnit;

/// How long keepers may take, all in all.
const WITHIN: Duration = Duration::from_secs(10);

fn scope() -> Scope {
    Scope::new(SCOPE)
}

fn record(build: &[u8], path: &str) -> StartRecord {
    let unit = FileUnit { path: path.to_owned(), number: 0 };
    let command = "nova-api".to_owned();
    StartRecord::new(format!("{SCOPE}:zed"), Digest::of(build), command).with_start(&[unit])
}

fn registry() -> std::sync::Arc<Registry> {
    Registry::with(&Bytes::from_static(b"a blob"))
}

/// Which of `nodes` keep profiles of the repository, the first one first.
fn in_order(nodes: &[Node]) -> Vec<&Node> {
    let members = Members::new(nodes.iter().map(|node| node.member.clone()).collect());
    let of = |id| nodes.iter().find(|node| node.member.id == id).unwrap();
    keepers(&scope(), &members, KEEPERS).into_iter().map(of).collect()
}

async fn starts(node: &Node, build: &[u8]) -> usize {
    let call = ProfileCall::new(&scope(), &Digest::of(build)).unwrap();
    node.exchange.kept_profiles(Realm::Public, call).await.starts
}

#[tokio::test]
async fn what_one_node_has_seen_all_others_are_told() {
    let nodes = cluster(4, &registry()).await;
    let seen = record(b"zed", "usr/bin/nova-api");
    nodes[0].exchange.offer_profile(&scope(), &seen).await;
    for node in &nodes {
        let asked =
            async |build| node.exchange.profiles(&scope(), &Digest::of(build), WITHIN).await;
        assert_eq!(asked(b"zed").await, from_ref(&seen));
        assert_eq!(asked(b"the next build").await, from_ref(&seen));
        let elsewhere = Scope::new("r.example:8787/nova/nova-compute");
        assert!(node.exchange.profiles(&elsewhere, &seen.manifest, WITHIN).await.is_empty());
    }
    let kept = in_order(&nodes);
    assert_eq!(kept.len(), 2);
    for node in &nodes {
        let keeps = kept.iter().any(|keeper| keeper.member.id == node.member.id);
        assert_eq!(starts(node, b"zed").await, usize::from(keeps));
    }
}

#[tokio::test]
async fn keepers_take_no_more_starts_than_they_need() {
    let nodes = cluster(5, &registry()).await;
    for node in &nodes {
        node.exchange.offer_profile(&scope(), &record(b"zed", "a")).await;
    }
    for keeper in in_order(&nodes) {
        assert_eq!(starts(keeper, b"zed").await, ENOUGH);
    }
    let told = nodes[0].exchange.profiles(&scope(), &Digest::of(b"zed"), WITHIN).await;
    assert_eq!(told.iter().map(StartRecord::starts).collect::<Vec<_>>(), [ENOUGH]);
}

#[tokio::test]
async fn the_second_keeper_stands_in_for_the_first() {
    let mut nodes = cluster(3, &registry()).await;
    let seen = record(b"zed", "a");
    nodes[0].exchange.offer_profile(&scope(), &seen).await;
    let first = in_order(&nodes)[0].member.id;
    let gone = nodes.iter().position(|node| node.member.id == first).unwrap();
    let gone = nodes.remove(gone);
    let absent = gone.member.clone();
    drop(gone);
    introduce(&nodes, &[absent]);
    for node in &nodes {
        assert_eq!(node.exchange.profiles(&scope(), &seen.manifest, WITHIN).await, from_ref(&seen));
    }
}

#[tokio::test]
async fn regression_a_keeper_that_hangs_does_not_hide_what_the_others_know() {
    let mut nodes = cluster(3, &registry()).await;
    let seen = record(b"zed", "a");
    nodes[0].exchange.offer_profile(&scope(), &seen).await;
    let first = in_order(&nodes)[0].member.id;
    nodes.retain(|node| node.member.id != first);
    // The kernel accepts its connections, and nothing answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    introduce(&nodes, &[member(first, silent.local_addr().unwrap())]);
    let within = Duration::from_secs(2);
    for node in &nodes {
        let told = node.exchange.profiles(&scope(), &seen.manifest, within).await;
        assert_eq!(told, from_ref(&seen));
    }
}

#[tokio::test]
async fn profiles_of_a_private_repository_go_to_holders_of_the_credential() {
    let registry = registry();
    let spec = |number, password| NodeSpec { password, ..NodeSpec::new(number) };
    let mut nodes = Vec::new();
    for (number, password) in [(1, Some("secret")), (2, Some("secret")), (3, None)] {
        nodes.push(spec(number, password).start(&registry).await);
    }
    // Each asks the two others whatever their ranks are.
    let seen = record(b"zed", "secret/path");
    for at in 0..3 {
        let asker = &nodes[at];
        for other in nodes.iter().filter(|other| other.member.id != asker.member.id) {
            asker.meets(from_ref(&other.member));
            asker.exchange.offer_profile(&scope(), &seen).await;
        }
    }
    let told = async |asker: &Node, asked: &Node| {
        asker.meets(from_ref(&asked.member));
        !asker.exchange.profiles(&scope(), &seen.manifest, WITHIN).await.is_empty()
    };
    assert!(told(&nodes[0], &nodes[1]).await && told(&nodes[1], &nodes[0]).await);
    for (asker, asked) in [(2, 0), (2, 1), (0, 2), (1, 2)] {
        assert!(!told(&nodes[asker], &nodes[asked]).await, "{asker} {asked}");
    }
}

/// A member that is alone with `node` and gives one answer to everything.
async fn beside(node: &Node, answer: Answering) -> Option<String> {
    let app = Router::new().fallback(move |request: axum::extract::Request| {
        let response = answer(request);
        async move { response }
    });
    let (address, _task) = serve(app).await;
    let rogue = member(id(66), address);
    node.meets(from_ref(&rogue));
    assert!(node.exchange.profiles(&scope(), &Digest::of(b"zed"), WITHIN).await.is_empty());
    let shunned = node.exchange.traffic().shunned;
    shunned.into_iter().find(|exile| exile.member == rogue.id).map(|exile| exile.reason)
}

type Answering = fn(axum::extract::Request) -> axum::response::Response;

/// `body`, sealed by a holder of the key.
fn sealed(request: &axum::extract::Request, body: &[u8]) -> axum::response::Response {
    let keys: ClusterKeys = keys(1);
    let target = request.uri().path_and_query().unwrap().as_str();
    let call = Call { to: Some(id(66)), method: "GET", target, body: b"" };
    let header = request.headers()["authorization"].to_str().unwrap();
    let caller = keys.check(Some(header), &call, SystemTime::now()).unwrap();
    keys.seal_answer(&caller, body.to_vec()).unwrap().into_response()
}

#[tokio::test]
async fn a_member_that_lies_about_profiles_is_banned_and_believed_nothing() {
    let lies: [(Answering, &str); 3] = [
        (|_| "not sealed".into_response(), "not sealed by a member"),
        (|request| sealed(&request, b"no zstd"), "not compressed"),
        (
            |request| {
                let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 16 << 20), 1);
                sealed(&request, &bomb.unwrap())
            },
            "more than",
        ),
    ];
    for (answer, words) in lies {
        let node = NodeSpec::new(1).start(&registry()).await;
        let reason = beside(&node, answer).await.unwrap();
        assert!(reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn what_a_member_tells_of_another_image_is_not_taken() {
    let node = NodeSpec::new(1).start(&registry()).await;
    let answer: Answering = |request| {
        let mut other = record(b"other", "a");
        other.reference = "r/other:1".to_owned();
        sealed(&request, &pack(&[other]))
    };
    assert_eq!(beside(&node, answer).await, None);
    let endless: Answering = |_| {
        let zeros = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 65536]));
        Body::from_stream(zeros).into_response()
    };
    assert_eq!(beside(&node, endless).await, None, "an answer that is too long is left");
}

/// What `node` answers to a request with this method and body, signed with `key`.
async fn answered(node: &Node, key: u8, method: &str, target: &str, body: Vec<u8>) -> StatusCode {
    let call = Call { to: Some(node.member.id), method, target, body: &body };
    let signed = keys(key).sign(id(9), &call, SystemTime::now());
    let url = format!("http://{}{target}", node.address);
    let request = node.http.request(method.parse().unwrap(), url).body(body);
    request.header("authorization", signed.header).send().await.unwrap().status()
}

#[tokio::test]
async fn only_members_are_answered_and_only_what_is_right_is_kept() {
    let node = NodeSpec::new(1).start(&registry()).await;
    let right = record(b"zed", "a");
    let target = ProfileCall::new(&scope(), &right.manifest).unwrap().target();
    let body = pack(from_ref(&right)).to_vec();
    let other = pack(&[record(b"another build", "a")]).to_vec();
    for (key, method, target, body, status) in [
        (2, "PUT", target.as_str(), body.clone(), StatusCode::UNAUTHORIZED),
        (2, "GET", &target, Vec::new(), StatusCode::UNAUTHORIZED),
        (1, "PUT", PROFILES, body.clone(), StatusCode::BAD_REQUEST),
        (1, "PUT", &target, other, StatusCode::BAD_REQUEST),
        (1, "PUT", &target, b"no profile".to_vec(), StatusCode::BAD_REQUEST),
        (1, "PUT", &target, vec![0; ONE_MAX + 1], StatusCode::PAYLOAD_TOO_LARGE),
        (1, "DELETE", &target, Vec::new(), StatusCode::METHOD_NOT_ALLOWED),
        (1, "GET", &target, Vec::new(), StatusCode::NOT_FOUND),
        (1, "PUT", &target, body, StatusCode::NO_CONTENT),
        (1, "GET", &target, Vec::new(), StatusCode::OK),
        (1, "HEAD", &target, Vec::new(), StatusCode::OK),
    ] {
        let what = format!("{key} {method} {target} {}", body.len());
        assert_eq!(answered(&node, key, method, target, body).await, status, "{what}");
    }
    assert_eq!(starts(&node, b"zed").await, 1);
}
