//! Manifests, lists and blobs from registries that break, lie, stall and refuse.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Platform, Reference, Tag, media_type, referrers};

use super::super::testing::{Reply, Seen, Server, client};
use super::super::{Credential, Pace, PlainHttp, RegistryError, Secret};

/// 2.4 MB in which no two words are alike.
fn blob() -> Bytes {
    static BLOB: LazyLock<Bytes> =
        LazyLock::new(|| (0..600_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into());
    BLOB.clone()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// Calls `first` for the first request and `then` for all others.
fn first_then(
    first: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    then: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |seen| match count.fetch_add(1, Ordering::SeqCst) {
        0 => first(seen),
        _ => then(seen),
    }
}

async fn whole(server: &Server) -> Result<Vec<u8>, RegistryError> {
    let (size, digest) = (blob().len() as u64, Digest::of(&blob()));
    let mut reader = client(|_| ()).read_blob(&server.repository(), &digest, size, 0);
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn range(server: &Server) -> Result<Bytes, RegistryError> {
    let digest = Digest::of(&blob());
    client(|_| ()).blob_range(&server.repository(), &digest, 1000..5000).await
}

#[tokio::test]
async fn a_blob_request_accepts_anything_and_no_encoding() {
    let server = Server::start(|seen| Reply::blob(seen, &blob())).await;
    assert_eq!(range(&server).await.unwrap(), blob().slice(1000..5000));
    let seen = &server.seen()[0];
    assert_eq!(seen.path, format!("/v2/a/b/blobs/{}", Digest::of(&blob())));
    assert_eq!((seen.header("accept"), seen.header("range")), ("*/*", "bytes=1000-4999"));
    assert!(!seen.headers.contains_key("accept-encoding"));
    assert!(!seen.headers.contains_key("authorization"));
    assert!(seen.header("user-agent").starts_with("undermount/"));
}

#[tokio::test]
async fn the_whole_blob_in_answer_to_a_range_is_cut_to_the_range() {
    let server = Server::start(|_| Reply::new(200, blob())).await;
    assert_eq!(range(&server).await.unwrap(), blob().slice(1000..5000));
}

#[tokio::test]
async fn another_range_than_asked_for_is_not_taken() {
    let shifted = |_: &Seen| {
        Reply::new(206, blob().slice(0..4000)).header("Content-Range", "bytes 0-3999/2400000")
    };
    let server = Server::start(first_then(shifted, |seen| Reply::blob(seen, &blob()))).await;
    assert_eq!(range(&server).await.unwrap(), blob().slice(1000..5000));
    let server = Server::start(shifted).await;
    let message = range(&server).await.unwrap_err().to_string();
    assert!(message.contains("asked for bytes=1000-4999, the registry sent `bytes 0-3999"));
    assert_eq!(server.seen().len(), 5, "the budget is spent");
}

#[tokio::test]
async fn a_stream_goes_on_where_it_was_reset() {
    let cut = |seen: &Seen| {
        let mut reply = Reply::blob(seen, &blob());
        // Every answer breaks after a while, so that the end is reached in several steps.
        reply.reset_after = Some(700_001);
        reply
    };
    let server = Server::start(cut).await;
    assert_eq!(whole(&server).await.unwrap(), blob());
    let ranges: Vec<_> = server.seen().iter().map(Seen::range).collect();
    assert_eq!(ranges[0], None);
    assert!(ranges.len() >= 4, "{ranges:?}");
    assert!(ranges[1..].iter().all(|range| range.unwrap().1 == blob().len() - 1), "{ranges:?}");
}

#[tokio::test]
async fn a_stream_that_ends_early_goes_on() {
    let short = |_: &Seen| {
        let mut reply = Reply::new(200, blob().slice(..100_000));
        reply.claimed = Some(blob().len());
        reply
    };
    let server = Server::start(first_then(short, |seen| Reply::blob(seen, &blob()))).await;
    assert_eq!(whole(&server).await.unwrap(), blob());
    assert_eq!(server.seen()[1].range().unwrap().0, 100_000);
}

#[tokio::test]
async fn a_stream_resumes_even_where_ranges_are_ignored() {
    let cut = |_: &Seen| {
        let mut reply = Reply::new(200, blob());
        reply.reset_after = Some(500_000);
        reply
    };
    let server = Server::start(first_then(cut, |_| Reply::new(200, blob()))).await;
    assert_eq!(whole(&server).await.unwrap(), blob());
}

#[tokio::test]
async fn a_registry_that_breaks_without_progress_is_given_up() {
    let server = Server::start(|seen| {
        let mut reply = Reply::blob(seen, &blob());
        reply.reset_after = Some(10);
        reply
    })
    .await;
    let error = whole(&server).await.unwrap_err();
    assert!(error.in_words().contains("connection broke after"), "{}", error.in_words());
    assert!(error.to_string().starts_with(&format!("blob {}", Digest::of(&blob()))));
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused_at_once() {
    let server = Server::start(|_| Reply::new(200, "short")).await;
    let message = whole(&server).await.unwrap_err().to_string();
    assert!(message.ends_with("the registry has 5 bytes, expected 2400000"), "{message}");
    let server = Server::start(|_| Reply::new(416, "")).await;
    assert!(range(&server).await.unwrap_err().to_string().contains("has at most 1000 bytes"));
}

#[tokio::test]
async fn a_body_that_was_compressed_on_the_way_is_refused() {
    let compressed = |_: &Seen| Reply::new(200, blob()).header("Content-Encoding", "gzip");
    let server = Server::start(compressed).await;
    let message = whole(&server).await.unwrap_err().to_string();
    assert!(message.contains("encoded with `gzip`"), "{message}");
}

#[tokio::test]
async fn a_trickle_is_noticed_and_the_rest_asked_for_again() {
    let trickle = |seen: &Seen| {
        let mut reply = Reply::blob(seen, &blob());
        reply.trickle = Some(Duration::from_millis(10));
        reply
    };
    let server = Server::start(first_then(trickle, |seen| Reply::blob(seen, &blob()))).await;
    let client = client(|config| {
        let second = Duration::from_secs(1);
        config.pace = Pace { window: 2 * second, least: 1000, silence: 2 * second };
    });
    let digest = Digest::of(&blob());
    let bytes = client.blob_range(&server.repository(), &digest, 1000..5000).await.unwrap();
    assert_eq!(bytes, blob().slice(1000..5000));
    assert!(server.seen()[1].range().unwrap().0 > 1000, "what trickled in is kept");
}

#[tokio::test]
async fn a_registry_that_never_answers_ends_at_the_deadline() {
    let server = Server::start(|_| Reply { hangs: true, ..Reply::default() }).await;
    let begin = Instant::now();
    let client = client(|config| config.answer_timeout = Duration::from_secs(2));
    // The first try ends in time, also on a busy machine, and the second one does not.
    let client = client.until(Instant::now() + Duration::from_secs(4));
    let error = client.blob_range(&server.repository(), &Digest::of(b""), 0..9).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(error.to_string().contains("not done in time: stalled: 0 bytes"), "{error}");
}

#[tokio::test]
async fn busy_registries_are_waited_for() {
    for status in [429, 503] {
        let busy = move |_: &Seen| Reply::new(status, "").header("Retry-After", "1");
        let server = Server::start(first_then(busy, |seen| Reply::blob(seen, &blob()))).await;
        let begin = Instant::now();
        assert_eq!(range(&server).await.unwrap(), blob().slice(1000..5000));
        assert!(begin.elapsed() >= Duration::from_secs(1));
        let busy = move |_: &Seen| Reply::new(status, "").header("Retry-After", "100");
        let server = Server::start(busy).await;
        let soon = client(|config| config.retry.longest_retry_after = Duration::from_secs(200));
        let soon = soon.until(Instant::now() + Duration::from_secs(60));
        let digest = Digest::of(b"");
        let error = soon.blob_range(&server.repository(), &digest, 0..9).await.unwrap_err();
        assert_eq!(server.seen().len(), 1, "a second request would come too late");
        assert!(error.to_string().contains(&format!("busy ({status}")), "{error}");
    }
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    // Nobody else gets the port, and nobody listens.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let host = socket.local_addr().unwrap().to_string();
    for plain_http in [PlainHttp::Always, PlainHttp::Never] {
        let client = client(|config| config.plain_http = plain_http.clone());
        let reference: Reference = format!("{host}/a/b:t").parse().unwrap();
        let message = client.manifest(&reference).await.unwrap_err().to_string();
        let expected = "the registry cannot be reached: connection refused";
        assert_eq!(message, format!("image {host}/a/b:t: {expected}"));
    }
}

#[tokio::test]
async fn a_loopback_registry_is_spoken_to_as_it_understands() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v2/" => Reply::new(200, "{}"),
        _ => Reply::new(400, ""),
    })
    .await;
    client(|config| config.plain_http = PlainHttp::Never).ping(&server.host).await.unwrap();
}

#[tokio::test]
async fn the_registrys_words_are_passed_on() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#;
    let server = Server::start(move |_| Reply::new(404, body)).await;
    let reference = server.repository().tagged(tag("t"));
    let error = client(|_| ()).manifest(&reference).await.unwrap_err();
    let expected = format!("image {}/a/b:t: not found: MANIFEST_UNKNOWN: no such tag", server.host);
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), expected);
    assert_eq!(client(|_| ()).resolve(&reference).await.unwrap(), None);
}

