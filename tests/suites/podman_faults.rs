//! What podman notices when the agent or the registry goes away: as little as possible.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use undermount_tests::archive::{Member, noise};
use undermount_tests::http::{Fault, Request};
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{Running, binary, copy_program, eventually, run};
use undermount_tests::registry::files_below;
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const FILES: u64 = 200;

/// An image with many files to read.
fn image() -> Image {
    let tools = userland(&["sh", "cat", "ls", "sha256sum", "sleep"]);
    let files: Vec<Member> = (0..FILES)
        .map(|n| Member::file(format!("data/{n}"), noise(n, 5_000 + n as usize * 100)))
        .collect();
    let (half, rest) = files.split_at(files.len() / 2);
    Image::from_layers(vec![Layer::of(&tools), Layer::of(half), Layer::of(rest)])
}

/// Reads all files, again and again.
const READ_ALL: &str =
    "for n in 1 2 3; do for f in /data/*; do sha256sum < $f || exit 9; done; done";

#[test]
fn a_container_that_reads_does_not_notice_that_workers_are_killed() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let reference = node.registry().push_image(&image(), "test/files:1");
    node.run(&["pull", "--quiet", &reference]);
    let arguments = ["run", "--rm", &reference, "/bin/sh", "-c", READ_ALL];
    let undisturbed = node.run(&arguments).stdout;
    assert_eq!(undisturbed.lines().count() as u64, 3 * FILES);
    let mut reader = Running::start(&mut node.command(&arguments));
    let mut kills = 0;
    while reader.wait(Duration::from_millis(300)).is_none() && kills < 200 {
        node.kill_worker();
        kills += 1;
    }
    assert!(kills > 0);
    assert!(!reader.stdout().is_empty(), "it reads nothing as long as workers are killed");
    let status = reader.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}: {}", reader.stderr());
    assert!(reader.stdout() == undisturbed, "other bytes");
}

#[test]
fn an_agent_that_is_upgraded_keeps_its_containers() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let reference = node.registry().push_image(&image(), "test/files:1");
    node.run(&["run", "--detach", "--name", "stays", &reference, "/bin/sleep", "300"]);
    let newer = node.path("newer");
    copy_program(binary(), &newer);
    let before = node.status()["worker"].clone();
    run(node.undermount("upgrade").arg(&newer), PATIENCE).success();
    eventually("another worker serves", PATIENCE, || {
        let outcome = run(node.undermount("status").arg("--json"), PATIENCE);
        let status: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
        status["worker"].is_u64() && status["worker"] != before
    });
    let words = node.run(&["exec", "stays", "/bin/sh", "-c", "sha256sum < /data/150"]).stdout;
    assert!(words.ends_with("-\n"), "{words}");
    assert!(node.output(&reference, &["/bin/ls", "/data"]).contains("150"));
}

#[test]
fn regression_a_container_goes_on_where_a_new_worker_finds_no_indexes() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let reference = node.registry().push_image(&image(), "test/files:1");
    node.run(&["run", "--detach", "--name", "stays", &reference, "/bin/sleep", "300"]);
    eventually("it is written down what podman uses", PATIENCE, || {
        let records = files_below(&node.path("cache/podman"));
        let text = |(path, _): &(PathBuf, u64)| fs::read_to_string(path).unwrap_or_default();
        records.iter().any(|record| text(record).contains(r#""uses":{"sha256:"#))
    });
    let blobs = files_below(&node.path("cache/blobs"));
    assert!(!blobs.is_empty());
    blobs.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    node.kill_worker();
    let words = node.run(&["exec", "stays", "/bin/sh", "-c", "sha256sum < /data/150"]).stdout;
    assert!(words.ends_with("-\n"), "{words}");
}

/// Whether the agent asks, and not podman itself.
fn is_agents(request: &Request) -> bool {
    request.header("user-agent").is_some_and(|agent| agent.starts_with("undermount/"))
}

#[test]
fn regression_a_start_does_not_wait_for_a_registry_that_holds_up_a_pull_of_the_same_name() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let (origin, reference) = Origin::with(image());
    origin.attach_right("test/image");
    // What a start reads is here.
    assert!(node.output(&reference, &["/bin/ls", "/data"]).contains("150"));
    // The layers of one pull share an answer of the registry; this is another pull.
    std::thread::sleep(Duration::from_secs(6));
    origin.misbehave(|request| is_agents(request).then_some(Fault::Stall));
    let before = origin.requests().len();
    let mut pull = Running::start(&mut node.command(&["pull", "--quiet", &reference]));
    eventually("the agent asks what the name means", PATIENCE, || {
        origin.requests()[before..].iter().any(is_agents)
    });
    let arguments = ["run", "--rm", "--pull=never", &reference, "/bin/ls", "/data"];
    assert!(node.run(&arguments).stdout.contains("150"));
    assert_eq!(node.refused("late"), 0, "the start has waited for the registry");
    origin.behave();
    let status = pull.wait(PATIENCE).expect("the pull ends");
    assert!(status.success(), "{status}: {}", pull.stderr());
}

