//! What a preparation costs: requests to two local registries and time, beside the original.
//!
//! `cargo bench -p undermount-benches --bench prepare`; needs `docker-registry`. The workload is
//! the whole template of the last release with OVN: 95 images of two small layers, one of which
//! all share. `UNDERMOUNT_ORIGINAL=PYTHON` names a Python that has tripleo-common 18.0.0, which then
//! does the same in turns with ours (`UNDERMOUNT_BENCH_ROUNDS`, 3); without it our times stand
//! beside those that were measured of it on two cores.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use undermount_benches::figure::{Figures, median};
use undermount_benches::machine;
use undermount_tests::distribution::Api;
use undermount_tests::golden::shelf::Shelf;
use undermount_tests::process::{run, undermount};
use undermount_tests::registry::Registry;

/// Images of the template.
const IMAGES: usize = 95;
/// How much faster than the original ours should be.
const FASTER: f64 = 4.0;
/// How long either may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// The original as its own command line calls it, less the client around it.
const ORIGINAL: &str = "\
import sys, yaml
from tripleo_common.image import kolla_builder
from tripleo_common.utils.locks import processlock
with open(sys.argv[1]) as f: environment = yaml.safe_load(f)
parameters = kolla_builder.container_images_prepare_multi(
    environment, None, lock=processlock.ProcessLock())
assert len(parameters) > 100, parameters
";

/// One way to name the images' tags, and what it may cost.
struct Scenario {
    name: &'static str,
    discovers: bool,
    /// Requests of a first run and of one with nothing new.
    goals: [f64; 2],
    /// The same of the original.
    original: [u32; 2],
    /// Its times of a first run, the shortest of three on two cores, in seconds.
    seconds: f64,
}

const SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "tag set",
        discovers: false,
        goals: [1000.0, 200.0],
        original: [1346, 859],
        seconds: 10.3,
    },
    Scenario {
        name: "tag from label",
        discovers: true,
        goals: [1180.0, 470.0],
        original: [1698, 1211],
        seconds: 15.3,
    },
];