fn manifest() -> Bytes {
    let config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
    json!({"schemaVersion": 2, "config": config, "layers": []}).to_string().into()
}

#[tokio::test]
async fn a_manifest_is_checked_against_the_digest_it_was_asked_by() {
    let right = |_: &Seen| Reply::new(200, manifest());
    let flipped = |_: &Seen| Reply::new(200, manifest().to_ascii_uppercase());
    let server = Server::start(first_then(flipped, right)).await;
    let reference = server.repository().at(Digest::of(&manifest()));
    assert_eq!(client(|_| ()).manifest(&reference).await.unwrap().bytes, manifest());
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "wrong bytes are asked for again");
    assert!(media_type::MANIFESTS.iter().all(|kind| seen[0].header("accept").contains(kind)));
    let server = Server::start(flipped).await;
    let reference = server.repository().at(Digest::of(&manifest()));
    let message = client(|_| ()).manifest(&reference).await.unwrap_err().to_string();
    assert!(message.contains("wrong bytes: the bytes hash to"), "{message}");
}

#[tokio::test]
async fn a_manifest_by_tag_has_the_digest_the_registry_promises() {
    let promise = Digest::of(b"another");
    let server = Server::start(move |_| {
        Reply::new(200, manifest()).header("Docker-Content-Digest", promise)
    })
    .await;
    let reference = server.repository().tagged(tag("t"));
    let message = client(|_| ()).manifest(&reference).await.unwrap_err().to_string();
    assert!(message.contains(&promise.to_string()), "{message}");
}

