//! `undermount readahead`: the process that reads files of a start ahead of it.

use std::path::PathBuf;

use clap::Args;
use undermount::agent::readahead;

use super::exit::{CliResult, Exit};

/// Read files that a start will need (started by a worker, which names them on standard input)
#[derive(Debug, Args)]
pub struct ReadaheadArgs {
    /// Directories that show an image, the uppermost layer first
    shown: Vec<PathBuf>,
}

impl ReadaheadArgs {
    /// Reads until standard input is at its end.
    pub fn run(self) -> CliResult {
        readahead::read_all(std::io::stdin().lock(), &self.shown)?;
        Ok(Exit::Success)
    }
}
