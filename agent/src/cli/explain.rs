//! `undermount explain`: which way an image takes to a container, and why.

use clap::Args;
use undermount::control::{ExplainRequest, Explanation};

use super::answer::AskArgs;
use super::exit::CliResult;
use super::owner::{self, Log};

/// Tell which layers of an image podman reads lazily, and why it pulls the others
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The image, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
    #[command(flatten)]
    ask: AskArgs,
}

impl ExplainArgs {
    /// Asks, and prints the answer.
    pub async fn run(self) -> CliResult {
        let control = owner::running_or_started(&self.ask.cache, Log::File).await?;
        let explanation = control.explain(&ExplainRequest { reference: self.reference }).await?;
        self.ask.tell(&explanation, in_words)
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
