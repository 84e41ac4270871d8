//! A node that runs podman: a storage of its own, an agent whose layer store podman looks into,
//! and a registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::manager::{self, Manager};
use crate::process::{Outcome, Running, SOON, eventually, program, run, undermount};
use crate::registry::{Registry, get};
use crate::requirement::Need;
use crate::tree::Tree;

/// What [`Podman`] needs from the machine.
pub const NEEDS: &[Need] = &[
    Need::Root,
    Need::Fuse,
    Need::Program("podman"),
    Need::Program("runc"),
    Need::Program("skopeo"),
    Need::Program("ldd"),
];

/// How long a podman command may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What an agent says once it serves.
const SERVES: &str = "layer store is served";

/// Where pictures are taken from the registry's own count of bytes.
const SENT: &str = "undermount_registry_sent_bytes_total ";

/// A node and its registry. When dropped, nothing is left, also of a test that has failed.
pub struct Podman {
    scratch: TempDir,
    registry: Option<Registry>,
    agent: Option<Running>,
    manager: Option<Manager>,
    flags: Vec<String>,
}

impl Podman {
    /// A node whose agent fetches only what is read.
    pub fn new() -> Self {
        Self::completing_within(0)
    }

    /// The same, with more flags for the agent, which is a service of a [`Manager`].
    pub fn managed(flags: &[&str]) -> Self {
        let unit = ["--complete-within", "0", "--unit", manager::UNIT];
        Self::with(Some(Manager::new()), [&unit[..], flags].concat())
    }

    /// A node whose agent makes images local within so many seconds.
    pub fn completing_within(complete_within: u32) -> Self {
        Self::with(None, vec!["--complete-within", &complete_within.to_string()])
    }

    fn with(manager: Option<Manager>, flags: Vec<&str>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Some(Registry::undermount(&scratch.path().join("registry")));
        let flags = flags.into_iter().map(str::to_owned).collect();
        let mut node = Self { scratch, registry, agent: None, manager, flags };
        node.start_agent();
        node
    }

