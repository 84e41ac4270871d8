//! `undermount bench`: what it measures adds up, and its report stands alone. (How long anything
//! takes is no test.)
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use serde_json::Value;
use undermount_tests::archive::{Member, noise};
use undermount_tests::commands::runnable;
use undermount_tests::image::Image;
use undermount_tests::node::{self, PATIENCE};
use undermount_tests::process::{Outcome, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::lacking;

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
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
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
}
