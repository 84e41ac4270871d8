//! Measures what users wait for: how long it takes until a service in an image is ready, on a node
//! that has nothing of the image, against pulling it whole.
//!
//! ```text
//! for each round, for each variant in turn:
//!   with peers: a neighbour that has started the image before
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
mod cluster;
mod html;
pub mod link;
mod neighbour;
mod node;
mod podman;
mod report;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::eager::EagerError;
use crate::image::{Platform, Reference, ReferenceError};
use crate::peer::keys::KeyFileError;
use crate::registry::client::{Client, ClientConfig, RegistryError};
use crate::start::{Program, Ready, StartError};
use link::{Lanes, Link, Shape, Traffic};
use neighbour::Neighbour;
use node::Node;
use podman::Podman;

pub use report::{Report, Summary, to_html};

/// Why a bench cannot be run.
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
    /// The cluster of the bench gets no key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The command does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Somebody has interrupted it.
    #[error("interrupted")]
    Interrupted,
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
    /// The same beside a peer that has started the image before.
    LazyPeers,
}

impl Variant {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "eager: podman pull",
            Self::Unpack => "eager: pull and unpack",
            Self::Lazy => "lazy",
            Self::LazyPack => "lazy with pack",
            Self::LazyPeers => "lazy with peers",
        }
    }

    /// Whether the image is mounted, by an agent.
    fn mounts(self) -> bool {
        matches!(self, Self::Lazy | Self::LazyPack | Self::LazyPeers)
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
    /// The link of the node, to the registry and to its neighbour.
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
    /// What the registry sent over the link until it was ready.
    pub traffic: Traffic,
    /// Bytes that its neighbour sent over the link until it was ready; 0 where it has none.
    pub peer_bytes: u64,
}

/// The eager variant that this machine can measure: podman's where it is installed, else ours.
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

/// Measures all variants in turn, round after round. `told` is called with the round, counted from 0,
/// and each run as it ends; `interrupted` ends the bench early.
///
/// # Errors
/// [`BenchError`] where a run fails: then nothing was measured, and nothing is left.
pub async fn run(
    config: BenchConfig,
    interrupted: CancellationToken,
    mut told: impl FnMut(usize, &Run),
) -> Result<Report, BenchError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let registry = config.reference.repository().host().to_owned();
    let lanes = Lanes::new(config.link);
    let link = Link::open(registry, lanes.clone()).await.map_err(BenchError::Scratch)?;
    let image = client(&config.reference).image(&config.reference, &Platform::host()).await?;
    let image_bytes = image.manifest.layers.iter().map(|layer| layer.size).sum();
    let bench = Bench { config: &config, lanes, link, interrupted };
    let mut runs = Vec::new();
    for round in 0..config.rounds {
        for variant in &config.variants {
            let run = bench.measure(*variant).await?;
            told(round, &run);
            runs.push(run);
        }
    }
    Ok(Report::new(&config, image_bytes, runs))
}

/// What all runs share.
struct Bench<'a> {
    config: &'a BenchConfig,
    lanes: Lanes,
    /// The way to the registry.
    link: Link,
    interrupted: CancellationToken,
}

impl Bench<'_> {
    async fn measure(&self, variant: Variant) -> Result<Run, BenchError> {
        // Not in a tmpfs: it is to be like a node's disk.
        let scratch = tempfile::Builder::new().prefix("undermount-bench-").tempdir_in("/var/tmp");
        let scratch = scratch.map_err(BenchError::Scratch)?;
        let neighbour = match variant {
            Variant::LazyPeers => {
                Some(Neighbour::set_up(self.config, scratch.path(), &self.lanes).await?)
            }
            _ => None,
        };
        let outcome = self.measure_beside(neighbour.as_ref(), scratch.path(), variant).await;
        let ended = match neighbour {
            Some(neighbour) => neighbour.end().await,
            None => Ok(()),
        };
        outcome.and_then(|run| ended.map(|()| run))
    }

    async fn measure_beside(
        &self,
        neighbour: Option<&Neighbour<'_>>,
        scratch: &Path,
        variant: Variant,
    ) -> Result<Run, BenchError> {
        if let Some(neighbour) = neighbour {
            self.unless_interrupted(neighbour.start()).await?;
        }
        let (directory, seat) = (scratch.join("node"), neighbour.map(Neighbour::seat_beside));
        let node = Node::set_up(self.config, directory, &self.link, variant, seat).await?;
        let outcome = self.unless_interrupted(self.take(&node, neighbour, variant)).await;
        let ended = node.end().await;
        outcome.and_then(|run| ended.map(|()| run))
    }

    async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, BenchError>>,
    ) -> Result<T, BenchError> {
        let outcome = self.interrupted.run_until_cancelled(work).await;
        outcome.unwrap_or(Err(BenchError::Interrupted))
    }

    /// Brings the image to `node` and starts the command there, cold and warm.
    async fn take(
        &self,
        node: &Node<'_>,
        neighbour: Option<&Neighbour<'_>>,
        variant: Variant,
    ) -> Result<Run, BenchError> {
        if let Some(neighbour) = neighbour {
            neighbour.meets(node).await?;
        }
        drop_caches();
        self.link.begin();
        let way = neighbour.map(Neighbour::way);
        way.inspect(|way| way.begin());
        let begin = Instant::now();
        let root = node.bring().await?;
        let brought = begin.elapsed();
        let cold = node.start(&root, "cold").await?;
        let traffic = self.link.traffic();
        let peer_bytes = way.map_or(0, |way| way.traffic().bytes);
        let warm = node.start(&root, "warm").await?;
        let milliseconds = |time: Duration| time.as_millis() as u64;
        Ok(Run {
            variant,
            brought_ms: milliseconds(brought),
            first_output_ms: cold.first_output.map(|first| milliseconds(brought + first)),
            ready_ms: milliseconds(brought + cold.ready),
            warm_ms: milliseconds(warm.ready),
            traffic,
            peer_bytes,
        })
    }
}

/// What the kernel has cached would make the first round of a variant the only cold one.
fn drop_caches() {
    nix::unistd::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        tracing::warn!(%error, "cannot drop the kernel's caches: runs are not quite cold");
    }
}
