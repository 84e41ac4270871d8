//! `undermount config`: whether the configuration can be used, and what it comes to. Also how
//! every other command finds it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use undermount::config::{ConfigError, DEFAULT_FILE, Settings};

use super::client::default_config;
use super::exit::{CliResult, Exit};

/// Which configuration file counts.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: /etc/undermount/agent.toml, where it exists]
    #[arg(long, value_name = "FILE", env = "UNDERMOUNT_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// What the file says; the defaults where none is named and none exists.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        self.config.as_deref().map_or_else(Settings::load_default, Settings::load)
    }

    /// The file that counts, whether or not it exists.
    pub fn path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }
}

/// Check or show the configuration
#[derive(Debug, Subcommand)]
pub enum Config {
    Check(CheckArgs),
    Show(ShowArgs),
}

impl Config {
    /// Runs the command.
    pub fn run(self) -> CliResult {
        match self {
            Self::Check(args) => args.run(),
            Self::Show(args) => args.run(),
        }
    }
}

/// Tell whether the configuration file can be used
///
/// A mistake is told with its line and with what is allowed there; the exit status is then 1.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

impl CheckArgs {
    fn run(self) -> CliResult {
        // A file that is to be checked has to be there.
        let settings = Settings::load(self.config.path())?;
        settings.client(default_config())?;
        writeln!(std::io::stdout(), "{} is valid", self.config.path().display())?;
        Ok(Exit::Success)
    }
}

/// Show what holds: the configuration file with the defaults for what it leaves out
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl ShowArgs {
    fn run(self) -> CliResult {
        let settings = self.config.settings()?;
        let words = match self.json {
            true => serde_json::to_string_pretty(&settings)?,
            false => settings.to_toml().trim_end().to_owned(),
        };
        writeln!(std::io::stdout(), "{words}")?;
        Ok(Exit::Success)
    }
}
