//! The processes behind mounts: `undermount keeper` and `undermount worker`, and how the other
//! commands reach or start them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use undermount::agent::process::{self, CacheLock, OwnerConfig, ProcessError};
use undermount::control::{Control, ControlError, Failure, Runtime};
use undermount_fs::session::SessionError;

use super::client::default_config;
use super::exit::{CliResult, Exit};

/// What the first line of a keeper says when all is well.
const READY: &str = "ready";

/// How long a keeper may take to say its first line.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a command looks for an owner that another command is just starting or ending.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(100);

/// Where the cache is, and how its owner behaves if this command starts it
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// Directory for everything that was fetched
    #[arg(
        long,
        value_name = "DIR",
        env = "UNDERMOUNT_CACHE",
        default_value = "/var/lib/undermount"
    )]
    cache: PathBuf,
    /// Bytes of file contents to keep; what was not used for longest goes first [default: no limit]
    #[arg(long, value_name = "BYTES")]
    quota: Option<u64>,
    /// How long a read may wait for bytes that must be fetched, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    read_timeout: u64,
    /// Time within which a mounted image becomes fully local, in seconds; 0 fetches only what is
    /// read
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    complete_within: u64,
}

impl CacheArgs {
    fn config(&self) -> OwnerConfig {
        OwnerConfig {
            cache: self.cache.clone(),
            quota: self.quota,
            read_timeout: Duration::from_secs(self.read_timeout),
            complete_within: Duration::from_secs(self.complete_within),
            client: default_config(),
        }
    }

    /// The arguments that give a child process the same settings.
    fn to_arguments(&self, cache: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--cache".into(), cache.into()];
        if let Some(quota) = self.quota {
            arguments.extend(["--quota".into(), quota.to_string().into()]);
        }
        arguments.extend(["--read-timeout".into(), self.read_timeout.to_string().into()]);
        arguments.extend(["--complete-within".into(), self.complete_within.to_string().into()]);
        arguments
    }
}

/// Hold the mounts of a cache (started by `mount` and `pull`)
#[derive(Debug, Args)]
pub struct KeeperArgs {
    #[command(flatten)]
    cache: CacheArgs,
}

impl KeeperArgs {
    /// Keeps mounts until there is nothing left to do. Its first line on stdout says whether it
    /// could start.
    pub fn run(self) -> CliResult {
        // Ctrl-C is for the command that started us. (Fails only for a group's leader.)
        let _ = nix::unistd::setsid();
        if let Err(failure) = self.keep() {
            writeln!(std::io::stdout(), "{}", failure.to_json())?;
            return Ok(Exit::Failure);
        }
        Ok(Exit::Success)
    }

    fn keep(&self) -> Result<(), Failure> {
        let failed = |error: ProcessError| match error {
            ProcessError::Session(SessionError::FirstWorker { reason }) => {
                Failure::from_json(&reason)
            }
            error => Failure::of(&error),
        };
        let lock = CacheLock::take(&self.cache.cache).map_err(failed)?;
        let program = std::env::current_exe().map_err(|error| Failure::of(&error))?;
        let mut arguments = vec!["worker".into()];
        arguments.extend(self.cache.to_arguments(&lock.cache));
        let on_ready = || {
            // A starter that is gone has no use for it.
            let _ = writeln!(std::io::stdout(), "{READY}");
        };
        process::keep(&lock, program, arguments, on_ready).map_err(failed)
    }
}

/// Serve the mounts of a keeper (started by it)
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    cache: CacheArgs,
}

impl WorkerArgs {
    /// Serves until the keeper says farewell.
    pub fn run(self) -> CliResult {
        process::work(self.cache.config())?;
        Ok(Exit::Success)
    }
}

/// Who hears what an owner says that this command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// A file in the runtime directory.
    File,
    /// Our own stderr.
    Inherited,
}

/// The owner of the cache; `None` where none runs.
pub async fn running(args: &CacheArgs) -> CliResult<Option<Control>> {
    let Ok(cache) = args.cache.canonicalize() else { return Ok(None) };
    let control = Control::new(Runtime::of(&cache))?;
    match control.status().await {
        Ok(_) => Ok(Some(control)),
        Err(ControlError::NoOwner { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The owner of the cache, started where none runs.
pub async fn running_or_started(args: &CacheArgs, log: Log) -> CliResult<Control> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        if let Some(control) = running(args).await? {
            return Ok(control);
        }
        match start(args, log)? {
            Started::Ready => {}
            // Somebody else is faster, or not gone yet.
            Started::Owned(failure) => last = Some(failure),
        }
        tokio::time::sleep(PAUSE).await;
    }
    let gone = || Failure { error: "the owner of the cache does not stay".into(), cause: None };
    Err(last.unwrap_or_else(gone).into())
}

enum Started {
    Ready,
    Owned(Failure),
}

fn start(args: &CacheArgs, log: Log) -> CliResult<Started> {
    let mut arguments: Vec<OsString> = vec!["keeper".into()];
    arguments.extend(args.to_arguments(&args.cache));
    let mut keeper = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_of(args, log)?)
        .spawn()?;
    let stdout = keeper.stdout.take().expect("stdout was asked to be a pipe");
    let (sender, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        // What cannot be read is an empty line.
        let _ = BufReader::new(stdout).read_line(&mut line);
        // The receiver is gone only after its deadline.
        let _ = sender.send(line);
    });
    let line = line.recv_timeout(START_TIMEOUT).unwrap_or_default();
    match line.trim() {
        READY => Ok(Started::Ready),
        "" => {
            // It neither works nor talks.
            let _ = keeper.kill();
            let _ = keeper.wait();
            Err("the keeper of the cache did not start".into())
        }
        line => {
            keeper.wait()?;
            let failure = Failure::from_json(line);
            let owned = failure.error.starts_with("another process owns");
            if owned { Ok(Started::Owned(failure)) } else { Err(failure.into()) }
        }
    }
}

fn log_of(args: &CacheArgs, log: Log) -> CliResult<Stdio> {
    if log == Log::Inherited {
        return Ok(Stdio::inherit());
    }
    // A cache that cannot be used is the keeper's to complain about.
    let made = std::fs::create_dir_all(&args.cache).and_then(|()| args.cache.canonicalize());
    let Ok(cache) = made else { return Ok(Stdio::null()) };
    let runtime = Runtime::of(&cache);
    let file: std::io::Result<File> = runtime
        .create()
        .and_then(|()| OpenOptions::new().create(true).append(true).open(runtime.log()));
    Ok(file.map_or_else(|_| Stdio::null(), Stdio::from))
}
