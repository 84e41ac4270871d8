//! A real Debian, end to end: pushed with `skopeo`, mounted from our registry and from Debian's,
//! compared with what `umoci` unpacks, used, cut off from its registry, killed under a reader.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use undermount_tests::debian::{self, Debian, NAME};
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node, PATIENCE, assert_no_process_left};
use undermount_tests::process::{Outcome, Running, SOON, program, run};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking, skipped};
use undermount_tests::tree::Tree;

/// The image in a registry, and a node that has none of it yet.
struct Setting {
    debian: Debian,
    registry: Registry,
    reference: String,
    node: Node,
    _root: TempDir,
}

/// Which registry serves it.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Undermount,
    Docker,
}

/// The setting, unless this machine lacks something for it.
fn setting(server: Server) -> Option<Setting> {
    let programs = [Need::Program("skopeo"), Need::Program("docker-registry")];
    if lacking(&[debian::NEEDS, node::NEEDS, &programs].concat()) {
        return None;
    }
    let debian = match debian::debian() {
        Ok(debian) => debian,
        Err(reason) => {
            skipped(&reason);
            return None;
        }
    };
    let root = tempfile::tempdir().unwrap();
    let registry = match server {
        Server::Undermount => Registry::undermount(root.path()),
        Server::Docker => Registry::docker(root.path()),
    };
    let reference = registry.push(&debian.layout(), NAME, "library/debian:tag");
    Some(Setting { debian, registry, reference, node: Node::new(), _root: root })
}

/// Runs a program below `root`, with /dev and /proc bound as a container has them: the mount
/// itself has no devices. The binds go with the mount namespace of the program.
fn chroot(root: &Path, words: &[&str]) -> Outcome {
    const SCRIPT: &str = "root=$1; shift; mount --rbind /dev $root/dev && \
                          mount -t proc proc $root/proc && exec chroot $root \"$@\"";
    let mut command = program("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(root).args(words).env_clear();
    run(command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), SOON).success()
}

fn assert_same_tree(server: Server) {
    let Some(mut setting) = setting(server) else { return };
    let mount = setting.node.mount(&setting.reference);
    let mut expected = setting.debian.tree();
    // umoci leaves the time at which it unpacked on the root, which no layer lists.
    expected.open(".", "mtime_ns");
    Tree::read(&mount).unwrap().assert_equals(&expected);
    let scratch = setting.node.cache().parent().unwrap().to_owned();
    setting.node.umount(&mount);
    assert_no_process_left(&scratch);
}

#[test]
fn the_mount_from_our_registry_is_what_umoci_unpacks() {
    assert_same_tree(Server::Undermount);
}

#[test]
fn the_mount_from_docker_registry_is_what_umoci_unpacks() {
    assert_same_tree(Server::Docker);
}

#[test]
fn programs_run_from_the_mount_and_perl_needs_little_of_the_image() {
    let Some(mut setting) = setting(Server::Undermount) else { return };
    let mount = setting.node.mount(&setting.reference);
    assert_eq!(chroot(&mount, &["perl", "-e", "print 6 * 7"]).stdout, "42");
    let fetched = setting.node.fetched(&mount);
    let size = Image::read_layout(&setting.debian.layout(), NAME).compressed_size();
    let percent = 100.0 * fetched as f64 / size as f64;
    println!("perl -e from a cold cache: {fetched} of {size} bytes, {percent:.1} %");
    assert!(percent <= 30.0, "{percent:.1} % of the image were fetched");
    assert_eq!(setting.node.mount_status(&mount)["image_bytes"], size);

    let list = chroot(&mount, &["dpkg", "-l"]).stdout;
    assert!(list.lines().any(|line| line.starts_with("ii  perl-base ")), "{list}");
    let shell = "test -e /opt/service/start && /opt/service/start && cat /etc/issue";
    assert_eq!(chroot(&mount, &["sh", "-c", shell]).stdout, "service\nan updated Debian\n");
}

#[test]
fn what_was_fetched_reads_without_the_registry() {
    let Some(mut setting) = setting(Server::Undermount) else { return };
    let mount = setting.node.mount(&setting.reference);
    chroot(&mount, &["perl", "-e", "print 1"]);
    setting.node.umount(&mount);
    drop(setting.registry);
    let mount = setting.node.mount(&setting.reference);
    assert_eq!(chroot(&mount, &["perl", "-e", "print 6 * 7"]).stdout, "42");
    let size = |tree: &Path| fs::read_dir(tree.join("usr/share/doc")).unwrap().count();
    assert_eq!(size(&mount), size(&setting.debian.unpacked()), "metadata needs no network");
}

#[test]
fn what_was_pulled_reads_without_the_registry() {
    for server in [Server::Undermount, Server::Docker] {
        let Some(mut setting) = setting(server) else { return };
        setting.node.pull(&setting.reference);
        drop(setting.registry);
        let mount = setting.node.mount(&setting.reference);
        let mut expected = setting.debian.tree();
        expected.open(".", "mtime_ns");
        Tree::read(&mount).unwrap().assert_equals(&expected);
        let status = setting.node.mount_status(&mount);
        assert_eq!(status["local_bytes"], status["content_bytes"], "{status}");
    }
}

#[test]
fn tar_reads_on_when_the_worker_is_killed_under_it() {
    let Some(mut setting) = setting(Server::Undermount) else { return };
    let mount = setting.node.mount(&setting.reference);
    let scratch = tempfile::tempdir().unwrap();
    let tar = |name: &str| {
        let mut command = program("tar");
        command.arg("-C").arg(&mount).arg("-cf").arg(scratch.path().join(name)).arg(".");
        command
    };
    let mut reader = Running::start(&mut tar("disturbed"));
    let mut kills = 0;
    while reader.wait(Duration::from_millis(120)).is_none() && kills < 20 {
        let worker = setting.node.worker();
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        kills += 1;
        thread::sleep(Duration::from_millis(30));
    }
    let status = reader.wait(PATIENCE).expect("tar ends");
    assert!(status.success(), "{}", reader.stderr());
    println!("the worker was killed {kills} times");
    assert!(kills >= 2, "tar was too fast to be disturbed");
    run(&mut tar("undisturbed"), PATIENCE).success();
    let read = |name: &str| fs::read(scratch.path().join(name)).unwrap();
    assert!(read("disturbed") == read("undisturbed"), "tar read other bytes");
    let mut expected = setting.debian.tree();
    expected.open(".", "mtime_ns");
    Tree::read(&mount).unwrap().assert_equals(&expected);
}
