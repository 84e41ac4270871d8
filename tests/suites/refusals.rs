//! Everything that a node must refuse: each with a sentence that names the thing, an exit code
//! of its own, and nothing left behind. (What `prepare` refuses is in `prepare.rs`.)
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::{self, Node, PATIENCE, assert_no_process_left, mounts_below};
use undermount_tests::origin::Origin;
use undermount_tests::port;
use undermount_tests::process::{Outcome, binary, program, run};
use undermount_tests::requirement::{lacking, skipped};

fn image() -> Image {
    Image::of(&[&[Member::file("a", noise(1, 2 << 20)), Member::file("b", "small")]])
}

/// Tries to mount `reference` on a new node and expects a refusal with all of `words`.
#[track_caller]
fn refused(reference: &str, words: &[&str]) {
    let mut node = Node::new();
    let directory = node.directory("mount");
    let outcome = node.try_mount(reference, &directory);
    assert_refused(&node, &directory, &outcome, words);
}

#[track_caller]
fn assert_refused(node: &Node, directory: &Path, outcome: &Outcome, words: &[&str]) {
    let said = outcome.refusal();
    assert!(said.starts_with("error: "), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let scratch = node.cache().parent().unwrap().to_owned();
    assert_eq!(mounts_below(&scratch), Vec::<PathBuf>::new(), "left mounted");
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0, "left in the mount point");
    assert_no_process_left(&scratch);
}

#[test]
fn an_unknown_image_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, _) = Origin::with(image());
    let unknown = format!("{}/test/unknown", origin.address());
    refused(&format!("{unknown}:latest"), &[&unknown, "not found"]);
}

#[test]
fn a_malformed_reference_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    refused("registry.example/UPPER:tag", &["registry.example/UPPER"]);
}

#[test]
fn an_unreachable_registry_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    let free = port::unused().to_string();
    refused(&format!("{free}/test/image:latest"), &[&free, "refused"]);
}

#[test]
fn wrong_credentials_are_refused_and_never_told() {
    if lacking(node::NEEDS) {
        return;
    }
    use base64::Engine as _;
    let (origin, reference) = Origin::with(image());
    origin.require("user", "right");
    let node = Node::new();
    let directory = node.directory("mount");
    let secret = base64::engine::general_purpose::STANDARD.encode("user:secret-word");
    let auths = serde_json::json!({ "auths": { origin.address(): { "auth": secret } } });
    let authfile = node.cache().with_file_name("auth.json");
    fs::write(&authfile, auths.to_string()).unwrap();
    let mut command = node.command("mount");
    command.arg(&reference).arg(&directory).env("REGISTRY_AUTH_FILE", &authfile);
    let outcome = run(&mut command, PATIENCE);
    assert_refused(&node, &directory, &outcome, &[&origin.address(), "credentials"]);
    for word in ["secret-word", &secret] {
        assert!(!outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

#[test]
fn a_blob_with_other_bytes_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut layer = Layer::of(&[Member::file("a", noise(2, 1 << 20))]);
    let mut blob = Layer::of(&[Member::file("a", noise(3, 1 << 20))]).blob.unwrap().to_vec();
    blob.resize(usize::try_from(layer.size).unwrap(), 0);
    layer.blob = Some(blob.into());
    let digest = layer.digest.to_string();
    let (_origin, reference) = Origin::with(Image::from_layers(vec![layer]));
    refused(&reference, &[&digest]);
}

#[test]
fn a_truncated_layer_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    let tar = Archive::of(&[Member::file("a", noise(4, 1 << 20))]);
    let mut blob = Compression::Gzip.apply(&tar);
    blob.truncate(blob.len() / 2);
    let layer = Layer::raw(blob, &tar, Compression::Gzip.media_type());
    let digest = layer.digest.to_string();
    let (_origin, reference) = Origin::with(Image::from_layers(vec![layer]));
    refused(&reference, &[&digest, "truncated"]);
}

#[test]
fn a_mount_point_must_be_an_empty_directory() {
    if lacking(node::NEEDS) {
        return;
    }
    let (_origin, reference) = Origin::with(image());
    let mut node = Node::new();
    let full = node.directory("full");
    fs::write(full.join("file"), "x").unwrap();
    let missing = full.with_file_name("missing");
    for (path, word) in [(full.clone(), "empty"), (full.join("file"), "directory"), (missing, "")] {
        let outcome = node.try_mount(&reference, &path);
        let said = outcome.refusal();
        assert!(said.contains(path.to_str().unwrap()) && said.contains(word), "{said}");
    }
    assert_no_process_left(full.parent().unwrap());
    assert_eq!(fs::read(full.join("file")).unwrap(), b"x");
}

/// Runs a shell script in a mount namespace of its own, with `$1` the binary, `$2` a directory.
fn in_own_namespace(script: &str, directory: &Path) -> Command {
    let mut command = program("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(binary()).arg(directory);
    command
}

#[test]
fn a_cache_directory_that_cannot_be_written_is_named() {
    if lacking(node::NEEDS) {
        return;
    }
    let (_origin, reference) = Origin::with(image());
    let node = Node::new();
    let directory = node.directory("mount");
    node.directory("disk");
    let script = format!(
        "mount -t tmpfs -o ro none $2/disk && exec $1 mount --cache $2/disk/cache {reference} $2/mount"
    );
    let outcome = run(&mut in_own_namespace(&script, directory.parent().unwrap()), PATIENCE);
    assert_refused(&node, &directory, &outcome, &["disk/cache", "Read-only"]);
}

#[test]
fn a_machine_without_fuse_is_told_so() {
    if lacking(node::NEEDS) {
        return;
    }
    let (_origin, reference) = Origin::with(image());
    let node = Node::new();
    let directory = node.directory("mount");
    let script = format!(
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && \
         exec $1 mount --cache $2/cache {reference} $2/mount"
    );
    let outcome = run(&mut in_own_namespace(&script, directory.parent().unwrap()), PATIENCE);
    assert_refused(&node, &directory, &outcome, &["/dev/fuse"]);
}

#[test]
fn a_security_context_is_refused_by_name_where_there_is_no_selinux() {
    if lacking(node::NEEDS) {
        return;
    }
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return skipped("this kernel has SELinux");
    }
    let (_origin, reference) = Origin::with(image());
    let node = Node::new();
    let directory = node.directory("mount");
    let context = "system_u:object_r:container_ro_file_t:s0:c1,c2";
    let file = node.directory("etc").join("agent.toml");
    fs::write(&file, format!("[mounts]\nselinux_context = '{context}'\n")).unwrap();
    let mut mount = node.command("mount");
    mount.arg(&reference).arg(&directory).env("UNDERMOUNT_CONFIG", file);
    let outcome = run(&mut mount, PATIENCE);
    assert_refused(&node, &directory, &outcome, &[context, "this kernel has no SELinux", "none"]);
}

#[test]
fn what_is_not_mounted_cannot_be_unmounted() {
    if lacking(node::NEEDS) {
        return;
    }
    let node = Node::new();
    let directory = node.directory("nothing");
    let outcome = run(node.command("umount").arg(&directory), PATIENCE);
    assert!(outcome.refusal().contains(directory.to_str().unwrap()), "{}", outcome.stderr);
}
