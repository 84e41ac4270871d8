//! The registry client against two real registries: our own, and Debian's `docker-registry`,
//! which takes artifacts but has no referrers API, ignores conditions and forgets uploads that
//! were cut.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use undermount::image::artifact::{Artifact, LayerBlobs};
use undermount::image::{Descriptor, Platform, Reference, Repository, media_type, referrers};
use undermount::registry::client::{
    Client, ClientConfig, Credential, Credentials, Listed, Mount, RegistryError, RemoteBlob,
    RetryPolicy, Secret, Upload,
};
use undermount_fs::digest::Digest;
use undermount_tests::archive::Member;
use undermount_tests::image::Image;
use undermount_tests::process::{SOON, program, run};
use undermount_tests::proxy::Wire;
use undermount_tests::registry::{Registry, docker_config};
use undermount_tests::requirement::{Need, lacking};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn client() -> Client {
    with(|_| ())
}

fn with(change: impl FnOnce(&mut ClientConfig)) -> Client {
    let retry = RetryPolicy { first_pause: Duration::from_millis(20), ..RetryPolicy::default() };
    let mut config = ClientConfig { retry, ..ClientConfig::default() };
    change(&mut config);
    Client::new(config)
}

fn no_docker_registry() -> bool {
    lacking(&[Need::Program("docker-registry")])
}

/// A registry of each kind, with its directory.
fn each_registry() -> Vec<(TempDir, Registry)> {
    let ours: fn(&Path) -> Registry = Registry::undermount;
    let mut kinds = vec![ours];
    if !no_docker_registry() {
        kinds.push(Registry::docker);
    }
    let start = |kind: fn(&Path) -> Registry| {
        let root = tempfile::tempdir().unwrap();
        let registry = kind(root.path());
        (root, registry)
    };
    kinds.into_iter().map(start).collect()
}

fn repository(host: &str, path: &str) -> Repository {
    Repository::new(host, path).unwrap()
}

/// 12 MB in which no two words are alike.
fn large() -> Bytes {
    (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
}

async fn read(client: &Client, repository: &Repository, bytes: &Bytes) -> Vec<u8> {
    let mut reader = client.read_blob(repository, &Digest::of(bytes), bytes.len() as u64, 0);
    let mut read = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        read.extend_from_slice(&chunk);
    }
    read
}

/// Pushes an image with the client alone; returns its reference and manifest.
async fn push(client: &Client, repository: &Repository, image: &Image) -> Reference {
    for bytes in image.blobs.values() {
        client.push_blob(repository, bytes).await.unwrap();
    }
    let reference = repository.tagged("t".parse().unwrap());
    let kind = media_type::OCI_MANIFEST;
    let listed = client.put_manifest(&reference, kind, &image.manifest).await.unwrap();
    assert_eq!(listed, Listed::ByNobody);
    reference
}

#[tokio::test]
async fn an_image_is_pushed_found_and_read_back() {
    for (_root, registry) in each_registry() {
        let (client, repository) = (client(), repository(registry.address(), "some/image"));
        let image = Image::of(&[&[Member::file("a", "1")], &[Member::file("b", "2")]]);
        let reference = push(&client, &repository, &image).await;

        let found = client.image(&reference, &Platform::host()).await.unwrap();
        assert_eq!(found.raw.bytes, image.manifest);
        assert_eq!(found.reference, reference.pinned(image.digest()));
        assert_eq!(found.manifest.layers.len(), 2);
        assert_eq!(client.tags(&repository).await.unwrap(), ["t"]);
        assert_eq!(client.catalog(registry.address()).await.unwrap(), ["some/image"]);
        let resolved = client.resolve(&reference).await.unwrap().unwrap();
        assert_eq!(resolved, found.raw.descriptor());
        let missing = repository.tagged("missing".parse().unwrap());
        assert_eq!(client.resolve(&missing).await.unwrap(), None);
        let message = client.manifest(&missing).await.unwrap_err().to_string();
        assert!(message.contains("MANIFEST_UNKNOWN"), "{message}");
    }
}