    /// A directory of the node's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Where the layer store is mounted.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        self.registry.as_ref().expect("the registry runs")
    }

    /// Stops the registry for good.
    pub fn stop_registry(&mut self) {
        self.registry = None;
    }

    /// Bytes that the registry has sent so far.
    pub fn sent(&self) -> u64 {
        let (_, text) = get(&format!("http://{}/metrics", self.registry().address()));
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(SENT));
        value.unwrap_or_else(|| panic!("no {SENT}in {text}")).trim().parse().unwrap()
    }

    /// Starts the agent and waits until it serves.
    pub fn start_agent(&mut self) {
        self.launch_agent();
        let agent = self.agent.as_mut().expect("it was just launched");
        agent.wait_for(SOON, |text| text.contains(SERVES).then_some(()));
    }

    /// Starts the agent until it serves, as a service manager does with what ends too early.
    pub fn start_agent_again(&mut self) {
        eventually("an agent serves", PATIENCE, || {
            self.launch_agent();
            let agent = self.agent.as_mut().expect("it was just launched");
            let mut serves = false;
            eventually("the agent serves or ends", SOON, || {
                let ended = agent.wait(Duration::from_millis(5)).is_some();
                serves = agent.stderr().contains(SERVES);
                serves || ended
            });
            serves
        });
    }

    /// Starts the agent and waits for nothing.
    pub fn launch_agent(&mut self) {
        let mut command = undermount();
        command.arg("agent").arg("--cache").arg(self.path("cache"));
        command.arg("--store").arg(self.store()).args(&self.flags);
        let agent = match &self.manager {
            None => Running::start(&mut command),
            Some(manager) => {
                if manager.config().exists() {
                    command.env("UNDERMOUNT_CONFIG", manager.config());
                }
                manager.start(&command)
            }
        };
        self.agent = Some(agent);
    }

    /// Ends the agent as its service manager would.
    pub fn stop_agent(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        agent.signal(Signal::SIGTERM);
        agent.wait(PATIENCE).expect("the agent ends when it is told to");
    }

    /// Kills the keeper.
    pub fn kill_keeper(&mut self) {
        self.agent.as_mut().expect("an agent runs").signal(Signal::SIGKILL);
    }

    /// The service manager of a managed node.
    pub fn manager(&self) -> &Manager {
        self.manager.as_ref().expect("the node is managed")
    }

    /// What the agent has said so far.
    pub fn log(&self) -> String {
        self.agent.as_ref().expect("an agent runs").stderr()
    }

    /// `undermount WORD` with the agent's cache.
    pub fn undermount(&self, word: &str) -> Command {
        let mut command = undermount();
        command.arg(word).arg("--cache").arg(self.path("cache"));
        command
    }

    /// What `undermount status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = run(self.undermount("status").arg("--json"), SOON).success().stdout;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// How often podman had to pull a layer by itself for `reason`.
    #[track_caller]
    pub fn refused(&self, reason: &str) -> u64 {
        self.status()["store"]["refused"][reason].as_u64().unwrap_or(0)
    }

    /// The worker of the agent.
    pub fn worker(&self) -> Pid {
        Pid::from_raw(self.status()["worker"].as_i64().unwrap().try_into().unwrap())
    }

    /// Kills the worker; its keeper starts another one.
    pub fn kill_worker(&self) {
        kill(self.worker(), Signal::SIGKILL).unwrap();
    }

    /// podman with the layer store.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let store = format!("overlay.additionallayerstore={}:ref", self.store().display());
        self.podman("lazy", &["--storage-opt", &store], arguments)
    }

    /// podman with a storage of its own and no layer store.
    pub fn ordinary_command(&self, arguments: &[&str]) -> Command {
        self.podman("ordinary", &[], arguments)
    }

    fn podman(&self, storage: &str, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = program("podman");
        command.arg("--root").arg(self.path(storage).join("root"));
        command.arg("--runroot").arg(self.path(storage).join("run"));
        command.args(["--storage-driver", "overlay", "--runtime", "runc"]).args(options);
        command.args(["--events-backend", "none"]);
        let (word, rest) = arguments.split_first().expect("a podman command");
        command.arg(word);
        match *word {
            "run" | "create" => {
                command.args(["--tls-verify=false", "--network=none"]);
                command.args(["--ulimit", "nofile=1024:20000", "--ulimit", "nproc=1000:20000"]);
            }
            "pull" | "push" => {
                command.arg("--tls-verify=false");
            }
            "build" => {
                command.args(["--tls-verify=false", "--isolation", "chroot", "--quiet"]);
            }
            _ => {}
        }
        command.args(rest);
        command
    }

    /// Runs podman with the layer store.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.command(arguments), PATIENCE).success()
    }

    /// Runs podman without the layer store.
    #[track_caller]
    pub fn run_ordinary(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.ordinary_command(arguments), PATIENCE).success()
    }

    /// What `command` prints in a new container of `image`.
    #[track_caller]
    pub fn output(&self, image: &str, command: &[&str]) -> String {
        let arguments = [&["run", "--rm", image], command].concat();
        self.run(&arguments).stdout
    }

    /// Pulls an image lazily and as ever, and checks that both are the same tree, which is
    /// returned.
    #[track_caller]
    pub fn assert_like_an_ordinary_pull(&self, reference: &str) -> Tree {
        self.run(&["pull", "--quiet", reference]);
        self.run_ordinary(&["pull", "--quiet", reference]);
        let mounted = |outcome: Outcome| PathBuf::from(outcome.stdout.trim());
        let lazy = mounted(self.run(&["image", "mount", reference]));
        let ordinary = mounted(self.run_ordinary(&["image", "mount", reference]));
        let mut expected = Tree::read(&ordinary).unwrap();
        // Of its root podman keeps nothing that an archive says, but the moment of the pull.
        expected.open(".", "mtime_ns");
        Tree::read(&lazy).unwrap().assert_equals(&expected);
        self.run(&["image", "unmount", "--all"]);
        self.run_ordinary(&["image", "unmount", "--all"]);
        expected
    }

    /// Whether anything is mounted on the layer store.
    pub fn store_is_mounted(&self) -> bool {
        crate::node::is_mounted(&self.store())
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for lazy in [true, false] {
            let storage = self.path(if lazy { "lazy" } else { "ordinary" });
            if storage.exists() {
                let arguments = ["rm", "--all", "--force", "--time", "0"];
                let mut remove =
                    if lazy { self.command(&arguments) } else { self.ordinary_command(&arguments) };
                drop(run(&mut remove, PATIENCE));
            }
        }
        if let Some(manager) = &self.manager {
            manager.plan("stop");
        }
        if let Some(mut agent) = self.agent.take() {
            agent.signal(Signal::SIGTERM);
            let _ = agent.wait(PATIENCE);
        }
        for mount in mounts_below(self.scratch.path()) {
            // It may have gone with another one.
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mut mounts = crate::node::mounts_below(directory);
    mounts.reverse();
    mounts
}
