//! `undermount prepare` into the tree of the undercloud's Apache: a registry that takes no
//! uploads is served from files. What is in the tree is then taken out of it by other clients
//! and by our mount, through a real Apache.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use undermount::image::Repository;
use undermount::registry::client::{Client, ClientConfig};
use undermount_fs::digest::Digest;
use undermount_tests::apache::{self, Apache};
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::{self, Node};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Outcome, SOON, eventually, program, run, undermount};
use undermount_tests::registry::{Registry, get, skopeo};
use undermount_tests::requirement::{Need, lacking};

const TEMPLATE: &str = "container_images_template:\n\
                        - {imagename: '{{namespace}}/a:{{tag}}', params: [DockerAImage]}\n\
                        - {imagename: '{{namespace}}/b:{{tag}}', params: [DockerBImage]}\n";

/// Two images on one base layer.
fn images() -> [Image; 2] {
    let base = Layer::of(&[Member::file("base", noise(3, 50_000))]);
    ["a", "b"]
        .map(|name| Image::from_layers(vec![base.clone(), Layer::of(&[Member::file("own", name)])]))
}

/// Where the source is, and the tree; whatever serves it takes no uploads.
struct Undercloud {
    directory: tempfile::TempDir,
    source: Origin,
    _read_only: Origin,
}

impl Undercloud {
    fn new() -> Self {
        let read_only = Origin::new();
        Self::served_by(tempfile::tempdir().unwrap(), &read_only.address(), images(), read_only)
    }

    fn served_by(
        directory: tempfile::TempDir,
        address: &str,
        [a, b]: [Image; 2],
        read_only: Origin,
    ) -> Self {
        let source = Origin::new();
        source.add("ns/a", a);
        source.add("ns/b", b);
        let environment = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: {}\n    set: {{namespace: {}/ns, tag: latest}}\n",
            address,
            source.address()
        );
        fs::write(directory.path().join("prepare.yaml"), environment).unwrap();
        fs::write(directory.path().join("template.j2"), TEMPLATE).unwrap();
        Self { directory, source, _read_only: read_only }
    }

    fn prepare(&self) -> Outcome {
        let mut command = undermount();
        command.current_dir(self.directory.path()).env("HOME", self.directory.path());
        command.args(["prepare", "-e", "prepare.yaml", "--template-file", "template.j2"]);
        command.args(["--output-env-file", "env.yaml", "--image-serve-dir", "tree"]);
        run(&mut command, SOON)
    }

    fn tree(&self, path: &str) -> PathBuf {
        self.directory.path().join("tree/v2").join(path)
    }
}

fn digest_of(path: &Path) -> Digest {
    Digest::of(&fs::read(path).unwrap())
}

