//! `undermount image copy` and `push`: images from anywhere to anywhere, byte by byte.

use std::num::NonZeroU8;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use undermount::image::Platform;
use undermount::prepare::copy::place::{self, Destination};
use undermount::prepare::copy::{
    self, Attached, CopyOptions, CopyReport, Indexing, Location, ManifestFormat,
};
use undermount::prepare::sources::Sources;

use super::ReachArgs;
use crate::cli::exit::{CliResult, Exit, in_words};
use crate::cli::prepare::copy_state;
use crate::cli::progress;

/// Copy images, with their indexes, signatures and all platforms
///
/// An image is HOST[:PORT]/PATH[:TAG|@DIGEST], oci:DIR[:NAME], oci-archive:FILE[:NAME],
/// docker-archive:FILE[:NAME], image-serve:DIR[:NAME] or containers-storage:NAME; files without
/// a NAME stand for all of their images. Digests stay as they are. What is there already is not
/// sent again, and a copy that was cut off goes on where it stopped.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What is copied
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<Location>,
    /// Where it goes: an image, or for several HOST[:PORT][/PREFIX/] or files without a NAME
    #[arg(value_name = "DESTINATION")]
    destination: String,
    #[command(flatten)]
    how: HowArgs,
}

/// Push images from files or podman's storage to a registry
///
/// The sources are those of `image copy` that lie on this host.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// What is pushed: oci:, oci-archive:, docker-archive:, image-serve: or containers-storage:
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<Location>,
    /// Where it goes: HOST[:PORT]/PATH:TAG, or for several HOST[:PORT][/PREFIX/]
    #[arg(value_name = "DESTINATION")]
    destination: String,
    #[command(flatten)]
    how: HowArgs,
}

/// How images are copied.
#[derive(Debug, Args)]
struct HowArgs {
    /// What becomes of indexes, which let nodes mount images lazily
    #[arg(long, value_enum, default_value_t = Index::Carry)]
    index: Index,
    /// Images that are copied at a time
    #[arg(long, value_name = "COUNT", default_value = "4")]
    jobs: NonZeroU8,
    /// Directory for what has to lie somewhere on the way
    #[arg(long, value_name = "DIR", env = "TMPDIR")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    reach: ReachArgs,
}

/// [`Indexing`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Index {
    /// They go along where the source has them
    Carry,
    /// Each image is indexed on the way
    Build,
    /// Nothing of them is copied or built
    Off,
}

impl From<Index> for Indexing {
    fn from(index: Index) -> Self {
        match index {
            Index::Carry => Self::Carry,
            Index::Build => Self::Build,
            Index::Off => Self::Off,
        }
    }
}

impl CopyArgs {
    /// Copies; tells in the end what failed.
    pub async fn run(self) -> CliResult {
        self.how.run(&self.sources, &self.destination).await
    }
}

impl PushArgs {
    /// Pushes; tells in the end what failed.
    pub async fn run(self) -> CliResult {
        for source in &self.sources {
            if let Location::Registry(image) = source {
                return Err(format!("{image} is in a registry: use `image copy`").into());
            }
        }
        if Location::has_transport(&self.destination) {
            let destination = self.destination;
            return Err(format!("{destination} is no registry: use `image copy`").into());
        }
        self.how.run(&self.sources, &self.destination).await
    }
}

impl HowArgs {
    async fn run(&self, sources: &[Location], destination: &str) -> CliResult {
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let registries = Sources::new(self.reach.client(), Platform::host(), scratch.clone());
        let destination = Destination::parse(destination, sources.len())?;
        let jobs = place::jobs(sources, &destination, &registries).await?;
        let options = CopyOptions {
            jobs: usize::from(self.jobs.get()),
            streams: usize::from(self.jobs.get()),
            indexing: self.index.into(),
            attached: Attached::Always,
            manifests: ManifestFormat::Keep,
            image_serve: None,
            profiles: None,
            scratch,
            state: Some(copy_state()),
        };
        let report = copy::run(jobs, &registries, &options, progress::for_stderr()).await?;
        if report.is_whole() { Ok(Exit::Success) } else { Err(summary(&report).into()) }
    }
}

/// What failed and why, one line each.
fn summary(report: &CopyReport) -> String {
    let failed = report.failures().count();
    let mut words = format!("{failed} of {} images could not be copied", report.outcomes.len());
    let images = report.failures().map(|(job, error)| (job.target.to_string(), error));
    let files = report.unfinished.iter().map(|error| ("in the end".to_owned(), error));
    for (name, error) in images.chain(files) {
        words.push_str(&format!("\n  {name}: {}", in_words(error)));
    }
    words
}
