//! `undermount bench`: what it measures adds up, and its report stands alone. (How long anything
//! takes is no test.)
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use undermount_tests::archive::{Member, noise};
use undermount_tests::commands::runnable;
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::{self, PATIENCE, assert_no_process_left, is_mounted, mounts_below};
use undermount_tests::podman;
use undermount_tests::process::{Outcome, Running, call, eventually, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const DATA: u64 = 3_000_000;

/// How often is looked at what the bench has started.
const POLL: Duration = Duration::from_millis(20);

/// A shell above a file that it does not read.
fn shell_image() -> Image {
    let data = [Member::file("data", noise(1, DATA as usize))];
    Image::of(&[&data, &runnable(&["/bin/sh"])])
}

fn bench(reference: &str, flags: &[&str], script: &str) -> Outcome {
    run(&mut command(reference, flags, script), PATIENCE)
}

fn command(reference: &str, flags: &[&str], script: &str) -> Command {
    let mut command = undermount();
    command.args(["bench", reference]).args(flags).args(["--", "/bin/sh", "-c", script]);
    command
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

/// A shell with a file that its start reads, and the script that does and fails if it is wrong.
fn reading_image() -> (Image, String) {
    let content = noise(1, DATA as usize);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &content).unwrap();
    let sums = call("cksum", &[file.path()]);
    let sum: Vec<&str> = sums.split_whitespace().take(2).collect();
    let script = format!("set -- $(cksum < /data); test \"$*\" = \"{}\"", sum.join(" "));
    let image =
        Image::of(&[&[Member::file("data", content)], &runnable(&["/bin/sh", "/usr/bin/cksum"])]);
    (image, script)
}

/// The neighbour has what the start reads; the registry is asked what the tag means, and what is
/// attached.
#[test]
fn beside_a_peer_that_has_started_the_image_the_registry_sends_little() {
    if lacking(node::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let (image, script) = reading_image();
    let reference = registry.push_image(&image, "shell");
    let flags = ["--variants", "pack,peers", "--rounds", "2", "--link", "1gbit", "--rtt", "1ms"];
    let page = scratch.path().join("report.html");
    let flags = [&flags[..], &["--json", "--html", page.to_str().unwrap()]].concat();
    let (outcome, directories) = watched(&reference, &flags, &script);
    let said: Value = serde_json::from_str(&outcome.success().stdout).unwrap();
    let runs = said["reports"][0]["runs"].as_array().unwrap();
    let variants: Vec<&str> = runs.iter().map(|run| run["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["lazy-pack", "lazy-peers", "lazy-pack", "lazy-peers"]);
    for run in runs {
        let from_registry = run["traffic"]["bytes"].as_u64().unwrap();
        let from_peer = run["peer_bytes"].as_u64().unwrap();
        if run["variant"] == "lazy-pack" {
            assert!(from_registry >= DATA && from_peer == 0, "{run}");
        } else {
            assert!(from_registry < DATA / 50 && from_peer >= DATA, "{run}");
            assert!(!run["traffic"]["requests"].as_array().unwrap().is_empty(), "{run}");
        }
    }
    assert!(fs::read_to_string(page).unwrap().contains("lazy with peers"));
    assert_eq!(directories.len(), 4, "one for each run");
    assert_nothing_left(&directories);
}

/// The start fails with the neighbour, which comes first, or only on the node that is measured.
#[test]
fn a_command_that_fails_beside_a_peer_leaves_nothing_behind() {
    if lacking(node::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let reference = registry.push_image(&shell_image(), "shell");
    let flags = ["--variants", "peers", "--rounds", "1"];
    // The devices of the host are all that two starts share.
    let mark = format!("/dev/shm/second-start-{}", std::process::id());
    let second = format!("test -e {mark} && {{ echo the second fails; exit 7; }}; : > {mark}");
    for (script, words) in [("echo it fails; exit 7", "it fails"), (&second, "the second fails")] {
        let (outcome, directories) = watched(&reference, &flags, script);
        let _ = fs::remove_file(&mark);
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
        assert_eq!(directories.len(), 1);
        assert_nothing_left(&directories);
    }
}

#[test]
fn an_interrupted_bench_leaves_nothing_behind() {
    if lacking(node::NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let reference = registry.push_image(&shell_image(), "shell");
    let flags = ["--variants", "peers", "--rounds", "1", "--ready-regex", "never"];
    let script = "while :; do :; done";
    let mut bench = Running::start(&mut command(&reference, &flags, script));
    let mut directories = BTreeSet::new();
    eventually("the neighbour mounts the image", PATIENCE, || {
        directories.extend(directories_of_children(bench.id()));
        let mounted = |directory: &PathBuf| is_mounted(&directory.join("neighbour/root"));
        directories.iter().any(mounted)
    });
    bench.signal(Signal::SIGINT);
    let status = bench.wait(PATIENCE).expect("the bench ends");
    assert!(!status.success() && bench.stderr().contains("interrupted"), "{}", bench.stderr());
    assert_nothing_left(&directories);
}

/// Runs the bench, and tells which directories its agents have had.
fn watched(reference: &str, flags: &[&str], script: &str) -> (Outcome, BTreeSet<PathBuf>) {
    let begin = Instant::now();
    let mut bench = Running::start(&mut command(reference, flags, script));
    let mut directories = BTreeSet::new();
    let status = loop {
        directories.extend(directories_of_children(bench.id()));
        if let Some(status) = bench.wait(POLL) {
            break status;
        }
        assert!(begin.elapsed() < PATIENCE, "the bench takes too long: {}", bench.stderr());
    };
    let (stdout, stderr) = (bench.stdout(), bench.stderr());
    let elapsed = begin.elapsed();
    (Outcome { command: bench.command.clone(), status, stdout, stderr, elapsed }, directories)
}

/// The directories of a bench that the command lines of its children name.
fn directories_of_children(bench: u32) -> Vec<PathBuf> {
    // A child is that of the thread which has started it.
    let threads = fs::read_dir(format!("/proc/{bench}/task")).into_iter().flatten().flatten();
    let children = threads
        .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default())
        .collect::<String>();
    let words = |child| fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
    let lines = children.split_whitespace().map(words);
    lines.filter_map(|line| directory_of_bench(&String::from_utf8_lossy(&line))).collect()
}

/// The directory of a bench that is named in a command line.
fn directory_of_bench(line: &str) -> Option<PathBuf> {
    let is_of_bench = |path: &&Path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.starts_with(b"undermount-bench-")
    };
    line.split('\0').find_map(|word| Path::new(word).ancestors().find(is_of_bench)).map(Into::into)
}

#[track_caller]
fn assert_nothing_left(directories: &BTreeSet<PathBuf>) {
    for directory in directories {
        assert_eq!(mounts_below(directory), Vec::<PathBuf>::new());
        assert_no_process_left(directory);
        assert!(!directory.exists(), "{} is left behind", directory.display());
    }
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
    // Long enough for the first words of the command, also on a busy machine.
    let marked = [&once[..], &["--ready-regex", "never", "--limit", "12"]].concat();
    refused(bench(&reference, &marked, "echo up; while :; do :; done"), "not ready after 12 s: up");
    let unknown = reference.replace("shell", "unknown");
    refused(bench(&unknown, &once, "true"), "unknown");
    refused(bench(&reference, &["--link", "fast"], "true"), "expected a rate like 100mbit");
    let list = scratch.path().join("list");
    fs::write(&list, "r:5/one:1 true\nNo Name\n").unwrap();
    let from = run(undermount().arg("bench").arg("--from").arg(&list), PATIENCE);
    refused(from, "list: line 2");
}