#[tokio::test]
async fn an_image_that_skopeo_pushed_is_read() {
    if no_docker_registry() || lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker(root.path());
    let image = Image::of(&[&[Member::file("a", "1")]]);
    let reference: Reference = registry.push_image(&image, "some/image:tag").parse().unwrap();
    let found = client().image(&reference, &Platform::host()).await.unwrap();
    assert_eq!(found.raw.digest, image.digest());
}

#[tokio::test]
async fn blobs_are_read_whole_in_part_and_not_past_their_end() {
    for (_root, registry) in each_registry() {
        let (client, repository) = (client(), repository(registry.address(), "a"));
        let (bytes, digest) = (large(), client.push_blob(&repository, &large()).await.unwrap());
        assert!(client.blob_exists(&repository, &digest).await.unwrap());
        assert!(!client.blob_exists(&repository, &Digest::of(b"other")).await.unwrap());
        assert_eq!(read(&client, &repository, &bytes).await, bytes);
        let size = bytes.len() as u64;
        for range in [0..1, 4095..4097, size - 1..size, 1_000_000..5_000_000] {
            let part = client.blob_range(&repository, &digest, range.clone()).await.unwrap();
            assert_eq!(part, bytes.slice(range.start as usize..range.end as usize));
        }
        let past = client.blob_range(&repository, &digest, size..size + 10).await.unwrap_err();
        assert!(past.to_string().contains("the registry has at most"), "{past}");
        let nothing =
            client.blob_range(&repository, &Digest::of(b"other"), 0..1).await.unwrap_err();
        assert!(nothing.is_not_found(), "{nothing}");
    }
}

#[tokio::test]
async fn a_blob_is_mounted_instead_of_moved() {
    for (_root, registry) in each_registry() {
        let from = repository(registry.address(), "a/from");
        let to = repository(registry.address(), "b/to");
        let client = client();
        let bytes = Bytes::from_static(b"a layer");
        let digest = client.push_blob(&from, &bytes).await.unwrap();
        assert!(matches!(client.mount(&to, &digest, &from).await.unwrap(), Mount::Mounted));
        assert_eq!(read(&client, &to, &bytes).await, bytes);

        let other = Bytes::from_static(b"another layer");
        let source = repository(registry.address(), "c/source");
        client.push_blob(&source, &other).await.unwrap();
        let blob = Descriptor::of(LAYER, &other);
        let Mount::Opened(upload) = client.mount(&to, &blob.digest, &from).await.unwrap() else {
            panic!("there is nothing to mount");
        };
        let source = RemoteBlob::new(&client, &source, &blob);
        client.copy_blob(&blob, &source, &to, Some(upload), None).await.unwrap();
        assert_eq!(read(&client, &to, &other).await, other);
    }
}

#[tokio::test]
async fn a_copy_survives_cuts_on_both_sides() {
    for (_root, target) in each_registry() {
        for (_root, source) in each_registry() {
            copy_over_cut_wires(&source, &target).await;
        }
    }
}

async fn copy_over_cut_wires(source: &Registry, target: &Registry) {
    let (wire_from, wire) = (Wire::to(source.address()), Wire::to(target.address()));
    let from = repository(&wire_from.address(), "a");
    let to = repository(&wire.address(), "b");
    let client = client();
    let bytes = large();
    client.push_blob(&from, &bytes).await.unwrap();
    let blob = Descriptor::of(LAYER, &bytes);
    client.ping(&wire.address()).await.unwrap();
    wire_from.cut_download_after(9_000_000);
    wire.cut_upload_after(7_000_000);
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
    let listen = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            heard.extend_from_slice(&chunk);
        }
        heard
    });
    let source = RemoteBlob::new(&client, &from, &blob);
    client.copy_blob(&blob, &source, &to, None, Some(sender)).await.unwrap();
    assert_eq!((wire_from.cuts(), wire.cuts()), (1, 1));
    assert_eq!(listen.await.unwrap(), bytes);
    let copied = repository(target.address(), "b");
    assert_eq!(read(&client, &copied, &bytes).await, bytes);
}

