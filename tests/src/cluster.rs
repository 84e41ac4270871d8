//! A registry and the agents of several nodes, each on a host of a [`Network`].

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::image::Image;
use crate::network::{self, Host, Network};
use crate::node::mounts_below;
use crate::process::{Outcome, Running, SOON, binary, eventually, run, undermount};
use crate::registry::{Registry, get};
use crate::requirement::{Need, lacking};
use crate::wave::{Files, Wave};

/// The rate of the registry's link: what everybody waits for.
const REGISTRY_MBIT: u32 = 50;
/// The rate of the nodes' links.
const NODE_MBIT: u32 = 1000;
/// The port of the registry.
const PORT: u16 = 8787;
/// What spreads over the cluster has this time on a busy machine, and so has a mount.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a read may wait on a node, in seconds.
pub const READ_TIMEOUT: u64 = 30;

/// How often what the machine has a part in is tried.
const TRIES: usize = 3;

/// Tries until there is nothing to complain of. Where processors stall, nodes take each other for
/// slow and read from the registry as well, as they should; what is wrong is wrong each time.
#[track_caller]
pub fn in_some_try(attempt: impl Fn() -> Result<(), String>) {
    let mut complaints = Vec::new();
    for _ in 0..TRIES {
        match attempt() {
            Ok(()) => return,
            Err(complaint) => {
                println!("not counted: {complaint}");
                complaints.push(complaint);
            }
        }
    }
    panic!("each time: {complaints:?}")
}

/// Whether the machine lacks what a [`Cluster`] takes; if so, says what.
pub fn is_impossible() -> bool {
    let own = [Need::Fuse, Need::Program("skopeo")];
    lacking(&[network::NEEDS, &own].concat())
}

/// A registry behind a slow link, which is the seed as well, and what it takes to start nodes.
pub struct Cluster {
    registry: Option<Registry>,
    flags: Vec<String>,
    registry_host: Host,
    scratch: TempDir,
    network: Network,
}

/// Bytes that the registry has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// As its link counts them: with all headers.
    pub link: u64,
    /// As it counts itself: bodies of answers.
    pub bodies: u64,
}

impl Egress {
    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { link: self.link - before.link, bodies: self.bodies - before.bodies }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// A registry without images and no node.
    pub fn new() -> Self {
        Self::with_flags(&[])
    }

    /// The same, with more flags for the registry.
    pub fn with_flags(flags: &[&str]) -> Self {
        let network = Network::new();
        let registry_host = network.host(REGISTRY_MBIT);
        let scratch = tempfile::tempdir().unwrap();
        let key = scratch.path().join("cluster.key");
        run(undermount().args(["setup", "cluster", "--key-file"]).arg(&key), SOON).success();
        let mut words = vec!["--peers-key".to_owned(), key.to_string_lossy().into_owned()];
        // What is counted here is sharing: a pack of the first starts could come to later ones, too.
        words.extend(["--profiles", "off"].map(ToOwned::to_owned));
        words.extend(flags.iter().map(ToString::to_string));
        let mut cluster = Self { registry: None, flags: words, registry_host, scratch, network };
        cluster.start_registry();
        cluster
    }

    /// Starts the registry that was stopped.
    pub fn start_registry(&mut self) {
        let address = self.registry_address();
        let mut command = self.registry_host.command(binary());
        command.arg("registry").arg("--root").arg(self.root()).args(["--listen", &address]);
        self.registry = Some(Registry::start(command.args(&self.flags)));
    }

    /// Kills the registry.
    pub fn kill_registry(&mut self) {
        if let Some(mut registry) = self.registry.take() {
            registry.process().kill();
        }
    }

    /// The registry goes on, and knows nothing of nodes any more.
    pub fn end_seed(&mut self) {
        self.kill_registry();
        self.flags.drain(..2);
        self.start_registry();
    }

