//! Where events go: stderr, one line each.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::exit::CliResult;

/// What is logged and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Which events are logged, as `level` or `target=level,...` (error, warn, info, debug,
    /// trace) [default: info for services, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG")]
    log: Option<String>,
    /// How events are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// The shape of a logged line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends the process's events to stderr.
///
/// # Errors
/// Where the filter cannot be parsed, or a subscriber is installed already.
pub fn install(args: &LogArgs, default: &str) -> CliResult<()> {
    let words = args.log.as_deref().filter(|words| !words.is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(words)
        .map_err(|error| format!("`{words}` is not a log filter: {error}"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => lines.try_init()?,
        LogFormat::Json => lines.json().try_init()?,
    }
    Ok(())
}
