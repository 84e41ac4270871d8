//! `undermount image list`.

use std::io::Write as _;

use clap::Args;
use undermount::inventory::{Holder, Listed, Wanted, list};

use super::{ReachArgs, bytes};
use crate::cli::exit::{CliResult, Exit};

/// List the images of a registry or tree, with their digests and sizes
#[derive(Debug, Args)]
pub struct ListArgs {
    /// HOST[:PORT] or image-serve:DIR; with a repository after it, only that one
    place: Wanted,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl ListArgs {
    /// Prints the images.
    pub async fn run(self) -> CliResult {
        let holder = Holder::open(self.place.place).await?;
        let repository = self.place.image.as_deref().map(|path| holder.repository(path));
        let client = self.reach.client();
        let listed = list(&client, &holder.host, repository.transpose()?.as_ref()).await?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&listed)? + "\n",
            false => table(&holder, &listed),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

fn table(holder: &Holder, listed: &[Listed]) -> String {
    let name = |image: &Listed| holder.place.name(&format!("{}:{}", image.repository, image.tag));
    let width = listed.iter().map(|image| name(image).len()).max().unwrap_or_default();
    let line = |image: &Listed| {
        let size = bytes(image.size);
        format!("{:width$}  {}  {size:>10}\n", name(image), image.digest)
    };
    listed.iter().map(line).collect()
}
