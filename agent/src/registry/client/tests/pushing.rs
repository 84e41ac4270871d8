//! Uploads, mounts and attached artifacts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use undermount_fs::digest::Digest;

use crate::image::artifact::{Artifact, LayerBlobs};
use crate::image::{Descriptor, media_type, referrers};

use super::super::testing::{Reply, Seen, Server, client};
use super::super::{Listed, MemoryBlob, Mount, RemoteBlob};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// 1 MB in which no two words are alike.
fn blob() -> Bytes {
    (0..250_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
}

fn accepted() -> Reply {
    Reply::new(202, "").header("Location", "/v2/a/b/blobs/uploads/1?_state=x%2By")
}

/// Method and path of each request.
fn log(server: &Server) -> Vec<String> {
    let words = |seen: Seen| format!("{} {}", seen.method, seen.path);
    server.seen().into_iter().map(words).collect()
}

#[tokio::test]
async fn a_blob_is_pushed_in_two_requests() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => accepted(),
        _ => Reply::new(201, ""),
    })
    .await;
    let digest = client(|_| ()).push_blob(&server.repository(), &blob()).await.unwrap();
    let put = format!("PUT /v2/a/b/blobs/uploads/1?_state=x%2By&digest=sha256%3A{}", digest.hex());
    assert_eq!(log(&server), ["POST /v2/a/b/blobs/uploads/", &put]);
    let seen = server.seen();
    assert_eq!(seen[0].header("content-length"), "0");
    assert_eq!(seen[1].header("content-length"), blob().len().to_string());
    assert_eq!(seen[1].body, blob());
}

