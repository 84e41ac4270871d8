//! A command that is started in the root file system of an image, and watched until it is ready.
//!
//! The command sees the image below an overlay of its own, with the host's devices and network,
//! as the first process of a PID namespace: whoever ends it ends all that it started, and its
//! mounts go with its mount namespace. That is less than what a container runtime does, and all
//! that it takes to see which files a start reads and how long it takes.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use regex::bytes::Regex;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use crate::image::{ImageConfig, RunConfig};

/// Makes the overlay, shows the kernel's file systems in it, and starts the command.
/// `$1` image, `$2` scratch directory, then the environment and the command.
const SCRIPT: &str = r#"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mkdir -p proc dev sys tmp
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
shift 2
exec env -i "$@"
"#;

/// Output is kept for error messages and for the readiness mark, the last of it.
const KEPT_OUTPUT: usize = 64 * 1024;

/// How often a port is tried.
const KNOCK: Duration = Duration::from_millis(10);

/// What images without a `PATH` get.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command cannot be started, or does not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image says nothing of a command.
    #[error("the image names no command: name one after `--`")]
    NoCommand,
    /// unshare(1) or a directory is missing.
    #[error("cannot start `{command}`")]
    Spawn {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It ended without having been ready, or with a failure.
    #[error("`{command}` ended with {status}: {output}")]
    Ended {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// It was not ready in time.
    #[error("`{command}` was not ready after {} s: {output}", limit.as_secs())]
    Late {
        /// The command.
        command: String,
        /// The time that it had.
        limit: Duration,
        /// The end of what it said.
        output: String,
    },
}

/// When a start is over.
#[derive(Debug, Clone)]
pub enum Ready {
    /// The command ends with success.
    Exit,
    /// Its output matches.
    Output(Regex),
    /// It accepts connections there.
    Port(SocketAddr),
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Command and arguments.
    pub command: Vec<OsString>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// In which directory of the image.
    pub directory: String,
}

impl Program {
    /// The command of an image, or `command` where it has words, in the image's environment.
    ///
    /// # Errors
    /// [`StartError::NoCommand`] where neither names any.
    pub fn of(image: &ImageConfig, command: Vec<OsString>) -> Result<Self, StartError> {
        let run = RunConfig::of(image);
        let own = || run.command().map(OsString::from).collect();
        let command: Vec<OsString> = if command.is_empty() { own() } else { command };
        if command.is_empty() {
            return Err(StartError::NoCommand);
        }
        let mut environment = run.env;
        if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
            environment.push(PATH.to_owned());
        }
        let directory = match run.working_dir.as_str() {
            "" => "/".to_owned(),
            directory => directory.to_owned(),
        };
        Ok(Self { command, environment, directory })
    }

    /// The command as one line.
    pub fn in_words(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Starts the program in the image at `root`. `scratch` is an empty directory on a file system
    /// that can be the upper one of an overlay; what the program writes lands there.
    ///
    /// # Errors
    /// [`StartError::Spawn`].
    pub fn start(&self, root: &Path, scratch: &Path) -> Result<Running, StartError> {
        let failed = |source| StartError::Spawn { command: self.in_words(), source };
        for name in ["upper", "work", "root"] {
            std::fs::create_dir_all(scratch.join(name)).map_err(failed)?;
        }
        let (output, input) = io::pipe().map_err(failed)?;
        let begin = Instant::now();
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL"])
            .args(["sh", "-ec", SCRIPT, "sh"])
            .args([root, scratch])
            .args(&self.environment)
            .args(["/usr/bin/unshare", "--root=.", &format!("--wd={}", self.directory)])
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(input.try_clone().map_err(failed)?)
            .stderr(input)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let output = Receiver::from_owned_fd(output.into()).map_err(failed)?;
        let (command, said) = (self.in_words(), Vec::new());
        Ok(Running { command, begin, child, output, said, first_output: None })
    }
}

/// A program that runs; dropped, it is killed with all that it started.
pub struct Running {
    command: String,
    begin: Instant,
    child: Child,
    output: Receiver,
    said: Vec<u8>,
    first_output: Option<Duration>,
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// From the start to the first byte of output, if there was any.
    pub first_output: Option<Duration>,
    /// From the start until it was ready.
    pub ready: Duration,
    /// The end of what it said.
    pub output: Vec<u8>,
}

impl Running {
    /// Waits until the program is ready, at most for `limit`, and ends it.
    ///
    /// # Errors
    /// [`StartError`] where it ends before, or is late.
    pub async fn ready(mut self, ready: &Ready, limit: Duration) -> Result<Started, StartError> {
        let outcome = tokio::time::timeout(limit, self.until(ready)).await;
        let ready = match outcome {
            Ok(outcome) => outcome?,
            Err(_) => {
                let (command, output) = (self.command.clone(), self.tail());
                return Err(StartError::Late { command, limit, output });
            }
        };
        // It is gone when its parent is; what it still held is then free.
        let _ = self.child.kill().await;
        Ok(Started { first_output: self.first_output, ready, output: self.said })
    }

    async fn until(&mut self, ready: &Ready) -> Result<Duration, StartError> {
        match ready {
            Ready::Exit => {
                while self.listen().await {}
                self.ended(true).await
            }
            Ready::Output(mark) => {
                while !mark.is_match(&self.said) {
                    if !self.listen().await {
                        return self.ended(false).await;
                    }
                }
                Ok(self.begin.elapsed())
            }
            Ready::Port(address) => loop {
                if TcpStream::connect(address).await.is_ok() {
                    return Ok(self.begin.elapsed());
                }
                if let Ok(false) = tokio::time::timeout(KNOCK, self.listen()).await {
                    if !matches!(self.child.try_wait(), Ok(None)) {
                        return self.ended(false).await;
                    }
                    // It went on without an output.
                    tokio::time::sleep(KNOCK).await;
                }
            },
        }
    }

    /// Takes the next output; `false` at its end.
    async fn listen(&mut self) -> bool {
        let mut buffer = [0; 8192];
        let count = self.output.read(&mut buffer).await.unwrap_or(0);
        if count > 0 {
            self.first_output.get_or_insert_with(|| self.begin.elapsed());
        }
        self.said.extend_from_slice(&buffer[..count]);
        let excess = self.said.len().saturating_sub(KEPT_OUTPUT);
        self.said.drain(..excess);
        count > 0
    }

    /// The end of the program, which is what was waited for where `wanted`.
    async fn ended(&mut self, wanted: bool) -> Result<Duration, StartError> {
        let command = self.command.clone();
        match self.child.wait().await {
            Ok(status) if wanted && status.success() => Ok(self.begin.elapsed()),
            Ok(status) => Err(StartError::Ended { command, status, output: self.tail() }),
            Err(source) => Err(StartError::Spawn { command, source }),
        }
    }

    /// The last lines of the output, for a message.
    fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        let lines: Vec<&str> = text.trim_end().lines().rev().take(5).collect();
        match lines.is_empty() {
            true => "it said nothing".to_owned(),
            false => lines.into_iter().rev().collect::<Vec<_>>().join("; "),
        }
    }
}
