//! How images are copied and changed on the way.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use undermount::prepare::copy::{self, Attached, CopyOptions, Indexing, Location, ManifestFormat};
use undermount::prepare::credentials::{self, Logins};
use undermount::prepare::discover::DiscoverError;
use undermount::prepare::modify::{self, Cleanup, Modifier, ModifyJob};

use super::{Found, Habits};
use crate::cli::exit::{CliResult, in_words};
use crate::cli::progress;

/// How images are copied.
#[derive(Debug, Args)]
#[command(next_help_heading = "Copy")]
pub struct CopyArgs {
    /// Leave out images that their registry does not have, and say which
    #[arg(long)]
    pub skip_missing: bool,
    /// Images that are copied at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Whether an index is built of each image and attached to it, so that nodes can start it
    /// before it has arrived [default: auto; off in the original's spellings]
    #[arg(long, value_enum, value_name = "WHEN")]
    index: Option<Index>,
    /// Directory with profiles of starts: images of which one is known, or of an earlier build of
    /// which, get a start-up pack with their index
    #[arg(long, value_name = "DIR", default_value = "/var/lib/undermount/profiles")]
    profiles: PathBuf,
    /// Tree of the Apache that serves the undercloud's images; destinations that take no uploads
    /// are written there [default: none; /var/lib/image-serve in the original's spellings]
    #[arg(long, value_name = "DIR", env = "IMAGE_SERVE_DIR")]
    image_serve_dir: Option<PathBuf>,
    /// What manifests look like at the destination [default: keep; docker in the original's
    /// spellings]
    #[arg(long, value_enum, value_name = "FORM")]
    manifests: Option<Manifests>,
    /// Have tags mean manifests that name the index of each layer, so that podman since 5.1 and
    /// CRI-O since 1.31 are lazy too; the manifests of the source, which signatures are about, are
    /// kept by their digests
    #[arg(long, conflicts_with = "manifests")]
    annotate: bool,
    /// Which local copies of modified images are removed in the end: full, partial (the source
    /// copies) or none
    #[arg(long, value_name = "WHICH", default_value = "full", value_parser = parse_cleanup)]
    cleanup: Cleanup,
}

/// When indexes are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Index {
    /// For every image
    Auto,
    /// Never
    Off,
}

/// [`ManifestFormat`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Manifests {
    /// As at the source: digests and signatures hold
    Keep,
    /// OCI manifests become docker's, as the original does
    Docker,
}

impl From<Manifests> for ManifestFormat {
    fn from(manifests: Manifests) -> Self {
        match manifests {
            Manifests::Keep => Self::Keep,
            Manifests::Docker => Self::Docker,
        }
    }
}

/// Reads what the original's `--cleanup` takes, with its words for anything else.
fn parse_cleanup(word: &str) -> Result<Cleanup, &'static str> {
    match word {
        "full" => Ok(Cleanup::Full),
        "partial" => Ok(Cleanup::Partial),
        "none" => Ok(Cleanup::None),
        _ => Err("--cleanup must be one of: full, partial, none"),
    }
}

impl CopyArgs {
    /// Copies what the plan names and changes what it wants changed. Images that turn out to be
    /// missing are taken out of it, if that was asked for.
    pub async fn run(&self, found: &mut Found, logins: &Logins, habits: Habits) -> CliResult<()> {
        let changes = modify::jobs(&found.resolved.plan)?;
        let mut copies = copy::jobs(&found.resolved.plan)?;
        if copies.is_empty() {
            return Ok(());
        }
        let plan = &found.resolved.plan;
        let (changes, unknown) = modify::pending(changes, plan, &mut copies, &found.sources).await;
        let options = self.options(habits)?;
        let progress = progress::for_stderr();
        let report = copy::run(copies, &found.sources, &options, progress).await?;
        let images = report.outcomes.len() + unknown.len();
        let mut summary = Summary { images, failures: Vec::new() };
        unknown.iter().for_each(|(image, error)| summary.add(image, error));
        let mut missing = Vec::new();
        let mut absent = Vec::new();
        for (job, error) in report.failures() {
            absent.push(job.target.to_string());
            match self.skip_missing && error.is_missing() {
                true => missing.push(job.source.clone()),
                false => summary.add(&job.target, error),
            }
        }
        let (possible, impossible): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| !absent.contains(&change.original.to_string()));
        tracing::debug!(images = impossible.len(), "not changed: their originals are not there");
        self.change(&possible, found, logins, &options, &mut summary).await?;
        summary.into_result(habits.writes_environment)?;
        found.resolved.plan.retain(|image| {
            image.source().parse::<Location>().map_or(true, |source| !missing.contains(&source))
        });
        found.resolved.missing.extend(missing.into_iter().map(DiscoverError::NotFound));
        Ok(())
    }

    fn options(&self, habits: Habits) -> CliResult<CopyOptions> {
        let mut index = self.index.unwrap_or(habits.index);
        let mut manifests = self.manifests.unwrap_or(habits.manifests).into();
        if self.annotate {
            if self.index == Some(Index::Off) {
                return Err("--annotate names indexes, and --index off makes none".into());
            }
            (index, manifests) = (Index::Auto, ManifestFormat::Annotated);
        }
        let (indexing, attached) = match index {
            Index::Auto => (Indexing::Build, Attached::Always),
            // Who wants no index wants few requests: none for images that are there.
            Index::Off => (Indexing::Off, Attached::WithImage),
        };
        let image_serve = habits.image_serve.map(PathBuf::from);
        Ok(CopyOptions {
            jobs: self.jobs.into(),
            streams: self.jobs.into(),
            indexing,
            attached,
            manifests,
            image_serve: self.image_serve_dir.clone().or(image_serve),
            profiles: Some(self.profiles.clone()),
            scratch: std::env::temp_dir(),
            state: Some(copy_state()),
        })
    }

    async fn change(
        &self,
        jobs: &[ModifyJob],
        found: &Found,
        logins: &Logins,
        options: &CopyOptions,
        summary: &mut Summary,
    ) -> CliResult<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        summary.images += jobs.len();
        let authfile = credentials::auth_file(logins, &options.scratch)?;
        let authfile = authfile.as_ref().map(|file| file.path());
        let insecure = found.insecure.all();
        let modifier = Modifier::new(&found.sources, options, self.cleanup, authfile, &insecure);
        for (image, error) in modifier.run(jobs, &progress::for_stderr()).await {
            summary.add(&image, &error);
        }
        Ok(())
    }
}

/// Where copies write down what they begin (XDG Base Directory Specification, "state").
pub fn copy_state() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(std::env::home_dir()?.join(".local/state"));
    let state = state.filter(|state| state.is_absolute()).or_else(home);
    state.unwrap_or_else(|| "/var/lib".into()).join("undermount/copy")
}

/// Which images failed and why.
struct Summary {
    images: usize,
    failures: Vec<String>,
}

impl Summary {
    fn add(&mut self, image: &dyn std::fmt::Display, error: &dyn std::error::Error) {
        self.failures.push(format!("\n  {image}: {}", in_words(error)));
    }

    fn into_result(self, writes_environment: bool) -> Result<(), String> {
        let (failed, images) = (self.failures.len(), self.images);
        if failed == 0 {
            return Ok(());
        }
        let mut words = format!("{failed} of {images} images could not be copied");
        let others = (failed < images).then_some("the others were");
        let file = writes_environment.then_some("no environment file was written");
        let consequences: Vec<_> = others.into_iter().chain(file).collect();
        if !consequences.is_empty() {
            words = format!("{words}; {}", consequences.join(", and "));
        }
        Err(words + &self.failures.concat())
    }
}
