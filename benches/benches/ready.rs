//! Time to ready: every row of a table for the README, measured by `undermount bench`.
//!
//! ```text
//! benches/corpus/build.py DIRECTORY nova-api debian
//! UNDERMOUNT_BENCH_CORPUS=DIRECTORY/oci cargo bench -p undermount-benches --bench ready
//! ```
//!
//! as root, with podman and skopeo; see [`undermount_benches::start`] for its variables. The groups of
//! rows are start,slow,peers,small,full,debian,update.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::process::ExitCode;

use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::rebuild::rebuilt;
use undermount_benches::start::{PATIENCE, PYTHON, Setting, Subject};
use undermount_tests::archive::{Member, noise};
use undermount_tests::commands::runnable;
use undermount_tests::image::Image;
use undermount_tests::node::{NEEDS, Node};
use undermount_tests::process::{program, run, undermount};
use undermount_tests::requirement::lacking;

/// Reads every file of an image.
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + >/dev/null";

fn main() -> ExitCode {
    if lacking(NEEDS) {
        return ExitCode::SUCCESS;
    }
    println!("machine: {}", machine::describe());
    let setting = Setting::open();
    let mut figures = Figures::default();
    for (group, measure) in [
        ("start", start as fn(&Setting, &mut Figures)),
        ("slow", slow_start),
        ("peers", start_beside_a_peer),
        ("small", small_image),
        ("full", full_read),
        ("debian", debian_start),
        ("update", minor_update),
    ] {
        if setting.is_wanted(group) {
            measure(&setting, &mut figures);
        }
    }
    let reached = figures.print();
    println!("\n{}", figures.markdown());
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(setting: &Setting, figures: &mut Figures) {
    let Some(nova) = setting.packed("openstack-nova-api", "nova-api", &PYTHON) else { return };
    let measured = setting.bench(&nova, "eager,lazy,pack", ("1gbit", "0ms"));
    let ready = |variant| measured.of(variant, "ready_ratio");
    figures.at_most("time to ready with pack / eager, 1 Gbit/s", ready("lazy-pack"), 0.25, "");
    figures.at_most("bytes until ready / image", measured.share("lazy-pack"), 0.14, "");
    figures.at_most("requests until ready", measured.of("lazy-pack", "requests"), 40.0, "");
    figures.at_most("time to ready without pack / eager, 1 Gbit/s", ready("lazy"), 0.5, "");
}

fn slow_start(setting: &Setting, figures: &mut Figures) {
    let Some(nova) = setting.packed("openstack-nova-api", "nova-api", &PYTHON) else { return };
    let measured = setting.bench(&nova, "eager,pack", ("100mbit", "5ms"));
    let ratio = measured.of("lazy-pack", "ready_ratio");
    figures.at_most("time to ready with pack / eager, 100 Mbit/s, 5 ms", ratio, 0.2, "");
}

/// A neighbour has started the image before.
fn start_beside_a_peer(setting: &Setting, figures: &mut Figures) {
    let Some(nova) = setting.packed("openstack-nova-api", "nova-api", &PYTHON) else { return };
    let measured = setting.bench(&nova, "eager,peers", ("1gbit", "0ms"));
    let of = |key| measured.of("lazy-peers", key);
    let mebibytes = |key| format!("{:.2} MiB", of(key) / f64::from(1 << 20));
    figures.tell(
        "time to ready with peers / eager, 1 Gbit/s",
        format!("{:.2} ({:.1} s)", of("ready_ratio"), of("ready_ms") / 1000.0),
    );
    figures.tell("the same: bytes from the registry", mebibytes("bytes"));
    figures.tell("the same: bytes from the neighbour", mebibytes("peer_bytes"));
    figures.tell("the same: requests to the registry", format!("{:.0}", of("requests")));
}

/// 10 MiB that a start reads all of.
fn small_image(setting: &Setting, figures: &mut Figures) {
    let file = |number: u64| Member::file(format!("data/{number}"), noise(number, 105_000));
    let data: Vec<Member> = (0..100).map(file).collect();
    let image = Image::of(&[&data, &runnable(&["/bin/sh", "/bin/cat"])]);
    let reference = setting.registry.push_image(&image, "bench/small:1");
    let words = ["/bin/sh", "-c", "cat /data/* > /dev/null"].map(str::to_owned);
    let small = Subject { reference, command: words.to_vec() };
    let measured = setting.bench(&small, "eager,lazy", ("1gbit", "0ms"));
    let ratio = measured.of("lazy", "ready_ratio");
    figures.at_most("small image, everything read: lazy / eager", ratio, 1.1, "");
}

fn full_read(setting: &Setting, figures: &mut Figures) {
    let Some(nova) = setting.subject("openstack-nova-api", "nova-api", &[]) else { return };
    let words = ["/bin/sh", "-c", READ_ALL].map(str::to_owned);
    let nova = Subject { command: words.to_vec(), ..nova };
    for (link, words) in
        [(("1gbit", "0ms"), "1 Gbit/s"), (("400mbit", "20ms"), "400 Mbit/s, 20 ms")]
    {
        let measured = setting.bench(&nova, "eager,lazy", link);
        let name = format!("full read of a cold image: lazy / eager, {words}");
        figures.at_most(&name, measured.of("lazy", "ready_ratio"), 1.1, "");
    }
}

fn debian_start(setting: &Setting, figures: &mut Figures) {
    let Some(debian) = setting.packed("debian", "debian", &["/bin/sh", "-c"]) else { return };
    let measured = setting.bench(&debian, "unpack,pack", ("400mbit", "20ms"));
    let ratio = measured.of("lazy-pack", "ready_ratio");
    let name = "bash, perl, dpkg of a Debian: with pack / pull and unpack, 400 Mbit/s, 20 ms";
    figures.at_most(name, ratio, 0.2, "");
}

/// Three packages are newer; the node has the image before and gets an update pack.
fn minor_update(setting: &Setting, figures: &mut Figures) {
    let Some(corpus) = &setting.corpus else { return println!("left out: minor update") };
    let old = Image::read_layout(corpus, "debian");
    let new = rebuilt(&old, 3, 1.0);
    // What is fetched is counted by repositories.
    let before = setting.registry.push_image(&old, "bench/before-update:1");
    let after = setting.registry.push_image(&new.image, "bench/update:2");
    let mut build = undermount();
    build.args(["pack", "build", "--cache"]).arg(setting.scratch.path().join("pack-cache-update"));
    run(build.args(["--update-from", &before, &after]), PATIENCE).success();
    let mut node = Node::new();
    node.pull(&before);
    let mount = node.mount(&after);
    run(program("sh").arg("-c").arg(READ_ALL.replace(" / ", " . ")).current_dir(&mount), PATIENCE)
        .success();
    let (fetched, changed) = (node.fetched(&mount) as f64, new.changed_bytes as f64);
    println!("update of {}: {} of {} files", new.packages.join(", "), new.files.1, new.files.0);
    let name = "minor update with an update pack: bytes, of all kinds / changed files";
    figures.at_most(name, fetched / changed, 1.2, "");
}