#[tokio::test]
async fn docker_registry_forgets_an_upload_that_was_cut() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker(root.path());
    // It compares the bytes it has with those that it last told of, and gives up.
    let error = cut_upload(&registry).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let repository = repository(registry.address(), "b");
    assert!(!client().blob_exists(&repository, &Digest::of(&large())).await.unwrap());
}

/// Sends [`large`] over a wire that is cut in the middle; gives the upload that is left and how
/// much of it the registry has.
async fn cut_upload(registry: &Registry) -> Result<(u64, Upload), RegistryError> {
    let wire = Wire::to(registry.address());
    let repository = repository(&wire.address(), "b");
    let (bytes, digest) = (large(), Digest::of(&large()));
    let mut writer =
        client().start_upload(&repository).await.unwrap().writer(&digest, bytes.len() as u64);
    wire.cut_upload_after(7_000_000);
    for at in (0..bytes.len()).step_by(100_000) {
        let chunk = bytes.slice(at..(at + 100_000).min(bytes.len()));
        if writer.write(chunk).await.is_err() {
            break;
        }
    }
    // The wire stays until the registry was asked.
    let upload = writer.recover().await?;
    assert_eq!(wire.cuts(), 1);
    Ok((upload.offset(), upload))
}

#[tokio::test]
async fn wrong_bytes_are_refused_by_the_target() {
    for (_root, registry) in each_registry() {
        let (client, repository) = (client(), repository(registry.address(), "b"));
        let digest = Digest::of(b"right");
        let mut writer = client.start_upload(&repository).await.unwrap().writer(&digest, 5);
        writer.write(Bytes::from_static(b"wrong")).await.unwrap();
        let message = writer.finish().await.unwrap_err().to_string();
        assert!(message.contains("DIGEST_INVALID"), "{message}");
        assert!(!client.blob_exists(&repository, &digest).await.unwrap());
    }
}

fn artifact_of(image: &Image) -> Artifact {
    let subject = Descriptor::of(media_type::OCI_MANIFEST, &image.manifest);
    let layers: Vec<LayerBlobs> = image
        .layers()
        .into_iter()
        .map(|(layer, _)| LayerBlobs {
            layer,
            tree: format!("tree of {layer}").into(),
            spans: format!("spans of {layer}").into(),
        })
        .collect();
    Artifact::build(&subject, &layers).unwrap()
}

#[tokio::test]
async fn an_index_artifact_is_attached_found_and_survives_garbage_collection() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker(root.path());
    let image = Image::of(&[&[Member::file("a", "1")], &[Member::file("b", "2")]]);
    let artifact = artifact_of(&image);
    let client = client();
    let attached = repository(registry.address(), "some/image");
    push(&client, &attached, &image).await;
    assert!(client.index_artifacts(&attached, &image.digest()).await.unwrap().is_empty());
    client.attach(&attached, &artifact).await.unwrap();
    client.attach(&attached, &artifact).await.unwrap();
    let kind = media_type::UNDERMOUNT_INDEX;
    let listed = client.referrers(&attached, &image.digest(), Some(kind)).await.unwrap();
    assert_eq!(listed.len(), 1, "attaching twice lists it once");
    assert_eq!(client.tags(&attached).await.unwrap(), ["t"], "its tags are no versions");

    drop(registry);
    collect_garbage(root.path());
    let registry = Registry::docker(root.path());
    let attached = repository(registry.address(), "some/image");
    let found = client.index_artifacts(&attached, &image.digest()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].digest, artifact.descriptor.digest);
    for entry in &found[0].layers {
        let packed = client.small_blob(&attached, &entry.tree_blob, u64::MAX).await.unwrap();
        let tree = entry.unpack_tree(packed.bytes()).unwrap();
        assert_eq!(tree.bytes(), format!("tree of {}", entry.layer).as_bytes());
        let spans = client.small_blob(&attached, &entry.spans, 1 << 20).await.unwrap();
        assert_eq!(spans.bytes(), format!("spans of {}", entry.layer).as_bytes());
    }
}

