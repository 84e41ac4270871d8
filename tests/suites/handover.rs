//! An agent whose service manager keeps its descriptors: neither a restart of the service nor the
//! death of all of its processes ends a mount, or what runs on one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, umount2};
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::manager::UNIT;
use undermount_tests::node::is_mounted;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{SOON, binary, eventually, run};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::session::is_alive;
use undermount_tests::systemd::Systemd;
use undermount_tests::userland::userland;

const SIZE: usize = 3_000_000;

/// A node with a container that runs, and its image mounted beside.
struct Busy {
    node: Podman,
    reference: String,
    mount: PathBuf,
}

impl Busy {
    fn start(flags: &[&str]) -> Self {
        let node = Podman::managed(flags);
        let files = (0..8).map(|n| Member::file(format!("data/{n}"), noise(n + 1, SIZE)));
        let tools = userland(&["sh", "sha256sum", "sleep"]);
        let image =
            Image::from_layers(vec![Layer::of(&tools), Layer::of(&files.collect::<Vec<_>>())]);
        let reference = node.registry().push_image(&image, "test/busy:1");
        node.run(&["run", "--detach", "--name", "stays", &reference, "/bin/sleep", "600"]);
        let mount = node.path("mnt");
        fs::create_dir(&mount).unwrap();
        run(node.undermount("mount").arg(&reference).arg(&mount), PATIENCE).success();
        Self { node, reference, mount }
    }

    /// The container and the mount are served; `file` of the data has not been read before.
    fn assert_served(&self, file: u64) {
        let expected = noise(file + 1, SIZE);
        assert!(fs::read(self.mount.join(format!("data/{file}"))).unwrap() == expected);
        let read = format!("sha256sum < /data/{}", file + 1);
        let words = self.node.run(&["exec", "stays", "/bin/sh", "-c", &read]).stdout;
        let digest = undermount_fs::digest::Digest::of(&noise(file + 2, SIZE)).hex();
        assert!(words.starts_with(&digest), "{words}");
    }

    /// A new container of the image starts.
    fn assert_starts(&self) {
        let words = self.node.output(&self.reference, &["/bin/sh", "-c", "echo started"]);
        assert_eq!(words, "started\n");
    }

    /// Nothing is mounted, nothing is kept, podman works.
    fn assert_gone(&self) {
        assert!(!self.node.store_is_mounted() && !is_mounted(&self.mount));
        assert_eq!(self.node.manager().kept(), [""; 0]);
        self.node.run(&["ps"]);
    }
}

/// The keeper is killed, and nobody is there until the manager starts the agent again.
fn kill_and_start_again(flags: &[&str]) {
    let mut busy = Busy::start(flags);
    let open = File::open(busy.mount.join("data/0")).unwrap();
    let inode = open.metadata().unwrap().ino();
    let mut half = vec![0; SIZE / 2];
    open.read_exact_at(&mut half, 0).unwrap();
    let worker = busy.node.worker();
    busy.node.kill_keeper();
    eventually("the worker notices", SOON, || !is_alive(worker));
    assert!(busy.node.store_is_mounted() && is_mounted(&busy.mount));
    // Who asks now waits for the next agent.
    let path = busy.mount.join("data/1");
    let patient = thread::spawn(move || fs::read(path));
    busy.node.start_agent();
    assert!(patient.join().unwrap().unwrap() == noise(2, SIZE));
    let mut rest = vec![0; SIZE - SIZE / 2];
    open.read_exact_at(&mut rest, (SIZE / 2) as u64).unwrap();
    assert!([half, rest].concat() == noise(1, SIZE));
    assert_eq!(fs::metadata(busy.mount.join("data/0")).unwrap().ino(), inode);
    busy.assert_served(2);
    busy.assert_starts();
    let status = busy.node.status();
    assert_eq!(status["last_exit"], "its keeper was killed", "{status}");
    busy.node.manager().plan("stop");
    busy.node.stop_agent();
    busy.assert_gone();
}

#[test]
fn the_death_of_keeper_and_worker_ends_no_container_and_no_mount() {
    if lacking(NEEDS) {
        return;
    }
    kill_and_start_again(&[]);
}

#[test]
fn the_same_holds_on_a_kernel_that_sends_no_request_again() {
    if lacking(NEEDS) {
        return;
    }
    kill_and_start_again(&["--init-mask", "3fffffff"]);
}

#[test]
fn a_keeper_that_was_killed_leaves_no_worker_behind_that_answers_twice() {
    if lacking(NEEDS) {
        return;
    }
    let mut busy = Busy::start(&[]);
    let worker = busy.node.worker();
    // One that does not notice anything.
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    busy.node.kill_keeper();
    busy.node.start_agent();
    assert!(!is_alive(worker));
    busy.assert_served(2);
}

