//! `undermount registry --image-serve`: the tree that TripleO's Apache serves, without Apache.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::json;
use undermount_tests::archive::Member;
use undermount_tests::distribution::Api;
use undermount_tests::image::Image;
use undermount_tests::image_serve;
use undermount_tests::process::{SOON, run, undermount};
use undermount_tests::registry::{Registry, skopeo};
use undermount_tests::requirement::{Need, lacking};

fn serve(root: &Path) -> (Registry, Api) {
    let mut command = undermount();
    command.args(["registry", "--listen", "127.0.0.1:0", "--image-serve"]).arg(root);
    let registry = Registry::start(&mut command);
    let api = Api(registry.address().to_owned());
    (registry, api)
}

fn image() -> Image {
    Image::of(&[&[Member::file("file", "content")], &[Member::file("other", "more")]])
}

#[test]
fn skopeo_pulls_from_the_tree_byte_by_byte() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let image = image();
    image_serve::write(root.path(), &image, "ns/nova", "t1");
    let (registry, _) = serve(root.path());
    let reference = format!("{}/ns/nova:t1", registry.address());
    let pulled = registry.pull(&reference, &root.path().join("layout"));
    assert_eq!((pulled.manifest, pulled.blobs), (image.manifest, image.blobs));
    let tags = format!("docker://{}/ns/nova", registry.address());
    assert!(skopeo(&["list-tags", "--tls-verify=false", &tags]).contains("t1"));
}

#[test]
fn lists_ranges_and_errors_are_those_of_a_registry() {
    let root = tempfile::tempdir().unwrap();
    let image = image();
    image_serve::write(root.path(), &image, "ns/nova", "t1");
    let (_registry, api) = serve(root.path());
    assert_eq!(api.get("/v2/_catalog").json(), json!({ "repositories": ["ns/nova"] }));
    assert_eq!(api.get("/v2/ns/nova/tags/list").json()["tags"], json!(["t1"]));
    let (digest, size) = image.layers()[0];
    let path = format!("/v2/ns/nova/blobs/{digest}");
    let part = api.send("GET", &path, &[("Range", "bytes=1-4")], b"");
    assert_eq!(part.expect(206).body, image.blobs[&digest][1..5]);
    let end = format!("bytes */{size}");
    let beyond = api.send("GET", &path, &[("Range", "bytes=99999999-")], b"");
    assert_eq!(beyond.expect(416).header("content-range"), Some(end.as_str()));
    assert_eq!(api.get("/v2/ns/other/tags/list").error(404), "NAME_UNKNOWN");
    assert_eq!(api.get("/v2/ns/nova/manifests/t2").error(404), "MANIFEST_UNKNOWN");
    let referrers = api.get(&format!("/v2/ns/nova/referrers/{}", image.digest()));
    assert_eq!(referrers.json()["manifests"], json!([]));
}

#[test]
fn the_tree_is_not_changed_by_anybody() {
    let root = tempfile::tempdir().unwrap();
    image_serve::write(root.path(), &image(), "ns/nova", "t1");
    let (_registry, api) = serve(root.path());
    for (method, path) in [
        ("POST", "/v2/ns/nova/blobs/uploads/"),
        ("PUT", "/v2/ns/nova/manifests/t2"),
        ("DELETE", "/v2/ns/nova/manifests/t1"),
        ("POST", "/gc"),
    ] {
        assert_eq!(api.send(method, path, &[], b"{}").error(405), "UNSUPPORTED", "{method} {path}");
    }
    api.get("/v2/ns/nova/manifests/t1").expect(200);
}

#[test]
fn a_directory_without_a_tree_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], words: &str| {
        let mut command = undermount();
        command.args(["registry", "--listen", "127.0.0.1:0", "--image-serve"]).arg(root.path());
        let refusal = run(command.args(arguments), SOON);
        assert!(refusal.refusal().contains(words), "{}", refusal.stderr);
    };
    refused(&[], "is no image-serve tree: it has no directory `v2`");
    refused(&["--root", "/nonexistent"], "cannot be used with");
    refused(&["--push", "any"], "cannot be used with");
    let mut command = undermount();
    let refusal = run(command.arg("registry"), SOON);
    assert!(refusal.refusal().contains("--root <DIR>"), "{}", refusal.stderr);
}
