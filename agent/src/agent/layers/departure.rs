//! Letting go of what podman has removed: its layers leave the runtime directory and the cache, and
//! its names are forgotten until somebody asks for them again.
//!
//! ```text
//! every minute: which views does podman no longer use?      Shown::look
//!   -> visit their paths by name, hide them, visit again    the kernel finds the names gone
//!   -> drop those whose nodes the kernel has forgotten      Shown::drop_forgotten
//! ```
//!
//! The kernel asks for the name of a layer each time somebody looks up its path. Once it finds the
//! name gone, it drops whatever it has cached below that nobody uses. A visit to the path therefore
//! makes it forget. A process of its own pays that visit, as in [`readahead`]: the visitor waits
//! for answers from this process, and a thread of this process that did so could not be killed.
//!
//! [`readahead`]: crate::agent::readahead

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use undermount_fs::digest::Digest;

use super::{Inner, LayerShelf};
use crate::agent::readahead::PROGRAM;
use crate::blocking::blocking;

/// The pause between two looks for what podman has removed.
const EVERY: Duration = Duration::from_secs(60);

/// The command that visits paths; its arguments are the paths.
const COMMAND: &str = "visit";

/// How long one process may take to visit its paths, at most [`VIEWS_MAX`] views in either mount.
const VISITS: Duration = Duration::from_secs(30);

/// The most views that one process visits, since the length of its arguments is limited.
const VIEWS_MAX: usize = 256;

/// How long to wait for the kernel's FORGETs after the visits. What the kernel forgets later is
/// dropped at the next look.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// The pause between two checks, meanwhile, of what the kernel has forgotten.
const PAUSE: Duration = Duration::from_millis(20);

impl LayerShelf {
    /// Lets go of what podman has removed, once a minute. Never ends.
    pub async fn let_go_forever(self) {
        loop {
            sleep(EVERY).await;
            self.let_go().await;
        }
    }

    /// Lets go of the layers and names that podman does not use, and nobody has asked for since the
    /// last look.
    pub async fn let_go(&self) {
        let _turn = self.0.departure.lock().await;
        self.forget_names();
        if let Err(error) = self.0.let_layers_go().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "layers that podman has removed stay for now");
        }
    }

    fn forget_names(&self) {
        let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|_, name| Arc::strong_count(name) > 1 || !name.let_go());
    }
}

impl Inner {
    async fn let_layers_go(self: &Arc<Self>) -> io::Result<()> {
        let shelf = self.clone();
        let look = move || Ok::<_, io::Error>(shelf.shown.look(&shelf.records.used_layers()?));
        let due = blocking(look).await?;
        let visited = self.visit(&due).await;
        self.shown.hide(&due);
        visited?;
        self.visit(&due).await?;
        let end = Instant::now() + if due.is_empty() { Duration::ZERO } else { TOLD_WITHIN };
        while self.shown.census().leaving > 0 {
            let shelf = self.clone();
            let dropped = blocking(move || shelf.shown.drop_forgotten()).await;
            let dropped = dropped.map_err(io::Error::other)?;
            if dropped > 0 {
                tracing::info!(dropped, "layers that podman has removed are gone");
            }
            if Instant::now() >= end {
                break;
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Makes the kernel look up the views `names`, in both mounts.
    async fn visit(&self, names: &[Digest]) -> io::Result<()> {
        for names in names.chunks(VIEWS_MAX) {
            let paths: Vec<PathBuf> =
                names.iter().flat_map(|name| self.shown.paths(name)).collect();
            visit(&paths).await?;
        }
        Ok(())
    }
}

/// Runs a process that looks at `paths`.
async fn visit(paths: &[PathBuf]) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg0("undermount").arg(COMMAND).args(paths);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let mut process = command.spawn()?;
    let status = timeout(VISITS, process.wait()).await.map_err(io::Error::other)??;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("a visitor ended: {status}")))
    }
}

/// Looks at `paths`, which need not exist, so that the kernel looks them up: what the visiting
/// process does.
pub fn look_at(paths: &[PathBuf]) {
    for path in paths {
        let _ = std::fs::symlink_metadata(path);
    }
}
