//! What passes: lost networks, registries that are replaced, mirrors that hang and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, media_type};

use super::super::testing::{Reply, Server, client};
use super::super::{PlainHttp, RegistriesConf};

#[tokio::test]
async fn regression_a_lost_connection_does_not_take_tls_away_for_good() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (sender, mut hellos) = tokio::sync::mpsc::unbounded_channel();
    let hanging_up = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = sender.send(stream.read_u8().await.unwrap_or_default());
        }
    });
    let client = client(|config| {
        config.plain_http = PlainHttp::Never;
        config.retry.retries = 0;
    });
    client.ping(&host).await.unwrap_err();
    while hellos.try_recv().is_ok() {}
    client.ping(&host).await.unwrap_err();
    assert_eq!(hellos.recv().await, Some(0x16), "the handshake of TLS comes first again");
    hanging_up.abort();
}

#[tokio::test]
async fn regression_a_registry_that_gets_the_referrers_api_is_asked_again() {
    let replaced = Arc::new(AtomicBool::new(false));
    let mut artifact = Descriptor::of(media_type::OCI_MANIFEST, b"artifact");
    artifact.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
    let index = json!({"schemaVersion": 2, "manifests": [artifact]}).to_string();
    let is_new = Arc::clone(&replaced);
    let server = Server::start(move |seen| {
        match is_new.load(Ordering::SeqCst) && seen.path.contains("/referrers/") {
            true => Reply::new(200, index.clone()),
            false => Reply::new(404, "404 page not found"),
        }
    })
    .await;
    let client = client(|config| config.recall = Duration::ZERO);
    let (repository, subject) = (server.repository(), Digest::of(b"image"));
    assert_eq!(client.referrers(&repository, &subject, None).await.unwrap(), []);
    replaced.store(true, Ordering::SeqCst);
    let found = client.referrers(&repository, &subject, None).await.unwrap();
    assert_eq!(found[0].digest, artifact.digest);
}

/// `home` behind `mirror`.
fn mirrored(home: &Server, mirror: &Server) -> RegistriesConf {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{}'\n",
        home.host, mirror.host
    );
    std::fs::write(&file, text).unwrap();
    RegistriesConf::read(&[file], &[]).unwrap()
}

#[tokio::test]
async fn regression_a_mirror_that_hangs_is_waited_for_once() {
    let blob = Bytes::from_static(b"the bytes of a blob");
    let (hangs, home_fails) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (hanging, failing, bytes) = (Arc::clone(&hangs), Arc::clone(&home_fails), blob.clone());
    let mirror = Server::start(move |seen| Reply {
        hangs: hanging.load(Ordering::SeqCst),
        ..Reply::blob(seen, &bytes)
    })
    .await;
    let bytes = blob.clone();
    let home = Server::start(move |seen| match failing.load(Ordering::SeqCst) {
        _ if !seen.path.contains("/blobs/") => Reply::new(404, ""),
        true => Reply::new(503, ""),
        false => Reply::blob(seen, &bytes),
    })
    .await;
    let client = client(|config| {
        config.registries = mirrored(&home, &mirror);
        config.answer_timeout = Duration::from_secs(3);
        config.recall = Duration::from_secs(3600);
    });
    let (repository, digest) = (home.repository(), Digest::of(&blob));
    for _ in 0..3 {
        let read = client.blob_range(&repository, &digest, 0..10).await.unwrap();
        assert_eq!(read, blob.slice(..10));
    }
    assert_eq!(client.referrers(&repository, &digest, None).await.unwrap(), []);
    assert_eq!(mirror.seen().len(), 1, "it is left out of whatever is asked next");
    hangs.store(false, Ordering::SeqCst);
    home_fails.store(true, Ordering::SeqCst);
    let read = client.blob_range(&repository, &digest, 0..10).await.unwrap();
    assert_eq!(read, blob.slice(..10), "where the home fails it is asked after all");
    home_fails.store(false, Ordering::SeqCst);
    client.blob_range(&repository, &digest, 0..10).await.unwrap();
    assert_eq!(mirror.seen().len(), 3, "and goes first again once it has answered");
}

/// A registry that lists what belongs to `subject` without end: each page has many index artifacts
/// that are not there.
async fn endless_list(next: bool) -> Server {
    let artifacts: Vec<_> = (0..100_u32)
        .map(|number| {
            let mut artifact = Descriptor::of(media_type::OCI_MANIFEST, &number.to_le_bytes());
            artifact.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
            artifact
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": artifacts}).to_string();
    Server::start(move |seen| match seen.path.contains("/referrers/") {
        false => Reply::new(404, ""),
        true if next => {
            Reply::new(200, index.clone()).header("Link", format!("<{}>; rel=\"next\"", seen.path))
        }
        true => Reply::new(200, index.clone()),
    })
    .await
}

#[tokio::test]
async fn regression_a_list_of_what_is_attached_is_read_to_a_limit() {
    let server = endless_list(true).await;
    let (client, subject) = (client(|_| ()), Digest::of(b"image"));
    let error = client.referrers(&server.repository(), &subject, None).await.unwrap_err();
    assert!(error.to_string().contains("does not end"), "{error}");
    assert_eq!(server.seen().len(), 100);
    let server = endless_list(false).await;
    let found = client.index_artifacts(&server.repository(), &subject).await.unwrap();
    assert!(found.is_empty());
    assert_eq!(server.seen().len(), 1 + 16, "one list, and the first of what it names");
}