fn main() -> ExitCode {
    println!("machine: {}", machine::describe());
    let rounds = std::env::var("UNDERMOUNT_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    let mut figures = Figures::default();
    for scenario in &SCENARIOS {
        scenario.run(rounds.unwrap_or(3), &mut figures);
    }
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Scenario {
    fn run(&self, rounds: usize, figures: &mut Figures) {
        let original = std::env::var("UNDERMOUNT_ORIGINAL").ok();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut stage = Stage::set(self.discovers);
            ours.push(stage.timed(|stage| stage.prepare()));
            if round == 0 {
                self.judge_requests(&mut stage, figures);
            }
            if let Some(python) = &original {
                let stage = Stage::set(self.discovers);
                theirs.push(stage.timed(|stage| stage.prepare_originally(python)));
            }
        }
        println!("{}: ours {ours:?}, the original {theirs:?}", self.name);
        let (beside, reference) = match theirs.as_slice() {
            [] => ("measured before", self.seconds),
            times => ("in turns", median(times).as_secs_f64()),
        };
        let name = format!("{}: times as fast as the original, {beside}", self.name);
        figures.at_least(&name, reference / median(&ours).as_secs_f64(), FASTER, "x");
    }

    /// Counts what the run on `stage` has cost and what one more does.
    fn judge_requests(&self, stage: &mut Stage, figures: &mut Figures) {
        let base = stage.downloads();
        for (which, goal, original) in [
            ("first run", self.goals[0], self.original[0]),
            ("nothing new", self.goals[1], self.original[1]),
        ] {
            let name = format!("{}, {which}: requests (the original: {original})", self.name);
            figures.at_most(&name, stage.count() as f64, goal, "");
            stage.forget();
            stage.prepare();
        }
        figures.at_most(
            &format!("{}: downloads of the shared layer", self.name),
            base as f64,
            1.0,
            "",
        );
    }
}

/// Two registries and an environment.
struct Stage {
    directory: TempDir,
    registries: [Registry; 2],
    /// Requests that are not counted any more, by registry.
    forgotten: [usize; 2],
    base_layer: String,
}

impl Stage {
    fn set(discovers: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry = |name: &str| {
            Registry::docker_with(&directory.path().join(name), |config| {
                config["log"]["accesslog"]["disabled"] = false.into();
            })
        };
        let registries = [registry("source"), registry("destination")];
        let shelf = Shelf::of_goldens();
        let wanted = ["tripleomaster/", "ceph/", "prometheus/"];
        shelf.push(&Api(registries[0].address().to_owned()), |name| {
            wanted.iter().any(|begin| name.starts_with(begin))
        });
        let text = environment(registries[0].address(), registries[1].address(), discovers);
        fs::write(directory.path().join("prepare.yaml"), text).unwrap();
        let base_layer = shelf.base_layer();
        let mut stage = Self { directory, registries, forgotten: [0; 2], base_layer };
        stage.forget();
        stage
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn timed(&self, work: impl FnOnce(&Self)) -> Duration {
        let begin = Instant::now();
        work(self);
        begin.elapsed()
    }

    fn prepare(&self) {
        let mut command = undermount();
        command.args(["tripleo", "container", "image", "prepare", "--release", "zed"]);
        command.args(["-e", "prepare.yaml", "--output-env-file", "env.yaml"]);
        command.args(["--output-images-file", "images.yaml"]);
        run(command.current_dir(self.path()).env("HOME", self.path()), DEADLINE).success();
        let images = fs::read_to_string(self.path().join("images.yaml")).unwrap();
        assert_eq!(images.matches("imagename: ").count(), IMAGES);
    }

    fn prepare_originally(&self, python: &str) {
        let mut command = Command::new(python);
        command.args(["-c", ORIGINAL, "prepare.yaml"]);
        run(command.current_dir(self.path()).env("HOME", self.path()), DEADLINE).success();
    }

    /// The requests so far, from the access logs of both registries.
    fn log(&mut self) -> [Vec<String>; 2] {
        self.registries.each_mut().map(|registry| {
            let text = registry.process().stdout() + &registry.process().stderr();
            let requests = text.lines().filter_map(|line| line.split('"').nth(1));
            requests.filter(|request| request.contains(" /v2/")).map(str::to_owned).collect()
        })
    }

    fn forget(&mut self) {
        self.forgotten = self.log().map(|log| log.len());
    }

    fn count(&mut self) -> usize {
        self.log().iter().zip(self.forgotten).map(|(log, forgotten)| log.len() - forgotten).sum()
    }

    /// How many of the counted requests to the source got the shared layer.
    fn downloads(&mut self) -> usize {
        let [source, _] = self.log();
        let counted = &source[self.forgotten[0]..];
        let gets = counted.iter().filter(|request| request.starts_with("GET "));
        gets.filter(|request| request.contains(&self.base_layer)).count()
    }
}

/// All images of the template, those of ceph in an entry of their own where tags are discovered.
fn environment(source: &str, destination: &str, discovers: bool) -> String {
    let ceph = ["ceph", "ceph_grafana", "ceph_haproxy", "ceph_keepalived"];
    let prometheus = ["ceph_prometheus", "ceph_alertmanager", "ceph_node_exporter", "pushgateway"];
    let mut set = format!("namespace: {source}/tripleomaster");
    for (names, namespace) in [(ceph, "ceph"), (prometheus, "prometheus")] {
        for name in names {
            set.push_str(&format!(", {name}_namespace: '{source}/{namespace}'"));
        }
    }
    let entries = match discovers {
        false => format!(
            "  - {{push_destination: '{destination}', set: {{{set}, tag: current-tripleo}}}}\n"
        ),
        true => format!(
            "  - {{push_destination: '{destination}', tag_from_label: rdo_version, \
             excludes: [/ceph/, /prometheus/], set: {{{set}}}}}\n  \
             - {{push_destination: '{destination}', includes: [/ceph/, /prometheus/], set: {{{set}}}}}\n"
        ),
    };
    format!("parameter_defaults:\n  ContainerImagePrepare:\n{entries}")
}
