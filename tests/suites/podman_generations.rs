//! Both generations of podman's protocol, asked through the real mounts as podman asks, and
//! images for the newer one, which `prepare --annotate` makes.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use undermount::image::Reference;
use undermount::podman::store_name;
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{Outcome, call, run, undermount};
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";

const TEMPLATE: &str = "container_images_template:\n\
                        - {imagename: '{{namespace}}/app:{{tag}}', params: [App]}\n";

/// A registry with an image, and a node with another one for which the image is prepared.
struct Site {
    origin: Origin,
    image: Image,
    /// Of its layers.
    diff_ids: Vec<Digest>,
    node: Podman,
}

impl Site {
    fn new() -> Self {
        let layers = vec![
            Layer::of(&userland(&["cat", "ls"])),
            Layer::of(&[Member::dir("d"), Member::file("d/below", noise(1, 300_000))]),
            Layer::of(&[Member::opaque("d"), Member::dir("d"), Member::file("d/top", "top")]),
        ];
        let diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        let image = Image::from_layers(layers);
        let origin = Origin::new();
        origin.add("test/app", image.clone());
        Self { origin, image, diff_ids, node: Podman::new() }
    }

    fn prepare(&self, flags: &[&str]) -> Outcome {
        let directory = self.node.path("prepare");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("template.j2"), TEMPLATE).unwrap();
        let (from, to) = (self.origin.address(), self.node.registry().address());
        let entry = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: '{to}'\n    \
             set: {{namespace: {from}/test, tag: latest}}\n"
        );
        fs::write(directory.join("prepare.yaml"), entry).unwrap();
        let mut command = undermount();
        command.current_dir(&directory).env("HOME", &directory).env_remove("XDG_STATE_HOME");
        command.args(["prepare", "-e", "prepare.yaml", "--template-file", "template.j2"]);
        command.args(["--output-env-file", "env.yaml"]).args(flags);
        run(&mut command, PATIENCE)
    }

    fn reference(&self) -> String {
        format!("{}/test/app:latest", self.node.registry().address())
    }

    fn manifest(&self) -> Value {
        let name = format!("docker://{}", self.reference());
        serde_json::from_str(&call("skopeo", &["inspect", "--raw", "--tls-verify=false", &name]))
            .unwrap()
    }

    /// Where podman looks for the layer that it knows by `key`.
    fn directory(&self, key: &str) -> PathBuf {
        let reference: Reference = self.reference().parse().unwrap();
        self.node.store().join(store_name(&reference)).join(key)
    }
}

#[track_caller]
fn assert_missing<T: std::fmt::Debug>(outcome: std::io::Result<T>) {
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Asks for a layer as a pull does; what `info` says.
fn pull(directory: &Path) -> Value {
    for name in ["diff", "info", "blob"] {
        fs::metadata(directory.join(name)).unwrap();
    }
    let mut use_it = OpenOptions::new();
    assert_missing(
        use_it.read(true).write(true).create(true).truncate(true).open(directory.join("use")),
    );
    let info = directory.join("info");
    let (size, text) = (fs::metadata(&info).unwrap().len(), fs::read(&info).unwrap());
    assert_eq!(size, text.len() as u64);
    // What podman looks for when it mounts the layer.
    assert_missing(fs::metadata(directory.join("diff/../diff1")));
    assert_missing(fs::metadata(directory.join("diff1")));
    serde_json::from_slice(&text).unwrap()
}

fn digest_of(path: &Path) -> String {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    Digest::of(&bytes).to_string()
}

#[test]
fn each_generation_is_told_of_a_layer_what_it_asked_for() {
    if lacking(NEEDS) {
        return;
    }
    let site = Site::new();
    site.prepare(&["--annotate"]).success();
    let manifest = site.manifest();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    for (described, diff_id) in layers.iter().zip(&site.diff_ids) {
        let (blob, diff_id) = (described["digest"].as_str().unwrap(), diff_id.to_string());
        let by_blob = site.directory(blob);
        let info = pull(&by_blob);
        assert_eq!(info["compressed-diff-digest"], blob);
        assert_eq!(info["compressed-size"], described["size"]);
        assert_eq!(info["diff-digest"], diff_id);
        assert!(info.get("toc-digest").is_none(), "{info}");

        let toc = described["annotations"][TOC].as_str().unwrap();
        let by_toc = site.directory(toc);
        let info = pull(&by_toc);
        assert_eq!(info["toc-digest"], toc);
        assert_eq!(info["flags"], json!({ "expected-layer-diffid": diff_id }));
        assert_eq!(info["diff-size"], -1);
        for trusted in ["diff-digest", "compressed-diff-digest"] {
            assert!(info.get(trusted).is_none(), "{info}");
        }
        for directory in [&by_blob, &by_toc] {
            assert_eq!(digest_of(&directory.join("blob")), blob);
            let names = |path: &Path| -> Vec<_> {
                let entries = fs::read_dir(path).unwrap();
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&directory.join("diff")), names(&by_blob.join("diff")));
            // The end of a pull.
            assert_missing(fs::remove_dir(directory));
        }
    }
    for unknown in [Digest::of(b"nothing").to_string(), "sha256:00".to_owned()] {
        assert_missing(fs::metadata(site.directory(&unknown).join("diff")));
    }
}

#[test]
fn an_annotated_image_is_any_other_image_to_podman_with_and_without_a_store() {
    if lacking(NEEDS) {
        return;
    }
    let site = Site::new();
    site.prepare(&["--annotate"]).success();
    let (node, reference) = (&site.node, site.reference());
    let run = ["run", "--rm", &reference, "/bin/ls", "/d"];
    assert_eq!(node.run_ordinary(&run).stdout, "top\n");
    assert_eq!(node.run(&run).stdout, "top\n");
    assert_eq!(node.status()["store"]["refused"], json!({}), "lazily");
    let id = ["image", "inspect", "--format", "{{.Id}}", &reference];
    assert_eq!(node.run_ordinary(&id).stdout, node.run(&id).stdout, "the same config");
    // What signatures are about is there as well, by its digest.
    let original = format!("{}/test/app@{}", node.registry().address(), site.image.digest());
    node.run_ordinary(&["pull", "--quiet", &original]);
}

#[test]
fn an_image_that_is_annotated_already_is_left_alone_until_it_changes() {
    if lacking(NEEDS) {
        return;
    }
    let site = Site::new();
    site.prepare(&[]).success();
    assert!(site.manifest()["layers"][0]["annotations"].is_null(), "not unless it is asked for");
    site.prepare(&["--annotate"]).success();
    let annotated = site.manifest();
    assert!(annotated["layers"][0]["annotations"][TOC].is_string());
    let asked = site.origin.requests().len();
    site.prepare(&["--annotate"]).success();
    assert_eq!(site.manifest(), annotated);
    let requests = site.origin.requests();
    assert!(requests[asked..].iter().all(|request| !request.path.contains("/blobs/")));
    site.prepare(&[]).success();
    assert!(site.manifest()["layers"][0]["annotations"].is_null(), "and back");
}

#[test]
fn annotations_without_indexes_are_refused() {
    if lacking(NEEDS) {
        return;
    }
    let site = Site::new();
    for (flags, words) in [
        (["--annotate", "--index", "off"], "--annotate names indexes, and --index off makes none"),
        (["--annotate", "--manifests", "docker"], "cannot be used with '--manifests <FORM>'"),
    ] {
        let outcome = site.prepare(&flags);
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    }
}
