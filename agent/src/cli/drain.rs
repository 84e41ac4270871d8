//! `undermount drain`: offer podman nothing new.

use std::io::Write as _;

use clap::Args;
use undermount::control::DrainRequest;

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs};

/// Have the agent offer podman no layer that it does not use already
///
/// New images are then pulled as if there were no agent; what podman uses stays usable. Prints the
/// images that still depend on the agent: remove their containers and images before you remove
/// the agent.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Offer layers again
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl DrainArgs {
    /// Tells the agent, and prints what depends on it.
    pub async fn run(self) -> CliResult {
        let Some(control) = owner::running(&self.cache).await? else {
            return Err("no agent owns this cache".into());
        };
        let dependants = control.drain(&DrainRequest { drained: !self.undo }).await?;
        for name in dependants.images.iter().chain(&dependants.mounts) {
            writeln!(std::io::stdout(), "{name}")?;
        }
        Ok(Exit::Success)
    }
}