fn collect_garbage(root: &Path) {
    let mut command = program("docker-registry");
    command.args(["garbage-collect", "--delete-untagged"]).arg(docker_config(root));
    run(&mut command, SOON).success();
}

#[tokio::test]
async fn our_registry_lists_an_artifact_without_any_tags() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), &["--index", "off"]);
    let image = Image::of(&[&[Member::file("a", "1")]]);
    let artifact = artifact_of(&image);
    let (client, repository) = (client(), repository(registry.address(), "some/image"));
    push(&client, &repository, &image).await;
    client.attach(&repository, &artifact).await.unwrap();
    let found = client.index_artifacts(&repository, &image.digest()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].digest, artifact.descriptor.digest);
    for tag in [referrers::own_tag(&image.digest()), referrers::fallback_tag(&image.digest())] {
        assert_eq!(client.resolve(&repository.tagged(tag)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn our_registry_attaches_the_index_of_a_pushed_image_itself() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let image = Image::of(&[&[Member::file("a", "1")], &[Member::file("b", "2")]]);
    let (client, repository) = (client(), repository(registry.address(), "some/image"));
    push(&client, &repository, &image).await;
    let found = client.index_artifacts(&repository, &image.digest()).await.unwrap();
    assert_eq!(found.len(), 1);
    let layers: Vec<Digest> = found[0].layers.iter().map(|entry| entry.layer).collect();
    let expected: Vec<Digest> = image.layers().into_iter().map(|(layer, _)| layer).collect();
    assert_eq!(layers, expected);
    for entry in &found[0].layers {
        let packed = client.small_blob(&repository, &entry.tree_blob, u64::MAX).await.unwrap();
        entry.unpack_tree(packed.bytes()).unwrap();
    }
}

#[tokio::test]
async fn our_registry_goes_on_with_an_upload_that_was_cut() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let (offset, writer) = cut_upload(&registry).await.unwrap();
    assert!((1_000_000..7_000_000).contains(&offset), "{offset}");
    let (bytes, digest) = (large(), Digest::of(&large()));
    let mut writer = writer.writer(&digest, bytes.len() as u64);
    writer.write(bytes.slice(offset as usize..)).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(&client(), &repository(registry.address(), "b"), &bytes).await, bytes);
}

