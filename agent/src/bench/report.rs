//! What the runs of a bench come to.

use std::fmt;

use serde::Serialize;

use super::link::Shape;
use super::{BenchConfig, Run, Variant, html};

/// All runs and their summary.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The image.
    pub reference: String,
    /// What was started in it.
    pub command: String,
    /// The link.
    pub link: Shape,
    /// The machine, in words.
    pub machine: String,
    /// Bytes of the compressed layers.
    pub image_bytes: u64,
    /// One summary per variant; the first one is what the others are compared with.
    pub summaries: Vec<Summary>,
    /// All runs in the order in which they were made.
    pub runs: Vec<Run>,
}

/// The runs of a variant: medians, in milliseconds and bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Which one.
    pub variant: Variant,
    /// When the command could be started.
    pub brought_ms: u64,
    /// When it first said something.
    pub first_output_ms: u64,
    /// When it was ready.
    pub ready_ms: u64,
    /// The quickest and the slowest run until it was ready.
    pub ready_spread_ms: (u64, u64),
    /// How long a second start took.
    pub warm_ms: u64,
    /// Bytes from the registry until it was ready.
    pub bytes: u64,
    /// Requests to the registry until it was ready.
    pub requests: u64,
    /// Bytes from the neighbour until it was ready.
    pub peer_bytes: u64,
    /// `ready_ms` in parts of that of the first variant: the median over the rounds.
    pub ready_ratio: f64,
}

impl Report {
    /// The report of `runs`.
    pub fn new(config: &BenchConfig, image_bytes: u64, runs: Vec<Run>) -> Self {
        let of = |variant: Variant| -> Vec<&Run> {
            runs.iter().filter(|run| run.variant == variant).collect()
        };
        let first = config.variants.first().map(|variant| of(*variant)).unwrap_or_default();
        let summaries =
            config.variants.iter().map(|variant| Summary::new(*variant, &of(*variant), &first));
        Self {
            reference: config.reference.to_string(),
            command: config.command.in_words(),
            link: config.link,
            machine: machine(),
            image_bytes,
            summaries: summaries.collect(),
            runs,
        }
    }

    /// How often each variant was measured.
    pub fn rounds(&self) -> usize {
        self.runs.len() / self.summaries.len().max(1)
    }

    /// Whether a variant has a neighbour to get something from.
    pub fn has_peers(&self) -> bool {
        self.summaries.iter().any(|summary| summary.variant == Variant::LazyPeers)
    }
}

/// Reports of several images as one page that needs nothing else.
pub fn to_html(reports: &[Report]) -> String {
    html::render(reports)
}

