//! Time to ready: every row of a table for the README, measured by `undermount bench`.
//!
//! ```text
//! benches/corpus/build.py DIRECTORY nova-api debian
//! UNDERMOUNT_BENCH_CORPUS=DIRECTORY/oci cargo bench -p undermount-benches --bench ready
//! ```
//!
//! as root, with podman and skopeo. `UNDERMOUNT_BENCH_ROUNDS` is how often each variant is measured
//! (7), `UNDERMOUNT_BENCH_ROWS` names the groups of rows to measure, separated by commas (all:
//! start,slow,small,full,debian,update), `UNDERMOUNT_BENCH_REPORTS` a directory for the pages with
//! charts. Without a corpus, the rows that need one are left out and named.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::rebuild::rebuilt;
use undermount_tests::archive::{Member, noise};
use undermount_tests::commands::runnable;
use undermount_tests::image::Image;
use undermount_tests::node::{NEEDS, Node};
use undermount_tests::process::{program, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::lacking;

/// How long all rounds of one row may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Reads every file of an image.
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + >/dev/null";

fn main() -> ExitCode {
    if lacking(NEEDS) {
        return ExitCode::SUCCESS;
    }
    println!("machine: {}", machine::describe());
    let setting = Setting::new();
    let mut figures = Figures::default();
    for (group, measure) in [
        ("start", start as fn(&Setting, &mut Figures)),
        ("slow", slow_start),
        ("small", small_image),
        ("full", full_read),
        ("debian", debian_start),
        ("update", minor_update),
    ] {
        if setting.rows.as_ref().is_none_or(|rows| rows.iter().any(|row| row == group)) {
            measure(&setting, &mut figures);
        }
    }
    let reached = figures.print();
    println!("\n{}", figures.markdown());
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What all rows share.
struct Setting {
    scratch: TempDir,
    registry: Registry,
    corpus: Option<PathBuf>,
    reports: Option<PathBuf>,
    rounds: String,
    rows: Option<Vec<String>>,
}

/// An image in the registry, and what is started in it.
struct Subject {
    reference: String,
    command: Vec<String>,
}

/// What `undermount bench` found out about one image.
struct Measured(Value);

impl Setting {
    fn new() -> Self {
        let variable = |name: &str| std::env::var(format!("UNDERMOUNT_BENCH_{name}")).ok();
        // Where the bench itself has its caches, and not in memory.
        let scratch = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
        Self {
            registry: Registry::undermount(&scratch.path().join("registry")),
            scratch,
            corpus: variable("CORPUS").map(PathBuf::from),
            reports: variable("REPORTS").map(PathBuf::from),
            rounds: variable("ROUNDS").unwrap_or_else(|| "7".to_owned()),
            rows: variable("ROWS").map(|rows| rows.split(',').map(str::to_owned).collect()),
        }
    }

    /// An image of the corpus with the start that its recipe names, and a pack of that start.
    fn packed(&self, name: &str, recipe: &str, shell: &[&str]) -> Option<Subject> {
        let subject = self.subject(name, recipe, shell)?;
        let profiles = self.scratch.path().join(format!("profiles-{recipe}"));
        let cache = self.scratch.path().join(format!("pack-cache-{recipe}"));
        let mut record = undermount();
        record.args(["profile", "record"]).arg("--profiles").arg(&profiles);
        record.arg(&subject.reference).arg("--").args(&subject.command);
        run(&mut record, PATIENCE).success();
        let mut build = undermount();
        build.args(["pack", "build"]).arg("--cache").arg(cache);
        build.arg("--profiles").arg(&profiles).arg(&subject.reference);
        run(&mut build, PATIENCE).success();
        Some(subject)
    }

    /// An image of the corpus; `shell` runs what the recipe says.
    fn subject(&self, name: &str, recipe: &str, shell: &[&str]) -> Option<Subject> {
        let Some(corpus) = &self.corpus else {
            println!("left out: {recipe}, for UNDERMOUNT_BENCH_CORPUS names no OCI layout");
            return None;
        };
        let reference = self.registry.push(corpus, name, &format!("bench/{recipe}:1"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/build.py");
        let start = run(program("python3").arg(script).args(["--start", recipe]), PATIENCE);
        let start = start.success().stdout.trim_end().to_owned();
        let command = shell.iter().map(|word| (*word).to_owned()).chain([start]).collect();
        Some(Subject { reference, command })
    }

    /// Measures `subject` in `variants`, the reference first, over a link.
    fn bench(&self, subject: &Subject, variants: &str, (link, rtt): (&str, &str)) -> Measured {
        let mut bench: Command = undermount();
        bench.args(["bench", &subject.reference, "--json", "--rounds", &self.rounds]);
        bench.args(["--variants", variants, "--link", link, "--rtt", rtt]);
        if let Some(reports) = &self.reports {
            fs::create_dir_all(reports).unwrap();
            let image = subject.reference.rsplit('/').next().unwrap().replace(':', "-");
            bench.arg("--html").arg(reports.join(format!("{image}-{variants}-{link}-{rtt}.html")));
        }
        let outcome = run(bench.arg("--").args(&subject.command), PATIENCE).success();
        print!("{}", outcome.stderr);
        let said: Value = serde_json::from_str(&outcome.stdout).unwrap();
        Measured(said["reports"][0].clone())
    }
}

impl Measured {
    /// A figure of one variant.
    fn of(&self, variant: &str, key: &str) -> f64 {
        let summaries = self.0["summaries"].as_array().unwrap();
        let summary = summaries.iter().find(|summary| summary["variant"] == variant).unwrap();
        summary[key].as_f64().unwrap()
    }

    /// The bytes of a variant, as a part of the compressed image.
    fn share(&self, variant: &str) -> f64 {
        self.of(variant, "bytes") / self.0["image_bytes"].as_f64().unwrap()
    }
}

const PYTHON: [&str; 2] = ["/usr/bin/python3", "-c"];

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
    let contents = (fetched - new.tree_bytes() as f64) / changed;
    figures.at_most("minor update with an update pack: bytes / changed files", contents, 1.2, "");
    figures.tell("the same with the new image's trees", format!("{:.3}", fetched / changed));
}
