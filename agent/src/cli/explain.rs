//! `undermount explain`: which way an image takes to a container, and why.

use std::io::Write as _;

use clap::Args;
use undermount::control::{ExplainRequest, Explanation};

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Log};

/// Tell which layers of an image podman reads lazily, and why it pulls the others
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The image, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl ExplainArgs {
    /// Asks, and prints the answer.
    pub async fn run(self) -> CliResult {
        let control = owner::running_or_started(&self.cache, Log::File).await?;
        let explanation = control.explain(&ExplainRequest { reference: self.reference }).await?;
        let words = match self.json {
            true => serde_json::to_string_pretty(&explanation)?,
            false => in_words(&explanation),
        };
        writeln!(std::io::stdout(), "{words}")?;
        Ok(Exit::Success)
    }
}

fn in_words(explanation: &Explanation) -> String {
    let Explanation { reference, manifest, layers } = explanation;
    let lazy = layers.iter().filter(|layer| layer.lazy).count();
    let mut words = format!(
        "{reference}\n  manifest  {manifest}\n  lazy      {lazy} of {} layers",
        layers.len()
    );
    for layer in layers {
        let way = if layer.lazy { "" } else { "podman pulls it: " };
        words += &format!("\n  {}  {way}{}", layer.layer, layer.reason);
    }
    words
}
