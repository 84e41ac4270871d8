//! `undermount bench`: what it measures adds up, and its report stands alone. (How long anything
//! takes is no test.)
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use serde_json::Value;
use undermount_tests::archive::{Member, noise};
use undermount_tests::commands::runnable;
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::{self, PATIENCE};
use undermount_tests::podman;
use undermount_tests::process::{Outcome, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const DATA: u64 = 3_000_000;

/// A shell above a file that it does not read.
fn shell_image() -> Image {
    let data = [Member::file("data", noise(1, DATA as usize))];
    Image::of(&[&data, &runnable(&["/bin/sh"])])
}

fn bench(reference: &str, flags: &[&str], script: &str) -> Outcome {
    let mut command: Command = undermount();
    command.args(["bench", reference]).args(flags).args(["--", "/bin/sh", "-c", script]);
    run(&mut command, PATIENCE)
}

#[test]
fn each_variant_is_measured_over_the_link() {
    if lacking(node::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let image = shell_image();
    let reference = registry.push_image(&image, "shell");
    let page = scratch.path().join("report.html");
    let flags = ["--variants", "unpack,lazy,pack", "--rounds", "2", "--rtt", "1ms", "--json"];
    let flags = [&flags[..], &["--html", page.to_str().unwrap()]].concat();
    let said = bench(&reference, &flags, "echo ready").success();
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let report = &said["reports"][0];
    let runs = report["runs"].as_array().unwrap();
    let variants: Vec<&str> = runs.iter().map(|run| run["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["unpack", "lazy", "lazy-pack", "unpack", "lazy", "lazy-pack"]);
    for run in runs {
        let bytes = run["traffic"]["bytes"].as_u64().unwrap();
        let is_whole = bytes >= image.compressed_size();
        assert_eq!(is_whole, run["variant"] == "unpack", "{bytes} bytes: {}", run["variant"]);
        let time = |key: &str| run[key].as_u64().unwrap();
        assert!(time("brought_ms") <= time("first_output_ms"));
        assert!(time("first_output_ms") <= time("ready_ms"));
        assert!(!run["traffic"]["requests"].as_array().unwrap().is_empty());
    }
    assert_eq!(report["image_bytes"].as_u64(), Some(image.compressed_size()));
    assert!(fs::read_to_string(page).unwrap().contains("pull and unpack"));
}

/// `podman pull` as the reference, images and commands out of a file, one page for all.
#[test]
fn podman_is_the_reference_and_each_image_of_a_list_has_its_report() {
    if lacking(podman::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let data = [Member::file("data", noise(1, DATA as usize))];
    let image = Image::from_layers(vec![Layer::of(&data), Layer::of(&userland(&["cat", "ls"]))]);
    let one = registry.push_image(&image, "one:1");
    let two = registry.push_image(&shell_image(), "two:1");
    let (list, page) = (scratch.path().join("list"), scratch.path().join("report.html"));
    let text = format!("# image, command\n{one} /bin/cat /data\n{two} /bin/sh -c true\n");
    fs::write(&list, text).unwrap();
    let mut command = undermount();
    command.arg("bench").arg("--from").arg(&list).arg("--html").arg(&page);
    command.args(["--variants", "eager,pack", "--rounds", "1", "--link", "1gbit", "--json"]);
    command.arg("--podman-arg=--runtime=runc");
    let said = run(&mut command, podman::PATIENCE).success();
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let [first, second] = said["reports"].as_array().unwrap().as_slice() else {
        panic!("two reports: {said}")
    };
    assert_eq!(first["command"], "/bin/cat /data");
    assert_eq!(second["reference"], two);
    for (report, whole) in [(first, image.compressed_size()), (second, DATA)] {
        let [eager, lazy] = report["runs"].as_array().unwrap().as_slice() else {
            panic!("a run of each variant: {report}")
        };
        assert_eq!((&eager["variant"], &lazy["variant"]), (&"podman".into(), &"lazy-pack".into()));
        let bytes = eager["traffic"]["bytes"].as_u64().unwrap();
        assert!(bytes >= whole, "podman pulls all of it: {bytes} of {whole} bytes");
    }
    // Reading all of it is what the first command does, and only the first one.
    let fetched = |report: &Value| report["runs"][1]["traffic"]["bytes"].as_u64().unwrap();
    assert!(fetched(first) >= DATA && fetched(second) < DATA, "{said}");
    let page = fs::read_to_string(page).unwrap().replace("&#x2f;", "/");
    assert!(page.contains(&one) && page.contains(&two));

    let mut command = undermount();
    command.args(["bench", &one, "--variants", "eager", "--podman-arg=--no-such-flag"]);
    command.args(["--", "/bin/cat", "/data"]);
    let outcome = run(&mut command, podman::PATIENCE);
    assert!(outcome.refusal().contains("unknown flag: --no-such-flag"), "{}", outcome.stderr);
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    if lacking(node::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let reference = registry.push_image(&shell_image(), "shell");
    let once = ["--variants", "lazy", "--rounds", "1"];
    let refused = |outcome: Outcome, words: &str| {
        let said = outcome.refusal();
        assert!(said.contains(words), "`{words}` is not in: {said}");
    };
    refused(bench(&reference, &once, "echo it breaks; exit 7"), "it breaks");
    let marked = [&once[..], &["--ready-regex", "never", "--limit", "2"]].concat();
    refused(bench(&reference, &marked, "echo up; while :; do :; done"), "not ready after 2 s: up");
    let unknown = reference.replace("shell", "unknown");
    refused(bench(&unknown, &once, "true"), "unknown");
    refused(bench(&reference, &["--link", "fast"], "true"), "expected a rate like 100mbit");
    let list = scratch.path().join("list");
    fs::write(&list, "r:5/one:1 true\nNo Name\n").unwrap();
    let from = run(undermount().arg("bench").arg("--from").arg(&list), PATIENCE);
    refused(from, "list: line 2");
}
