//! `undermount pack`: contents that nodes fetch together.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermount::control::{PackRequest, PullRequest};
use undermount::image::artifact::pack::Purpose;
use undermount::image::{Platform, Reference};
use undermount::registry::client::Client;
use undermount_fs::digest::Digest;

use super::client::{ClientArgs, default_config};
use super::config::ConfigArgs;
use super::exit::{CliResult, Exit};
use super::mount::ImageArgs;
use super::owner::{self, CacheArgs, Log};
use super::profile::ProfilesArgs;

/// Build packs, of what a start reads or an update changes, as one stream; remove them
#[derive(Debug, Subcommand)]
pub enum Pack {
    Build(BuildArgs),
    Rm(RmArgs),
}

impl Pack {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        match self {
            Self::Build(args) => args.run().await,
            Self::Rm(args) => args.run().await,
        }
    }
}

/// Build a pack and attach it to its image, with the image's index
///
/// Without `--update-from` it is the start-up pack, of what the image's profiles say. No registry
/// replaces it by one of its own until it is removed.
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
        let client = Client::new(self.cache.settings()?.client(default_config())?);
        let (reference, manifest) = resolve(&client, &image.reference, image.plain_http).await?;
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

/// Remove a pack from its image
///
/// From then on an `undermount registry` makes start-up packs of the image by itself again, at once
/// where nodes have told it of starts.
#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Remove the update pack for nodes that have this image [default: the start-up pack]
    #[arg(long, value_name = "REF")]
    update_from: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    registries: ClientArgs,
}

impl RmArgs {
    async fn run(self) -> CliResult {
        let config = self.config.settings()?.client(default_config())?;
        let client = Client::new(self.registries.over(config));
        let PullRequest { reference, plain_http } = self.image.into();
        let (image, manifest) = resolve(&client, &reference, plain_http).await?;
        let (purpose, what) = match &self.update_from {
            None => (Purpose::Start, "start-up pack".to_owned()),
            Some(predecessor) => {
                let (_, before) = resolve(&client, predecessor, plain_http).await?;
                (Purpose::Update(before), format!("update pack from {predecessor}"))
            }
        };
        if !client.detach_pack(image.repository(), &manifest, purpose).await? {
            return Err(format!("{image} ({manifest}) has no {what}").into());
        }
        writeln!(std::io::stdout(), "{manifest}")?;
        Ok(Exit::Success)
    }
}

/// The image that `text` names for this host, and the digest of its manifest.
async fn resolve(client: &Client, text: &str, plain_http: bool) -> CliResult<(Reference, Digest)> {
    let reference: Reference = text.parse()?;
    if plain_http {
        client.allow_plain_http(reference.repository().host());
    }
    let manifest = client.image(&reference, &Platform::host()).await?.raw.digest;
    Ok((reference, manifest))
}
