//! `undermount pin`: images that stay local.

use std::io::Write as _;

use clap::Args;
use undermount::control::PinRequest;

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Log};

/// Have the agent keep an image fully local, also after a restart
///
/// Returns when the image is known; its bytes arrive in the background (`undermount status`).
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The image, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
    /// Let it go again
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl PinArgs {
    /// Pins, and prints the digest of the manifest; or lets go.
    pub async fn run(self) -> CliResult {
        let control = owner::running_or_started(&self.cache, Log::File).await?;
        let request = PinRequest { reference: self.reference };
        if self.undo {
            control.unpin(&request).await?;
        } else {
            let pinned = control.pin(&request).await?;
            writeln!(std::io::stdout(), "{}", pinned.manifest)?;
        }
        Ok(Exit::Success)
    }
}
