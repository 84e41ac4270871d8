//! `undermount profile record`: a start, watched.
//!
//! The image is mounted from a cache of its own, so that nothing is in the kernel's page cache and
//! every first read is seen.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use regex::bytes::Regex;
use tempfile::TempDir;
use undermount::control::{Control, MountRequest, PullRequest, RecordingRequest, UnmountRequest};
use undermount::image::{Platform, Reference};
use undermount::profile::StartRecord;
use undermount::registry::client::Client;
use undermount::start::{Program, Ready, Running};

use super::ProfilesArgs;
use crate::cli::client::default_config;
use crate::cli::config::ConfigArgs;
use crate::cli::exit::{CliResult, Exit};
use crate::cli::mount::ImageArgs;
use crate::cli::owner::{self, CacheArgs, Log};
use crate::cli::signals::cancelled_by_signals;

/// How often a recording is asked whether it has become quiet.
const LOOK: Duration = Duration::from_millis(200);

/// What is said of a recording that a signal has ended.
const INTERRUPTED: &str = "interrupted";

/// Where images are mounted and what the start writes is kept: not in a tmpfs.
const SCRATCH: &str = "/var/tmp";

/// When a start is over [default: when the command ends with success]
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Readiness")]
#[group(multiple = false)]
pub struct ReadyArgs {
    /// When the command ends with success
    #[arg(long)]
    ready_exit: bool,
    /// When its output matches this regular expression
    #[arg(long, value_name = "REGEX")]
    ready_regex: Option<Regex>,
    /// When it accepts connections at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    ready_tcp: Option<SocketAddr>,
}

impl ReadyArgs {
    /// The mark.
    pub fn mark(&self) -> Ready {
        match (&self.ready_regex, self.ready_tcp) {
            (Some(regex), _) => Ready::Output(regex.clone()),
            (None, Some(address)) => Ready::Port(address),
            (None, None) => Ready::Exit,
        }
    }
}

/// Start a command in an image and record which files it reads
///
/// The command runs in the image's environment, with the network and the devices of this machine,
/// and ends when the start is over. Several recordings of one command are kept together.
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Command and arguments [default: those of the image]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    ready: ReadyArgs,
    /// The start is also over when it has read nothing new for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    silence: u64,
    /// Seconds after which a start that is not over has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    #[command(flatten)]
    profiles: ProfilesArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

impl RecordArgs {
    /// Records one start, keeps it, and prints its name. A signal ends it, and nothing stays.
    pub async fn run(self) -> CliResult {
        let interrupted = cancelled_by_signals()?;
        let request: PullRequest = self.image.clone().into();
        let scratch = tempfile::Builder::new().prefix("undermount-record-").tempdir_in(SCRATCH)?;
        let cache = CacheArgs::private(self.config.clone(), scratch.path().join("cache"));
        let client = Client::new(cache.settings()?.client(default_config())?);
        let program = tokio::select! {
            program = program(&client, &request, self.command.clone()) => program?,
            () = interrupted.cancelled() => return Err(INTERRUPTED.into()),
        };
        let control = owner::running_or_started(&cache, Log::Inherited).await?;
        let mounted = Mounted::new(&control, request, &scratch).await?;
        let recorded = tokio::select! {
            recorded = self.record(&control, &mounted, &program, scratch.path()) => recorded,
            () = interrupted.cancelled() => Err(INTERRUPTED.into()),
        };
        mounted.unmount(&control).await?;
        let mut record = recorded?;
        record.command = program.in_words();
        let name = self.profiles.open().add(record)?;
        writeln!(std::io::stdout(), "{name}")?;
        Ok(Exit::Success)
    }

    async fn record(
        &self,
        control: &Control,
        mounted: &Mounted,
        program: &Program,
        scratch: &Path,
    ) -> CliResult<StartRecord> {
        let request = RecordingRequest { dir: mounted.dir.clone() };
        control.record(&request).await?;
        let running = program.start(&mounted.dir, &scratch.join("start"))?;
        self.watch(control, &request, running).await?;
        let json = control.end_recording(&request).await?;
        Ok(StartRecord::from_json(&json, &mounted.dir)?)
    }

    /// Waits until the start is over.
    async fn watch(
        &self,
        control: &Control,
        request: &RecordingRequest,
        running: Running,
    ) -> CliResult<()> {
        let mark = self.ready.mark();
        let limit = Duration::from_secs(self.limit);
        tokio::select! {
            started = running.ready(&mark, limit) => started.map(drop)?,
            quiet = self.quiet(control, request) => quiet?,
        }
        Ok(())
    }

    async fn quiet(&self, control: &Control, request: &RecordingRequest) -> CliResult<()> {
        loop {
            tokio::time::sleep(LOOK).await;
            let status = control.recording(request).await?;
            if status.quiet_ms.is_some_and(|quiet| quiet >= self.silence.saturating_mul(1000)) {
                return Ok(());
            }
        }
    }
}

/// What is to be started in the image that `request` names.
async fn program(
    client: &Client,
    request: &PullRequest,
    command: Vec<OsString>,
) -> CliResult<Program> {
    let reference: Reference = request.reference.parse()?;
    if request.plain_http {
        client.allow_plain_http(reference.repository().host());
    }
    let image = client.image(&reference, &Platform::host()).await?;
    Ok(Program::of(&image.config, command)?)
}

/// An image that is mounted for a recording.
struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    async fn new(control: &Control, image: PullRequest, scratch: &TempDir) -> CliResult<Self> {
        let dir = scratch.path().join("image");
        std::fs::create_dir(&dir)?;
        let request = MountRequest { image, dir: dir.clone(), data_mode: None, no_packs: true };
        control.mount(&request, |_| {}).await?;
        Ok(Self { dir })
    }

    async fn unmount(self, control: &Control) -> CliResult<()> {
        Ok(control.unmount(&UnmountRequest { dir: self.dir, lazy: true }).await?)
    }
}
