//! `undermount cache status`, `verify` and `gc`: looking after a cache, through its owner where
//! one runs, in this process otherwise.

use std::sync::Arc;

use clap::{Args, Subcommand};
use undermount::config::value::{ByteCount, from_word};
use undermount::control::{CacheStatus, CollectReport, CollectRequest, Tally, VerifyReport};
use undermount_fs::fill::Progress;

use super::answer::{AskArgs, mebibytes};
use super::exit::{CliResult, Exit};
use super::owner;

/// Look after the cache
#[derive(Debug, Subcommand)]
pub enum Cache {
    Status(StatusArgs),
    Verify(VerifyArgs),
    Gc(GcArgs),
}

impl Cache {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        match self {
            Self::Status(args) => args.run().await,
            Self::Verify(args) => args.run().await,
            Self::Gc(args) => args.run().await,
        }
    }
}

/// Show what is in the cache, and what of it could go
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    ask: AskArgs,
}

impl StatusArgs {
    async fn run(self) -> CliResult {
        let status = match owner::running(&self.ask.cache).await? {
            Some(control) => control.cache().await?,
            None => {
                let (_lock, upkeep) = owner::without_owner(&self.ask.cache)?;
                upkeep.status().await?
            }
        };
        self.ask.tell(&status, status_in_words)
    }
}

/// Hash everything in the cache; drop what is damaged and fetch it again
///
/// Runs at the lowest priority. Fails where something that an image needs is damaged and could
/// not be fetched.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    ask: AskArgs,
}

impl VerifyArgs {
    async fn run(self) -> CliResult {
        let report = match owner::running(&self.ask.cache).await? {
            Some(control) => control.verify(|_| ()).await?,
            None => {
                let (_lock, upkeep) = owner::without_owner(&self.ask.cache)?;
                upkeep.verify(&Arc::new(Progress::default())).await?
            }
        };
        self.ask.tell(&report, verify_in_words)?;
        Ok(if report.lost.is_empty() { Exit::Success } else { Exit::Failure })
    }
}

/// Drop what no known image needs, and what crashes and older versions left
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Drop also what images need, the least recently used first, down to so many bytes of file
    /// contents, also with KiB, MiB, GiB or TiB; what is mounted or complete stays
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>)]
    to: Option<ByteCount>,
    #[command(flatten)]
    ask: AskArgs,
}

impl GcArgs {
    async fn run(self) -> CliResult {
        let request = CollectRequest { to: self.to.map(ByteCount::get) };
        let report = match owner::running(&self.ask.cache).await? {
            Some(control) => control.collect(&request).await?,
            None => {
                let (_lock, upkeep) = owner::without_owner(&self.ask.cache)?;
                upkeep.collect(request).await?
            }
        };
        self.ask.tell(&report, collect_in_words)?;
        Ok(if report.trouble.is_none() { Exit::Success } else { Exit::Failure })
    }
}

fn tally(tally: Tally) -> String {
    format!("{} ({})", tally.count, mebibytes(tally.bytes))
}

fn status_in_words(status: &CacheStatus) -> String {
    let quota = status.quota.map_or_else(|| "none".to_owned(), mebibytes);
    let lines = [
        status.cache.display().to_string(),
        format!("  images     {}", status.images),
        format!("  objects    {}", tally(status.objects)),
        format!("  partial    {}", tally(status.partials)),
        format!("  indexes    {}", tally(status.index_blobs)),
        format!("  manifests  {}", tally(status.small_blobs)),
        format!("  pinned     {}", mebibytes(status.pinned_bytes)),
        format!("  evictable  {}", mebibytes(status.evictable_bytes)),
        format!("  quota      {quota}"),
        format!(
            "  free       {}, {} of it reserved",
            mebibytes(status.free),
            mebibytes(status.reserve)
        ),
        format!(
            "  since the cache was opened: {} evicted, {} not kept, {} damaged",
            status.evicted, status.unkept, status.damaged
        ),
    ];
    lines.join("\n")
}

fn verify_in_words(report: &VerifyReport) -> String {
    let VerifyReport { checked, unknown, damaged, repaired, dropped, lost } = report;
    let mut words = format!(
        "checked {}: {damaged} damaged, {repaired} fetched again, {dropped} dropped that no image \
         needs",
        tally(*checked),
    );
    if *unknown > 0 {
        words += &format!("\n{unknown} incomplete contents belong to no known image");
    }
    for what in lost {
        words += &format!("\nlost: {what}");
    }
    words
}

fn collect_in_words(report: &CollectReport) -> String {
    let CollectReport { objects, blobs, records, leftovers, trouble } = report;
    let mut words = format!(
        "dropped {} contents, {} small blobs, {records} records, {leftovers} leftovers",
        tally(*objects),
        tally(*blobs),
    );
    if let Some(trouble) = trouble {
        words += &format!("\nkept all contents: {trouble}");
    }
    words
}
