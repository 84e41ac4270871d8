//! The side of the commands: ask the owner of a cache.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use undermount_fs::digest::Digest;

use super::{
    CacheStatus, CollectReport, CollectRequest, Dependants, DrainRequest, Event, ExplainRequest,
    Explanation, Failure, MountRequest, PackRequest, PeersStatus, PinRequest, Pinned, PullRequest,
    RecordingRequest, RecordingStatus, Runtime, Status, Transfer, UnmountRequest, UpgradeRequest,
    VerifyReport,
};

/// How long the owner may be silent: it reports progress every second.
const SILENCE: Duration = Duration::from_secs(60);

/// The longest line of a stream, in bytes.
const LINE_MAX: usize = 1 << 20;

/// What was asked for did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No owner runs, or it went away before it had understood.
    #[error("no process owns this cache")]
    NoOwner {
        /// What the socket said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The owner went away in the middle.
    #[error("the process that owns the cache went away; its log is {}", log.display())]
    Lost {
        /// Where to read on.
        log: PathBuf,
        /// What the connection said.
        source: io::Error,
    },
    /// The owner refused, or failed.
    #[error(transparent)]
    Failed(Failure),
}

/// A connection to the owner of a cache.
#[derive(Debug)]
pub struct Control {
    http: reqwest::Client,
    runtime: Runtime,
}

