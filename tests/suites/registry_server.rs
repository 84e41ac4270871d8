//! `undermount registry` with real clients, side by side with others and killed at any moment.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use undermount::image::artifact;
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Archive, Member};
use undermount_tests::compression::Compression;
use undermount_tests::distribution::{Api, sha256};
use undermount_tests::image::{Image, Layer, MANIFEST};
use undermount_tests::process::{SOON, eventually, run, undermount};
use undermount_tests::registry::{Registry, files_below, skopeo};
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::soak::Soak;

const INDEX_ARTIFACT: &str = "application/vnd.undermount.index.v1";

/// Bytes that do not compress, different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A layer with a file of `length` bytes.
fn layer(seed: u64, length: usize, compression: Compression) -> Layer {
    let file = Member::file(format!("file-{seed}"), noise(seed, length));
    Layer::compressed(&Archive::of(&[Member::dir("dir"), file]), compression)
}

fn image(seeds: &[u64], length: usize) -> Image {
    Image::from_layers(seeds.iter().map(|&seed| layer(seed, length, Compression::Gzip)).collect())
}

fn api(registry: &Registry) -> Api {
    Api(registry.address().to_owned())
}

/// The index artifacts of an image, as the referrers API lists them.
fn artifacts(api: &Api, repository: &str, image: &Image) -> Vec<Value> {
    let path =
        format!("/v2/{repository}/referrers/{}?artifactType={INDEX_ARTIFACT}", image.digest());
    let listed = api.get(&path);
    listed.expect(200).json()["manifests"].as_array().unwrap().clone()
}

/// Pushes an image without `skopeo`, so that nothing waits for a process.
fn push(api: &Api, image: &Image, repository: &str, tag: &str) {
    for blob in image.blobs.values() {
        api.push_blob(repository, blob);
    }
    put_manifest(api, image, repository, tag).expect(201);
}

fn put_manifest(
    api: &Api,
    image: &Image,
    repository: &str,
    tag: &str,
) -> undermount_tests::distribution::Answer {
    let path = format!("/v2/{repository}/manifests/{tag}");
    api.send("PUT", &path, &[("Content-Type", MANIFEST)], &image.manifest)
}

/// Everything that has the name of a blob has its bytes, whatever happened before.
fn assert_blobs_are_whole(root: &Path) {
    for (path, _) in files_below(&root.join("blobs/sha256")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let actual = sha256(&fs::read(&path).unwrap());
        assert_eq!(actual.strip_prefix("sha256:"), Some(name), "{}", path.display());
    }
}

#[test]
fn skopeo_pushes_and_pulls_images_byte_by_byte() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let original = image(&[1, 2, 3], 300_000);
    for tag in ["v2", "v1"] {
        registry.push_image(&original, &format!("lib/app:{tag}"));
    }
    let layout = tempfile::tempdir().unwrap();
    let pulled = registry.pull(&format!("{}/lib/app:v1", registry.address()), layout.path());
    assert_eq!(pulled.manifest, original.manifest);
    assert_eq!(pulled.blobs, original.blobs);
    let repository = format!("docker://{}/lib/app", registry.address());
    let tags: Value =
        serde_json::from_str(&skopeo(&["list-tags", "--tls-verify=false", &repository])).unwrap();
    assert_eq!(tags["Tags"], json!(["v1", "v2"]));
}

#[test]
fn skopeo_pushes_docker_manifests_and_copies_between_repositories() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let source = format!("docker://{}", registry.push_image(&image(&[4], 100_000), "source:x"));
    let target = format!("docker://{}/target:x", registry.address());
    let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy = ["copy", "--quiet", "--format", "v2s2", plain[0], plain[1], &source, &target];
    skopeo(&copy);
    let manifest = skopeo(&["inspect", "--raw", "--tls-verify=false", &target]);
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    skopeo(&["delete", "--tls-verify=false", &target]);
    assert_eq!(api(&registry).get("/v2/_catalog").json()["repositories"], json!(["source"]));
}

#[test]
fn a_pushed_image_has_its_index_when_the_push_returns() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let layers = [Compression::Gzip, Compression::Zstd, Compression::Plain];
    let layers = layers.into_iter().zip(5..).map(|(kind, seed)| layer(seed, 50_000, kind));
    let image = Image::from_layers(layers.collect());
    let api = api(&registry);
    push(&api, &image, "a", "x");
    let listed = artifacts(&api, "a", &image);
    assert_eq!(listed.len(), 1);
    let digest = listed[0]["digest"].as_str().unwrap();
    let manifest = api.get(&format!("/v2/a/manifests/{digest}")).expect(200).body.clone();
    let entries = artifact::parse(&manifest, &image.digest()).unwrap();
    let indexed: Vec<Digest> = entries.iter().map(|entry| entry.layer).collect();
    assert_eq!(indexed, image.layers().iter().map(|(digest, _)| *digest).collect::<Vec<_>>());
    for entry in entries {
        let blob = |digest: &Digest| api.get(&format!("/v2/a/blobs/{digest}")).expect(200).clone();
        entry.unpack_tree(&blob(&entry.tree_blob.digest).body).unwrap();
        assert_eq!(blob(&entry.spans.digest).body.len() as u64, entry.spans.size);
    }
}