#[test]
fn the_tree_is_what_apache_serves() {
    let undercloud = Undercloud::new();
    undercloud.prepare().success();
    let read = |path: &str| fs::read_to_string(undercloud.tree(path)).unwrap();
    assert_eq!(read("_catalog"), r#"{"repositories":["ns/a","ns/b"]}"#);
    for (name, image) in ["a", "b"].into_iter().zip(images()) {
        assert_eq!(
            read(&format!("ns/{name}/tags/list")),
            format!(r#"{{"name":"ns/{name}","tags":["latest"]}}"#)
        );
        let map = read(&format!("ns/{name}/manifests/latest.type-map"));
        assert!(map.contains(&format!("URI: {}/index.json\n", image.digest())), "{map}");
        let manifest = format!("ns/{name}/manifests/{}", image.digest());
        assert_eq!(digest_of(&undercloud.tree(&format!("{manifest}/index.json"))), image.digest());
        let headers = read(&format!("{manifest}/.htaccess"));
        assert!(headers.contains(&format!("Docker-Content-Digest \"{}\"", image.digest())));
        for (layer, _) in image.layers() {
            let blob = undercloud.tree(&format!("ns/{name}/blobs/{layer}.gz"));
            assert_eq!(digest_of(&blob), layer);
        }
    }
    let (base, _) = images()[0].layers()[0];
    let inode = |name: &str| {
        fs::metadata(undercloud.tree(&format!("ns/{name}/blobs/{base}.gz"))).unwrap().ino()
    };
    assert_eq!(inode("a"), inode("b"), "a shared layer lies there once");
}

#[test]
fn damage_is_repaired_and_the_rest_is_left_alone() {
    let undercloud = Undercloud::new();
    undercloud.prepare().success();
    let moved = undercloud.source.blob_bytes();
    let again = undercloud.prepare().success();
    assert_eq!(again.stderr.matches(": unchanged").count(), 2, "{}", again.stderr);
    assert_eq!(undercloud.source.blob_bytes(), moved);

    let (own, size) = images()[1].layers()[1];
    let blob = undercloud.tree(&format!("ns/b/blobs/{own}.gz"));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[10] ^= 1;
    fs::write(&blob, bytes).unwrap();
    undercloud.prepare().success();
    assert_eq!(digest_of(&blob), own);
    assert_eq!(undercloud.source.blob_bytes(), moved + size);
}

/// Two images, each with a large layer of its own of which little is needed.
fn large_images() -> [Image; 2] {
    ["a", "b"].map(|name| {
        let members = [Member::file("large", noise(7, 6 << 20)), Member::file("name", name)];
        Image::from_layers(vec![Layer::of(&[Member::file("base", "base")]), Layer::of(&members)])
    })
}

/// An undercloud whose tree a real Apache serves, prepared.
fn behind_apache() -> (Undercloud, Apache) {
    let directory = tempfile::tempdir().unwrap();
    let apache = Apache::serve(&directory.path().join("tree"));
    let (address, images) = (apache.address().to_owned(), large_images());
    let undercloud = Undercloud::served_by(directory, &address, images, Origin::new());
    undercloud.prepare().success();
    (undercloud, apache)
}

#[test]
fn skopeo_and_podman_take_images_from_a_real_apache() {
    let programs = [Need::Root, Need::Program("skopeo"), Need::Program("podman")];
    if lacking(&[apache::NEEDS, &programs].concat()) {
        return;
    }
    let (undercloud, apache) = behind_apache();
    let scratch = tempfile::tempdir().unwrap();
    for (name, image) in ["a", "b"].into_iter().zip(large_images()) {
        let reference = format!("docker://{}/ns/{name}:latest", apache.address());
        let inspected = skopeo(&["inspect", "--tls-verify=false", &reference]);
        assert!(inspected.contains(&image.digest().to_string()), "{inspected}");
        let layout = scratch.path().join(name);
        let to = format!("oci:{}:x", layout.display());
        skopeo(&["copy", "--src-tls-verify=false", &reference, &to]);
        let copied = Image::read_layout(&layout, "x");
        assert_eq!((copied.digest(), copied.blobs), (image.digest(), image.blobs));
    }
    let mut podman = program("podman");
    let storage = scratch.path().join("storage");
    podman.arg("--root").arg(&storage).arg("--runroot").arg(scratch.path().join("run"));
    podman.args(["--storage-driver", "vfs", "pull", "--quiet", "--tls-verify=false"]);
    let pulled = run(podman.arg(format!("{}/ns/a:latest", apache.address())), SOON).success();
    assert_eq!(pulled.stdout.trim().len(), 64, "{}", pulled.stdout);
    let again = undercloud.prepare().success();
    assert_eq!(again.stderr.matches(": unchanged").count(), 2, "{}", again.stderr);
}

#[test]
fn a_node_mounts_lazily_from_a_real_apache() {
    if lacking(&[apache::NEEDS, node::NEEDS].concat()) {
        return;
    }
    let (_undercloud, apache) = behind_apache();
    let mut node = Node::new();
    let [image, _] = large_images();
    let directory = node.mount(&format!("{}/ns/a:latest", apache.address()));
    assert_eq!(fs::read_to_string(directory.join("name")).unwrap(), "a");
    let (large, size) = image.layers()[1];
    let of_layer = format!("/blobs/{large}");
    let parts = || {
        let asked = apache.requests().into_iter();
        asked.filter(|line| line.contains(&of_layer)).collect::<Vec<_>>()
    };
    eventually("Apache's log has the request", SOON, || !parts().is_empty());
    let parts = parts();
    assert!(parts.iter().all(|line| line.contains(" 206 ")), "{parts:#?}");
    let bytes: u64 =
        parts.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert!(bytes < size / 2, "{bytes} of {size} bytes were fetched");
    node.umount(&directory);
}

#[test]
fn the_index_is_found_through_referrers_and_by_its_tag() {
    if lacking(apache::NEEDS) {
        return;
    }
    let (undercloud, apache) = behind_apache();
    let [image, _] = large_images();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let found = |address: &str| {
        let repository: Repository = format!("{address}/ns/a").parse().unwrap();
        let client = Client::new(ClientConfig::default());
        let found = runtime.block_on(client.index_artifacts(&repository, &image.digest())).unwrap();
        found.iter().map(|artifact| artifact.layers.len()).collect::<Vec<_>>()
    };
    assert_eq!(found(apache.address()), [2]);
    eventually("Apache's log has the request", SOON, || {
        apache.requests().iter().any(|line| line.contains("/referrers/sha256:"))
    });
    // The original knows no referrers and may take the list away.
    fs::remove_dir_all(undercloud.tree("ns/a/referrers")).unwrap();
    assert_eq!(found(apache.address()), [2]);
    let (status, list) = get(&format!("http://{}/v2/ns/a/tags/list", apache.address()));
    assert_eq!((status, list.as_ref()), (200, br#"{"name":"ns/a","tags":["latest"]}"#.as_slice()));
    let tree = undercloud.directory.path().join("tree");
    let mut ours = undermount();
    ours.args(["registry", "--listen", "127.0.0.1:0", "--image-serve"]).arg(tree);
    let ours = Registry::start(&mut ours);
    assert_eq!(found(ours.address()), [2]);
}
