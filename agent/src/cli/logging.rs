//! Where events go: stderr, one line each, and where the original has one, a log file.

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Mutex;

use clap::{Args, ValueEnum};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

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

impl LogArgs {
    /// What is logged, where `default` is when nobody says anything.
    fn words<'a>(&'a self, default: &'a str) -> &'a str {
        self.log.as_deref().filter(|words| !words.is_empty()).unwrap_or(default)
    }

    /// The arguments that have a process of ours, started by this one, log as this one does.
    pub fn handed(&self, default: &str) -> Vec<OsString> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        ["--log", self.words(default), "--log-format", format].map(OsString::from).to_vec()
    }
}

/// Sends the process's events to stderr, and those from info on to `file` as well.
///
/// # Errors
/// Where the filter cannot be parsed, the file cannot be written, or a subscriber is installed
/// already.
pub fn install(args: &LogArgs, default: &str, file: Option<&Path>) -> CliResult<()> {
    let words = args.words(default);
    let filter = EnvFilter::try_new(words)
        .map_err(|error| format!("`{words}` is not a log filter: {error}"))?;
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match args.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let written = file.map(open).transpose()?.map(|file| {
        let lines = fmt::layer().with_writer(Mutex::new(file)).with_ansi(false);
        lines.with_filter(EnvFilter::new("info"))
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(written).try_init()?;
    Ok(())
}

fn open(path: &Path) -> Result<File, String> {
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|error| format!("cannot write the log file {}: {error}", path.display()))
}