#[test]
fn the_index_of_an_image_follows_from_its_layers_alone() {
    let image = image(&[8, 9], 50_000);
    let digests = ["a", "b"].map(|repository| {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::undermount(root.path());
        push(&api(&registry), &image, repository, "x");
        artifacts(&api(&registry), repository, &image)[0]["digest"].clone()
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn an_index_goes_with_its_image() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let (api, image) = (api(&registry), image(&[10], 1000));
    push(&api, &image, "a", "x");
    api.send("DELETE", &format!("/v2/a/manifests/{}", image.digest()), &[], b"").expect(202);
    assert_eq!(artifacts(&api, "a", &image), [Value::Null; 0]);
    assert_eq!(api.get("/v2/_catalog").json()["repositories"], json!([]));
}

#[test]
fn a_malformed_layer_leaves_the_image_without_an_index() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount(root.path());
    let gzip = layer(11, 50_000, Compression::Gzip);
    let cut = gzip.blob.as_ref().unwrap()[..20_000].to_vec();
    let image = Image::from_layers(vec![Layer::raw(cut, b"", &gzip.media_type)]);
    let api = api(&registry);
    push(&api, &image, "a", "x");
    assert_eq!(artifacts(&api, "a", &image), [Value::Null; 0]);
    api.get("/v2/a/manifests/x").expect(200);
    registry.process().wait_for(SOON, |log| log.contains("image has no index").then_some(()));
}

#[test]
fn an_image_that_has_an_index_is_not_indexed_again() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let (api, image) = (api(&registry), image(&[12], 1000));
    api.push_blob("a", b"{}");
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2,
    });
    let prepared = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": INDEX_ARTIFACT,
        "config": empty,
        "layers": [empty],
        "subject": {
            "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
        },
    });
    let digest = api.push_manifest("a", &sha256(prepared.to_string().as_bytes()), &prepared);
    push(&api, &image, "a", "x");
    let listed = artifacts(&api, "a", &image);
    assert_eq!(listed.iter().map(|entry| entry["digest"].clone()).collect::<Vec<_>>(), [digest]);
}

#[test]
fn a_registry_told_not_to_indexes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), &["--index", "off"]);
    let (api, image) = (api(&registry), image(&[13], 1000));
    push(&api, &image, "a", "x");
    assert_eq!(artifacts(&api, "a", &image), [Value::Null; 0]);
}

#[test]
fn an_index_tells_nothing_of_layers_of_other_repositories() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), &["--sparse"]);
    let (api, image) = (api(&registry), image(&[17], 1000));
    push(&api, &image, "theirs", "x");
    assert_eq!(artifacts(&api, "theirs", &image).len(), 1);
    // A manifest that names layers which its pusher does not have.
    put_manifest(&api, &image, "mine", "x").expect(201);
    assert_eq!(artifacts(&api, "mine", &image), [Value::Null; 0]);
}

#[test]
fn an_index_that_a_kill_cut_off_is_made_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount_with(root.path(), &["--index-wait", "0"]);
    let image = image(&[14], 4_000_000);
    push(&api(&registry), &image, "a", "x");
    registry.process().kill();
    drop(registry);
    let registry = Registry::undermount(root.path());
    let api = api(&registry);
    eventually("the index is made", SOON, || artifacts(&api, "a", &image).len() == 1);
}

#[test]
fn an_upload_that_a_kill_cut_off_leaves_nothing_and_can_be_repeated() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount(root.path());
    let blob = noise(15, 3_000_000);
    let location = api(&registry).begin("a");
    let mut stream = api(&registry).open("PATCH", &location, &[("Content-Length", "3000000")]);
    stream.write_all(&blob[..2_500_000]).unwrap();
    let uploads = root.path().join("uploads");
    eventually("bytes are on disk", SOON, || {
        files_below(&uploads).iter().any(|(_, size)| *size > 1_000_000)
    });
    registry.process().kill();
    drop(registry);
    let registry = Registry::undermount(root.path());
    assert_eq!(files_below(&uploads), []);
    let api = api(&registry);
    api.get(&format!("/v2/a/blobs/{}", sha256(&blob))).expect(404);
    assert_eq!(api.get(&location).error(404), "BLOB_UPLOAD_UNKNOWN");
    api.push_blob("a", &blob);
}

