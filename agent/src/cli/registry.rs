//! `undermount registry`: serve a directory as an OCI registry.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::exit::{CliResult, Exit};
use super::signals;

/// Serve a directory as an OCI registry
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Directory that holds the blobs and repositories; made if it does not exist
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8787")]
    listen: String,
}

impl RegistryArgs {
    /// Serves until a signal comes.
    pub async fn run(self) -> CliResult {
        let shutdown = signals::cancelled_by_signals()?;
        let listener = tokio::net::TcpListener::bind(&self.listen).await?;
        writeln!(std::io::stdout(), "listening on http://{}", listener.local_addr()?)?;
        tracing::info!(root = %self.root.display(), "not serving yet");
        shutdown.cancelled().await;
        Ok(Exit::Success)
    }
}