#[tokio::test]
async fn an_upload_elsewhere_is_not_shown_our_password() {
    let elsewhere = Server::start(|_| Reply::new(201, "")).await;
    let target = format!("http://{}/up", elsewhere.host);
    let server = Server::start(move |seen| match seen.header("authorization") {
        "" => Reply::new(401, "").header("WWW-Authenticate", "Basic"),
        _ => Reply::new(202, "").header("Location", &target),
    })
    .await;
    let password = super::super::Secret::new("p");
    let credential = super::super::Credential { user: "u".into(), password };
    let client = client(|config| config.credentials.give(&server.host, credential));
    client.push_blob(&server.repository(), &blob()).await.unwrap();
    assert!(elsewhere.seen()[0].path.starts_with("/up?digest="));
    assert!(!elsewhere.seen()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_mount_is_done_or_becomes_an_upload() {
    let server = Server::start(|seen| match seen.path.contains(&Digest::of(b"here").hex()) {
        true => Reply::new(201, "").header("Location", "/v2/a/b/blobs/x"),
        false => accepted(),
    })
    .await;
    let client = client(|_| ());
    let (repository, from) = (server.repository(), format!("{}/c/d", server.host));
    let from = from.parse().unwrap();
    let (here, missing) = (Digest::of(b"here"), Digest::of(b"missing"));
    let mounted = client.mount(&repository, &here, &from).await.unwrap();
    assert!(matches!(mounted, Mount::Mounted));
    let opened = client.mount(&repository, &missing, &from).await.unwrap();
    assert!(matches!(opened, Mount::Opened(_)));
    let path = format!("/v2/a/b/blobs/uploads/?mount={here}&from=c/d");
    assert_eq!(log(&server)[0], format!("POST {path}"));
}

/// A registry that has `blob` in every repository and takes uploads; its first PUT is answered
/// by `first`.
async fn copier(first: Reply, kept: &'static str) -> Server {
    let puts = AtomicUsize::new(0);
    Server::start(move |seen| match (seen.method.as_str(), seen.path.contains("/uploads/")) {
        ("GET", false) => Reply::blob(seen, &blob()),
        ("POST", _) => accepted(),
        ("GET", true) => Reply::new(204, "").header("Range", kept).header("Location", "2?_state=z"),
        ("PUT", _) if puts.fetch_add(1, Ordering::SeqCst) == 0 => first.clone(),
        ("PUT", _) => Reply::new(201, ""),
        _ => Reply::new(204, ""),
    })
    .await
}

async fn copied(server: &Server) -> (Result<(), String>, Vec<u8>) {
    let blob = Descriptor::of(LAYER, &blob());
    let from = format!("{}/c/d", server.host).parse().unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
    let client = client(|_| ());
    let repository = server.repository();
    let source = RemoteBlob::new(&client, &from, &blob);
    let copy = client.copy_blob(&blob, &source, &repository, None, Some(sender));
    let listen = async {
        let mut heard = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            heard.extend_from_slice(&chunk);
        }
        heard
    };
    let (outcome, heard) = tokio::join!(copy, listen);
    (outcome.map_err(|error| error.to_string()), heard)
}

#[tokio::test]
async fn a_copy_streams_from_source_to_target_and_listener() {
    let server = copier(Reply::new(201, ""), "").await;
    let (outcome, heard) = copied(&server).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(heard, blob());
    let seen = server.seen();
    let put = seen.iter().find(|seen| seen.method == "PUT").unwrap();
    assert_eq!(put.body, blob());
    assert_eq!(put.header("content-length"), blob().len().to_string());
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn a_copy_goes_on_at_the_byte_that_the_target_wants() {
    let server = copier(Reply::new(503, ""), "0-99999").await;
    let (outcome, heard) = copied(&server).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(heard, blob(), "the listener hears every byte once");
    let seen = server.seen();
    let put = seen.iter().rfind(|seen| seen.method == "PUT").unwrap();
    assert_eq!(put.body, blob().slice(100_000..));
    assert_eq!(put.header("content-range"), "100000-999999");
    assert!(put.path.starts_with("/v2/a/b/blobs/uploads/2?_state=z&digest="), "{}", put.path);
    let reads: Vec<_> = seen.iter().filter_map(Seen::range).collect();
    assert_eq!(reads, [(100_000, 999_999)]);
}

#[tokio::test]
async fn a_target_that_refuses_for_good_is_named_and_the_upload_given_up() {
    let body = r#"{"errors":[{"code":"DENIED","message":"quota"}]}"#;
    let server = copier(Reply::new(400, body), "").await;
    let (outcome, _) = copied(&server).await;
    let digest = Digest::of(&blob());
    let expected = format!(
        "blob {digest} of {}/a/b: the registry answers 400 Bad Request: DENIED: quota",
        server.host
    );
    assert_eq!(outcome, Err(expected));
    assert!(log(&server).last().unwrap().starts_with("DELETE /v2/a/b/blobs/uploads/1"));
}

#[tokio::test]
async fn wrong_bytes_of_a_source_are_not_completed_at_the_target() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "GET" => Reply::new(200, vec![7; blob().len()]),
        "POST" => accepted(),
        "PUT" => panic!("the target must not get the whole blob"),
        _ => Reply::new(204, ""),
    })
    .await;
    let (outcome, _) = copied(&server).await;
    let message = outcome.unwrap_err();
    assert!(message.contains(&format!("of {}/c/d: wrong bytes", server.host)), "{message}");
}

#[tokio::test]
async fn a_manifest_is_put_as_it_is() {
    let server = Server::start(|_| Reply::new(201, "").header("OCI-Subject", "x")).await;
    let reference = server.repository().tagged("t".parse().unwrap());
    let bytes = Bytes::from_static(b"{ \"any\" : 1 }\n");
    let kind = media_type::DOCKER_MANIFEST;
    let listed = client(|_| ()).put_manifest(&reference, kind, &bytes).await.unwrap();
    assert_eq!(listed, Listed::ByRegistry);
    let seen = &server.seen()[0];
    assert_eq!((seen.body.as_slice(), seen.header("content-type")), (&bytes[..], kind));
    let other = Digest::of(b"other");
    let server =
        Server::start(move |_| Reply::new(201, "").header("Docker-Content-Digest", other)).await;
    let reference = server.repository().tagged("t".parse().unwrap());
    let error = client(|_| ()).put_manifest(&reference, kind, &bytes).await.unwrap_err();
    assert!(error.to_string().contains(&other.to_string()), "{error}");
}

fn artifact() -> Artifact {
    let subject = Descriptor::of(media_type::OCI_MANIFEST, b"image");
    let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "tree".into(), spans: "s".into() };
    Artifact::build(&subject, &[layer]).unwrap()
}

