//! `undermount prefetch`: bring in whole images before anybody needs them.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use undermount::control::{Failure, PullRequest};
use undermount::image::Reference;
use undermount::prepare::named::NamedImages;

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Log};

/// Fetch all of several images, one after the other
///
/// An image that cannot be fetched is told on stderr and the others are fetched all the same; the
/// exit status is then 1.
#[derive(Debug, Args)]
pub struct PrefetchArgs {
    /// Images, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF", required_unless_present = "from")]
    references: Vec<Reference>,
    /// File that names images: the environment file of `prepare`, or a list with one name a line
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Speak to all their registries without TLS [default: to those that the environment file
    /// calls insecure, and on loopback addresses]
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl PrefetchArgs {
    /// Fetches, and prints each image that is complete with the digest of its manifest.
    pub async fn run(self) -> CliResult {
        let mut wanted = NamedImages { images: self.references, insecure: Vec::new() };
        for path in &self.from {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let named = NamedImages::parse(&text).map_err(|error| {
                format!("{}: {}", path.display(), Failure::of(&error).in_words())
            })?;
            wanted.images.extend(named.images);
            wanted.insecure.extend(named.insecure);
        }
        let control = owner::running_or_started(&self.cache, Log::File).await?;
        let mut exit = Exit::Success;
        for image in wanted.images {
            let host = image.repository().host().to_owned();
            let plain_http = self.plain_http || wanted.insecure.contains(&host);
            let request = PullRequest { reference: image.to_string(), plain_http };
            match control.pull(&request, |_| {}).await {
                Ok(manifest) => writeln!(std::io::stdout(), "{image} {manifest}")?,
                Err(error) => {
                    let words = Failure::of(&error).in_words();
                    writeln!(std::io::stderr(), "error: {image}: {words}")?;
                    exit = Exit::Failure;
                }
            }
        }
        Ok(exit)
    }
}
