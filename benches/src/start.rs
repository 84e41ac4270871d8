//! Starts of real images, measured by `undermount bench`.
//!
//! `UNDERMOUNT_BENCH_CORPUS` names the OCI layout that `benches/corpus/build.py` made: without it,
//! the rows that need one are left out and named. `UNDERMOUNT_BENCH_ROUNDS` is how often each
//! variant is measured (7), `UNDERMOUNT_BENCH_ROWS` names the groups of rows to measure, separated
//! by commas (all), `UNDERMOUNT_BENCH_REPORTS` a directory for the pages with charts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use undermount_tests::process::{program, run, undermount};
use undermount_tests::registry::Registry;

/// How long all rounds of one row may take.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs a start of the corpus that is Python.
pub const PYTHON: [&str; 2] = ["/usr/bin/python3", "-c"];

/// What all rows share.
pub struct Setting {
    /// A directory on the disk.
    pub scratch: TempDir,
    /// Where the images are.
    pub registry: Registry,
    /// The OCI layout with the corpus.
    pub corpus: Option<PathBuf>,
    reports: Option<PathBuf>,
    rounds: String,
    rows: Option<Vec<String>>,
}

/// An image in the registry, and what is started in it.
pub struct Subject {
    /// Its name.
    pub reference: String,
    /// What is started.
    pub command: Vec<String>,
}

/// What `undermount bench` found out about one image.
pub struct Measured(Value);

impl Setting {
    /// A registry of its own, and what the variables say.
    pub fn open() -> Self {
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

    /// Whether a group of rows is to be measured.
    pub fn is_wanted(&self, group: &str) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows.iter().any(|row| row == group))
    }

    /// An image of the corpus with the start that its recipe names, and a pack of that start.
    pub fn packed(&self, name: &str, recipe: &str, shell: &[&str]) -> Option<Subject> {
        let subject = self.subject(name, recipe, shell)?;
        self.pack(&subject, recipe);
        Some(subject)
    }

    /// Gives the image of `subject` a pack of what its command reads; `name` names the directories
    /// that this takes.
    pub fn pack(&self, subject: &Subject, name: &str) {
        let profiles = self.scratch.path().join(format!("profiles-{name}"));
        let cache = self.scratch.path().join(format!("pack-cache-{name}"));
        let mut record = undermount();
        record.args(["profile", "record"]).arg("--profiles").arg(&profiles);
        record.arg(&subject.reference).arg("--").args(&subject.command);
        run(&mut record, PATIENCE).success();
        let mut build = undermount();
        build.args(["pack", "build"]).arg("--cache").arg(cache);
        build.arg("--profiles").arg(&profiles).arg(&subject.reference);
        run(&mut build, PATIENCE).success();
    }

    /// An image of the corpus; `shell` runs what the recipe says.
    pub fn subject(&self, name: &str, recipe: &str, shell: &[&str]) -> Option<Subject> {
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
    pub fn bench(&self, subject: &Subject, variants: &str, (link, rtt): (&str, &str)) -> Measured {
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
    pub fn of(&self, variant: &str, key: &str) -> f64 {
        let summaries = self.0["summaries"].as_array().unwrap();
        let summary = summaries.iter().find(|summary| summary["variant"] == variant).unwrap();
        summary[key].as_f64().unwrap()
    }

    /// The bytes of a variant, as a part of the compressed image.
    pub fn share(&self, variant: &str) -> f64 {
        self.of(variant, "bytes") / self.0["image_bytes"].as_f64().unwrap()
    }
}
