//! `undermount visit`: the process that looks at paths which are gone, so that the kernel hears
//! of it.

use std::path::PathBuf;

use clap::Args;
use undermount::agent::layers;

use super::exit::{CliResult, Exit};

/// Look at paths (started by a worker, which has taken them away)
#[derive(Debug, Args)]
pub struct VisitArgs {
    /// The paths
    paths: Vec<PathBuf>,
}

impl VisitArgs {
    /// Looks at each once.
    #[expect(clippy::unnecessary_wraps, reason = "as all commands do")]
    pub fn run(self) -> CliResult {
        layers::look_at(&self.paths);
        Ok(Exit::Success)
    }
}