#[tokio::test]
async fn an_artifact_is_found_by_its_own_tag_and_by_the_fallback_index_alone() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker(root.path());
    let image = Image::of(&[&[Member::file("a", "1")]]);
    let artifact = artifact_of(&image);
    let client = client();
    let kind = media_type::OCI_MANIFEST;
    for (path, tag) in
        [("own", referrers::own_tag(&image.digest()).to_string()), ("listed", "any".to_owned())]
    {
        let repository = repository(registry.address(), path);
        push(&client, &repository, &image).await;
        for (_, bytes) in &artifact.blobs {
            client.push_blob(&repository, bytes).await.unwrap();
        }
        let reference = repository.tagged(tag.parse().unwrap());
        client.put_manifest(&reference, kind, &artifact.manifest).await.unwrap();
    }
    let listed = repository(registry.address(), "listed");
    assert!(client.index_artifacts(&listed, &image.digest()).await.unwrap().is_empty());
    let index = referrers::list_in_fallback(None, &artifact.descriptor).unwrap().unwrap();
    let fallback = listed.tagged(referrers::fallback_tag(&image.digest()));
    client.put_manifest(&fallback, media_type::OCI_INDEX, &index.into()).await.unwrap();
    for path in ["own", "listed"] {
        let repository = repository(registry.address(), path);
        let found = client.index_artifacts(&repository, &image.digest()).await.unwrap();
        assert_eq!(found.len(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_manifest_is_deleted_where_that_is_allowed() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker_with(root.path(), |config| {
        config["storage"]["delete"] = serde_json::json!({ "enabled": true });
    });
    let (client, repository) = (client(), repository(registry.address(), "a"));
    let image = Image::of(&[&[Member::file("a", "1")]]);
    let reference = push(&client, &repository, &image).await;
    client.delete_manifest(&repository, &image.digest()).await.unwrap();
    assert_eq!(client.resolve(&reference).await.unwrap(), None);
    let again = client.delete_manifest(&repository, &image.digest()).await.unwrap_err();
    assert!(again.is_not_found(), "{again}");
}

#[tokio::test]
async fn credentials_come_from_a_file_and_wrong_ones_are_told() {
    if no_docker_registry() || lacking(&[Need::Program("htpasswd")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let users = root.path().join("users");
    let mut htpasswd = program("htpasswd");
    run(htpasswd.args(["-Bbc", users.to_str().unwrap(), "user", "hunter2"]), SOON).success();
    let registry = Registry::docker_with(root.path(), |config| {
        config["auth"] = serde_json::json!({ "htpasswd": { "realm": "r", "path": users } });
    });
    let host = registry.address();
    let (bytes, repository) = (Bytes::from_static(b"a layer"), repository(host, "a/b"));
    let file = root.path().join("auth.json");
    let entry = serde_json::json!({ "auth": "dXNlcjpodW50ZXIy" });
    fs::write(&file, serde_json::json!({ "auths": { host: entry } }).to_string()).unwrap();

    let known = with(|config| config.credentials = Credentials::from_files(vec![file]));
    known.push_blob(&repository, &bytes).await.unwrap();
    assert_eq!(read(&known, &repository, &bytes).await, bytes);
    let message = client().push_blob(&repository, &bytes).await.unwrap_err().to_string();
    assert!(message.contains("wants credentials and none are configured"), "{message}");
    let wrong = Credential { user: "user".into(), password: Secret::new("wrong") };
    let wrong = with(|config| config.credentials.give(host, wrong));
    let message = wrong.push_blob(&repository, &bytes).await.unwrap_err().to_string();
    assert!(message.contains("refuses access with the credentials of user"), "{message}");
    assert!(message.contains(repository.as_str()), "{message}");
}

#[tokio::test]
async fn tls_is_checked_against_the_given_certificates() {
    if no_docker_registry() || lacking(&[Need::Program("openssl")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(root.path());
    let registry = Registry::docker_with(root.path(), |config| {
        config["http"]["tls"] = serde_json::json!({ "certificate": certificate, "key": key });
    });
    let pem = fs::read(&certificate).unwrap();
    let trusting = with(|config| {
        config.certificates = vec![reqwest::Certificate::from_pem(&pem).unwrap()];
    });
    trusting.ping(registry.address()).await.unwrap();
    let directory = root.path().join("certs.d").join(registry.address());
    fs::create_dir_all(&directory).unwrap();
    fs::copy(&certificate, directory.join("ca.crt")).unwrap();
    let configured = with(|config| config.certificate_dirs = vec![root.path().join("certs.d")]);
    configured.ping(registry.address()).await.unwrap();
    let error = client().ping(registry.address()).await.unwrap_err();
    assert!(error.in_words().contains("certificate"), "{}", error.in_words());
}

#[tokio::test]
async fn a_registry_that_asks_who_we_are_is_shown_the_certificate_for_it() {
    if no_docker_registry() || lacking(&[Need::Program("openssl")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(root.path());
    let registry = Registry::docker_with(root.path(), |config| {
        let clients = [certificate.clone()];
        let tls =
            serde_json::json!({ "certificate": certificate, "key": key, "clientcas": clients });
        config["http"]["tls"] = tls;
    });
    let directory = root.path().join("certs.d").join(registry.address());
    fs::create_dir_all(&directory).unwrap();
    fs::copy(&certificate, directory.join("ca.crt")).unwrap();
    let client = || with(|config| config.certificate_dirs = vec![root.path().join("certs.d")]);
    assert!(client().ping(registry.address()).await.is_err());
    fs::copy(&certificate, directory.join("client.cert")).unwrap();
    fs::copy(&key, directory.join("client.key")).unwrap();
    client().ping(registry.address()).await.unwrap();
}

/// A certificate for 127.0.0.1 and its key.
fn self_signed(directory: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let mut openssl = program("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=registry"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    run(&mut openssl, SOON).success();
    (certificate, key)
}