impl Control {
    /// The owner with this runtime directory. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ControlError::NoOwner`] where no connection can be set up at all.
    pub fn new(runtime: Runtime) -> Result<Self, ControlError> {
        let http = reqwest::Client::builder()
            .unix_socket(runtime.socket())
            .no_proxy()
            // Reading the CA store takes longer than most answers.
            .tls_certs_only([])
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| ControlError::NoOwner { source: error.into() })?;
        Ok(Self { http, runtime })
    }

    /// Whether the owner answers.
    ///
    /// # Errors
    /// [`ControlError`] where there is none or it does not answer.
    pub async fn ping(&self) -> Result<(), ControlError> {
        self.send(Method::GET, "ping", &()).await.map(drop)
    }

    /// What the owner does.
    ///
    /// # Errors
    /// [`ControlError`] where there is none or it does not answer.
    pub async fn status(&self) -> Result<Status, ControlError> {
        let bytes = self.answer(Method::GET, "status", &()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(error))
    }

    /// Mounts an image; the digest of its manifest. `progress` hears how far it is.
    ///
    /// # Errors
    /// [`ControlError`] where it could not be mounted; nothing is left behind.
    pub async fn mount(
        &self,
        request: &MountRequest,
        progress: impl FnMut(Transfer),
    ) -> Result<Digest, ControlError> {
        self.follow_image("mounts", request, progress).await
    }

    /// Fetches an image; the digest of its manifest. `progress` hears how far it is.
    ///
    /// # Errors
    /// [`ControlError`] where not all of it could be fetched.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: impl FnMut(Transfer),
    ) -> Result<Digest, ControlError> {
        self.follow_image("pulls", request, progress).await
    }

    /// Who its peers are.
    ///
    /// # Errors
    /// [`ControlError`] where there are none or it does not answer.
    pub async fn peers(&self) -> Result<PeersStatus, ControlError> {
        let bytes = self.answer(Method::GET, "peers", &()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(error))
    }

    /// What is in the cache.
    ///
    /// # Errors
    /// [`ControlError`] where it cannot be told.
    pub async fn cache(&self) -> Result<CacheStatus, ControlError> {
        let bytes = self.answer(Method::GET, "cache", &()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(error))
    }

    /// Hashes the whole cache. `progress` hears of bytes that were hashed.
    ///
    /// # Errors
    /// [`ControlError`] where the cache cannot be read.
    pub async fn verify(
        &self,
        progress: impl FnMut(Transfer),
    ) -> Result<VerifyReport, ControlError> {
        let end = self.follow("cache/verifications", &(), progress).await?;
        if let Event::Verified(report) = end { Ok(report) } else { Err(self.unexpected()) }
    }

    /// Drops what is not needed.
    ///
    /// # Errors
    /// [`ControlError`] where the cache cannot be read.
    pub async fn collect(&self, request: &CollectRequest) -> Result<CollectReport, ControlError> {
        let end = self.follow("cache/collections", request, |_| ()).await?;
        if let Event::Collected(report) = end { Ok(report) } else { Err(self.unexpected()) }
    }

    /// Which way podman takes for the layers of an image, and why.
    ///
    /// # Errors
    /// [`ControlError`] where nobody knows the image.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        self.ask("explain", request).await
    }

    /// Pins an image.
    ///
    /// # Errors
    /// [`ControlError`] where it cannot be had.
    pub async fn pin(&self, request: &PinRequest) -> Result<Pinned, ControlError> {
        self.ask("pins", request).await
    }

    /// Lets a pinned image go.
    ///
    /// # Errors
    /// [`ControlError`] where it is not pinned.
    pub async fn unpin(&self, request: &PinRequest) -> Result<(), ControlError> {
        self.send(Method::DELETE, "pins", request).await.map(drop)
    }

    /// Has podman offered nothing new, or all again; what depends on the agent.
    ///
    /// # Errors
    /// [`ControlError`] where there is no agent.
    pub async fn drain(&self, request: &DrainRequest) -> Result<Dependants, ControlError> {
        self.ask("drain", request).await
    }

    /// Sends a request and reads the answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ControlError> {
        let answer = self.send(Method::POST, path, request).await?;
        let bytes = answer.bytes().await.map_err(|error| self.lost(error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(error))
    }

    /// Unmounts an image.
    ///
    /// # Errors
    /// [`ControlError`] where it is not mounted, or in use.
    pub async fn unmount(&self, request: &UnmountRequest) -> Result<(), ControlError> {
        self.send(Method::DELETE, "mounts", request).await.map(drop)
    }

    /// Begins to record which files of a mounted image are read.
    ///
    /// # Errors
    /// [`ControlError`] where nothing is mounted there.
    pub async fn record(&self, request: &RecordingRequest) -> Result<(), ControlError> {
        self.send(Method::POST, "recordings", request).await.map(drop)
    }

    /// How far a recording is.
    ///
    /// # Errors
    /// [`ControlError`] where nothing is recorded there.
    pub async fn recording(
        &self,
        request: &RecordingRequest,
    ) -> Result<RecordingStatus, ControlError> {
        let bytes = self.answer(Method::GET, "recordings", request).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.lost(error))
    }

    /// Ends a recording: the profile as JSON (see [`crate::profile`]), without a command.
    ///
    /// # Errors
    /// [`ControlError`] where nothing is recorded there.
    pub async fn end_recording(&self, request: &RecordingRequest) -> Result<Bytes, ControlError> {
        self.answer(Method::DELETE, "recordings", request).await
    }

    /// Builds a pack and attaches it; the digest of the image's manifest. `progress` hears how far
    /// the layers are that had to be fetched whole.
    ///
    /// # Errors
    /// [`ControlError`] where it could not be built or attached.
    pub async fn pack(
        &self,
        request: &PackRequest,
        progress: impl FnMut(Transfer),
    ) -> Result<Digest, ControlError> {
        self.follow_image("packs", request, progress).await
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Bytes, ControlError> {
        let answer = self.send(method, path, body).await?;
        answer.bytes().await.map_err(|error| self.lost(error))
    }

    /// Has another program serve the mounts. Returns when the owner has agreed; whether the
    /// program comes up shows in the status.
    ///
    /// # Errors
    /// [`ControlError`] where the program cannot be run.
    pub async fn upgrade(&self, request: &UpgradeRequest) -> Result<(), ControlError> {
        self.send(Method::POST, "upgrade", request).await.map(drop)
    }

    /// As [`Self::follow`], for what ends with an image.
    async fn follow_image(
        &self,
        path: &str,
        request: &impl Serialize,
        progress: impl FnMut(Transfer),
    ) -> Result<Digest, ControlError> {
        match self.follow(path, request, progress).await? {
            Event::Done { manifest } => Ok(manifest),
            _ => Err(self.unexpected()),
        }
    }

    /// Sends a request and follows the stream of events to the last one.
    async fn follow(
        &self,
        path: &str,
        request: &impl Serialize,
        mut progress: impl FnMut(Transfer),
    ) -> Result<Event, ControlError> {
        let mut answer = self.send(Method::POST, path, request).await?.bytes_stream();
        let mut line = Vec::new();
        while let Some(chunk) = answer.next().await {
            line.extend_from_slice(&chunk.map_err(|error| self.lost(error))?);
            while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                let rest = line.split_off(end + 1);
                let event = serde_json::from_slice(&line).map_err(|error| self.lost(error))?;
                line = rest;
                match event {
                    Event::Progress(transfer) => progress(transfer),
                    Event::Failed(failure) => return Err(ControlError::Failed(failure)),
                    last => return Ok(last),
                }
            }
            if line.len() > LINE_MAX {
                return Err(self.lost("it sent a line that does not end"));
            }
        }
        Err(self.lost("the stream ended too early"))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<reqwest::Response, ControlError> {
        let url = format!("http://undermount/v1/{path}");
        let answer = self.http.request(method, url).json(body).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => return Err(self.lost(error)),
            Err(error) => return Err(ControlError::NoOwner { source: error.into() }),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| self.lost(error))?;
        let failure = serde_json::from_slice(&bytes).unwrap_or_else(|_| Failure {
            error: format!("the owner of the cache answers {status}"),
            cause: None,
        });
        Err(ControlError::Failed(failure))
    }

    fn unexpected(&self) -> ControlError {
        self.lost("it ended with the answer to another question")
    }

    fn lost(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ControlError {
        ControlError::Lost { log: self.runtime.log(), source: io::Error::other(error) }
    }
}
