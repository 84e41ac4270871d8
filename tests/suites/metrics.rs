//! What agent and registry tell Prometheus: in its format, by the conventions, and true.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use undermount::metrics::names::{self, Metric};
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::node::{NEEDS, PATIENCE};
use undermount_tests::port;
use undermount_tests::process::{Running, SOON, eventually, run, undermount};
use undermount_tests::prometheus::Page;
use undermount_tests::registry::{Registry, get};
use undermount_tests::requirement::lacking;

/// An agent that tells its metrics.
struct Agent {
    scratch: TempDir,
    process: Running,
    metrics: String,
}

impl Agent {
    fn start() -> Self {
        let told = ["layer store is served", "metrics are told"];
        Self::logging(&[], &told)
    }

    /// One with these flags, once it has logged all of `words`.
    fn logging(flags: &[&str], words: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let metrics = port::unused().to_string();
        let text = format!(
            "[cache]\ndirectory = '{}'\nquota = '1 GiB'\n[completion]\nwithin = 0\n[reads]\ntimeout = 20\n\
             [store]\nmount = '{}'\n[metrics]\nlisten = '{metrics}'\n",
            path("cache").display(),
            path("store").display(),
        );
        fs::write(path("agent.toml"), text).unwrap();
        let mut command = undermount();
        command.arg("agent").args(flags).env("UNDERMOUNT_CONFIG", path("agent.toml"));
        let mut process = Running::start(&mut command);
        let has_told = |text: &str| words.iter().all(|said| text.contains(said));
        process.wait_for(SOON, |text| has_told(text).then_some(()));
        Self { scratch, process, metrics }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, word: &str) -> Command {
        let mut command = undermount();
        command.arg(word).env("UNDERMOUNT_CONFIG", self.path("agent.toml"));
        command
    }

    fn page(&self) -> Page {
        let (status, text) = get(&format!("http://{}/metrics", self.metrics));
        assert_eq!(status, 200);
        right(std::str::from_utf8(&text).unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(run(self.command("umount").arg("--lazy").arg(self.path("mnt")), SOON));
        self.process.signal(Signal::SIGTERM);
        self.process.wait(PATIENCE);
    }
}

fn right(text: &str) -> Page {
    Page::parse(text).unwrap_or_else(|wrong| panic!("{wrong:#?}\n{text}"))
}

fn listed(metrics: &[Metric]) -> BTreeSet<&'static str> {
    metrics.iter().map(|metric| metric.name).collect()
}

