//! The command line: words in, an exit code out.
//!
//! Each subcommand is a file below `cli/` with a clap `Args` struct and a `run` method that
//! turns the words into a configuration, calls the library and prints the outcome. Nothing
//! below this module sees clap, the environment or the terminal.
//!
//! stdout is data, stderr is words ([`logging`], [`exit::report`]).

mod agent;
mod answer;
mod auth_helper;
mod bench;
mod bugreport;
mod cache;
mod client;
mod clock;
mod completions;
mod config;
mod demo;
mod doctor;
mod drain;
mod exit;
mod explain;
mod image;
mod logging;
mod man;
mod mount;
mod overcloud;
mod owner;
mod pack;
mod passwords;
mod peers;
mod pin;
mod prefetch;
mod prepare;
mod profile;
mod progress;
mod readahead;
mod registry;
mod service;
mod setup;
mod signals;
mod simulate;
mod status;
mod tripleo;
mod upgrade;
mod visit;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use exit::CliResult;
use logging::LogArgs;

/// Container images that start before they have arrived.
#[derive(Debug, Parser)]
#[command(name = "undermount", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::AgentArgs),
    Mount(mount::MountArgs),
    Umount(mount::UmountArgs),
    Pull(mount::PullArgs),
    Status(status::StatusArgs),
    Upgrade(upgrade::UpgradeArgs),
    Explain(explain::ExplainArgs),
    #[command(subcommand)]
    Cache(cache::Cache),
    Prefetch(prefetch::PrefetchArgs),
    Pin(pin::PinArgs),
    Drain(drain::DrainArgs),
    Peers(peers::PeersArgs),
    #[command(hide = true)]
    Keeper(owner::KeeperArgs),
    #[command(hide = true)]
    Worker(owner::WorkerArgs),
    #[command(hide = true)]
    Readahead(readahead::ReadaheadArgs),
    #[command(hide = true)]
    Visit(visit::VisitArgs),
    #[command(hide = true)]
    AuthHelper(auth_helper::AuthHelperArgs),
    Prepare(prepare::PrepareArgs),
    Registry(registry::RegistryArgs),
    #[command(subcommand)]
    Image(image::Image),
    #[command(subcommand)]
    Profile(profile::Profile),
    #[command(subcommand)]
    Pack(pack::Pack),
    Doctor(doctor::DoctorArgs),
    Bugreport(bugreport::BugreportArgs),
    Bench(bench::BenchArgs),
    Simulate(simulate::SimulateArgs),
    Demo(demo::DemoArgs),
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Setup(setup::Setup),
    #[command(subcommand)]
    Overcloud(overcloud::Overcloud),
    #[command(subcommand)]
    Tripleo(tripleo::Tripleo),
    #[command(hide = true)]
    Man(man::ManArgs),
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    #[command(subcommand, hide = true)]
    X(tripleo::Harness),
}

impl Command {
    /// What is logged when neither `--log` nor `RUST_LOG` says otherwise: services tell what
    /// they do, tools only what went wrong.
    fn default_log(&self) -> &'static str {
        match self {
            Self::Agent(_) | Self::Registry(_) => "info",
            _ => "warn",
        }
    }

    /// The file that gets the events beside stderr.
    fn log_file(&self) -> Option<PathBuf> {
        match self {
            Self::Tripleo(command) => command.log_file(),
            _ => None,
        }
    }

    /// Runs the command to its end. Each one chooses its runtime, since a process that holds
    /// mounts has other needs than one that serves HTTP. `log` has the processes that it starts log
    /// as this one.
    fn run(self, log: Vec<OsString>) -> CliResult {
        match self {
            Self::Agent(args) => args.run(log),
            Self::Mount(args) => block_on(args.run()),
            Self::Umount(args) => block_on(args.run()),
            Self::Pull(args) => block_on(args.run()),
            Self::Profile(command) => block_on(command.run()),
            Self::Pack(command) => block_on(command.run()),
            Self::Status(args) => block_on(args.run()),
            Self::Upgrade(args) => block_on(args.run()),
            Self::Explain(args) => block_on(args.run()),
            Self::Cache(command) => block_on(command.run()),
            Self::Prefetch(args) => block_on(args.run()),
            Self::Pin(args) => block_on(args.run()),
            Self::Drain(args) => block_on(args.run()),
            Self::Peers(args) => block_on(args.run()),
            Self::Keeper(args) => args.run(log),
            Self::Worker(args) => args.run(),
            Self::Readahead(args) => args.run(),
            Self::Visit(args) => args.run(),
            Self::AuthHelper(args) => args.run(),
            Self::Prepare(args) => block_on(args.run(prepare::Habits::OWN)),
            Self::Registry(args) => block_on(args.run()),
            Self::Image(command) => block_on(command.run()),
            Self::Doctor(args) => block_on(args.run()),
            Self::Bugreport(args) => block_on(args.run()),
            Self::Bench(args) => block_on(args.run()),
            Self::Simulate(args) => args.run(),
            Self::Demo(args) => block_on(args.run()),
            Self::Config(command) => command.run(),
            Self::Setup(command) => command.run(),
            Self::Overcloud(command) => block_on(command.run()),
            Self::Tripleo(command) => block_on(command.run()),
            Self::Man(args) => args.run(Cli::command()),
            Self::Completions(args) => args.run(Cli::command()),
            Self::X(verb) => block_on(verb.run()),
        }
    }
}

/// Parses the process's arguments, runs the command and reports its failure.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log_file = cli.command.log_file();
    if let Err(error) = logging::install(&cli.log, cli.command.default_log(), log_file.as_deref()) {
        return exit::report(error);
    }
    passwords::cover();
    // Fails only when a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let log = cli.log.handed(cli.command.default_log());
    match cli.command.run(log) {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(error),
    }
}

/// Runs `command` on a multi-threaded tokio runtime.
fn block_on(command: impl Future<Output = CliResult>) -> CliResult {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_consistent() {
        Cli::command().debug_assert();
    }
}