    /// Puts an image into the registry; returns its reference.
    pub fn push(&mut self, image: &Image, repository: &str) -> String {
        self.kill_registry();
        // From the machine's own loopback, which no link slows down.
        Registry::undermount(&self.root()).push_image(image, repository);
        self.start_registry();
        format!("{}/{repository}", self.registry_address())
    }

    /// A new node that knows no others and whose agent runs.
    pub fn lone_node(&self) -> ClusterNode {
        self.node_with("", "")
    }

    /// A new node of the cluster whose agent runs.
    pub fn node(&self) -> ClusterNode {
        self.node_with("", &self.peers(&[]))
    }

    /// So many of them, which all know of each other.
    pub fn nodes(&self, count: usize) -> Vec<ClusterNode> {
        let nodes: Vec<_> = (0..count).map(|_| self.node()).collect();
        await_members(&nodes, count);
        nodes
    }

    /// A new node whose agent runs, with more lines in `[registries]` and this `[peers]`.
    pub fn node_with(&self, registries: &str, peers: &str) -> ClusterNode {
        let node = ClusterNode::new(self.network.host(NODE_MBIT));
        node.configure(&self.registry_address(), registries, peers);
        node.start();
        node
    }

    /// What the configuration of its nodes says in `[peers]`; `members` are known without a seed.
    pub fn peers(&self, members: &[SocketAddr]) -> String {
        let members: Vec<String> = members.iter().map(ToString::to_string).collect();
        format!(
            "[peers]\nenabled = true\nkey_file = {:?}\nnetwork = [\"10.77.0.0/24\"]\n\
             bandwidth = \"1 Gbit/s\"\nseeds = [{:?}]\nmembers = {members:?}\n",
            self.key_file(),
            self.registry_address(),
        )
    }

    /// The file with the cluster key.
    pub fn key_file(&self) -> PathBuf {
        self.scratch.path().join("cluster.key")
    }

    /// `address:port` of the registry.
    pub fn registry_address(&self) -> String {
        format!("{}:{PORT}", self.registry_host.address())
    }

    /// A host for something else than a node.
    pub fn host(&self) -> Host {
        self.network.host(NODE_MBIT)
    }

    /// What the registry has sent so far. It must run.
    pub fn egress(&self) -> Egress {
        let link = self.registry_host.sent();
        // Asked for on the registry's own host: it does not cross the link.
        let url = format!("http://{}/metrics", self.registry_address());
        let (_, text) = self.registry_host.enter(|| get(&url));
        Egress { link, bodies: metric(&String::from_utf8_lossy(&text), SENT) }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("registry")
    }
}

/// Waits until each of these nodes knows so many members.
#[track_caller]
pub fn await_members(nodes: &[ClusterNode], count: usize) {
    eventually("the nodes know each other", PATIENCE, || {
        nodes.iter().all(|node| node.members() == count)
    });
}

/// Bytes of bodies that a registry has sent.
const SENT: &str = "undermount_registry_sent_bytes_total";

/// The value of a metric without labels.
pub fn metric(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
}

/// A node: a host, an agent, and at most one mounted image. When dropped, nothing is left.
pub struct ClusterNode {
    agent: Mutex<Option<Running>>,
    scratch: TempDir,
    host: Host,
}

