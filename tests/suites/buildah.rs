//! Real buildah on an image that it reads lazily, with no podman in between.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{program, run};
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::userland::userland;

/// buildah with a storage of its own and the layer store of the node's agent.
fn buildah(node: &Podman, arguments: &[&str]) -> Command {
    let store = format!("overlay.additionallayerstore={}:ref", node.store().display());
    let mut command = program("buildah");
    command.arg("--root").arg(node.path("buildah/root"));
    command.arg("--runroot").arg(node.path("buildah/run"));
    command.args(["--storage-driver", "overlay", "--storage-opt", &store]).args(arguments);
    command
}

#[test]
fn a_lazy_image_is_mounted_run_in_changed_committed_and_pushed() {
    if lacking(&[NEEDS, &[Need::Program("buildah")]].concat()) {
        return;
    }
    let node = Podman::new();
    let say = |arguments: &[&str]| run(&mut buildah(&node, arguments), PATIENCE).success().stdout;
    let layers = vec![
        Layer::of(&userland(&["sh", "cat"])),
        Layer::of(&[Member::file("unread", noise(1, 3_000_000))]),
        Layer::of(&[Member::file("words", "of the base")]),
    ];
    let image = Image::from_layers(layers);
    let reference = node.registry().push_image(&image, "test/base:1");
    let before = node.sent();
    let container = say(&["from", "--tls-verify=false", "--quiet", &reference]);
    let container = container.trim();
    let root = say(&["mount", container]);
    let root = Path::new(root.trim());
    assert_eq!(fs::read_to_string(root.join("words")).unwrap(), "of the base");
    let script = "cat /words > /copy; echo new >> /copy";
    say(&["run", "--isolation", "chroot", container, "/bin/sh", "-c", script]);
    let (fetched, size) = (node.sent() - before, image.compressed_size());
    assert!(fetched < size / 2, "{fetched} bytes of {size} were fetched");
    assert_eq!(node.status()["store"]["refused"], json!({}));

    let derived = format!("{}/test/derived:1", node.registry().address());
    say(&["commit", "--quiet", container, &derived]);
    say(&["umount", container]);
    say(&["push", "--tls-verify=false", "--quiet", &derived]);
    let words = node.run_ordinary(&["run", "--rm", &derived, "/bin/cat", "/copy"]).stdout;
    assert_eq!(words, "of the basenew\n");
    say(&["rm", "--all"]);
    say(&["rmi", "--all"]);
}
