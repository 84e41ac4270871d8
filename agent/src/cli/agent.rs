//! `undermount agent`: the daemon of a node.

mod continuity;

use std::ffi::OsString;

use clap::Args;
use undermount::config::Settings;
use undermount::config::value::{StorePath, from_word};

use self::continuity::Legacy;
use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Kept, Role};
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
    /// The unit of systemd that this is (`%n` in a unit file): mounts and what runs on them then
    /// survive a restart of the unit and the death of its processes. The unit needs
    /// `FileDescriptorStoreMax=` and `Restart=always`
    #[arg(long, value_name = "UNIT", env = "UNDERMOUNT_UNIT")]
    unit: Option<String>,
}

impl AgentArgs {
    /// Serves until it is told to stop; `log` has its workers log as it does.
    pub fn run(self, log: Vec<OsString>) -> CliResult {
        let mut legacy = self.unit.clone().and_then(Legacy::of);
        let settings = match (self.settings(), &mut legacy) {
            (Ok(settings), _) => settings,
            (Err(error), None) => return Err(error),
            (Err(error), Some(legacy)) => legacy.settings_in_place_of(error)?,
        };
        let continuity = legacy.map(|legacy| legacy.continuity(&settings));
        let on_ready = || {
            tracing::info!("the layer store is served");
            service::ready("the layer store is served");
        };
        let kept = Kept { role: Role::Agent, init_mask: self.cache.init_mask(), continuity, log };
        owner::keep(settings, kept, on_ready)?;
        Ok(Exit::Success)
    }

    fn settings(&self) -> CliResult<Settings> {
        let mut settings = self.cache.settings()?;
        if let Some(store) = &self.store {
            settings.store.mount = store.clone();
        }
        Ok(settings)
    }
}
