//! `undermount bench`: pull latency, as users feel it.

mod subjects;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use undermount::bench::link::Shape;
use undermount::bench::{self, BenchConfig, Report, Run, Variant};
use undermount::image::Reference;

use super::exit::{CliResult, Exit};
use super::profile::ReadyArgs;
use super::signals::cancelled_by_signals;
use subjects::Subject;

/// Measure how long a service takes until it is ready on a node that has nothing of its image
///
/// Each variant gets the image over the same shaped link, in turns, and starts the same command;
/// the kernel's caches are dropped before each run. With peers, a second agent of the bench's own,
/// on this machine as well, starts the image before. Takes root. The registry must be one that is
/// spoken to without TLS.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Images to measure, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF", required_unless_present = "from")]
    references: Vec<Reference>,
    /// File that names images: the environment file of `prepare`, or a list with one image a line,
    /// each followed by the command to start in it if that is not the image's own
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Command and arguments for all images that have none of their own [default: those of the
    /// image]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    ready: ReadyArgs,
    /// What to compare; the first is the reference [default: eager, lazy, pack,
    /// peers]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VARIANTS")]
    variants: Vec<Way>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Rate of the node's link, to the registry and to its peer: bits per second, with kbit, mbit or
    /// gbit [default: as it is]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    link: Option<u64>,
    /// Round trip of the link: milliseconds, with or without `ms`
    #[arg(long, value_name = "TIME", value_parser = milliseconds, default_value = "0")]
    rtt: u64,
    /// Seconds after which a start that is not ready has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Flag of podman to put before each of its commands, such as --podman-arg=--runtime=runc;
    /// may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    podman_arg: Vec<OsString>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also write a report with charts, one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A way to get an image, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Pulled with podman where it is installed, else pulled and unpacked by this program
    Eager,
    /// Pulled and unpacked by this program
    Unpack,
    /// Mounted, its packs left aside
    Lazy,
    /// Mounted, its start-up pack first
    Pack,
    /// As `pack`, beside a peer that has started the image before
    Peers,
}

/// A rate in bits per second.
pub(super) fn rate(word: &str) -> Result<u64, String> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((word.strip_suffix(name)?, unit)))
        .unwrap_or((word, 1));
    let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    rate.filter(|rate| *rate > 0).ok_or("expected a rate like 100mbit or 1gbit".to_owned())
}

/// A time of at most ten seconds.
pub(super) fn milliseconds(word: &str) -> Result<u64, String> {
    let number = word.strip_suffix("ms").unwrap_or(word).parse();
    number.ok().filter(|ms| *ms <= 10_000).ok_or("expected a time like 5ms".to_owned())
}

impl BenchArgs {
    /// Measures and reports.
    pub async fn run(self) -> CliResult {
        let (mut reports, interrupted) = (Vec::new(), cancelled_by_signals()?);
        for subject in self.subjects()? {
            reports.push(self.measure(subject, interrupted.clone()).await?);
        }
        if let Some(path) = &self.html {
            std::fs::write(path, bench::to_html(&reports))
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        let words = match self.json {
            true => serde_json::to_string_pretty(&json!({ "reports": reports }))?,
            false => reports.iter().map(Report::to_string).collect::<Vec<_>>().join("\n"),
        };
        writeln!(std::io::stdout(), "{}", words.trim_end())?;
        Ok(Exit::Success)
    }

    /// What is to be measured, in the order in which it was named.
    fn subjects(&self) -> CliResult<Vec<Subject>> {
        let subject = |reference: &Reference| Subject {
            reference: reference.clone(),
            command: self.command.clone(),
        };
        let mut subjects: Vec<Subject> = self.references.iter().map(subject).collect();
        for path in &self.from {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let named =
                subjects::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            subjects.extend(named.into_iter().map(|named| match named.command.is_empty() {
                true => subject(&named.reference),
                false => named,
            }));
        }
        Ok(subjects)
    }

    async fn measure(&self, subject: Subject, interrupted: CancellationToken) -> CliResult<Report> {
        let Subject { reference, command } = subject;
        let config = BenchConfig {
            program: std::env::current_exe()?,
            command: bench::program_of(&reference, command).await?,
            reference,
            ready: self.ready.mark(),
            limit: Duration::from_secs(self.limit),
            variants: self.variants().await,
            rounds: self.rounds.max(1),
            link: Shape { bits_per_second: self.link, rtt_ms: self.rtt },
            podman_flags: self.podman_arg.clone(),
        };
        Ok(bench::run(config, interrupted, tell).await?)
    }

    async fn variants(&self) -> Vec<Variant> {
        let default = vec![Way::Eager, Way::Lazy, Way::Pack, Way::Peers];
        let ways = if self.variants.is_empty() { default } else { self.variants.clone() };
        let eager = bench::eager_variant().await;
        let variant = |way| match way {
            Way::Eager => eager,
            Way::Unpack => Variant::Unpack,
            Way::Lazy => Variant::Lazy,
            Way::Pack => Variant::LazyPack,
            Way::Peers => Variant::LazyPeers,
        };
        ways.into_iter().map(variant).collect()
    }
}

/// Tells of a run as it ends.
fn tell(round: usize, run: &Run) {
    let seconds = run.ready_ms as f64 / 1000.0;
    // Nobody reads it when stderr is closed.
    let _ = writeln!(
        std::io::stderr(),
        "round {}: {} ready after {seconds:.2} s",
        round + 1,
        run.variant.name()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_are_read_with_their_units() {
        for (word, bits) in [("100mbit", 100_000_000), ("1gbit", 1_000_000_000), ("8000", 8_000)] {
            assert_eq!(rate(word), Ok(bits));
        }
        for word in ["", "0", "fast", "1tbit", "-1mbit", "99999999999999gbit"] {
            assert!(rate(word).is_err(), "{word}");
        }
        assert_eq!((milliseconds("5ms"), milliseconds("20")), (Ok(5), Ok(20)));
        assert!(milliseconds("1 minute").is_err());
    }
}
