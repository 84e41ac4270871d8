//! The processes behind mounts: `undermount keeper` and `undermount worker`, and how the other
//! commands reach or start them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use undermount::agent::process::{self, CacheLock, Continuity, KeeperSettings, ProcessError};
use undermount::agent::upkeep::Upkeep;
use undermount::config::Settings;
use undermount::config::value::{ByteCount, Seconds, from_word};
use undermount::control::{Control, ControlError, Failure, Runtime};
use undermount_fs::fill::OnOutage;
use undermount_fs::session::{DataMode, SessionError};

use super::client::default_config;
use super::config::ConfigArgs;
use super::exit::{CliResult, Exit};

/// What the first line of a keeper says when all is well.
const READY: &str = "ready";

/// How long a keeper may take to say its first line.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a command looks for an owner that another command is just starting or ending.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(100);

/// Where the cache is, and how its owner behaves if this command starts it
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Directory for everything that was fetched [default: /var/lib/undermount]
    #[arg(long, value_name = "DIR", env = "UNDERMOUNT_CACHE")]
    cache: Option<PathBuf>,
    /// Bytes of file contents to keep, also with KiB, MiB, GiB or TiB; what was not used for
    /// longest goes first [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>)]
    quota: Option<ByteCount>,
    /// Bytes of the file system that stay free, also with KiB, MiB, GiB or TiB [default: a
    /// twentieth of it, at most 1 GiB]
    #[arg(long, value_name = "BYTES", value_parser = from_word::<ByteCount>)]
    cache_reserve: Option<ByteCount>,
    /// Let files of mounted and complete images be dropped where room is needed, and fetched again
    #[arg(long)]
    evict_complete: bool,
    /// How long a read may wait for bytes that must be fetched, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = from_word::<Seconds<1, 3600>>)]
    read_timeout: Option<Seconds<1, 3600>>,
    /// What becomes of a read whose bytes cannot be fetched: `wait`, it waits for the registry for
    /// as long as --read-timeout says; `eio`, it fails with the registry [default: wait]
    #[arg(long, value_name = "POLICY", value_parser = on_outage)]
    on_outage: Option<OnOutage>,
    /// Time within which a mounted image becomes fully local once its turn has come (one image at
    /// a time), in seconds; 0 fetches only what is read [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = from_word::<Seconds<0, 604_800>>)]
    complete_within: Option<Seconds<0, 604_800>>,
    /// How the kernel gets the bytes of files: `cached`, it asks and keeps them; `passthrough`, it
    /// reads complete files from the cache directory by itself (Linux 6.9) [default: cached]
    #[arg(long, value_name = "MODE", value_parser = data_mode)]
    data_mode: Option<DataMode>,
    /// Features of the kernel's FUSE that may be used, as a hexadecimal mask of FUSE_INIT flags
    #[arg(long, value_name = "HEX", value_parser = hexadecimal, hide = true)]
    init_mask: Option<u64>,
}

fn data_mode(word: &str) -> Result<DataMode, &'static str> {
    [DataMode::Cached, DataMode::Passthrough]
        .into_iter()
        .find(|mode| mode.to_string() == word)
        .ok_or("expected `cached` or `passthrough`")
}

fn on_outage(word: &str) -> Result<OnOutage, &'static str> {
    match word {
        "wait" => Ok(OnOutage::Wait),
        "eio" => Ok(OnOutage::Eio),
        _ => Err("expected `wait` or `eio`"),
    }
}

fn hexadecimal(word: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(word, 16)
}

impl CacheArgs {
    /// A cache of a command's own in the directory `cache`, which fetches only what is read; `config`
    /// says how registries are reached.
    pub fn private(config: ConfigArgs, cache: PathBuf) -> Self {
        let complete_within = Seconds::new(0);
        Self { config, cache: Some(cache), complete_within, ..Self::default() }
    }

    /// The features of the kernel that may be used.
    pub fn init_mask(&self) -> u64 {
        self.init_mask.unwrap_or(u64::MAX)
    }

    /// The data mode that was asked for in so many words.
    pub fn data_mode(&self) -> Option<DataMode> {
        self.data_mode
    }

    /// What the configuration file says, under the flags.
    pub(super) fn settings(&self) -> CliResult<Settings> {
        let mut settings = self.config.settings()?;
        if let Some(cache) = &self.cache {
            settings.cache.directory = cache.clone().into();
        }
        if let Some(quota) = self.quota {
            settings.cache.quota = Some(quota);
        }
        if let Some(reserve) = self.cache_reserve {
            settings.cache.reserve = Some(reserve);
        }
        settings.cache.evict_complete |= self.evict_complete;
        if let Some(timeout) = self.read_timeout {
            settings.reads.timeout = timeout;
        }
        if let Some(policy) = self.on_outage {
            settings.reads.on_outage = policy;
        }
        if let Some(within) = self.complete_within {
            settings.completion.within = within;
        }
        if let Some(mode) = self.data_mode {
            settings.reads.data_mode = mode;
        }
        Ok(settings)
    }
}

/// What a process of the owner is given by the one that starts it: settings that are resolved,
/// so that a file that changes meanwhile does no harm.
#[derive(Debug, Args)]
struct Handed {
    /// Settings as JSON
    #[arg(long, value_name = "JSON", value_parser = from_json)]
    settings: Settings,
}

fn from_json(text: &str) -> Result<Settings, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// The arguments that hand `settings` to a child process.
fn handing(settings: &Settings) -> [OsString; 2] {
    let json = serde_json::to_string(settings).expect("settings are plain data");
    ["--settings".into(), json.into()]
}

