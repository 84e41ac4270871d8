//! `undermount demo`: the main job from end to end, out of this host's own files.

use clap::Args;
use undermount::demo;

use super::exit::{CliResult, Exit};
use super::signals;

/// Show the main job from end to end with files of this host, and take it all down again
///
/// Makes two images of this host's Python or Perl, prepares them from one registry to another,
/// mounts and starts both, and compares that with pulling and unpacking. Needs root and
/// /dev/fuse; downloads nothing.
#[derive(Debug, Args)]
pub struct DemoArgs {}

impl DemoArgs {
    /// Plays the demo to its end, or until a signal comes.
    pub async fn run(self) -> CliResult {
        let cancelled = signals::cancelled_by_signals()?;
        let program = std::env::current_exe()?;
        demo::run(program, &mut std::io::stdout(), cancelled).await?;
        Ok(Exit::Success)
    }
}
