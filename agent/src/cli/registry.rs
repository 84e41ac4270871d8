//! `undermount registry`: serve a directory as an OCI registry.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use undermount::registry::server::{IndexPolicy, PushPolicy, Server, ServerConfig};

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
    /// Who may push and delete; everyone may pull
    #[arg(long, value_enum, default_value_t = Push::Loopback)]
    push: Push,
    /// Whether the layers of pushed images are indexed, so that nodes can mount them lazily
    #[arg(long, value_enum, default_value_t = Index::Auto)]
    index: Index,
    /// How long a push waits for its index; after that it is made in the background
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    index_wait: u64,
}

/// [`PushPolicy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Push {
    /// Clients on this host
    Loopback,
    /// Every client that can connect
    Any,
    /// Nobody: read-only
    None,
}

/// [`IndexPolicy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Index {
    /// Index each image
    Auto,
    /// Index nothing
    Off,
}

impl From<Push> for PushPolicy {
    fn from(push: Push) -> Self {
        match push {
            Push::Loopback => Self::Loopback,
            Push::Any => Self::Any,
            Push::None => Self::None,
        }
    }
}

impl RegistryArgs {
    /// Serves until a signal comes.
    pub async fn run(self) -> CliResult {
        let shutdown = signals::cancelled_by_signals()?;
        let index = match self.index {
            Index::Auto => IndexPolicy::Wait(Duration::from_secs(self.index_wait)),
            Index::Off => IndexPolicy::Off,
        };
        let config = ServerConfig {
            push: self.push.into(),
            index,
            ..ServerConfig::new(self.root, self.listen)
        };
        let server = Server::bind(config).await?;
        writeln!(std::io::stdout(), "listening on http://{}", server.local_addr())?;
        server.run(shutdown).await;
        Ok(Exit::Success)
    }
}
