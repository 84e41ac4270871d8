//! Agents that find each other: real processes on loopback, the seed in `undermount registry`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use undermount_tests::node;
use undermount_tests::process::{Running, SOON, eventually, run, undermount};
use undermount_tests::registry::{Registry, get};
use undermount_tests::requirement::lacking;

/// What spreads over the cluster has this time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A key, a registry that is the seed, and agents.
struct Cluster {
    dir: TempDir,
    seed: Option<Registry>,
    seed_address: String,
    agents: Vec<Option<Running>>,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        setup(&dir.path().join("cluster.key"), &[]);
        let mut cluster = Self { dir, seed: None, seed_address: String::new(), agents: Vec::new() };
        let key = cluster.path("cluster.key");
        let flags = ["--peers-key", key.to_str().unwrap()];
        let seed = Registry::undermount_with(&cluster.path("registry"), &flags);
        cluster.seed_address = seed.address().to_owned();
        cluster.seed = Some(seed);
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts agent `number`, with loopback address 127.0.0.`number`.
    fn start(&mut self, number: usize) {
        let root = self.path(&number.to_string());
        fs::create_dir_all(&root).unwrap();
        let config = format!(
            "[cache]\ndirectory = '{0}/cache'\n[store]\nmount = '{0}/store'\n\
             [peers]\nenabled = true\nkey_file = '{1}'\nseeds = ['{2}']\n\
             listen = ['127.0.0.{number}:28788']\n",
            root.display(),
            self.path("cluster.key").display(),
            self.seed_address,
        );
        fs::write(root.join("agent.toml"), config).unwrap();
        let mut agent = Running::start(&mut self.command(number, "agent"));
        agent.wait_for(SOON, |text| text.contains("layer store is served").then_some(()));
        self.agents.resize_with(self.agents.len().max(number + 1), || None);
        self.agents[number] = Some(agent);
    }

    fn command(&self, number: usize, word: &str) -> Command {
        let mut command = undermount();
        command.arg(word).env("UNDERMOUNT_CONFIG", self.path(&format!("{number}/agent.toml")));
        command
    }

    fn status(&self, number: usize, word: &str) -> Value {
        let text = run(self.command(number, word).arg("--json"), SOON).success().stdout;
        serde_json::from_str(&text).unwrap()
    }

    fn members(&self, number: usize) -> Vec<Value> {
        let status = self.status(number, "peers");
        status["membership"]["members"].as_array().unwrap().clone()
    }

    fn own(&self, number: usize) -> String {
        let status = self.status(number, "peers");
        status["membership"]["own"].as_str().unwrap().to_owned()
    }

    /// Waits until these agents see so many members.
    fn all_see(&self, agents: &[usize], count: usize) {
        let what = format!("{agents:?} see {count}");
        let see = || agents.iter().all(|number| self.members(*number).len() == count);
        eventually(&what, PATIENCE, see);
    }

    fn stop(&mut self, number: usize) {
        let mut agent = self.agents[number].take().unwrap();
        agent.signal(Signal::SIGTERM);
        assert!(agent.wait(PATIENCE).is_some(), "the agent ends when it is told to");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.agents.clear();
        for number in 1..9 {
            // Only what a failed test left.
            let _ = umount2(&self.path(&format!("{number}/store")), MntFlags::MNT_DETACH);
        }
    }
}

fn setup(key: &Path, flags: &[&str]) -> String {
    let mut command = undermount();
    command.args(["setup", "cluster", "--key-file"]).arg(key).args(flags);
    run(&mut command, SOON).success().stdout
}

