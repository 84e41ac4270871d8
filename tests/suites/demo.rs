//! `undermount demo`: it shows what it promises, and nothing of it stays behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use undermount_tests::node::{self, assert_no_process_left, mounts_below};
use undermount_tests::process::{Running, run, undermount};
use undermount_tests::requirement::{Need, lacking};

/// How long it may take: it compresses programs of this machine before it says much, and is not
/// interrupted while it does.
const DEADLINE: Duration = Duration::from_secs(900);

fn demo(scratch: &Path) -> std::process::Command {
    let mut command = undermount();
    command.arg("demo").env("TMPDIR", scratch);
    command
}

fn assert_nothing_left(scratch: &Path) {
    assert_eq!(mounts_below(scratch), Vec::<std::path::PathBuf>::new());
    assert_no_process_left(scratch);
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0, "files are left behind");
}

#[test]
fn the_demo_tells_its_figures_and_leaves_nothing_behind() {
    if lacking(&[node::NEEDS, &[Need::Program("ldd")]].concat()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let said = run(&mut demo(scratch.path()), DEADLINE).success().stdout;
    for words in [
        "ContainerImagePrepare:",
        "$ undermount prepare -e images.yaml",
        "DockerMemcachedImage: 127.0.0.1:",
        "cron is up, ",
        "memcached is up, ",
        "fetched before the first output",
        "time to the first output",
        "still to be fetched before it",
    ] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
    assert_nothing_left(scratch.path());
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    if lacking(&[node::NEEDS, &[Need::Program("ldd")]].concat()) {
        return;
    }
    for moment in ["Making two images", "$ cat images-env.yaml", "cron is up"] {
        let scratch = tempfile::tempdir().unwrap();
        let mut running = Running::start(&mut demo(scratch.path()));
        running.wait_for(DEADLINE, |text| text.contains(moment).then_some(()));
        running.signal(Signal::SIGINT);
        let status = running.wait(DEADLINE).expect("the demo ends");
        assert!(
            !status.success() && running.stderr().contains("interrupted"),
            "{}",
            running.stderr()
        );
        assert_nothing_left(scratch.path());
    }
}
