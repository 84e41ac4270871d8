//! SIGKILL at bad moments, in the middle of what podman and the agent do: podman works on where
//! that is promised, and after the next start of the agent everything does, with nothing left over.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::mounts_below;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{Running, eventually};
use undermount_tests::requirement::lacking;
use undermount_tests::session::is_alive;
use undermount_tests::userland::userland;

const LAYERS: u64 = 10;

fn content(layer: u64) -> Vec<u8> {
    noise(layer + 1, 30_000 + layer as usize * 1_000)
}

/// A runnable image with a file of its own in each of many layers.
fn image() -> Image {
    let tools = Layer::of(&userland(&["sh", "sha256sum"]));
    let files = (0..LAYERS).map(|n| Layer::of(&[Member::file(format!("data/{n}"), content(n))]));
    Image::from_layers([tools].into_iter().chain(files).collect())
}

/// A node with the image in its registry.
fn with_image(node: Podman) -> (Podman, String) {
    let reference = node.registry().push_image(&image(), "test/layers:1");
    (node, reference)
}

/// A new container reads everything right.
fn assert_runs(node: &Podman, reference: &str) {
    let read = "for f in /data/*; do sha256sum < $f || exit 9; done";
    let words = node.output(reference, &["/bin/sh", "-c", read]);
    let mut expected: Vec<String> = (0..LAYERS).map(|n| Digest::of(&content(n)).hex()).collect();
    let mut found: Vec<&str> = words.lines().map(|line| line.trim_end_matches("  -")).collect();
    expected.sort();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// The mounts of the agent are there and answer, and no others.
fn assert_tidy(node: &Podman) {
    let mounts = mounts_below(&node.store());
    assert_eq!(mounts, [node.store()], "one layer store, and not one above the other");
    fs::metadata(node.store()).unwrap();
    node.run(&["ps"]);
}

/// Begins to pull the image as if it were new to podman.
fn pull(node: &Podman, reference: &str) -> Running {
    node.run(&["rmi", "--all", "--force"]);
    Running::start(&mut node.command(&["pull", "--quiet", reference]))
}

#[test]
fn a_pull_under_which_workers_are_killed_ends_well() {
    if lacking(NEEDS) {
        return;
    }
    let (node, reference) = with_image(Podman::new());
    let mut total = 0;
    for pause in [0, 40, 90, 160] {
        let mut pull = pull(&node, &reference);
        let mut kills = 0;
        // However slowly it gets on: at some time the killing has an end.
        while pull.wait(Duration::from_millis(pause)).is_none() && kills < 300 {
            node.kill_worker();
            kills += 1;
        }
        let status = pull.wait(PATIENCE).unwrap();
        assert!(status.success(), "{status}: {}", pull.stderr());
        assert_runs(&node, &reference);
        // A pull may be over before a long pause is.
        total += kills;
    }
    assert!(total > 0);
    assert_tidy(&node);
}

#[test]
fn the_death_of_the_whole_agent_under_a_pull_leaves_nothing_that_the_next_start_does_not_mend() {
    if lacking(NEEDS) {
        return;
    }
    let (mut node, reference) = with_image(Podman::new());
    for pause in [0, 60, 150, 300] {
        let worker = node.worker();
        let mut pull = pull(&node, &reference);
        thread::sleep(Duration::from_millis(pause));
        kill(worker, Signal::SIGKILL).unwrap();
        node.kill_keeper();
        // It may end in either way, but it ends.
        pull.wait(PATIENCE).expect("podman does not hang");
        node.start_agent_again();
        assert_tidy(&node);
        node.run(&["pull", "--quiet", &reference]);
        assert_runs(&node, &reference);
    }
}

#[test]
fn a_pull_waits_for_an_agent_that_its_service_manager_starts_again() {
    if lacking(NEEDS) {
        return;
    }
    let (mut node, reference) = with_image(Podman::managed(&[]));
    for pause in [0, 60, 150, 300] {
        let worker = node.worker();
        let mut pull = pull(&node, &reference);
        thread::sleep(Duration::from_millis(pause));
        node.kill_keeper();
        eventually("the worker ends as well", PATIENCE, || !is_alive(worker));
        node.start_agent_again();
        let status = pull.wait(PATIENCE).expect("podman does not hang");
        assert!(status.success(), "{status}: {}", pull.stderr());
        assert_tidy(&node);
        assert_runs(&node, &reference);
    }
    assert_eq!(node.refused("interrupted"), 0);
}

/// Kills the keeper of an agent at moments of its start, with and without a service manager that
/// keeps what it had deposited by then.
#[test]
fn an_agent_that_is_killed_while_it_starts_is_no_obstacle_to_the_next_one() {
    if lacking(NEEDS) {
        return;
    }
    for managed in [false, true] {
        let node = if managed { Podman::managed(&[]) } else { Podman::new() };
        let (mut node, reference) = with_image(node);
        node.run(&["pull", "--quiet", &reference]);
        for pause in [1, 5, 10, 20, 40, 80, 160] {
            if managed {
                node.manager().plan("stop");
            }
            node.stop_agent();
            node.launch_agent();
            thread::sleep(Duration::from_millis(pause));
            node.kill_keeper();
            node.start_agent_again();
            assert_tidy(&node);
        }
        assert_runs(&node, &reference);
    }
}