/// Hold the mounts of a cache (started by `mount` and `pull`)
#[derive(Debug, Args)]
pub struct KeeperArgs {
    #[command(flatten)]
    handed: Handed,
    /// See `mount --init-mask`
    #[arg(long, value_parser = hexadecimal, default_value = "ffffffffffffffff")]
    init_mask: u64,
}

impl KeeperArgs {
    /// Keeps mounts until there is nothing left to do. Its first line on stdout says whether it
    /// could start.
    pub fn run(self, log: Vec<OsString>) -> CliResult {
        // Ctrl-C is for the command that started us. (Fails only for a group's leader.)
        let _ = nix::unistd::setsid();
        if let Err(failure) = self.keep(log) {
            writeln!(std::io::stdout(), "{}", failure.to_json())?;
            return Ok(Exit::Failure);
        }
        Ok(Exit::Success)
    }

    fn keep(&self, log: Vec<OsString>) -> Result<(), Failure> {
        let on_ready = || {
            // A starter that is gone has no use for it.
            let _ = writeln!(std::io::stdout(), "{READY}");
        };
        let init_mask = self.init_mask;
        let kept = Kept { role: Role::Owner, init_mask, continuity: None, log };
        keep(self.handed.settings.clone(), kept, on_ready)
    }
}

/// What a keeper keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The mounts of a cache, as long as there are any.
    Owner,
    /// Also podman's layer store, always.
    Agent,
}

/// What is kept, and how.
pub(super) struct Kept {
    pub role: Role,
    /// The features of the kernel that may be used.
    pub init_mask: u64,
    /// What the service manager has kept for us.
    pub continuity: Option<Continuity>,
    /// The arguments that say what workers log.
    pub log: Vec<OsString>,
}

/// Takes the cache and keeps its mounts.
pub(super) fn keep(
    mut settings: Settings,
    kept: Kept,
    on_ready: impl FnMut(),
) -> Result<(), Failure> {
    let Kept { role, init_mask, continuity, log } = kept;
    let failed = |error: ProcessError| match error {
        ProcessError::Session(SessionError::FirstWorker { reason }) => Failure::from_json(&reason),
        error => Failure::of(&error),
    };
    let cache = &settings.cache.directory;
    let lock = match continuity.as_ref().and_then(|continuity| continuity.estate.as_ref()) {
        Some(estate) => CacheLock::inherit(estate, cache),
        None => CacheLock::take(cache),
    };
    let lock = lock.map_err(failed)?;
    settings.cache.directory = lock.cache.clone().into();
    let program = std::env::current_exe().map_err(|error| Failure::of(&error))?;
    let mut arguments = vec!["worker".into()];
    arguments.extend(handing(&settings));
    arguments.extend(log);
    let store = (role == Role::Agent).then(|| settings.store.mount.to_path_buf());
    let data_mode = settings.reads.data_mode;
    let context = settings.mounts.selinux_context.as_ref().map(ToString::to_string);
    let settings = KeeperSettings { program, arguments, store, data_mode, init_mask, context };
    process::keep(&lock, settings, continuity, on_ready).map_err(failed)
}

/// Serve the mounts of a keeper (started by it)
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    handed: Handed,
}

impl WorkerArgs {
    /// Serves until the keeper says farewell.
    pub fn run(self) -> CliResult {
        process::work(self.handed.settings.owner(default_config())?)?;
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
    running_for(&args.settings()?).await
}

/// Looks after the cache in this process: no owner runs. Nobody else may own the cache meanwhile.
pub fn without_owner(args: &CacheArgs) -> CliResult<(CacheLock, Upkeep)> {
    let settings = args.settings()?;
    let cache: &Path = &settings.cache.directory;
    if !cache.exists() {
        return Err(format!("there is no cache at {}", cache.display()).into());
    }
    let lock = CacheLock::take(cache)?;
    let upkeep = process::upkeep(&lock, &settings.owner(default_config())?)?;
    Ok((lock, upkeep))
}

async fn running_for(settings: &Settings) -> CliResult<Option<Control>> {
    let Ok(cache) = settings.cache.directory.canonicalize() else { return Ok(None) };
    let control = Control::new(Runtime::of(&cache))?;
    match control.ping().await {
        Ok(()) => Ok(Some(control)),
        Err(ControlError::NoOwner { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The owner of the cache, started where none runs.
pub async fn running_or_started(args: &CacheArgs, log: Log) -> CliResult<Control> {
    let settings = args.settings()?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        if let Some(control) = running_for(&settings).await? {
            return Ok(control);
        }
        match start(&settings, args.init_mask, log)? {
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

fn start(settings: &Settings, init_mask: Option<u64>, log: Log) -> CliResult<Started> {
    // What is wrong with files that the settings name is told here, not by a child.
    settings.client(default_config())?;
    let mut keeper = Command::new(std::env::current_exe()?)
        .arg("keeper")
        .args(handing(settings))
        .args(init_mask.map(|mask| format!("--init-mask={mask:x}")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_of(&settings.cache.directory, log)?)
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

fn log_of(cache: &Path, log: Log) -> CliResult<Stdio> {
    if log == Log::Inherited {
        return Ok(Stdio::inherit());
    }
    // A cache that cannot be used is the keeper's to complain about.
    let made = std::fs::create_dir_all(cache).and_then(|()| cache.canonicalize());
    let Ok(cache) = made else { return Ok(Stdio::null()) };
    let runtime = Runtime::of(&cache);
    let file: std::io::Result<File> = runtime
        .create()
        .and_then(|()| OpenOptions::new().create(true).append(true).open(runtime.log()));
    Ok(file.map_or_else(|_| Stdio::null(), Stdio::from))
}
