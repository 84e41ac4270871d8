//! What users wait for, measured: how long until a service in an image is ready, on a node that
//! has nothing of it, against pulling it whole.
//!
//! ```text
//! for each round, for each variant in turn:
//!   empty directories, a node's agent where it mounts, caches dropped
//!   image --(link: shaped, watched)--> mount, or pull and unpack      brought
//!   the command below an overlay of it                                first output, ready
//!   the same again, everything local                                  warm
//! ```
//!
//! All variants start the command in the same way ([`crate::start`]), over the same link
//! ([`link`]), so that they differ in how the image arrives and in nothing else.

mod agent;
mod axis;
mod html;
pub mod link;
mod podman;
mod report;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;
use tokio::process::Command;

use crate::eager::{self, EagerError, Pulled};
use crate::image::{Platform, Reference, ReferenceError};
use crate::registry::client::{Client, ClientConfig, RegistryError};
use crate::start::{Program, Ready, StartError, Started};
use agent::Agent;
use link::{Link, Shape, Traffic};
use podman::Podman;

pub use report::{Report, Summary, to_html};

/// How long mounting may take, an image without an index included.
const MOUNT: Duration = Duration::from_secs(3600);

/// A bench cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Mounting and starting are root's.
    #[error("the bench mounts images and starts programs in them, which takes root")]
    NotRoot,
    /// A directory of the bench fails.
    #[error("cannot use the directory of the bench")]
    Scratch(#[source] io::Error),
    /// A command failed.
    #[error("`{words}` failed: {reason}")]
    Command {
        /// The command.
        words: String,
        /// What it said.
        reason: String,
    },
    /// A name is not one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry does not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Pulling and unpacking fails.
    #[error(transparent)]
    Eager(#[from] EagerError),
    /// The command does not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A way for an image to get to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// `podman pull`.
    Podman,
    /// Pulled and unpacked by this program.
    Unpack,
    /// Mounted, packs left aside.
    Lazy,
    /// Mounted, start-up pack first.
    LazyPack,
}

impl Variant {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "eager: podman pull",
            Self::Unpack => "eager: pull and unpack",
            Self::Lazy => "lazy",
            Self::LazyPack => "lazy with pack",
        }
    }

    /// Whether the image is mounted, by an agent.
    fn mounts(self) -> bool {
        matches!(self, Self::Lazy | Self::LazyPack)
    }
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    /// This program.
    pub program: PathBuf,
    /// The image, in a registry that is spoken to without TLS.
    pub reference: Reference,
    /// What is started in it.
    pub command: Program,
    /// When the start is over.
    pub ready: Ready,
    /// How long a start may take.
    pub limit: Duration,
    /// The variants, the reference first.
    pub variants: Vec<Variant>,
    /// How often each is measured.
    pub rounds: usize,
    /// The link to the registry.
    pub link: Shape,
    /// Flags of podman, before each of its commands.
    pub podman_flags: Vec<OsString>,
}

/// One measurement. Times in milliseconds since the image was asked for, but for `warm_ms`.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// How the image came.
    pub variant: Variant,
    /// When the command could be started.
    pub brought_ms: u64,
    /// When it first said something.
    pub first_output_ms: Option<u64>,
    /// When it was ready.
    pub ready_ms: u64,
    /// How long a second start took, everything it needs being local.
    pub warm_ms: u64,
    /// What went over the link until it was ready.
    pub traffic: Traffic,
}

/// Eager variants that this machine can measure: podman's where it is installed.
pub async fn eager_variant() -> Variant {
    if Podman::is_installed().await { Variant::Podman } else { Variant::Unpack }
}

/// What the image `reference` starts: `command`, or its own.
///
/// # Errors
/// [`BenchError`] where it cannot be looked up or names no command.
pub async fn program_of(
    reference: &Reference,
    command: Vec<OsString>,
) -> Result<Program, BenchError> {
    let image = client(reference).image(reference, &Platform::host()).await?;
    Ok(Program::of(&image.config, command)?)
}

