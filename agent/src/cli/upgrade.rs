//! `undermount upgrade`: another program takes over the mounts of a running owner.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use undermount::control::{Control, Status, UpgradeRequest};

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs};

/// How long the other program may take until it serves: it opens the cache first.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Have this program, or another one, serve what is mounted
///
/// Mounts stay, and programs that use them notice no more than a delay. Nothing happens where
/// nothing is mounted: the next mount starts the installed program anyway.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// Program to take over [default: the one that is being run]
    program: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
}

impl UpgradeArgs {
    /// Upgrades, and waits until the program serves.
    pub async fn run(self) -> CliResult {
        let program = match self.program {
            Some(program) => std::path::absolute(program)?,
            None => std::env::current_exe()?,
        };
        let Some(control) = owner::running(&self.cache).await? else { return Ok(Exit::Success) };
        let before = control.status().await?;
        control.upgrade(&UpgradeRequest { program: program.clone() }).await?;
        let after = successor(&control, &before).await?;
        if after.program != program.canonicalize()? {
            return Err(refused(&program, &after).into());
        }
        Ok(Exit::Success)
    }
}

/// The status once another process serves than `before`.
async fn successor(control: &Control, before: &Status) -> CliResult<Status> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        // Between the two nobody answers.
        match control.status().await {
            Ok(status) if status.worker != before.worker => return Ok(status),
            _ => {}
        }
    }
    Err("no other process has taken over; the log of the owner tells why".into())
}

fn refused(program: &Path, status: &Status) -> String {
    let reason = status.last_exit.as_deref().unwrap_or("for an unknown reason");
    let (program, present) = (program.display(), status.program.display());
    format!("{program} does not come up ({reason}): {present} goes on serving")
}