#[test]
fn killed_at_any_moment_of_a_push_the_registry_serves_nothing_half() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let layout = tempfile::tempdir().unwrap();
    let original = image(&[16, 17, 18, 19], 1_500_000);
    original.write_layout(layout.path(), "image");
    let root = tempfile::tempdir().unwrap();
    for attempt in 0..12_u64 {
        let mut registry = Registry::undermount(root.path());
        let target = format!("docker://{}/a:{attempt}", registry.address());
        let source = format!("oci:{}:image", layout.path().display());
        let copy = thread::spawn(move || {
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
            run(skopeo.args([source, target]), SOON).status.success()
        });
        thread::sleep(Duration::from_millis(25 * attempt));
        registry.process().kill();
        let pushed = copy.join().unwrap();
        drop(registry);
        assert_blobs_are_whole(root.path());
        let registry = Registry::undermount(root.path());
        let api = api(&registry);
        let tagged = api.get(&format!("/v2/a/manifests/{attempt}"));
        assert!(tagged.status == 200 || !pushed, "an acknowledged push is lost");
        if tagged.status == 200 {
            assert_eq!(tagged.body, original.manifest);
            for (digest, blob) in &original.blobs {
                assert_eq!(api.get(&format!("/v2/a/blobs/{digest}")).expect(200).body, *blob);
            }
        }
        // The next attempt begins with nothing, so that it can be cut at the same places.
        drop(registry);
        fs::remove_dir_all(root.path().join("repositories")).unwrap();
        fs::remove_dir_all(root.path().join("blobs")).unwrap();
    }
    let registry = Registry::undermount(root.path());
    registry.push(layout.path(), "image", "a:last");
}

#[test]
fn many_pushers_and_pullers_do_not_disturb_each_other() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let duration = Duration::from_secs(3);
    let soak = Soak { pullers: 64, pushers: 16, duration, blob: 3_000_000 };
    let moved = soak.run(&api(&registry));
    println!("{moved:?}");
    assert!(moved.parts.into_inner() > 64 && moved.images.into_inner() >= 16);
    assert_blobs_are_whole(root.path());
}

#[test]
fn the_same_blob_can_be_pushed_many_times_at_once() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let (api, blob) = (api(&registry), noise(22, 2_000_000));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| api.push_blob("a", &blob));
        }
    });
    let digest = sha256(&blob);
    assert_eq!(api.get(&format!("/v2/a/blobs/{digest}")).expect(200).body, *blob);
    assert_eq!(files_below(&root.path().join("uploads")), []);
}

/// A connection on which the answer has begun.
fn answered(api: &Api, path: &str) -> TcpStream {
    let stream = api.open("GET", path, &[]);
    assert_ne!(stream.peek(&mut [0]).unwrap(), 0, "there is an answer");
    stream
}

#[test]
fn a_termination_lets_the_answer_in_progress_end() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount(root.path());
    let (api, blob) = (api(&registry), noise(23, 20_000_000));
    let digest = api.push_blob("a", &blob);
    let path = format!("/v2/a/blobs/{digest}");
    let mut stream = answered(&api, &path);
    registry.process().signal(Signal::SIGTERM);
    // Most of the blob is still to be sent: there is no room for it on the way.
    thread::sleep(Duration::from_millis(500));
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.ends_with(&blob[1_000_000..]));
    assert!(registry.process().wait(SOON).is_some_and(|status| status.success()));
}

#[test]
fn a_termination_cuts_who_does_not_end_in_time() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount_with(root.path(), &["--grace", "1"]);
    let (api, blob) = (api(&registry), noise(24, 40_000_000));
    let path = format!("/v2/a/blobs/{}", api.push_blob("a", &blob));
    // Never read from.
    let _stalled = answered(&api, &path);
    registry.process().signal(Signal::SIGTERM);
    assert!(registry.process().wait(SOON).is_some_and(|status| status.success()));
    assert!(registry.process().stderr().contains("connection cut at shutdown"));
}

#[test]
fn a_termination_does_not_wait_for_idle_connections() {
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount_with(root.path(), &["--grace", "170"]);
    let _idle = TcpStream::connect(registry.address()).unwrap();
    let begin = Instant::now();
    registry.process().signal(Signal::SIGTERM);
    assert!(registry.process().wait(SOON).is_some_and(|status| status.success()));
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

/// Starts a second registry, which should refuse.
fn refusal(root: &Path, listen: &str) -> String {
    let mut command = undermount();
    command.arg("registry").arg("--root").arg(root).args(["--listen", listen]);
    run(&mut command, SOON).refusal().to_owned()
}

#[test]
fn a_registry_that_cannot_be_served_says_why() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let words = refusal(root.path(), "127.0.0.1:0");
    assert!(words.contains("is served by another registry process"), "{words}");
    let other = tempfile::tempdir().unwrap();
    let words = refusal(other.path(), registry.address());
    assert!(words.contains(&format!("cannot listen on `{}`", registry.address())), "{words}");
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("letter.txt"), "dear").unwrap();
    let words = refusal(foreign.path(), "127.0.0.1:0");
    assert!(words.contains("holds other files"), "{words}");
    fs::write(other.path().join("VERSION"), "77\n").unwrap();
    let words = refusal(other.path(), "127.0.0.1:0");
    assert!(words.contains("format 77"), "{words}");
    let file = foreign.path().join("letter.txt");
    let words = refusal(&file, "127.0.0.1:0");
    assert!(words.contains("letter.txt"), "{words}");
}
