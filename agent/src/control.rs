//! The words between the owner of a cache and the commands that use it.
//!
//! HTTP with JSON over a unix socket, `control.sock` in the runtime directory:
//!
//! ```text
//! GET    /v1/ping                       -> 204
//! GET    /v1/status                     -> 200 Status; looks at every file of every image
//! POST   /v1/mounts   MountRequest      -> 200 a stream of Events, one JSON object a line
//! POST   /v1/pulls    PullRequest       -> 200 a stream of Events
//! DELETE /v1/mounts   UnmountRequest    -> 204, or an error as Failure
//! POST   /v1/recordings RecordingRequest -> 204: reads are recorded from now on
//! GET    /v1/recordings RecordingRequest -> 200 RecordingStatus
//! DELETE /v1/recordings RecordingRequest -> 200 the profile (see crate::profile)
//! POST   /v1/packs    PackRequest       -> 200 a stream of Events
//! POST   /v1/upgrade  UpgradeRequest    -> 202, and another worker soon after
//! POST   /v1/explain  ExplainRequest    -> 200 Explanation
//! GET    /v1/cache                      -> 200 CacheStatus
//! POST   /v1/cache/verifications        -> 200 a stream of Events
//! POST   /v1/cache/collections  CollectRequest -> 200 a stream of Events
//! POST   /v1/pins     PinRequest        -> 200 Pinned
//! DELETE /v1/pins     PinRequest        -> 204
//! POST   /v1/drain    DrainRequest      -> 200 Dependants
//! GET    /v1/peers                      -> 200 PeersStatus, or 404 where there are none
//! ```
//!
//! A stream ends with `done`, `verified`, `collected` or `failed`. Who goes away before that
//! cancels what was asked for.

mod client;
mod peers;
mod runtime;
mod slow;
mod upkeep;

pub use client::{Control, ControlError};
pub use peers::PeersStatus;
pub use runtime::Runtime;
pub use slow::{SlowReadStatus, WaitStatus};
pub use upkeep::{CacheStatus, CollectReport, CollectRequest, Tally, VerifyReport};

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::session::DataMode;

/// What to fetch, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image.
    pub reference: String,
    /// Whether its registry is spoken to without TLS.
    #[serde(default)]
    pub plain_http: bool,
}

/// What to mount, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The image.
    #[serde(flatten)]
    pub image: PullRequest,
    /// An empty directory, as an absolute path.
    pub dir: PathBuf,
    /// How the kernel is to get the bytes of files; `None` for whatever the owner does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// Whether the image's packs are left aside, to see what they are worth.
    #[serde(default)]
    pub no_packs: bool,
}

/// What to unmount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmountRequest {
    /// Where an image is mounted, as an absolute path.
    pub dir: PathBuf,
    /// Whether to detach it even if it is in use.
    #[serde(default)]
    pub lazy: bool,
}

/// Which reads to record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordingRequest {
    /// Where the image is mounted, as an absolute path.
    pub dir: PathBuf,
}

/// How far a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingStatus {
    /// Distinct units of files that were read.
    pub units: usize,
    /// Milliseconds since a unit was read for the first time; `None` before that.
    pub quiet_ms: Option<u64>,
}

/// Which pack to build and to attach to its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackRequest {
    /// The image.
    #[serde(flatten)]
    pub image: PullRequest,
    /// Files with profiles of its starts, for a start-up pack.
    #[serde(default)]
    pub profiles: Vec<PathBuf>,
    /// The image that nodes have, for an update pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_from: Option<String>,
}

/// What is to serve the mounts from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The program of the next worker, as an absolute path.
    pub program: PathBuf,
}

/// A step of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// So far.
    Progress(Transfer),
    /// All of it was done.
    Done {
        /// The manifest that the name means.
        manifest: Digest,
    },
    /// The cache was verified.
    Verified(VerifyReport),
    /// What is not needed was dropped.
    Collected(CollectReport),
    /// It was given up; nothing of it is left behind.
    Failed(Failure),
}

impl From<Digest> for Event {
    fn from(manifest: Digest) -> Self {
        Self::Done { manifest }
    }
}

impl From<VerifyReport> for Event {
    fn from(report: VerifyReport) -> Self {
        Self::Verified(report)
    }
}

impl From<CollectReport> for Event {
    fn from(report: CollectReport) -> Self {
        Self::Collected(report)
    }
}

/// How far a transfer is, in bytes of compressed layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes that have arrived.
    pub bytes: u64,
    /// Bytes in all, as far as it is known.
    pub total: u64,
}

