//! `undermount man`: the manual pages, for the packages.

use std::path::PathBuf;

use clap::Args;

use super::exit::{CliResult, Exit};

/// Write the manual pages of all commands into a directory
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory, which must exist
    dir: PathBuf,
}

impl ManArgs {
    /// Writes `undermount.1`, `undermount-mount.1` and so on.
    pub fn run(self, command: clap::Command) -> CliResult {
        clap_mangen::generate_to(command, &self.dir).map_err(|error| {
            format!("cannot write manual pages to {}: {error}", self.dir.display())
        })?;
        Ok(Exit::Success)
    }
}