/// Each of the layers would wait for the registry once more.
#[test]
fn regression_a_registry_that_hangs_holds_up_a_pull_once() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let mut layers = vec![Layer::of(&userland(&["sh", "cat"]))];
    layers.extend((0..8).map(|n| Layer::of(&[Member::file(format!("data/{n}"), "few bytes")])));
    let (origin, reference) = Origin::with(Image::from_layers(layers));
    origin.misbehave(|request| is_agents(request).then_some(Fault::Stall));
    let outcome = node.run(&["run", "--rm", &reference, "/bin/cat", "/data/7"]);
    assert_eq!(outcome.stdout, "few bytes");
    assert!(node.refused("late") > 0);
    // Twenty seconds for the first; nine times as much without.
    assert!(outcome.elapsed < Duration::from_secs(100), "{:?}", outcome.elapsed);
}

#[test]
fn an_image_that_is_here_starts_without_registry_and_after_a_reboot() {
    if lacking(NEEDS) {
        return;
    }
    let mut node = Podman::completing_within(1);
    let image = image();
    let reference = node.registry().push_image(&image, "test/files:1");
    node.run(&["pull", "--quiet", &reference]);
    eventually("the image is complete", PATIENCE, || {
        let status = node.status();
        let image = &status["store"]["images"][0];
        image["local_bytes"] == image["content_bytes"] && image["content_bytes"].as_u64() > Some(0)
    });
    node.stop_registry();
    let arguments = ["run", "--rm", &reference, "/bin/sh", "-c", READ_ALL];
    assert_eq!(node.run(&arguments).stdout.lines().count() as u64, 3 * FILES);
    // What a reboot leaves: the disk.
    node.stop_agent();
    assert!(!node.store_is_mounted());
    node.start_agent();
    assert_eq!(node.run(&arguments).stdout.lines().count() as u64, 3 * FILES);
    let status = node.status();
    assert_eq!(status["store"]["images"][0]["layers_in_use"], 3, "{status}");
}

#[test]
fn podman_works_without_the_agent_and_other_storages_never_notice() {
    if lacking(NEEDS) {
        return;
    }
    let mut node = Podman::new();
    let reference = node.registry().push_image(&image(), "test/files:1");
    node.run(&["pull", "--quiet", &reference]);
    node.run_ordinary(&["run", "--detach", "--name", "other", &reference, "/bin/sleep", "300"]);
    node.stop_agent();
    node.run(&["ps"]);
    assert_eq!(node.run(&["images", "--quiet"]).stdout.lines().count(), 1);
    node.run_ordinary(&["exec", "other", "/bin/cat", "/data/7"]);

    node.start_agent();
    assert!(node.output(&reference, &["/bin/ls", "/data"]).contains("150"));
    node.kill_keeper();
    // Its worker takes the mounts away with it: an empty directory does podman no harm.
    eventually("the store is detached", PATIENCE, || !node.store_is_mounted());
    node.run(&["ps"]);
    node.run_ordinary(&["exec", "other", "/bin/cat", "/data/8"]);
}