#[tokio::test]
async fn an_endless_manifest_is_not_read() {
    let server = Server::start(|_| Reply::new(200, vec![b' '; 5 << 20])).await;
    let reference = server.repository().tagged(tag("t"));
    let message = client(|_| ()).manifest(&reference).await.unwrap_err().to_string();
    assert!(message.contains("longer than the 4194304 bytes"), "{message}");
}

#[tokio::test]
async fn a_head_that_tells_too_little_is_followed_by_a_get() {
    let server = Server::start(|_| Reply::new(200, manifest())).await;
    let reference = server.repository().tagged(tag("t"));
    let found = client(|_| ()).resolve(&reference).await.unwrap().unwrap();
    let digest = Digest::of(&manifest());
    assert_eq!(found, Descriptor::new(media_type::OCI_MANIFEST, digest, manifest().len() as u64));
    let methods: Vec<String> = server.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["HEAD", "GET"]);
}

#[tokio::test]
async fn an_image_is_chosen_from_an_index_and_comes_with_its_configuration() {
    let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": []}});
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "config": Descriptor::of(media_type::OCI_CONFIG, config.as_bytes()),
        "layers": [],
    })
    .to_string();
    let mut child = Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes());
    child.platform = Some("linux/arm64".parse().unwrap());
    let index = json!({"schemaVersion": 2, "manifests": [child]}).to_string();
    let (child, config_blob) = (child.digest, Digest::of(config.as_bytes()));
    let server = Server::start(move |seen| match seen.path.rsplit('/').next().unwrap() {
        "t" => Reply::new(200, index.clone()),
        name if name == child.to_string() => Reply::new(200, manifest.clone()),
        name if name == config_blob.to_string() => Reply::new(200, config.clone()),
        _ => Reply::new(404, ""),
    })
    .await;
    let reference = server.repository().tagged(tag("t"));
    let arm: Platform = "linux/arm64".parse().unwrap();
    let image = client(|_| ()).image(&reference, &arm).await.unwrap();
    assert_eq!(image.reference, reference.pinned(child));
    assert_eq!(image.config.platform, arm);
    assert!(image.index.is_some());
    let other: Platform = "linux/s390x".parse().unwrap();
    let message = client(|_| ()).image(&reference, &other).await.unwrap_err().to_string();
    assert!(message.contains("no image for linux/s390x; there are: linux/arm64"), "{message}");
}