impl ClusterNode {
    fn new(host: Host) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("mount")).unwrap();
        Self { agent: Mutex::new(None), scratch, host }
    }

    /// Writes its configuration; it counts when the agent is started next.
    pub fn configure(&self, registry: &str, registries: &str, peers: &str) {
        let text = format!(
            "[cache]\ndirectory = {:?}\n[reads]\ntimeout = {READ_TIMEOUT}\n\
             [completion]\nwithin = 0\n[store]\nmount = {:?}\n\
             [registries]\nplain_http = [{registry:?}]\n{registries}{peers}",
            self.path("cache"),
            self.path("store"),
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }

    /// Starts its agent and waits until that serves.
    pub fn start(&self) {
        let mut agent = Running::start(&mut self.command("agent"));
        agent.wait_for(SOON, |text| text.contains("layer store is served").then_some(()));
        *self.agent() = Some(agent);
    }

    fn agent(&self) -> MutexGuard<'_, Option<Running>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many members its agent knows, itself included.
    pub fn members(&self) -> usize {
        self.json("peers")["membership"]["members"].as_array().map_or(0, Vec::len)
    }

    /// `undermount WORD` on this node.
    pub fn command(&self, word: &str) -> Command {
        let mut command = self.host.command(binary());
        command.env_remove("RUST_LOG").env("UNDERMOUNT_CONFIG", self.path("agent.toml"));
        command.arg(word);
        command
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Something in its own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// What its agent has said so far.
    pub fn log(&self) -> String {
        self.agent().as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// What a command with `--json` says.
    #[track_caller]
    pub fn json(&self, word: &str) -> Value {
        let text = run(self.command(word).arg("--json"), SOON).success().stdout;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Mounts an image.
    #[track_caller]
    pub fn mount(&self, reference: &str) {
        let mounted = self.try_mount(reference);
        assert!(mounted.status.success(), "{}\n{}", mounted.stderr, self.log());
    }

    /// Tries to mount an image.
    pub fn try_mount(&self, reference: &str) -> Outcome {
        run(self.command("mount").arg(reference).arg(self.path("mount")), PATIENCE)
    }

    /// Unmounts it.
    pub fn unmount(&self) {
        run(self.command("umount").arg(self.path("mount")), SOON).success();
    }

    /// Mounts an image and reads all of `files`, by several threads, in their order.
    pub fn mount_and_read(&self, reference: &str, files: &Files) -> Wave {
        let begin = Instant::now();
        self.mount(reference);
        let wave = self.read(files);
        Wave { elapsed: begin.elapsed(), ..wave }
    }

    /// Does the same until it is killed.
    pub fn mount_and_read_in_vain(&self, reference: &str, files: &Files) {
        if self.try_mount(reference).status.success() {
            let read = |number| fs::read(self.path("mount").join(Files::path(number)));
            (0..files.len()).take_while(|number| read(*number).is_ok()).count();
        }
    }

    /// Reads all of `files` in the mount.
    pub fn read(&self, files: &Files) -> Wave {
        files.read(&self.path("mount"))
    }

    /// Everything of it ends at once, as by a power cut; its cache stays.
    pub fn kill(&self) {
        self.strike();
        let Some(mut agent) = self.agent().take() else { return };
        agent.kill();
        self.detach();
    }

    /// Nothing of it does anything any more.
    fn strike(&self) {
        let agent = self.agent();
        let Some(agent) = agent.as_ref() else { return };
        // Stopped first, lest it start another worker.
        agent.signal(Signal::SIGSTOP);
        for worker in children(agent.id()) {
            let _ = kill(worker, Signal::SIGKILL);
        }
    }

    fn detach(&self) {
        // What lies deepest comes last in the table.
        for mount in mounts_below(self.scratch.path()).iter().rev() {
            // It may have gone by itself meanwhile.
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for ClusterNode {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("what the agent on {} said:\n{}", self.host.address(), self.log());
        }
        self.kill();
    }
}

/// The processes that `process` has started and that have not ended.
fn children(process: u32) -> Vec<Pid> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw).collect()
}

/// All of `nodes` end at the same moment.
pub fn kill_all(nodes: &[ClusterNode]) {
    nodes.iter().for_each(ClusterNode::strike);
    nodes.iter().for_each(ClusterNode::kill);
}

/// Lets all nodes mount the image and read the files at the same time.
pub fn wave(nodes: &[ClusterNode], reference: &str, files: &Files) -> Vec<Wave> {
    wave_while(nodes, reference, files, || ())
}

/// The same, while something else happens.
pub fn wave_while(
    nodes: &[ClusterNode],
    reference: &str,
    files: &Files,
    meanwhile: impl FnOnce(),
) -> Vec<Wave> {
    thread::scope(|scope| {
        let readers: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(|| node.mount_and_read(reference, files)))
            .collect();
        meanwhile();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}
