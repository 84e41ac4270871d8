//! `undermount setup`: connect this host with the agent, and the agent with others.

mod cluster;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use undermount::config::Settings;
use undermount::host::podman::Podman;
use undermount::setup::{self, Plan};

use super::config::ConfigArgs;
use super::exit::{CliResult, Exit};

/// Connect the programs of this host with the agent, and nodes with each other
#[derive(Debug, Subcommand)]
pub enum Setup {
    Podman(PodmanArgs),
    Cluster(cluster::ClusterArgs),
}

impl Setup {
    /// Runs the command.
    pub fn run(self) -> CliResult {
        match self {
            Self::Podman(args) => args.run(),
            Self::Cluster(args) => args.run(),
        }
    }
}

/// Let podman, buildah and CRI-O look into the agent's layer store
///
/// Adds the store to /etc/containers/storage.conf, marked and with your own text kept, and the
/// mirror, where one is configured, to /etc/containers/registries.conf.d. Podman is asked before
/// and after; where it refuses, its configuration is back as it was. The mount point stays for
/// good: a missing one would fail every podman command.
#[derive(Debug, Args)]
pub struct PodmanArgs {
    /// Take the store and the mirror out again
    #[arg(long)]
    undo: bool,
    /// Root of the system to set up, such as an image that is being built
    #[arg(long, value_name = "DIR", default_value = "/")]
    root_dir: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

impl PodmanArgs {
    fn run(self) -> CliResult {
        let root = self.root_dir.canonicalize().map_err(|error| {
            format!("cannot set up a system in {}: {error}", self.root_dir.display())
        })?;
        let changed = if self.undo {
            setup::disconnect(&root)?
        } else {
            let podman = Podman::new(Path::new("podman"), &root);
            setup::connect(&plan(root, &self.config.settings()?), &podman)?
        };
        let mut stdout = std::io::stdout();
        for path in &changed {
            writeln!(stdout, "changed {}", path.display())?;
        }
        if changed.is_empty() {
            writeln!(stdout, "unchanged")?;
        }
        Ok(Exit::Success)
    }
}

fn plan(root: PathBuf, settings: &Settings) -> Plan {
    let mirrored = settings.mirror.registries.iter().map(ToString::to_string).collect();
    Plan {
        root,
        store: settings.store.mount.to_path_buf(),
        mirror: settings.mirror.listen.map(|listen| (listen.get(), mirrored)),
    }
}