#[test]
fn agents_find_each_other_survive_a_killed_worker_drain_and_say_good_bye() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut cluster = Cluster::new();
    for number in 1..=3 {
        cluster.start(number);
    }
    cluster.all_see(&[1, 2, 3], 3);
    let id = cluster.own(1);
    let epoch_at_2 = |cluster: &Cluster| {
        let members = cluster.members(2);
        assert_eq!(members.len(), 3, "nobody is missed");
        let own = members.iter().find(|member| member["id"] == id.as_str()).unwrap();
        own["epoch"].as_u64().unwrap()
    };
    let before = epoch_at_2(&cluster);
    let worker = cluster.status(1, "status")["worker"].as_i64().unwrap();
    kill(Pid::from_raw(worker.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("its new life is known", PATIENCE, || epoch_at_2(&cluster) > before);
    assert_eq!(cluster.own(1), id);

    run(&mut cluster.command(1, "drain"), SOON).success();
    cluster.all_see(&[2, 3], 2);
    assert_eq!(cluster.status(1, "peers")["membership"]["left"], true);
    run(cluster.command(1, "drain").arg("--undo"), SOON).success();
    cluster.all_see(&[1, 2, 3], 3);

    cluster.stop(3);
    cluster.all_see(&[1, 2], 2);
    // People see the same.
    let text = run(&mut cluster.command(1, "peers"), SOON).success().stdout;
    assert!(text.contains(&format!("* {id}")) && text.contains("127.0.0.2:28788"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("  weight ")).count(), 2, "{text}");
}

#[test]
fn the_key_of_running_agents_is_rotated_and_a_host_without_it_is_refused() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut cluster = Cluster::new();
    cluster.start(4);
    cluster.start(5);
    cluster.all_see(&[4, 5], 2);
    let key = cluster.path("cluster.key");
    let used = |number| cluster.status(number, "peers")["membership"]["keys"].clone();
    let first = used(4);
    for step in 0..3 {
        setup(&key, &["--rotate"]);
        let keys = if step < 2 { 2 } else { 1 };
        eventually("both have the file", PATIENCE, || {
            [4, 5].iter().all(|number| used(*number).as_array().unwrap().len() == keys)
        });
        assert_eq!(cluster.members(4).len(), 2);
    }
    assert_ne!(used(4), first);
    assert_eq!(used(4), used(5));
    let datagrams = &cluster.status(4, "peers")["membership"]["datagrams"];
    assert_eq!((&datagrams["key"], &datagrams["forged"]), (&0.into(), &0.into()), "{datagrams}");
    let (status, _) = get("http://127.0.0.4:28788/v1/members");
    assert_eq!(status, 401);
    let (status, _) = get(&format!("http://{}/undermount/v1/join", cluster.seed_address));
    assert_eq!(status, 405, "there is nothing to read without a signed request");
    // With the new key a third one joins, through a seed that has followed as well.
    cluster.start(6);
    cluster.all_see(&[4, 5, 6], 3);
}

#[test]
fn the_cluster_key_is_made_once_for_root_alone_and_refused_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("deep/cluster.key");
    assert_eq!(setup(&key, &[]), format!("changed {}\n", key.display()));
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o400);
    let made = fs::read(&key).unwrap();
    assert_eq!(setup(&key, &[]), "unchanged\n");
    assert_eq!(fs::read(&key).unwrap(), made);
    let refused = |flags: &[&str]| {
        let mut command = undermount();
        command.args(["setup", "cluster", "--key-file"]).arg(&key).args(flags);
        run(&mut command, SOON).refusal().to_owned()
    };
    assert!(refused(&["--undo"]).contains("no rotation of"));
    setup(&key, &["--rotate"]);
    setup(&key, &["--undo"]);
    assert_eq!(fs::read(&key).unwrap(), made);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let mut registry = undermount();
    registry.args(["registry", "--listen", "127.0.0.1:0", "--root"]).arg(dir.path().join("r"));
    registry.arg("--peers-key").arg(&key);
    for said in [refused(&[]), run(&mut registry, SOON).refusal().to_owned()] {
        assert!(said.contains("chmod 0400") && said.contains("cluster.key"), "{said}");
    }
}

#[test]
fn an_agent_without_a_usable_key_serves_its_node_alone() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut cluster = Cluster::new();
    fs::remove_file(cluster.path("cluster.key")).unwrap();
    cluster.start(7);
    let outcome = run(&mut cluster.command(7, "peers"), SOON);
    assert!(outcome.refusal().contains("shares nothing with peers"), "{}", outcome.stderr);
    let log = cluster.agents[7].as_ref().unwrap().stderr();
    assert!(log.contains("cluster.key"), "the log names the file: {log}");
}