#[tokio::test]
async fn an_artifact_is_left_to_a_registry_that_knows_subjects() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => accepted(),
        _ => Reply::new(201, "").header("OCI-Subject", Digest::of(b"image")),
    })
    .await;
    client(|_| ()).attach(&server.repository(), &artifact()).await.unwrap();
    let manifests: Vec<String> =
        log(&server).into_iter().filter(|line| line.contains("/manifests/")).collect();
    assert_eq!(manifests, [format!("PUT /v2/a/b/manifests/{}", artifact().descriptor.digest)]);
}

#[tokio::test]
async fn a_fallback_index_that_another_writer_undoes_is_written_again() {
    let stored: Mutex<Option<Vec<u8>>> = Mutex::new(None);
    let puts = AtomicUsize::new(0);
    let fallback = referrers::fallback_tag(&Digest::of(b"image"));
    let fallback = format!("/v2/a/b/manifests/{fallback}");
    let path = fallback.clone();
    let server = Server::start(move |seen| match (seen.method.as_str(), seen.path == path) {
        ("PUT", true) => {
            // The first one is lost.
            if puts.fetch_add(1, Ordering::SeqCst) > 0 {
                *stored.lock().unwrap() = Some(seen.body.clone());
            }
            Reply::new(201, "")
        }
        ("GET", true) => match &*stored.lock().unwrap() {
            Some(index) => Reply::new(200, index.clone()),
            None => Reply::new(404, ""),
        },
        ("HEAD", _) => Reply::new(200, ""),
        _ => Reply::new(201, ""),
    })
    .await;
    client(|_| ()).attach(&server.repository(), &artifact()).await.unwrap();
    let written: Vec<String> =
        log(&server).into_iter().filter(|line| line.starts_with("PUT")).collect();
    let own = referrers::own_tag(&Digest::of(b"image"));
    assert_eq!(
        written,
        [
            format!("PUT /v2/a/b/manifests/{}", artifact().descriptor.digest),
            format!("PUT /v2/a/b/manifests/{own}"),
            format!("PUT {fallback}"),
            format!("PUT {fallback}"),
        ]
    );
}

#[tokio::test]
async fn regression_sending_a_blob_may_take_longer_than_an_answer() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => accepted(),
        _ => Reply { late: Duration::from_secs(5), ..Reply::new(201, "") },
    })
    .await;
    let client = client(|config| config.answer_timeout = Duration::from_secs(3));
    client.push_blob(&server.repository(), &blob()).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn regression_an_upload_that_has_more_than_the_blob_is_begun_anew() {
    let server = copier(Reply::new(503, ""), "0-1000000").await;
    let (outcome, heard) = copied(&server).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(heard, blob());
    let seen = server.seen();
    let puts: Vec<_> = seen.iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2);
    assert_eq!(puts[1].body, blob());
}

/// A registry whose tokens are good for one `generation`. It takes uploads and mounts nothing.
async fn forgetful(generation: Arc<AtomicUsize>) -> Server {
    Server::start(move |seen| {
        let token = format!("t{}", generation.load(Ordering::SeqCst));
        if seen.path.starts_with("/token") {
            return Reply::new(200, json!({ "token": token }).to_string());
        }
        if seen.header("authorization") != format!("Bearer {token}") {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            return Reply::new(401, "").header("WWW-Authenticate", realm);
        }
        match seen.method.as_str() {
            "POST" => accepted(),
            _ => Reply::new(201, ""),
        }
    })
    .await
}

#[tokio::test]
async fn regression_a_blob_that_is_not_mounted_is_sent_with_the_pass_of_the_mount() {
    let generation = Arc::new(AtomicUsize::new(1));
    let server = forgetful(Arc::clone(&generation)).await;
    let (client, repository) = (client(|_| ()), server.repository());
    client.push_blob(&repository, &blob()).await.unwrap();
    generation.store(2, Ordering::SeqCst);
    let from = format!("{}/c/d", server.host).parse().unwrap();
    let descriptor = Descriptor::of(LAYER, &blob());
    let mounted = client.mount(&repository, &descriptor.digest, &from).await.unwrap();
    let Mount::Opened(upload) = mounted else { panic!("nothing is mounted here") };
    let source = MemoryBlob(blob());
    client.copy_blob(&descriptor, &source, &repository, Some(upload), None).await.unwrap();
}
