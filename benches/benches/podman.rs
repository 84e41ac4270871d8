//! Containers from the layer store beside podman's own overlay, with a real image.
//!
//! `UNDERMOUNT_BENCH_IMAGE=/path/to/layout:name cargo bench -p undermount-benches --bench podman`
//! as root, with podman, runc and skopeo; `UNDERMOUNT_BENCH_COMMAND` is what a container runs
//! (for its `/bin/sh`; `true` by default), `UNDERMOUNT_BENCH_ROUNDS` how often (5).
//!
//! Both storages hold the same image and are measured in turns, each first in every other round;
//! the figures are ratios of medians of one run.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use undermount_benches::figure::{Figures, median};
use undermount_benches::machine;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::eventually;
use undermount_tests::requirement::lacking;

/// Lists every file of a container twice and tells how many nanoseconds the second time took.
const FIND: &str = "find / -xdev >/dev/null 2>&1; begin=$(date +%s%N); find / -xdev >/dev/null 2>&1; \
                    end=$(date +%s%N); echo $((end - begin))";

fn main() -> ExitCode {
    let setting = |name: &str| std::env::var(name).ok();
    let Some(image) = setting("UNDERMOUNT_BENCH_IMAGE") else {
        println!("skipped: UNDERMOUNT_BENCH_IMAGE names no OCI layout (/path/to/layout:name)");
        return ExitCode::SUCCESS;
    };
    if lacking(NEEDS) {
        return ExitCode::SUCCESS;
    }
    let (layout, name) = image.rsplit_once(':').expect("LAYOUT:NAME");
    let command = setting("UNDERMOUNT_BENCH_COMMAND").unwrap_or_else(|| "true".to_owned());
    let command = ["/bin/sh", "-c", &command];
    let rounds = setting("UNDERMOUNT_BENCH_ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(5);
    let mut figures = Figures::default();
    println!("machine: {}", machine::describe());
    arrive(&mut figures, layout.as_ref(), name, &command, rounds.min(3));
    start(&mut figures, layout.as_ref(), name, &command, rounds);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// From nothing to the end of the command, over loopback: pull and run.
fn arrive(
    figures: &mut Figures,
    layout: &std::path::Path,
    name: &str,
    command: &[&str],
    rounds: usize,
) {
    let (mut lazy, mut eager) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let node = Podman::new();
        let reference = node.registry().push(layout, name, "bench/image:1");
        let run = [&["run", "--rm", &reference], command].concat();
        machine::drop_caches();
        eager.push(timed(|| drop(node.run_ordinary(&run))));
        machine::drop_caches();
        let before = node.sent();
        lazy.push(timed(|| drop(node.run(&run))));
        println!("lazily fetched: {} MiB", (node.sent() - before) >> 20);
    }
    println!("pull and run, lazily:   {lazy:.2?}");
    println!("pull and run, by podman: {eager:.2?}");
    figures.tell("pull and run, lazily", format!("{:.2?}", median(&lazy)));
    figures.tell("pull and run, by podman", format!("{:.2?}", median(&eager)));
}

/// Everything is local: the layer store against podman's own overlay, in turns.
fn start(
    figures: &mut Figures,
    layout: &std::path::Path,
    name: &str,
    command: &[&str],
    rounds: usize,
) {
    let node = Podman::completing_within(1);
    let reference = node.registry().push(layout, name, "bench/image:1");
    node.run(&["pull", "--quiet", &reference]);
    node.run_ordinary(&["pull", "--quiet", &reference]);
    eventually("the image is complete", PATIENCE * 4, || {
        let status = node.status();
        let image = &status["store"]["images"][0];
        image["local_bytes"] == image["content_bytes"] && image["content_bytes"].as_u64() > Some(0)
    });
    assert_eq!(node.status()["store"]["refused"], serde_json::json!({}), "every layer is lazy");
    let run = [&["run", "--rm", &reference], command].concat();
    let find = ["run", "--rm", &reference, "/bin/sh", "-c", FIND];
    let mut times: [[Vec<Duration>; 3]; 2] = Default::default();
    // The first round is not counted: whatever is done once in the life of a storage is done then.
    for round in 0..=rounds {
        let first = round % 2;
        for storage in [first, 1 - first] {
            let podman = |arguments: &[&str]| match storage {
                0 => node.run(arguments),
                _ => node.run_ordinary(arguments),
            };
            machine::drop_caches();
            let cold = timed(|| drop(podman(&run)));
            let warm = timed(|| drop(podman(&run)));
            let walk = Duration::from_nanos(podman(&find).stdout.trim().parse().unwrap());
            if round > 0 {
                for (times, time) in times[storage].iter_mut().zip([cold, warm, walk]) {
                    times.push(time);
                }
            }
        }
    }
    let [lazy, own] = times;
    let goals =
        [("first start, caches dropped", 1.35), ("second start", 1.1), ("second find /", 1.1)];
    for (((what, goal), lazy), own) in goals.into_iter().zip(&lazy).zip(&own) {
        println!("{what}, layer store:     {lazy:.2?}");
        println!("{what}, podman's overlay: {own:.2?}");
        let ratio = median(lazy).as_secs_f64() / median(own).as_secs_f64();
        figures.at_most(&format!("{what}, x of podman's overlay"), ratio, goal, "");
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}
