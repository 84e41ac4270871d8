//! What the demo puts up and takes down again: a directory, registries, mounts, commands.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::DemoError;
use crate::control::{Control, ControlError, Runtime};
use crate::host::mounts;
use crate::registry::server::{Server, ServerConfig};

/// Everything that a command of the demo does takes less.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an unmount may take before the mount is detached.
const UNMOUNT: Duration = Duration::from_secs(15);

/// How often, and how many times, the owner of the cache is looked for.
const OWNER_LOOK: Duration = Duration::from_millis(100);
const OWNER_LOOKS: u32 = 150;

/// A directory in which commands run, and what runs in it. [`Stage::clear`] must end it.
pub struct Stage {
    /// This program.
    program: PathBuf,
    directory: TempDir,
    registries: Vec<(CancellationToken, JoinHandle<()>)>,
    mounts: Vec<PathBuf>,
}

impl Stage {
    /// An empty stage for commands of `program`.
    ///
    /// # Errors
    /// Where no temporary directory can be made.
    pub fn new(program: PathBuf) -> Result<Self, DemoError> {
        let directory = tempfile::Builder::new()
            .prefix("undermount-demo-")
            .tempdir()
            .map_err(DemoError::Host)?;
        Ok(Self { program, directory, registries: Vec::new(), mounts: Vec::new() })
    }

    /// A path in the directory of the stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the embedded registry over the directory `name`; gives its address.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn registry(&mut self, name: &str) -> Result<String, DemoError> {
        let server = Server::bind(ServerConfig::new(self.path(name), "127.0.0.1:0")).await?;
        let address = server.local_addr().to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        self.registries.push((stop, task));
        Ok(address)
    }

    /// Runs `undermount` with these words in the directory of the stage; gives its stdout.
    ///
    /// # Errors
    /// [`DemoError::Command`] with what it said, where it fails or takes too long.
    pub async fn undermount(&self, words: &[&str]) -> Result<String, DemoError> {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(self.directory.path()).stdin(Stdio::null());
        // Ctrl-C is for the demo, which then stops its commands.
        command.process_group(0).kill_on_drop(true);
        let failed = |reason: String| DemoError::Command { words: words.join(" "), reason };
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| failed(format!("it took longer than {} s", PATIENCE.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
    }

    /// Mounts an image on the new directory `name`.
    ///
    /// # Errors
    /// Those of making the directory and of [`Self::undermount`].
    pub async fn mount(&mut self, reference: &str, name: &str) -> Result<PathBuf, DemoError> {
        let directory = self.path(name);
        std::fs::create_dir(&directory).map_err(DemoError::Host)?;
        // Before it is there, since a demo that is stopped in between has to look for it.
        self.mounts.push(directory.clone());
        // Only what is read is to be fetched, so that it can be counted.
        let words = ["mount", "--cache", "cache", "--complete-within", "0", reference, name];
        self.undermount(&words).await?;
        Ok(directory)
    }

    /// Takes everything down, whatever state it is in.
    pub async fn clear(mut self) {
        for mount in std::mem::take(&mut self.mounts) {
            self.unmount(&mount).await;
        }
        self.owner_gone().await;
        for (stop, task) in self.registries.drain(..) {
            stop.cancel();
            // A registry that does not stop in its own time ends with this process.
            let _ = task.await;
        }
        let path = self.directory.path().to_owned();
        if let Err(error) = self.directory.close() {
            tracing::warn!(path = %path.display(), %error, "the directory of the demo is left behind");
        }
    }

    /// Waits for the process that owned the cache, which ends a while after its last mount.
    async fn owner_gone(&self) {
        let cache = self.path("cache");
        let Ok(cache) = cache.canonicalize() else { return };
        let Ok(control) = Control::new(Runtime::of(&cache)) else { return };
        for _ in 0..OWNER_LOOKS {
            if matches!(control.status().await, Err(ControlError::NoOwner { .. })) {
                return;
            }
            tokio::time::sleep(OWNER_LOOK).await;
        }
        tracing::warn!(path = %cache.display(), "the owner of the demo's cache does not end");
    }

    async fn unmount(&self, mount: &Path) {
        let name = mount.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let words = ["umount", "--cache", "cache", name];
        let asked = tokio::time::timeout(UNMOUNT, self.undermount(&words)).await;
        if !matches!(asked, Ok(Ok(_))) && mounts::is_mount_point(mount) {
            // Whoever should have unmounted it is gone or busy: nothing may keep the mount.
            if let Err(error) = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH) {
                tracing::warn!(path = %mount.display(), %error, "a mount of the demo is left behind");
            }
        }
    }
}

/// Runs `program` with one argument below the root directory `root`; gives the moment of its
/// first output, and all of it.
///
/// # Errors
/// [`DemoError::Command`] where it fails, prints nothing or takes too long.
pub async fn run_below(
    root: &Path,
    program: &Path,
    argument: &str,
) -> Result<(Instant, String), DemoError> {
    let mut command = Command::new("chroot");
    command.arg(root).arg(program).arg(argument).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let failed = |reason: String| DemoError::Command {
        words: format!("chroot {} {} {argument}", root.display(), program.display()),
        reason,
    };
    match tokio::time::timeout(PATIENCE, follow(command)).await {
        Err(_) => Err(failed(format!("it took longer than {} s", PATIENCE.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok((_, output))) if !output.status.success() => {
            Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
        }
        Ok(Ok((None, _))) => Err(failed("it printed nothing".to_owned())),
        Ok(Ok((Some(first), output))) => {
            Ok((first, String::from_utf8_lossy(&output.stdout).trim_end().to_owned()))
        }
    }
}

/// Runs a command to its end; the moment of its first output, if there was any.
async fn follow(mut command: Command) -> io::Result<(Option<Instant>, Output)> {
    let mut child = command.spawn()?;
    let mut first = None;
    let mut text = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        while stdout.read_buf(&mut text).await? > 0 {
            first.get_or_insert_with(Instant::now);
        }
    }
    let output = child.wait_with_output().await?;
    Ok((first, Output { stdout: text, ..output }))
}
