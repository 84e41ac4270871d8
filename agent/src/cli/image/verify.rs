//! `undermount image verify`.

use std::io::Write as _;

use clap::Args;
use undermount::image::Reference;
use undermount::inventory::{Checked, Holder, Wanted, verify};
use undermount::registry::client::Client;

use super::{ReachArgs, bytes};
use crate::cli::exit::{CliResult, Exit};

/// Read and hash every byte of images; exit with 1 where something is damaged and stays so
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// HOST[:PORT] or image-serve:DIR for all tagged images, or one image there
    place: Wanted,
    /// Registry or tree to bring from what is damaged; it has the images under the same paths
    #[arg(long, value_name = "PLACE")]
    from: Option<Wanted>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl VerifyArgs {
    /// Checks and repairs, and prints what was found.
    pub async fn run(self) -> CliResult {
        let client = self.reach.client();
        let holder = Holder::open(self.place.place).await?;
        let source = match self.from {
            Some(Wanted { image: Some(image), place }) => {
                let name = place.name(&image);
                return Err(format!("--from is a registry or tree, `{name}` is an image").into());
            }
            Some(from) => Some(Holder::open(from.place).await?),
            None => None,
        };
        let images = match &self.place.image {
            Some(image) => vec![holder.reference(image)?],
            None => tagged(&client, &holder).await?,
        };
        let checked = verify(&client, &holder, &images, source.as_ref()).await?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&checked)? + "\n",
            false => in_words(&holder, &checked),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(if checked.is_whole() { Exit::Success } else { Exit::Failure })
    }
}

/// All tagged images. What cannot be read is among them: their tags can.
async fn tagged(client: &Client, holder: &Holder) -> CliResult<Vec<Reference>> {
    let mut images = Vec::new();
    for path in client.catalog(&holder.host).await? {
        let repository = holder.repository(&path)?;
        for tag in client.tags(&repository).await? {
            images.push(repository.tagged(tag.parse()?));
        }
    }
    Ok(images)
}

fn in_words(holder: &Holder, checked: &Checked) -> String {
    let mut text: String = checked
        .damage
        .iter()
        .map(|damage| {
            let name = holder.place.name(&damage.image);
            let what = damage.digest.map_or_else(String::new, |digest| format!(": {digest}"));
            let state = if damage.repaired { "repaired" } else { "damaged" };
            format!("{state} {name}{what}: {}\n", damage.reason)
        })
        .collect();
    let Checked { manifests, blobs, bytes: read, damage } = checked;
    text.push_str(&format!(
        "{manifests} manifests, {blobs} blobs, {} read, {} damaged\n",
        bytes(*read),
        damage.iter().filter(|damage| !damage.repaired).count()
    ));
    text
}