#[tokio::test]
async fn tags_are_listed_to_the_last_page() {
    let server = Server::start(|seen| {
        let reserved = referrers::own_tag(&Digest::of(b"image"));
        match seen.path.as_str() {
            "/v2/a/b/tags/list" => Reply::new(200, r#"{"tags":["1","2"]}"#)
                .header("Link", r#"</v2/a/b/tags/list?last=2>; rel="next""#),
            "/v2/a/b/tags/list?last=2" => {
                Reply::new(200, json!({"tags": ["3", reserved.as_str()]}).to_string())
                    .header("Link", r#"<?last=3>; rel="next""#)
            }
            _ => Reply::new(200, r#"{"tags":null}"#),
        }
    })
    .await;
    assert_eq!(client(|_| ()).tags(&server.repository()).await.unwrap(), ["1", "2", "3"]);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_list_does_not_lead_to_another_host() {
    let server = Server::start(|_| {
        Reply::new(200, r#"{"tags":[]}"#).header("Link", "<http://127.0.0.1:1/x>; rel=next")
    })
    .await;
    let message = client(|_| ()).tags(&server.repository()).await.unwrap_err().to_string();
    assert!(message.contains("goes on elsewhere"), "{message}");
}

#[tokio::test]
async fn referrers_come_from_the_fallback_tag_where_there_is_no_api() {
    let subject = Digest::of(b"image");
    let mut artifact = Descriptor::of(media_type::OCI_MANIFEST, b"artifact");
    artifact.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
    let index = referrers::list_in_fallback(None, &artifact).unwrap().unwrap();
    let server = Server::start(move |seen| match seen.path.rsplit('/').next().unwrap() {
        name if name == referrers::fallback_tag(&subject).as_str() => {
            Reply::new(200, index.clone()).header("Content-Type", media_type::OCI_INDEX)
        }
        _ => Reply::new(404, "404 page not found"),
    })
    .await;
    let client = client(|_| ());
    let repository = server.repository();
    for requests in [2, 3] {
        let kind = media_type::UNDERMOUNT_INDEX;
        let found = client.referrers(&repository, &subject, Some(kind)).await.unwrap();
        assert_eq!(found[0].digest, artifact.digest);
        assert_eq!(server.seen().len(), requests, "the API is asked for once");
    }
    let other = Some("application/x");
    let none = client.referrers(&repository, &Digest::of(b"x"), other).await.unwrap();
    assert_eq!(none, []);
}

#[tokio::test]
async fn referrers_of_another_type_are_left_out() {
    let subject = Digest::of(b"image");
    let mut signature = Descriptor::of(media_type::OCI_MANIFEST, b"signature");
    signature.artifact_type = Some("application/x".into());
    let index = json!({"schemaVersion": 2, "manifests": [signature]}).to_string();
    let server = Server::start(move |_| Reply::new(200, index.clone())).await;
    let client = client(|_| ());
    let find = |kind: &'static str| {
        let (client, repository) = (client.clone(), server.repository());
        async move { client.referrers(&repository, &subject, Some(kind)).await.unwrap().len() }
    };
    assert_eq!(find(media_type::UNDERMOUNT_INDEX).await, 0);
    assert_eq!(find("application/x").await, 1);
}

fn credential(user: &str, password: &str) -> Credential {
    Credential { user: user.into(), password: Secret::new(password) }
}

#[tokio::test]
async fn a_password_is_shown_only_when_asked_for() {
    let server = Server::start(|seen| match seen.header("authorization") {
        "Basic dXNlcjpwYXNz" => Reply::blob(seen, &blob()),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    })
    .await;
    let with = |password: &str| {
        client(|config| config.credentials.give(&server.host, credential("user", password)))
    };
    let (repository, digest) = (server.repository(), Digest::of(&blob()));
    let right = with("pass");
    right.blob_range(&repository, &digest, 0..10).await.unwrap();
    right.blob_range(&repository, &digest, 0..10).await.unwrap();
    let shown: Vec<bool> =
        server.seen().iter().map(|seen| seen.headers.contains_key("authorization")).collect();
    assert_eq!(shown, [false, true, true]);
    let error = with("wrong").blob_range(&repository, &digest, 0..10).await.unwrap_err();
    assert!(error.to_string().contains("refuses access with the credentials of user"), "{error}");
    let error = client(|_| ()).blob_range(&repository, &digest, 0..10).await.unwrap_err();
    assert!(error.to_string().contains("wants credentials and none are configured"), "{error}");
}

/// A registry whose tokens `t1`, `t2`, … are good for two requests each.
async fn token_registry(counter: Arc<AtomicUsize>, life: u64) -> Server {
    let host = Arc::new(std::sync::Mutex::new(String::new()));
    let shared = Arc::clone(&host);
    let uses = AtomicUsize::new(0);
    let server = Server::start(move |seen| {
        if seen.path.starts_with("/token") {
            let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
            uses.store(0, Ordering::SeqCst);
            let answer = json!({"access_token": format!("t{number}"), "expires_in": life});
            return Reply::new(200, answer.to_string());
        }
        let current = format!("Bearer t{}", counter.load(Ordering::SeqCst));
        if seen.header("authorization") == current && uses.fetch_add(1, Ordering::SeqCst) < 2 {
            return Reply::blob(seen, &blob());
        }
        let challenge = format!(
            r#"Bearer realm="http://{}/token",service="s v",scope="repository:a/b:pull""#,
            shared.lock().unwrap()
        );
        Reply::new(401, "").header("WWW-Authenticate", challenge)
    })
    .await;
    *host.lock().unwrap() = server.host.clone();
    server
}

#[tokio::test]
async fn a_token_that_is_refused_in_the_middle_is_renewed() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let server = token_registry(Arc::clone(&tokens), 300).await;
    let client = client(|config| config.credentials.give(&server.host, credential("u", "p")));
    for _ in 0..5 {
        let digest = Digest::of(&blob());
        let bytes = client.blob_range(&server.repository(), &digest, 0..10).await.unwrap();
        assert_eq!(bytes, blob().slice(..10));
    }
    assert_eq!(tokens.load(Ordering::SeqCst), 3);
    let seen = server.seen();
    let asked = seen.iter().find(|seen| seen.path.starts_with("/token")).unwrap();
    assert_eq!(asked.path, "/token?service=s+v&scope=repository%3Aa%2Fb%3Apull&account=u");
    assert_eq!(asked.header("authorization"), "Basic dTpw");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let server = token_registry(Arc::clone(&tokens), 8).await;
    let client = client(|_| ());
    let digest = Digest::of(&blob());
    client.blob_range(&server.repository(), &digest, 0..10).await.unwrap();
    // Half of its life.
    tokio::time::sleep(Duration::from_secs(4)).await;
    client.blob_range(&server.repository(), &digest, 0..10).await.unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 2);
    let mut seen = server.seen();
    seen.retain(|seen| seen.header("authorization").is_empty());
    assert_eq!(seen.len(), 3, "two requests for tokens and the first request of all");
}

#[tokio::test]
async fn many_requests_share_one_token() {
    let server = Server::start(|seen| match seen.header("authorization") {
        _ if seen.path.starts_with("/token") => Reply::new(200, r#"{"token":"t"}"#),
        "Bearer t" => Reply::blob(seen, &blob()),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            Reply::new(401, "").header("WWW-Authenticate", realm)
        }
    })
    .await;
    let client = client(|_| ());
    let digest = Digest::of(&blob());
    let repository = server.repository();
    let reads = (0..8).map(|_| client.blob_range(&repository, &digest, 0..10));
    assert!(futures_util::future::join_all(reads).await.iter().all(Result::is_ok));
    let tokens = server.seen().iter().filter(|seen| seen.path.starts_with("/token")).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn a_password_does_not_follow_a_redirect_to_another_host() {
    let store = Server::start(|seen| Reply::blob(seen, &blob())).await;
    let target = format!("http://{}/store", store.host);
    let server = Server::start(move |seen| match seen.header("authorization") {
        "" => Reply::new(401, "").header("WWW-Authenticate", "Basic"),
        _ => Reply::new(307, "").header("Location", &target),
    })
    .await;
    let client = client(|config| config.credentials.give(&server.host, credential("u", "p")));
    let digest = Digest::of(&blob());
    let bytes = client.blob_range(&server.repository(), &digest, 1000..5000).await.unwrap();
    assert_eq!(bytes, blob().slice(1000..5000));
    let seen = &store.seen()[0];
    assert_eq!(seen.header("range"), "bytes=1000-4999");
    assert!(!seen.headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_token_service_that_fails_is_named_without_secrets() {
    for (answer, part) in [
        (Reply::new(200, "<html>"), "does not answer with a JSON object"),
        (Reply::new(200, "{}"), "answers without a token"),
        (Reply::new(200, r#"{"token":"a\nb"}"#), "token that is no header"),
        (Reply::new(500, ""), "fails: the registry answers 500"),
        (Reply::new(401, ""), "refuses access with the credentials of user"),
    ] {
        let server = Server::start(move |seen| match seen.path.starts_with("/token") {
            true => answer.clone(),
            false => {
                let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
                Reply::new(401, "").header("WWW-Authenticate", realm)
            }
        })
        .await;
        let client = client(|config| {
            config.credentials.give(&server.host, credential("user", "hunter2"));
        });
        let error = client.tags(&server.repository()).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(!format!("{error:?} {client:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn regression_a_token_service_that_says_nothing_is_not_waited_for_without_end() {
    let server = Server::start(move |seen| match seen.path.starts_with("/token") {
        true => Reply { hangs: true, ..Reply::default() },
        false => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            Reply::new(401, "").header("WWW-Authenticate", realm)
        }
    })
    .await;
    let client = client(|config| {
        config.answer_timeout = Duration::from_secs(2);
        config.retry.retries = 0;
    });
    let error = client.tags(&server.repository()).await.unwrap_err();
    assert!(error.to_string().contains("has not answered in time"), "{error}");
}

/// One way in which an answer can go wrong.
#[derive(Debug, Clone)]
enum Mishap {
    Reset(usize),
    EndsEarly(usize),
    WholeBlob,
    WholeBlobReset(usize),
    LessThanAsked(usize),
    Unavailable,
    WrongRange,
}

impl Mishap {
    fn reply(&self, seen: &Seen, blob: &Bytes) -> Reply {
        let mut reply = Reply::blob(seen, blob);
        match *self {
            Self::Reset(after) => reply.reset_after = Some(after),
            Self::EndsEarly(after) => {
                reply.claimed = Some(reply.body.len());
                reply.body.truncate(after);
            }
            Self::WholeBlob => reply = Reply::new(200, blob.clone()),
            Self::WholeBlobReset(after) => {
                reply = Reply::new(200, blob.clone());
                reply.reset_after = Some(after);
            }
            Self::LessThanAsked(length) if reply.status == 206 => {
                reply.body.truncate(length.max(1))
            }
            Self::Unavailable => reply = Reply::new(503, ""),
            Self::WrongRange if reply.status == 206 => {
                reply.headers = vec![("Content-Range".into(), "bytes 0-0/*".into())];
            }
            Self::LessThanAsked(_) | Self::WrongRange => {}
        }
        reply
    }
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        (0usize..3000).prop_map(Mishap::Reset),
        (0usize..3000).prop_map(Mishap::EndsEarly),
        Just(Mishap::WholeBlob),
        (0usize..3000).prop_map(Mishap::WholeBlobReset),
        (0usize..3000).prop_map(Mishap::LessThanAsked),
        Just(Mishap::Unavailable),
        Just(Mishap::WrongRange),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_goes_wrong_up_to_four_times_the_bytes_are_right(
        mishaps in proptest::collection::vec(mishap(), 0..=4),
        start in 1u64..3000,
        length in 1u64..3000,
        whole: bool,
    ) {
        let blob: Bytes = blob().slice(..3000);
        let range = if whole { 0..3000 } else { start..(start + length).min(3000) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read = runtime.block_on(async {
            let (served, next) = (blob.clone(), AtomicUsize::new(0));
            let server = Server::start(move |seen| {
                match mishaps.get(next.fetch_add(1, Ordering::SeqCst)) {
                    Some(mishap) => mishap.reply(seen, &served),
                    None => Reply::blob(seen, &served),
                }
            })
            .await;
            let digest = Digest::of(&blob);
            let client = client(|_| ());
            let mut reader = match whole {
                true => client.read_blob(&server.repository(), &digest, 3000, 0),
                false => client.read_range(&server.repository(), &digest, range.clone()),
            };
            let mut read = Vec::new();
            while let Some(chunk) = reader.next().await? {
                read.extend_from_slice(&chunk);
            }
            Ok::<_, RegistryError>(read)
        });
        prop_assert_eq!(read.unwrap(), &blob[range.start as usize..range.end as usize]);
    }
}
