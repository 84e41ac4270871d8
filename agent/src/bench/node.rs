//! A node that has nothing yet: its directories, its agent where it mounts, and how an image gets
//! there.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::agent::Agent;
use super::cluster::Seat;
use super::link::Link;
use super::podman::Podman;
use super::{BenchConfig, BenchError, Variant, client};
use crate::eager::{self, Pulled};
use crate::image::Reference;
use crate::start::Started;

/// How long mounting may take, an image without an index included.
const MOUNT: Duration = Duration::from_secs(3600);

/// A node. [`Node::end`] must end it, or mounts are left.
pub struct Node<'a> {
    config: &'a BenchConfig,
    variant: Variant,
    reference: Reference,
    agent: Option<Agent>,
    directory: PathBuf,
}

impl<'a> Node<'a> {
    /// A node in `directory`, which is made, that is to get the image over `registry` as `variant`
    /// does; where that mounts, its agent runs, and is a member of a cluster if it has a `seat`
    /// there.
    ///
    /// # Errors
    /// [`BenchError`] where the agent does not serve, or a directory cannot be made.
    pub async fn set_up(
        config: &'a BenchConfig,
        directory: PathBuf,
        registry: &Link,
        variant: Variant,
        seat: Option<&Seat>,
    ) -> Result<Self, BenchError> {
        std::fs::create_dir(&directory).map_err(BenchError::Scratch)?;
        let name = config.reference.to_string();
        let host = config.reference.repository().host();
        let reference = name.replacen(host, &registry.address().to_string(), 1).parse()?;
        let agent = match variant.mounts() {
            true => Some(Agent::start(&config.program, &directory, seat).await?),
            false => None,
        };
        Ok(Self { config, variant, reference, agent, directory })
    }

    /// Waits until this node and `other` are members of one cluster.
    ///
    /// # Errors
    /// [`BenchError`] where they do not find each other in time.
    pub async fn meets(&self, other: &Self) -> Result<(), BenchError> {
        match (&self.agent, &other.agent) {
            (Some(agent), Some(other)) => agent.meets(other).await,
            _ => Ok(()),
        }
    }

    /// Brings the image; its root directory.
    ///
    /// # Errors
    /// [`BenchError`] of the variant.
    pub async fn bring(&self) -> Result<PathBuf, BenchError> {
        match self.variant {
            Variant::Podman => self.podman().pull(&self.reference).await,
            Variant::Unpack => {
                let client = client(&self.reference);
                let root = self.path("root");
                let mut pulled = Pulled::default();
                eager::pull_and_unpack(&client, &self.reference, &mut pulled, &root).await?;
                Ok(root)
            }
            Variant::Lazy => self.mount(&["--no-packs"]).await,
            Variant::LazyPack | Variant::LazyPeers => self.mount(&[]).await,
        }
    }

    /// Starts the command in the image at `root`, and ends it when it is ready; `name` is not that
    /// of another start.
    ///
    /// # Errors
    /// [`BenchError::Start`].
    pub async fn start(&self, root: &Path, name: &str) -> Result<Started, BenchError> {
        let running = self.config.command.start(root, &self.path(name))?;
        Ok(running.ready(&self.config.ready, self.config.limit).await?)
    }

    /// Takes away what it has mounted, and ends its agent; its directory stays.
    ///
    /// # Errors
    /// [`BenchError`] where something is left.
    pub async fn end(self) -> Result<(), BenchError> {
        let cleared = self.clear().await;
        let stopped = match self.agent {
            Some(agent) => agent.stop().await,
            None => Ok(()),
        };
        cleared.and(stopped)
    }

    async fn clear(&self) -> Result<(), BenchError> {
        match self.variant {
            Variant::Podman => self.podman().clear().await,
            Variant::Unpack => Ok(()),
            Variant::Lazy | Variant::LazyPack | Variant::LazyPeers => {
                self.undermount(&["umount"], &["--lazy"], &self.path("root")).await
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn podman(&self) -> Podman {
        Podman::new(&self.directory, &self.config.podman_flags)
    }

    async fn mount(&self, flags: &[&str]) -> Result<PathBuf, BenchError> {
        let root = self.path("root");
        std::fs::create_dir(&root).map_err(BenchError::Scratch)?;
        let reference = self.reference.to_string();
        self.undermount(&["mount", &reference], flags, &root).await?;
        Ok(root)
    }

    /// Runs a command of this program on the node's cache and `root`.
    async fn undermount(
        &self,
        words: &[&str],
        flags: &[&str],
        root: &Path,
    ) -> Result<(), BenchError> {
        let mut command = Command::new(&self.config.program);
        command.args(words).args(flags).arg(root).arg("--cache").arg(self.path("cache"));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let failed = |reason: String| BenchError::Command { words: words.join(" "), reason };
        let output = tokio::time::timeout(MOUNT, command.output())
            .await
            .map_err(|_| failed(format!("it took longer than {} s", MOUNT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())),
        }
    }
}