#[test]
fn an_agent_tells_what_its_reads_came_to() {
    if lacking(NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let small = [Member::file("one", "1111"), Member::file("two", "22")];
    let image = Image::of(&[&small, &[Member::file("bulk", noise(1, 3_000_000))]]);
    let reference = registry.push_image(&image, "image:1");
    let agent = Agent::start();
    let page = agent.page();
    assert_eq!(page.value("undermount_reads_total{source=\"registry\"}"), 0.0);
    assert_eq!(page.value("undermount_cache_quota_bytes"), f64::from(1 << 30));

    let dir = agent.path("mnt");
    fs::create_dir(&dir).unwrap();
    run(agent.command("mount").arg(&reference).arg(&dir), PATIENCE).success();
    // The small layer comes whole with the first read of it.
    assert_eq!(fs::read_to_string(dir.join("one")).unwrap(), "1111");
    assert_eq!(fs::read_to_string(dir.join("two")).unwrap(), "22");
    let page = agent.page();
    assert_eq!(page.value("undermount_reads_total{source=\"registry\"}"), 1.0);
    assert_eq!(page.value("undermount_read_bytes_total{source=\"registry\"}"), 4.0);
    assert_eq!(page.value("undermount_reads_total{source=\"cache\"}"), 1.0);
    assert_eq!(page.value("undermount_read_bytes_total{source=\"cache\"}"), 2.0);
    assert_eq!(page.value("undermount_read_wait_seconds_count"), 1.0);
    assert!(page.value("undermount_fetched_bytes_total{source=\"registry\"}") > 0.0);
    assert_eq!(page.value("undermount_fetched_bytes_total{source=\"peer\"}"), 0.0);
    assert_eq!(page.value("undermount_images{use=\"mount\"}"), 1.0);
    assert_eq!(page.value("undermount_reads_waiting"), 0.0);
    // No refusal has happened: there is no reason yet.
    let mut told = page.names();
    told.insert(names::FALLBACKS.name);
    assert_eq!(told, listed(names::AGENT), "what the documents list is what is told");
    the_slow_read_has_a_name(&agent, &reference);
}

#[test]
fn regression_what_an_agent_is_told_to_log_its_worker_logs() {
    if lacking(NEEDS) {
        return;
    }
    let flags = ["--log", "undermount::agent::figures=info", "--log-format", "json"];
    let agent = Agent::logging(&flags, &["\"message\":\"metrics are told\""]);
    assert!(!agent.process.stderr().contains("layer store is served"), "of another module");
}

fn the_slow_read_has_a_name(agent: &Agent, reference: &str) {
    let status = run(agent.command("status").arg("--json"), SOON).success().stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    let [read] = status["slowest_reads"].as_array().unwrap().as_slice() else {
        panic!("one read has waited: {status}")
    };
    assert_eq!(read["path"], "/one");
    assert_eq!(read["image"], reference);
    assert_eq!((read["source"].as_str(), read["length"].as_u64()), (Some("registry"), Some(4)));
    assert_eq!(read["supplier"].as_str(), reference.split('/').next());
    assert!(read["seconds"].as_f64() > Some(0.0) && read["fetched"].as_u64() > Some(0));
}

#[test]
fn a_read_that_fails_is_counted_and_the_debt_is_what_is_not_here() {
    if lacking(NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    let image = Image::of(&[&[Member::file("bulk", noise(1, 3_000_000))]]);
    let reference = registry.push_image(&image, "image:1");
    let agent = Agent::start();
    let dir = agent.path("mnt");
    fs::create_dir(&dir).unwrap();
    run(agent.command("mount").arg(&reference).arg(&dir), PATIENCE).success();
    // The first look at every file.
    assert_eq!(agent.page().value("undermount_lazy_debt_bytes"), 3_000_000.0);
    drop(registry);
    let file = dir.join("bulk");
    let reader = std::thread::spawn(move || fs::read(file));
    eventually("the read waits", SOON, || agent.page().value("undermount_reads_waiting") > 0.0);
    assert!(reader.join().unwrap().is_err());
    let page = agent.page();
    assert!(page.value("undermount_read_errors_total") > 0.0);
    assert_eq!(page.value("undermount_reads_waiting"), 0.0);
    let worker = run(agent.command("status").arg("--json"), SOON).success().stdout;
    let status: Value = serde_json::from_str(&worker).unwrap();
    assert!(status["slowest_reads"][0]["source"].is_null(), "{status}");
}

#[test]
fn a_registry_tells_what_it_did() {
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&scratch.path().join("registry"));
    registry.push_image(&Image::of(&[&[Member::file("a", "b")]]), "image:1");
    let (_, text) = get(&format!("http://{}/metrics", registry.address()));
    let page = right(std::str::from_utf8(&text).unwrap());
    assert!(page.value("undermount_registry_requests_total{method=\"PUT\",status=\"201\"}") > 0.0);
    assert!(page.value("undermount_registry_received_bytes_total") > 0.0);
    assert_eq!(page.names(), listed(names::REGISTRY));
}

fn packaged(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join("packaging").join(path)).unwrap()
}

/// All words of `text` that look like metrics.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("undermount_"));
    let family = |word| {
        let ending = ["_bucket", "_sum", "_count"].into_iter();
        ending.filter_map(|end| str::strip_suffix(word, end)).next().unwrap_or(word)
    };
    words.filter(|word| *word != "undermount_fs").map(family).collect()
}

#[test]
fn dashboard_and_documents_name_every_metric_and_no_other() {
    let all: BTreeSet<&str> = &listed(names::AGENT) | &listed(names::REGISTRY);
    let dashboard = packaged("grafana/undermount.json");
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().iter().all(|panel| panel["title"].is_string()));
    assert_eq!(named(&dashboard), all, "the dashboard");
    let document = packaged("doc/metrics.md");
    assert_eq!(named(&document), all, "the document");
    for metric in names::AGENT.iter().chain(names::REGISTRY) {
        let row = format!("| `{}` | {} |", metric.name, metric.help);
        assert!(document.contains(&row), "{row}");
    }
}
