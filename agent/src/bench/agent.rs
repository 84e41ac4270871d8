//! The agent of a node of the bench: it runs before an image is asked for, as the unit of the
//! package does, and knows nothing yet.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::BenchError;
use super::cluster::Seat;
use crate::control::{Control, PeersStatus, Runtime};

/// What holds for the agent, whatever this host's own one is told: what a start does not read is
/// not part of the measurement, and no other node is to hear of it.
const CONFIG: &str = "[completion]\nwithin = 0\n[profiles]\nstarts = \"off\"\n";

/// How long the agent may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked whether it serves.
const PAUSE: Duration = Duration::from_millis(20);

/// A running agent. Dropped without [`Agent::stop`], it is killed.
pub struct Agent {
    process: Child,
    control: Control,
    directory: PathBuf,
}

impl Agent {
    /// Starts `program` as an agent whose cache is `directory`/cache, and waits until it serves;
    /// with a `seat`, it is a member of that cluster.
    ///
    /// # Errors
    /// [`BenchError`] where it does not serve in time.
    pub async fn start(
        program: &Path,
        directory: &Path,
        seat: Option<&Seat>,
    ) -> Result<Self, BenchError> {
        let cache = directory.join("cache");
        std::fs::create_dir_all(&cache).map_err(BenchError::Scratch)?;
        let cache = cache.canonicalize().map_err(BenchError::Scratch)?;
        let config = directory.join("agent.toml");
        let text = [CONFIG, &seat.map(Seat::settings).unwrap_or_default()].concat();
        std::fs::write(&config, text).map_err(BenchError::Scratch)?;
        let log = std::fs::File::create(log(directory)).map_err(BenchError::Scratch)?;
        let mut command = Command::new(program);
        command.arg("agent").arg("--config").arg(config).arg("--cache").arg(&cache);
        command.arg("--store").arg(directory.join("store"));
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        let failed = |reason: String| failed(directory, &reason);
        let control =
            Control::new(Runtime::of(&cache)).map_err(|error| failed(error.to_string()))?;
        let process = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut agent = Self { process, control, directory: directory.to_owned() };
        agent.serves().await.map_err(failed)?;
        Ok(agent)
    }

    async fn serves(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while self.control.ping().await.is_err() {
            let ended = self.process.try_wait().map_err(|error| error.to_string())?;
            if let Some(status) = ended {
                return Err(format!("it ended with {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("it does not serve after {} s", PATIENCE.as_secs()));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until this agent and `other` are members of the same cluster, for both of them.
    ///
    /// # Errors
    /// [`BenchError`] where that takes too long.
    pub async fn meets(&self, other: &Self) -> Result<(), BenchError> {
        let meeting = async {
            loop {
                let asked = tokio::join!(self.control.peers(), other.control.peers());
                if let (Ok(here), Ok(there)) = asked
                    && knows(&here, &there)
                    && knows(&there, &here)
                {
                    return;
                }
                sleep(PAUSE).await;
            }
        };
        let late = |_| {
            let reason = format!("it found no neighbour within {} s", PATIENCE.as_secs());
            failed(&self.directory, &reason)
        };
        timeout(PATIENCE, meeting).await.map_err(late)
    }

    /// Ends it; its mounts go with it.
    ///
    /// # Errors
    /// [`BenchError`] where it does not end in time.
    pub async fn stop(mut self) -> Result<(), BenchError> {
        let told = self.process.id().map_or(Ok(()), |id| {
            kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM).map_err(io::Error::from)
        });
        let ended = timeout(PATIENCE, self.process.wait()).await;
        match (told, ended) {
            (Ok(()), Ok(Ok(_))) => Ok(()),
            (Err(error), _) | (_, Ok(Err(error))) => Err(BenchError::Scratch(error)),
            (_, Err(_)) => Err(BenchError::Command {
                words: "undermount agent".to_owned(),
                reason: format!("it did not end within {} s", PATIENCE.as_secs()),
            }),
        }
    }
}

/// Whether `one` takes `other` for a member.
fn knows(one: &PeersStatus, other: &PeersStatus) -> bool {
    one.membership.members.iter().any(|member| member.id == other.membership.own)
}

fn log(directory: &Path) -> PathBuf {
    directory.join("agent.log")
}

fn failed(directory: &Path, reason: &str) -> BenchError {
    let said = std::fs::read_to_string(log(directory)).unwrap_or_default();
    BenchError::Command {
        words: "undermount agent".to_owned(),
        reason: format!("{reason}\n{}", said.trim_end()).trim_end().to_owned(),
    }
}
