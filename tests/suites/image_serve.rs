//! `undermount prepare` into the tree of the undercloud's Apache: a registry that takes no
//! uploads is served from files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Outcome, SOON, run, undermount};

const TEMPLATE: &str = "container_images_template:\n\
                        - {imagename: '{{namespace}}/a:{{tag}}', params: [DockerAImage]}\n\
                        - {imagename: '{{namespace}}/b:{{tag}}', params: [DockerBImage]}\n";

/// Two images on one base layer.
fn images() -> [Image; 2] {
    let base = Layer::of(&[Member::file("base", noise(3, 50_000))]);
    ["a", "b"]
        .map(|name| Image::from_layers(vec![base.clone(), Layer::of(&[Member::file("own", name)])]))
}

/// Where the source is, and the registry that is served from the tree.
struct Undercloud {
    directory: tempfile::TempDir,
    source: Origin,
    _apache: Origin,
}

impl Undercloud {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (source, apache) = (Origin::new(), Origin::new());
        let [a, b] = images();
        source.add("ns/a", a);
        source.add("ns/b", b);
        let environment = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: {}\n    set: {{namespace: {}/ns, tag: latest}}\n",
            apache.address(),
            source.address()
        );
        fs::write(directory.path().join("prepare.yaml"), environment).unwrap();
        fs::write(directory.path().join("template.j2"), TEMPLATE).unwrap();
        Self { directory, source, _apache: apache }
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
