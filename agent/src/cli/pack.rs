//! `undermount pack`: contents that nodes fetch together.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermount::control::{PackRequest, PullRequest};
use undermount::image::{Platform, Reference};
use undermount::registry::client::Client;

use super::client::default_config;
use super::exit::{CliResult, Exit};
use super::mount::ImageArgs;
use super::owner::{self, CacheArgs, Log};
use super::profile::ProfilesArgs;

/// Build packs: what a start reads, or what an update changes, as one stream
#[derive(Debug, Subcommand)]
pub enum Pack {
    Build(BuildArgs),
}

impl Pack {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        match self {
            Self::Build(args) => args.run().await,
        }
    }
}

/// Build a pack and attach it to its image, with the image's index
///
/// Without `--update-from` it is the start-up pack, of what the image's profiles say.
#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Profile of a start of this image or of an earlier build of it, a file that `undermount
    /// profile export` wrote (repeatable) [default: those of the image in the directory of the
    /// profiles, else those of its repository's latest recorded image]
    #[arg(long = "profile", value_name = "FILE", conflicts_with = "update_from")]
    files: Vec<PathBuf>,
    /// Build an update pack for nodes that have this image
    #[arg(long, value_name = "REF")]
    update_from: Option<String>,
    #[command(flatten)]
    profiles: ProfilesArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl BuildArgs {
    async fn run(self) -> CliResult {
        let image: PullRequest = self.image.clone().into();
        let profiles = match &self.update_from {
            Some(_) => Vec::new(),
            None => self.profile_files(&image).await?,
        };
        let control = owner::running_or_started(&self.cache, Log::File).await?;
        let request = PackRequest { image, profiles, update_from: self.update_from };
        let manifest = control.pack(&request, |_| {}).await?;
        writeln!(std::io::stdout(), "{manifest}")?;
        Ok(Exit::Success)
    }

    async fn profile_files(&self, image: &PullRequest) -> CliResult<Vec<PathBuf>> {
        let absolute = |file: &PathBuf| std::path::absolute(file);
        if !self.files.is_empty() {
            return Ok(self.files.iter().map(absolute).collect::<Result<_, _>>()?);
        }
        let reference: Reference = image.reference.parse()?;
        let client = Client::new(default_config());
        if image.plain_http {
            client.allow_plain_http(reference.repository().host());
        }
        let manifest = client.image(&reference, &Platform::host()).await?.raw.digest;
        let files = self.profiles.files(reference.repository(), &manifest)?;
        if files.is_empty() {
            let words = format!(
                "there is no profile of {reference} ({manifest}): record one with \
                 `undermount profile record {reference} -- COMMAND`"
            );
            return Err(words.into());
        }
        Ok(files)
    }
}
