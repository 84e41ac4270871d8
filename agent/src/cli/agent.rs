//! `undermount agent`: the daemon of a node.

use clap::Args;
use undermount::config::value::{StorePath, from_word};

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Role};
use super::service;

/// Serve this node: podman's layer store and all mounts, until SIGTERM
///
/// podman pulls and runs prepared images lazily when its storage.conf names the layer store
/// (`undermount setup podman`). `mount`, `pull`, `prefetch`, `status` and the like use the agent
/// that owns their cache.
#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Where podman's additional layer store is mounted [default: /var/lib/undermount-store]
    #[arg(long, value_name = "DIR", value_parser = from_word::<StorePath>)]
    store: Option<StorePath>,
}

impl AgentArgs {
    /// Serves until it is told to stop.
    pub fn run(self) -> CliResult {
        let mut settings = self.cache.settings()?;
        if let Some(store) = self.store {
            settings.store.mount = store;
        }
        let on_ready = || {
            tracing::info!("the layer store is served");
            service::ready("the layer store is served");
        };
        owner::keep(settings, Role::Agent, self.cache.init_mask(), on_ready)?;
        Ok(Exit::Success)
    }
}
