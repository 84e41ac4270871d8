//! `undermount bench`: pull latency, as users feel it.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use undermount::bench::link::Shape;
use undermount::bench::{self, BenchConfig, Run, Variant};
use undermount::image::Reference;

use super::exit::{CliResult, Exit};
use super::profile::ReadyArgs;

/// Measure how long a service takes until it is ready on a node that has nothing of its image
///
/// Each variant gets the image over the same shaped link, in turns, and starts the same command;
/// the kernel's caches are dropped before each run. Takes root. The registry must be one that is
/// spoken to without TLS.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Image to measure, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: Reference,
    /// Command and arguments [default: those of the image]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    ready: ReadyArgs,
    /// What to compare; the first is the reference [default: eager, lazy, pack]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VARIANTS")]
    variants: Vec<Way>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Rate of the link to the registry: bits per second, with kbit, mbit or gbit [default: as it
    /// is]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    link: Option<u64>,
    /// Round trip of the link: milliseconds, with or without `ms`
    #[arg(long, value_name = "TIME", value_parser = milliseconds, default_value = "0")]
    rtt: u64,
    /// Seconds after which a start that is not ready has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
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
}

fn rate(word: &str) -> Result<u64, String> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((word.strip_suffix(name)?, unit)))
        .unwrap_or((word, 1));
    let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    rate.filter(|rate| *rate > 0).ok_or("expected a rate like 100mbit or 1gbit".to_owned())
}

fn milliseconds(word: &str) -> Result<u64, String> {
    let number = word.strip_suffix("ms").unwrap_or(word).parse();
    number.ok().filter(|ms| *ms <= 10_000).ok_or("expected a time like 5ms".to_owned())
}

impl BenchArgs {
    /// Measures and reports.
    pub async fn run(self) -> CliResult {
        let command = bench::program_of(&self.reference, self.command.clone()).await?;
        let config = BenchConfig {
            program: std::env::current_exe()?,
            reference: self.reference.clone(),
            command,
            ready: self.ready.mark(),
            limit: Duration::from_secs(self.limit),
            variants: self.variants().await,
            rounds: self.rounds.max(1),
            link: Shape { bits_per_second: self.link, rtt_ms: self.rtt },
        };
        let report = bench::run(config, tell).await?;
        if let Some(path) = &self.html {
            std::fs::write(path, report.to_html())
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        let words = match self.json {
            true => serde_json::to_string_pretty(&report)?,
            false => report.to_string(),
        };
        writeln!(std::io::stdout(), "{}", words.trim_end())?;
        Ok(Exit::Success)
    }

    async fn variants(&self) -> Vec<Variant> {
        let default = vec![Way::Eager, Way::Lazy, Way::Pack];
        let ways = if self.variants.is_empty() { default } else { self.variants.clone() };
        let eager = bench::eager_variant().await;
        let variant = |way| match way {
            Way::Eager => eager,
            Way::Unpack => Variant::Unpack,
            Way::Lazy => Variant::Lazy,
            Way::Pack => Variant::LazyPack,
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