/// An error and its causes, as words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub error: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Failure>>,
}

impl Failure {
    /// `error` and its causes.
    pub fn of(error: &dyn std::error::Error) -> Self {
        let cause = error.source().map(|cause| Box::new(Self::of(cause)));
        Self { error: error.to_string(), cause }
    }

    /// The failure and its causes, separated by colons.
    pub fn in_words(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {}", self.error, cause.in_words()),
            None => self.error.clone(),
        }
    }

    /// The failure as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("failures are plain data")
    }

    /// What [`Self::to_json`] wrote; other words are an error without a cause.
    pub fn from_json(line: &str) -> Self {
        serde_json::from_str(line)
            .unwrap_or_else(|_| Self { error: line.trim().to_owned(), cause: None })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// What an owner does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its cache directory.
    pub cache: PathBuf,
    /// Bytes of file contents in it.
    pub cache_bytes: u64,
    /// The process that serves the mounts.
    pub worker: u32,
    /// Its program.
    #[serde(default)]
    pub program: PathBuf,
    /// How the kernel gets the bytes of files.
    pub data_mode: DataMode,
    /// How often that process had to be replaced.
    pub restarts: u64,
    /// How the one before ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// What is mounted.
    pub mounts: Vec<MountStatus>,
    /// What is pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<PinStatus>,
    /// What podman uses; `None` where no agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// The slowest reads of the last day, the slowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slowest_reads: Vec<SlowReadStatus>,
}

/// What podman uses of the layer store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Whether nothing new is offered.
    #[serde(default)]
    pub drained: bool,
    /// The layers that it is shown.
    #[serde(default)]
    pub layers: LayersStatus,
    /// The images that podman uses, or has looked for lately.
    pub images: Vec<StoreImage>,
    /// How often podman had to pull a layer by itself since the process started, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// How many layers podman is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayersStatus {
    /// Those that it uses, or has looked for lately.
    pub shown: u64,
    /// Those that it has removed, and that a container or the kernel's memory still holds.
    pub leaving: u64,
    /// Those that are gone since the process started.
    pub dropped: u64,
}

/// An image that podman knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreImage {
    /// The name by which podman knows it.
    pub reference: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// How many of its layers podman uses, as far as it has told.
    pub layers_in_use: usize,
    /// How many layers it has.
    pub layers: usize,
    /// How many of its layers can be read lazily.
    pub lazy_layers: usize,
    /// Bytes of the compressed lazy layers, each counted once.
    pub image_bytes: u64,
    /// Bytes of their distinct file contents.
    pub content_bytes: u64,
    /// Bytes of these that are here.
    pub local_bytes: u64,
    /// Why the image could not be made fully local, if that failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A mounted image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where.
    pub dir: PathBuf,
    /// The name it was mounted by.
    pub reference: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Bytes of its compressed layers, each counted once.
    pub image_bytes: u64,
    /// Bytes of its distinct file contents.
    pub content_bytes: u64,
    /// Bytes of these that are here.
    pub local_bytes: u64,
    /// What was fetched for its repository since the owner's process started.
    pub fetched: Vec<Fetched>,
    /// Why reads of it fail or wait at present; else why the image could not be made fully local,
    /// if that failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Which image is to stay local, or may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The image.
    pub reference: String,
}

/// What was pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The digest of the manifest that the name means now.
    pub manifest: Digest,
}

/// An image that stays local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// The name by which it was pinned.
    pub reference: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Bytes of its distinct file contents; 0 while its registry was not reached.
    pub content_bytes: u64,
    /// Bytes of these that are here.
    pub local_bytes: u64,
    /// Why it could not be made fully local, if that failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Whether podman is to be offered no new layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// No new ones, or all again.
    pub drained: bool,
}

/// What cannot be used without the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependants {
    /// Images of podman's.
    pub images: Vec<String>,
    /// Directories where images are mounted.
    pub mounts: Vec<String>,
}

/// Which image is to be explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The image.
    pub reference: String,
}

/// Which way podman takes for the layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The image.
    pub reference: String,
    /// The digest of the manifest that it means now.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerFate>,
}

/// What becomes of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFate {
    /// The layer blob.
    pub layer: Digest,
    /// Whether podman is offered it; it downloads what it is not offered.
    pub lazy: bool,
    /// How, or why not.
    pub reason: String,
}

/// Bytes from one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The registry or peer.
    pub origin: String,
    /// Bytes.
    pub bytes: u64,
}
