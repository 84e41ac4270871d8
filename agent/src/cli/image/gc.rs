//! `undermount image gc`.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use undermount::registry::server::collect_garbage;
use undermount::registry::{Collected, GarbageRules};

use super::{ReachArgs, bytes};
use crate::cli::exit::{CliResult, Exit};

/// Remove what no image of a registry needs any more
///
/// A registry that runs does it while it serves (and by itself, see `registry --gc-interval`);
/// the directory of one that does not run is cleaned directly.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Directory of an `undermount registry` (with a / in it), or HOST[:PORT] of one that runs
    registry: String,
    /// How long a blob is kept that was pushed, mounted or asked for and that no manifest names
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    grace: u64,
    /// Remove images that no tag leads to as well
    #[arg(long)]
    untagged: bool,
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl GcArgs {
    /// Collects, and prints what was removed.
    pub async fn run(self) -> CliResult {
        let Self { untagged, dry_run, .. } = self;
        let rules = GarbageRules { grace: Duration::from_secs(self.grace), untagged, dry_run };
        let collected = match self.registry.contains('/') {
            true => collect_garbage(Path::new(&self.registry), &rules)?,
            false => self.reach.client().collect_garbage(&self.registry, &rules).await?,
        };
        let text = match self.json {
            true => serde_json::to_string(&collected)? + "\n",
            false => in_words(&collected, dry_run),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

fn in_words(collected: &Collected, dry_run: bool) -> String {
    let Collected { manifests, links, blobs, bytes: freed } = collected;
    let verb = if dry_run { "would remove" } else { "removed" };
    format!(
        "{verb} {manifests} manifests and {blobs} blobs ({}); {links} blobs left a repository\n",
        bytes(*freed)
    )
}