#[test]
fn a_restart_of_the_unit_ends_no_container_and_a_stop_takes_everything_away() {
    if lacking(NEEDS) {
        return;
    }
    let mut busy = Busy::start(&[]);
    for file in [2, 4] {
        busy.node.manager().plan("restart");
        busy.node.stop_agent();
        assert!(busy.node.store_is_mounted() && is_mounted(&busy.mount));
        busy.node.start_agent();
        busy.assert_served(file);
        busy.assert_starts();
        assert_eq!(busy.node.status()["last_exit"], "its keeper was restarted");
    }
    busy.node.manager().plan("stop");
    busy.node.stop_agent();
    busy.assert_gone();
    // As after a boot: the image starts again.
    busy.node.start_agent();
    busy.assert_starts();
}

#[test]
fn a_mistake_in_the_configuration_ends_no_container() {
    if lacking(NEEDS) {
        return;
    }
    let mut busy = Busy::start(&[]);
    busy.node.manager().plan("restart");
    busy.node.stop_agent();
    fs::write(busy.node.manager().config(), "[cache\n").unwrap();
    busy.node.start_agent();
    let log = busy.node.log();
    assert!(log.contains("the one before holds on") && log.contains("agent.toml:1"), "{log}");
    busy.assert_served(2);
}

#[test]
fn a_mount_that_somebody_took_away_is_made_anew() {
    if lacking(NEEDS) {
        return;
    }
    let mut busy = Busy::start(&[]);
    busy.node.kill_keeper();
    eventually("the agent is gone", SOON, || {
        umount2(&busy.node.store(), MntFlags::MNT_DETACH).is_ok()
    });
    busy.node.start_agent();
    let log = busy.node.log();
    assert!(log.contains("mounts are made anew"), "{log}");
    assert!(busy.node.store_is_mounted() && !is_mounted(&busy.mount));
    busy.assert_starts();
    busy.node.manager().plan("restart");
    busy.node.stop_agent();
    busy.node.start_agent();
    busy.assert_starts();
}

/// The packaged unit, with `binary` in the place of the installed one and everything in `dir`.
fn packaged_unit(dir: &Path) -> String {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let unit = fs::read_to_string(packaging.join("systemd").join(UNIT)).unwrap();
    let (binary, dir) = (binary().display(), dir.display());
    let lines = unit.lines().filter(|line| !line.starts_with("RequiresMountsFor="));
    let unit = lines.collect::<Vec<_>>().join("\n") + "\n";
    unit.replace(
        "/usr/bin/undermount agent",
        &format!("{binary} agent --cache {dir}/cache --store {dir}/store --complete-within 0"),
    )
    .replace(
        "ExecReload=/usr/bin/undermount upgrade /usr/bin/undermount",
        &format!("ExecReload={binary} upgrade --cache {dir}/cache {binary}"),
    )
}

#[test]
fn the_packaged_unit_does_the_same_under_systemd() {
    let programs = ["systemd", "nsenter", "jq", "ps"].map(Need::Program);
    if lacking(&[NEEDS, &programs].concat()) {
        return;
    }
    if let Some(reason) = Systemd::lacking() {
        println!("skipped: {reason}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(&dir.path().join("registry"));
    let files: Vec<Member> =
        (0..5).map(|n| Member::file(n.to_string(), noise(n + 1, SIZE))).collect();
    let reference = registry.push_image(&Image::of(&[&files]), "test/files:1");
    fs::create_dir(dir.path().join("mnt")).unwrap();
    let systemd = Systemd::start(&[(UNIT, packaged_unit(dir.path()))]);
    let (binary, dir) = (binary().display(), dir.path().display());
    let sum = |n: u64| undermount_fs::digest::Digest::of(&noise(n + 1, SIZE)).hex();
    let reads = |n: u64| format!("[ \"$(sha256sum <{dir}/mnt/{n})\" = \"{}  -\" ]", sum(n));
    systemd.run(&format!(
        "systemctl start {UNIT}
        {binary} mount --cache {dir}/cache {reference} {dir}/mnt
        exec 3<{dir}/mnt/0; head -c 4096 <&3 >/dev/null
        worker=$({binary} status --json --cache {dir}/cache | jq .worker)
        ps -L -o cls=,ni= -p $worker | grep -Eq 'RR|-15'
        main=$(systemctl show --property MainPID --value {UNIT}); [ $main -gt 1 ]
        kill -9 $main
        {}
        [ $(cat <&3 | wc -c) = {} ]
        systemctl restart {UNIT}; {}
        systemctl reload {UNIT}; {}
        kill $(systemctl show --property MainPID --value {UNIT}); {}
        [ $(systemctl show --property NFileDescriptorStore --value {UNIT}) -ge 5 ]",
        reads(1),
        SIZE - 4096,
        reads(2),
        reads(3),
        reads(4),
    ));
    systemd.run(&format!(
        "systemctl stop {UNIT}
        for _ in $(seq 900); do grep -q ' {dir}/[sm]' /proc/self/mountinfo || break; sleep 0.1; done
        if grep ' {dir}/[sm]' /proc/self/mountinfo; then exit 7; fi
        [ $(systemctl show --property NFileDescriptorStore --value {UNIT}) = 0 ]
        systemctl start {UNIT}; grep -q ' {dir}/store' /proc/self/mountinfo; systemctl stop {UNIT}"
    ));
}
