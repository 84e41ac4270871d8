//! `undermount image show`.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use undermount::image::Platform;
use undermount::inventory::{IndexState, Shown, Wanted, show};

use super::{ReachArgs, bytes, open_image};
use crate::cli::exit::{CliResult, Exit};

/// Show an image: its manifest, configuration, layers, and whether it can be mounted lazily
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// HOST[:PORT]/PATH[:TAG|@DIGEST] or image-serve:DIR:PATH[:TAG|@DIGEST]
    image: Wanted,
    /// Platform of which an index's image is shown [default: this host's]
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl ShowArgs {
    /// Prints what is known of the image.
    pub async fn run(self) -> CliResult {
        let name = self.image.to_string();
        let (holder, image) = open_image(self.image).await?;
        let platform = self.platform.unwrap_or_else(Platform::host);
        let client = self.reach.client();
        let shown = show(&client, &holder.reference(&image)?, &platform).await?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&shown)? + "\n",
            false => in_words(&name, &shown),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

fn in_words(name: &str, shown: &Shown) -> String {
    let index = match &shown.index {
        IndexState::None => "none: each node builds its own".to_owned(),
        IndexState::Present { artifact, layers, packs } => {
            format!("{artifact} ({layers} layers, {packs} packs)")
        }
        IndexState::Ambiguous { artifacts } => {
            format!("{artifacts} artifacts that differ: nodes use none of them")
        }
    };
    let mut text = format!("{name}\n");
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {key:9} {value}");
    };
    line("digest", &shown.digest.to_string());
    line("type", &shown.media_type);
    for (platform, digest) in &shown.platforms {
        line("platform", &format!("{platform} {digest}"));
    }
    if shown.image != shown.digest {
        line("image", &shown.image.to_string());
    }
    line("platform", &shown.platform.to_string());
    line("created", shown.created.as_deref().unwrap_or("unknown"));
    line("config", &shown.config.to_string());
    line("size", &bytes(shown.size));
    for layer in &shown.layers {
        line("layer", &format!("{} {:>10} {}", layer.digest, bytes(layer.size), layer.media_type));
    }
    line("index", &index);
    line("tags", &shown.tags.join(", "));
    for (key, value) in &shown.labels {
        line("label", &format!("{key}={value}"));
    }
    text
}
