//! `undermount profile`: what starts of an image read.

mod record;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermount::image::Repository;
use undermount::profile::{self, FileUnit, Profiles, StartRecord};
use undermount_fs::digest::Digest;

use super::exit::{CliResult, Exit};

pub use record::{ReadyArgs, RecordArgs};

/// Record and keep what starts of an image read: start-up packs are made from it
#[derive(Debug, Subcommand)]
pub enum Profile {
    Record(RecordArgs),
    List(ListArgs),
    Show(ShowArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Rm(RmArgs),
}

impl Profile {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        match self {
            Self::Record(args) => args.run().await,
            Self::List(args) => args.run(),
            Self::Show(args) => args.run(),
            Self::Export(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Rm(args) => args.run(),
        }
    }
}

/// Where profiles are kept
#[derive(Debug, Clone, Args)]
pub struct ProfilesArgs {
    /// Directory of the profiles
    #[arg(long, value_name = "DIR", default_value = "/var/lib/undermount/profiles")]
    profiles: PathBuf,
}

impl ProfilesArgs {
    /// The profiles there.
    pub fn open(&self) -> Profiles {
        Profiles::new(self.profiles.clone())
    }

    /// The files of the profiles of the image `manifest`, else of another one of its repository.
    pub fn files(&self, repository: &Repository, manifest: &Digest) -> CliResult<Vec<PathBuf>> {
        let dated = self.open().dated(|record| record.is_of(repository.path()))?;
        let fitting = profile::fitting(dated, manifest);
        let file = |record: &StartRecord| self.profiles.join(format!("{}.json", record.name()));
        Ok(fitting.iter().map(file).collect())
    }
}

/// List the profiles
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    profiles: ProfilesArgs,
}

impl ListArgs {
    fn run(self) -> CliResult {
        let mut out = std::io::stdout();
        for (name, record) in self.profiles.open().list()? {
            let units = record.common_units().len();
            let (starts, reference, command) =
                (record.starts(), &record.reference, &record.command);
            writeln!(out, "{name}  {starts} starts  {units} units  {reference}  {command}")?;
        }
        Ok(Exit::Success)
    }
}

/// Show one profile
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its name, as `list` shows it
    name: String,
    #[command(flatten)]
    profiles: ProfilesArgs,
}

impl ShowArgs {
    fn run(self) -> CliResult {
        let record = self.profiles.open().get(&self.name)?;
        let mut out = std::io::stdout();
        writeln!(out, "image     {}\nmanifest  {}", record.reference, record.manifest)?;
        writeln!(out, "command   {}\nstarts    {}", record.command, record.starts())?;
        for FileUnit { path, number } in record.common_units() {
            // A file above 1 MiB has several units.
            let part = if number == 0 { String::new() } else { format!("  from {number} MiB on") };
            writeln!(out, "/{path}{part}")?;
        }
        Ok(Exit::Success)
    }
}

/// Print a profile as JSON, to be imported elsewhere
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Its name, as `list` shows it
    name: String,
    #[command(flatten)]
    profiles: ProfilesArgs,
}

impl ExportArgs {
    fn run(self) -> CliResult {
        let record = self.profiles.open().get(&self.name)?;
        let mut out = std::io::stdout();
        out.write_all(&record.to_json())?;
        writeln!(out)?;
        Ok(Exit::Success)
    }
}

/// Keep profiles that were exported, together with those of the same command
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Files that `export` wrote
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    profiles: ProfilesArgs,
}

impl ImportArgs {
    fn run(self) -> CliResult {
        let profiles = self.profiles.open();
        // All are read before any is kept: a damaged one changes nothing.
        let records =
            self.files.iter().map(|file| profile::read(file)).collect::<Result<Vec<_>, _>>()?;
        for record in records {
            writeln!(std::io::stdout(), "{}", profiles.add(record)?)?;
        }
        Ok(Exit::Success)
    }
}

/// Remove profiles
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Their names, as `list` shows them
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    profiles: ProfilesArgs,
}

impl RmArgs {
    fn run(self) -> CliResult {
        let profiles = self.profiles.open();
        for name in &self.names {
            profiles.remove(name)?;
        }
        Ok(Exit::Success)
    }
}