impl Summary {
    fn new(variant: Variant, runs: &[&Run], first: &[&Run]) -> Self {
        let median_of = |figure: fn(&Run) -> u64| median(runs.iter().map(|run| figure(run)));
        let ready: Vec<u64> = runs.iter().map(|run| run.ready_ms).collect();
        let pairs = runs.iter().zip(first);
        let mut ratios: Vec<f64> =
            pairs.map(|(run, first)| run.ready_ms as f64 / first.ready_ms.max(1) as f64).collect();
        ratios.sort_by(f64::total_cmp);
        Self {
            variant,
            brought_ms: median_of(|run| run.brought_ms),
            first_output_ms: median_of(|run| run.first_output_ms.unwrap_or(run.ready_ms)),
            ready_ms: median_of(|run| run.ready_ms),
            ready_spread_ms: (
                ready.iter().min().copied().unwrap_or(0),
                ready.iter().max().copied().unwrap_or(0),
            ),
            warm_ms: median_of(|run| run.warm_ms),
            bytes: median_of(|run| run.traffic.bytes),
            requests: median_of(|run| run.traffic.requests.len() as u64),
            peer_bytes: median_of(|run| run.peer_bytes),
            ready_ratio: ratios.get(ratios.len() / 2).copied().unwrap_or(1.0),
        }
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Processor, cores and kernel of this machine.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, Linux {}", kernel.trim_end())
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits_per_second {
            Some(bits) => write!(f, "{} Mbit/s", bits / 1_000_000)?,
            None => f.write_str("unlimited")?,
        }
        write!(f, ", {} ms round trips", self.rtt_ms)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "{} ({:.1} MiB compressed)", self.reference, mebibytes(self.image_bytes))?;
        writeln!(f, "{}\nlink: {}; {}\n", self.command, self.link, self.machine)?;
        let has_peers = self.has_peers();
        writeln!(
            f,
            "{:<24} {:>9} {:>9} {:>9} {:>17} {:>7} {:>9} {:>9} {:>8}{}",
            "median of each",
            "brought",
            "output",
            "ready",
            "spread",
            "ratio",
            "warm",
            "MiB",
            "requests",
            if has_peers { "  peer MiB" } else { "" },
        )?;
        for summary in &self.summaries {
            let seconds = |milliseconds: u64| format!("{:.2} s", milliseconds as f64 / 1000.0);
            let (least, most) = summary.ready_spread_ms;
            let from_peers = format!(" {:>9.1}", mebibytes(summary.peer_bytes));
            writeln!(
                f,
                "{:<24} {:>9} {:>9} {:>9} {:>17} {:>7.2} {:>9} {:>9.1} {:>8}{}",
                summary.variant.name(),
                seconds(summary.brought_ms),
                seconds(summary.first_output_ms),
                seconds(summary.ready_ms),
                format!("{} - {}", seconds(least), seconds(most)),
                summary.ready_ratio,
                seconds(summary.warm_ms),
                mebibytes(summary.bytes),
                summary.requests,
                if has_peers { &from_peers } else { "" },
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::link::{Request, Traffic};
    use super::*;

    fn run(variant: Variant, ready_ms: u64) -> Run {
        let request = |begin_ms| Request {
            words: "GET /v2/<name>".into(),
            begin_ms,
            end_ms: begin_ms + 5,
            bytes: 10,
        };
        Run {
            variant,
            brought_ms: ready_ms / 4,
            first_output_ms: None,
            ready_ms,
            warm_ms: 1,
            traffic: Traffic {
                bytes: ready_ms * 10,
                requests: vec![request(0), request(3)],
                progress: vec![(1, 5), (ready_ms, ready_ms * 10)],
            },
            peer_bytes: if variant == Variant::LazyPeers { ready_ms << 20 } else { 0 },
        }
    }

    /// Three rounds of two variants.
    pub fn report() -> Report {
        report_of(Variant::LazyPack)
    }

    /// Three rounds of podman and `lazy`.
    pub fn report_of(lazy: Variant) -> Report {
        let config = BenchConfig {
            program: "undermount".into(),
            reference: "127.0.0.1:5000/nova-api:1".parse().unwrap(),
            command: crate::start::Program {
                command: vec!["nova-api".into()],
                environment: Vec::new(),
                directory: "/".to_owned(),
            },
            ready: crate::start::Ready::Exit,
            limit: std::time::Duration::from_secs(1),
            variants: vec![Variant::Podman, lazy],
            podman_flags: Vec::new(),
            rounds: 3,
            link: Shape { bits_per_second: Some(100_000_000), rtt_ms: 5 },
        };
        let runs = [(1000, 200), (3000, 300), (2000, 100)]
            .into_iter()
            .flat_map(|(eager, ms)| [run(Variant::Podman, eager), run(lazy, ms)]);
        Report::new(&config, 1 << 20, runs.collect())
    }

    #[test]
    fn medians_and_ratios_are_taken_over_the_rounds() {
        let report = report();
        let [eager, lazy] = report.summaries.as_slice() else { panic!("two variants") };
        assert_eq!((eager.ready_ms, eager.ready_spread_ms), (2000, (1000, 3000)));
        assert_eq!((lazy.ready_ms, lazy.ready_spread_ms), (200, (100, 300)));
        assert_eq!((lazy.bytes, lazy.requests), (2000, 2));
        assert!((eager.ready_ratio - 1.0).abs() < 1e-9);
        assert!((lazy.ready_ratio - 0.1).abs() < 1e-9, "{}", lazy.ready_ratio);
    }

    #[test]
    fn the_table_names_image_link_and_variants() {
        let text = report().to_string();
        for words in ["nova-api:1", "100 Mbit/s, 5 ms", "lazy with pack", "0.20 s", "0.10"] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }
    #[test]
    fn what_peers_sent_is_told_where_there_are_some() {
        let report = report_of(Variant::LazyPeers);
        let [eager, lazy] = report.summaries.as_slice() else { panic!("two variants") };
        assert_eq!((eager.peer_bytes, lazy.peer_bytes), (0, 200 << 20));
        let text = report.to_string();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(line("median of each").ends_with("requests  peer MiB"), "{text}");
        assert!(line("eager").ends_with("0.0") && line("lazy with peers").ends_with("200.0"));
        assert!(!report_of(Variant::LazyPack).to_string().contains("peer"));
    }
}