fn client(reference: &Reference) -> Client {
    let client = Client::new(ClientConfig::default());
    client.allow_plain_http(reference.repository().host());
    client
}

/// Measures; `told` hears of each run as it ends.
///
/// # Errors
/// [`BenchError`] where a run fails: then nothing was measured.
pub async fn run(
    config: BenchConfig,
    mut told: impl FnMut(usize, &Run),
) -> Result<Report, BenchError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let registry = config.reference.repository().host().to_owned();
    let link = Link::open(registry, config.link).await.map_err(BenchError::Scratch)?;
    let image = client(&config.reference).image(&config.reference, &Platform::host()).await?;
    let image_bytes = image.manifest.layers.iter().map(|layer| layer.size).sum();
    let mut runs = Vec::new();
    for round in 0..config.rounds {
        for variant in &config.variants {
            let run = measure(&config, &link, *variant).await?;
            told(round, &run);
            runs.push(run);
        }
    }
    Ok(Report::new(&config, image_bytes, runs))
}

async fn measure(config: &BenchConfig, link: &Link, variant: Variant) -> Result<Run, BenchError> {
    // Not in a tmpfs: it is to be like a node's disk.
    let scratch = tempfile::Builder::new().prefix("undermount-bench-").tempdir_in("/var/tmp");
    let scratch = scratch.map_err(BenchError::Scratch)?;
    let name = config.reference.to_string();
    let near = name.replacen(config.reference.repository().host(), &link.address().to_string(), 1);
    let node = Node { config, scratch: &scratch, reference: near.parse()?, variant };
    let agent = match variant.mounts() {
        true => Some(Agent::start(&config.program, scratch.path()).await?),
        false => None,
    };
    drop_caches();
    link.begin();
    let begin = Instant::now();
    let outcome = node.measure(begin, link).await;
    let cleared = node.clear().await;
    let stopped = match agent {
        Some(agent) => agent.stop().await,
        None => Ok(()),
    };
    let run = outcome?;
    cleared.and(stopped)?;
    Ok(run)
}

/// What the kernel has cached would make the first round of a variant the only cold one.
fn drop_caches() {
    nix::unistd::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        tracing::warn!(%error, "cannot drop the kernel's caches: runs are not quite cold");
    }
}

/// A node that has nothing yet.
struct Node<'a> {
    config: &'a BenchConfig,
    scratch: &'a TempDir,
    reference: Reference,
    variant: Variant,
}

impl Node<'_> {
    async fn measure(&self, begin: Instant, link: &Link) -> Result<Run, BenchError> {
        let root = self.bring().await?;
        let brought = begin.elapsed();
        let cold = self.start(&root, "cold").await?;
        let traffic = link.traffic();
        let warm = self.start(&root, "warm").await?;
        let milliseconds = |time: Duration| time.as_millis() as u64;
        Ok(Run {
            variant: self.variant,
            brought_ms: milliseconds(brought),
            first_output_ms: cold.first_output.map(|first| milliseconds(brought + first)),
            ready_ms: milliseconds(brought + cold.ready),
            warm_ms: milliseconds(warm.ready),
            traffic,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn podman(&self) -> Podman {
        Podman::new(self.scratch.path(), &self.config.podman_flags)
    }

    /// Brings the image; its root directory.
    async fn bring(&self) -> Result<PathBuf, BenchError> {
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
            Variant::LazyPack => self.mount(&[]).await,
        }
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

    async fn start(&self, root: &Path, name: &str) -> Result<Started, BenchError> {
        let running = self.config.command.start(root, &self.path(name))?;
        Ok(running.ready(&self.config.ready, self.config.limit).await?)
    }

    /// Takes away what [`Self::bring`] mounted.
    async fn clear(&self) -> Result<(), BenchError> {
        match self.variant {
            Variant::Podman => self.podman().clear().await,
            Variant::Unpack => Ok(()),
            Variant::Lazy | Variant::LazyPack => {
                self.undermount(&["umount"], &["--lazy"], &self.path("root")).await
            }
        }
    }
}
