//! `undermount simulate`: how a cluster of many nodes would fare.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use undermount::config::value::{ByteCount, from_word};
use undermount::simulate::{Join, Scenario, Strategy, simulate};

use super::bench::{milliseconds, rate};
use super::exit::{CliResult, Exit};

/// Nodes beyond which a run would take hours.
const MOST_NODES: u64 = 10_000;
/// Pieces of all nodes beyond which their state would not fit in memory.
const MOST_PIECES: u64 = 100_000_000;

/// Simulate a cluster of nodes that all want the same images at once
///
/// The code that decides where pieces are, whom to ask and when to ask somebody else is the
/// agent's own; links, clock and failures are simulated. The same flags and seed give the same
/// numbers. 1000 nodes with the default set take about a minute and 1 GB of memory.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Nodes
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=MOST_NODES))]
    nodes: u64,
    /// Where nodes get their pieces
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Way::Peers)]
    strategy: Way,
    /// Bytes that each node wants, also with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>, default_value = "8000000000")]
    set: ByteCount,
    /// Bytes of it that each node wants first, in the same order as all others
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>, default_value = "1250000000")]
    working_set: ByteCount,
    /// Mean size of a piece
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>, default_value = "2 MiB")]
    piece: ByteCount,
    /// Time over which the nodes begin, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    spread: Duration,
    /// What decides all that is left to chance
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Links and who knows of whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// Rate of the registry's link: bits per second, with kbit, mbit or gbit
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "10gbit")]
    registry_link: u64,
    /// Rate of a node's link in either direction
    #[arg(long, value_name = "RATE", value_parser = rate, default_value = "10gbit")]
    node_link: u64,
    /// Nodes whose links are slow, in percent
    #[arg(long, value_name = "PERCENT", value_parser = part, default_value = "2")]
    slow: f64,
    /// How many times slower they are
    #[arg(long, value_name = "FACTOR", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    slow_factor: u32,
    /// Nodes that die without a word while they fetch, in percent
    #[arg(long, value_name = "PERCENT", value_parser = part, default_value = "1")]
    dead: f64,
    /// Let nodes join at the moment when they begin to fetch, so that the others hear of it only
    /// after up to so many milliseconds [default: all have joined before]
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    late_join: Option<u64>,
}

/// What a node does at a time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Node")]
struct NodeArgs {
    /// Pieces of the working set that a node fetches at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    window: u32,
    /// Other pieces that it fetches at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    background: u32,
}

/// [`Strategy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From each other
    Peers,
    /// All from the registry
    NoPeers,
}

fn part(word: &str) -> Result<f64, &'static str> {
    let percent = word.strip_suffix('%').unwrap_or(word).parse::<f64>().ok();
    let part = percent.filter(|percent| (0.0..=90.0).contains(percent)).map(|p| p / 100.0);
    part.ok_or("expected a percentage from 0 to 90")
}

fn seconds(word: &str) -> Result<Duration, &'static str> {
    let seconds = word.parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or("expected seconds from 0 to 3600")
}

impl SimulateArgs {
    /// Simulates and prints what came of it.
    pub fn run(self) -> CliResult {
        let scenario = self.scenario()?;
        let outcome = simulate(&scenario);
        let words = match self.json {
            true => serde_json::to_string_pretty(
                &serde_json::json!({ "scenario": scenario, "outcome": outcome }),
            )?,
            false => outcome.to_string(),
        };
        writeln!(std::io::stdout(), "{}", words.trim_end())?;
        Ok(Exit::Success)
    }

    fn scenario(&self) -> Result<Scenario, String> {
        let (set, piece) = (self.set.get(), self.piece.get().max(1));
        let pieces = (set / piece).saturating_mul(self.nodes);
        if pieces > MOST_PIECES {
            return Err(format!(
                "{} nodes with {} pieces each are too much: take a smaller --set, larger --piece \
                 or fewer --nodes, for at most {MOST_PIECES} pieces in all",
                self.nodes,
                set / piece
            ));
        }
        if self.working_set.get() > set {
            return Err("--working-set is larger than --set".to_owned());
        }
        let (network, node) = (&self.network, &self.node);
        let late = |ms| Join::WithTheWave { delay: Duration::from_millis(ms) };
        Ok(Scenario {
            nodes: usize::try_from(self.nodes).expect("it was held to its limit"),
            set,
            working_set: self.working_set.get(),
            piece,
            registry_link: network.registry_link as f64 / 8.0,
            node_link: network.node_link as f64 / 8.0,
            slow: network.slow,
            slow_factor: network.slow_factor.into(),
            dead: network.dead,
            spread: self.spread,
            join: network.late_join.map_or(Join::Before, late),
            window: node.window as usize,
            background: node.background as usize,
            strategy: match self.strategy {
                Way::Peers => Strategy::Peers,
                Way::NoPeers => Strategy::NoPeers,
            },
            seed: self.seed,
            ..Scenario::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn scenario(words: &[&str]) -> Result<Scenario, String> {
        let words = ["simulate"].iter().chain(words);
        let parsed = Words::try_parse_from(words).map_err(|error| error.to_string())?;
        parsed.args.scenario()
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        assert_eq!(scenario(&[]), Ok(Scenario::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (words, expected) in [
            (&["--nodes", "0"][..], "1..=10000"),
            (&["--set", "1 GiB", "--working-set", "2 GiB"], "--working-set is larger than --set"),
            (&["--nodes", "10000", "--set", "1 TiB"], "at most 100000000 pieces in all"),
            (&["--slow", "91"], "a percentage from 0 to 90"),
            (&["--spread=-1"], "seconds from 0 to 3600"),
            (&["--registry-link", "0"], "a rate like"),
        ] {
            let refusal = scenario(words).unwrap_err();
            assert!(refusal.contains(expected), "{words:?}: {refusal}");
        }
    }
}
