//! A node of the suite about sessions: a keeper process, its workers and its mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use undermount_fs::session::DataMode;

use crate::process::{Running, SOON, eventually};

/// The `FUSE_INIT` flags of Linux 5.14: none of the upper half, no RESEND.
pub const LINUX_5_14: u64 = (1 << 30) - 1;

/// How a node's keeper is to behave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The directory for the mounts and the files that steer the worker.
    pub dir: PathBuf,
    /// What to mount, each on a directory of its name: `grove`, or `plain` and `xattr`.
    pub mounts: Vec<String>,
    /// See `RestartPolicy`.
    pub ready_within: Duration,
    /// See `RestartPolicy`.
    pub answer_after: Duration,
    /// See `RestartPolicy`.
    pub unsound_limit: Duration,
    /// See `RestartPolicy`.
    pub silent_limit: Duration,
    /// How the kernel gets the bytes of files.
    pub data_mode: DataMode,
    /// `FUSE_INIT` flags that the kernel may use.
    pub init_mask: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            mounts: vec!["grove".to_owned()],
            ready_within: Duration::from_secs(120),
            answer_after: Duration::from_secs(600),
            unsound_limit: Duration::from_secs(600),
            silent_limit: Duration::from_secs(600),
            data_mode: DataMode::Cached,
            init_mask: u64::MAX,
        }
    }
}

/// A running keeper. When dropped, everything it started is ended and its mount detached, also
/// when the test has failed and somebody still hangs in the mount.
pub struct Node {
    keeper: Running,
    dir: TempDir,
}

impl Node {
    /// Starts a keeper in a directory of its own and waits until its first worker serves.
    pub fn start(program: &str, config: NodeConfig) -> Self {
        let mut node = Self::start_in(program, config, tempfile::tempdir().unwrap());
        node.wait_until_ready();
        node
    }

    /// Waits until the first worker serves.
    pub fn wait_until_ready(&mut self) {
        self.keeper.wait_for(SOON, |text| text.contains("ready").then_some(()));
    }

    /// Starts a keeper in `dir` and does not wait.
    pub fn start_in(program: &str, mut config: NodeConfig, dir: TempDir) -> Self {
        config.dir = dir.path().to_owned();
        let config = serde_json::to_string(&config).unwrap();
        let keeper = Running::start(Command::new(program).args(["keeper", &config]));
        Self { keeper, dir }
    }

    /// The keeper.
    pub fn keeper(&mut self) -> &mut Running {
        &mut self.keeper
    }

    /// The directory of the node.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the grove is mounted.
    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("grove")
    }

    /// Gives the worker a file to obey.
    pub fn tell(&self, file: &str, words: &str) {
        // Whole at once: the worker polls for it.
        let draft = self.dir.path().join("draft");
        fs::write(&draft, words).unwrap();
        fs::rename(&draft, self.dir.path().join(file)).unwrap();
    }

    /// Takes such a file away.
    pub fn untell(&self, file: &str) {
        fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    /// The process id of the present worker, once it has written it.
    pub fn worker(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.path().join("pid")).ok()?;
        text.parse().ok().map(Pid::from_raw)
    }

    /// SIGKILL to the present worker, if there is one.
    pub fn kill_worker(&self) {
        if let Some(worker) = self.worker() {
            let _ = kill(worker, Signal::SIGKILL);
        }
    }

    /// How many workers were started in place of another, as the present one was told.
    pub fn restarts(&self) -> u64 {
        let text = fs::read_to_string(self.dir.path().join("restarts")).unwrap_or_default();
        text.parse().unwrap_or_default()
    }

    /// How the last worker was told to end, if it was.
    pub fn farewell(&self) -> String {
        fs::read_to_string(self.dir.path().join("farewell")).unwrap_or_default()
    }

    /// Waits until the present worker is not `former`.
    pub fn wait_for_successor(&self, former: Pid) -> Pid {
        eventually("another worker", SOON, || self.worker().is_some_and(|pid| pid != former));
        self.worker().unwrap()
    }

    /// Whether the mount table knows the mount.
    pub fn is_mounted(&self) -> bool {
        let mount = self.mount();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == mount.to_str())
    }

    /// Asks the keeper to end and waits for it.
    pub fn stop(&mut self) -> ExitStatus {
        self.keeper.signal(Signal::SIGTERM);
        self.keeper.wait(SOON).expect("the keeper ends within a minute")
    }

    fn end(&mut self) {
        self.keeper.kill();
        self.kill_worker();
        for mount in ["bound", "grove", "plain", "xattr"] {
            // There may be nothing to detach.
            let _ = umount2(&self.dir.path().join(mount), MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a process exists that has not ended.
pub fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
