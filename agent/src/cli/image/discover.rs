//! `undermount image discover`.

use std::io::Write as _;

use clap::Args;
use undermount::image::Platform;
use undermount::inventory::Wanted;
use undermount::prepare::discover::tag_of_labels;
use undermount::prepare::label::TagLabel;
use undermount::prepare::sources::Sources;

use super::{ReachArgs, open_image};
use crate::cli::exit::{CliResult, Exit};

/// Print the tag that an image's labels tell, as `prepare` finds it
#[derive(Debug, Args)]
pub struct DiscoverArgs {
    /// HOST[:PORT]/PATH[:TAG] or image-serve:DIR:PATH[:TAG]
    image: Wanted,
    /// Label with the tag, or labels in braces: rdo_version, {version}-{release}
    #[arg(long, value_name = "LABEL")]
    tag_from_label: Option<String>,
    #[command(flatten)]
    reach: ReachArgs,
}

impl DiscoverArgs {
    /// Prints the tag.
    pub async fn run(self) -> CliResult {
        let name = self.image.to_string();
        let (holder, image) = open_image(self.image).await?;
        let label = self.tag_from_label.as_deref().map(TagLabel::parse).transpose()?;
        let sources = Sources::new(self.reach.client(), Platform::host(), std::env::temp_dir());
        let reference = holder.reference(&image)?;
        let tag = tag_of_labels(&reference, &name, label.as_ref(), &sources).await?;
        writeln!(std::io::stdout(), "{tag}")?;
        Ok(Exit::Success)
    }
}
