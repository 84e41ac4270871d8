//! The owner of a cache, as `undermount mount` starts it: how it ends, and what it survives.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use undermount::control::Runtime;
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::Fault;
use undermount_tests::image::Image;
use undermount_tests::node;
use undermount_tests::origin::Origin;
use undermount_tests::process::{
    Running, SOON, binary, copy_program, eventually, parent, run, undermount,
};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::session::{LINUX_5_14, is_alive};

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Program("skopeo")];

/// A node with one image of 300 files mounted on `mnt`, and the registry it comes from. When
/// dropped, nothing is left, also of a test that has failed.
struct Node {
    scratch: TempDir,
    registry: Option<Registry>,
    keeper: Pid,
}

impl Node {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more flags for `mount`.
    fn start_with(flags: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Registry::undermount(&scratch.path().join("registry"));
        let members: Vec<Member> =
            (0..300).map(|n| Member::file(format!("d{}/f{n}", n % 5), content(n))).collect();
        let reference = registry.push_image(&Image::of(&[&members]), "test/files:1");
        fs::create_dir(scratch.path().join("mnt")).unwrap();
        let mut node = Self { scratch, registry: Some(registry), keeper: Pid::from_raw(0) };
        let mount = node.mount();
        let mut command = node.command("mount");
        command.arg("--plain-http").args(flags);
        run(command.arg(reference).arg(mount), SOON).success();
        node.keeper = Pid::from_raw(parent(node.worker().as_raw()));
        node
    }

    fn command(&self, name: &str) -> std::process::Command {
        let mut command = undermount();
        command.arg(name).arg("--cache").arg(self.scratch.path().join("cache"));
        command
    }

    fn mount(&self) -> PathBuf {
        self.scratch.path().join("mnt")
    }

    fn status(&self) -> Value {
        let text = run(self.command("status").arg("--json"), SOON).success().stdout;
        serde_json::from_str(&text).unwrap()
    }

    fn worker(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.status()["worker"].as_u64().unwrap()).unwrap())
    }

    fn assert_all_files_read(&self) {
        for n in 0..300 {
            let path = self.mount().join(format!("d{}/f{n}", n % 5));
            assert!(fs::read(&path).unwrap() == content(n), "{}", path.display());
        }
    }

    /// The mount point is an empty directory again, and nothing of ours is mounted or running.
    fn assert_gone(&self, worker: Pid) {
        eventually("keeper and worker end", SOON, || !is_alive(self.keeper) && !is_alive(worker));
        assert_eq!(fs::read_dir(self.mount()).unwrap().count(), 0);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.scratch.path().to_str().unwrap();
        assert!(!table.contains(own), "{table}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.keeper.as_raw() > 0 {
            // It may have ended by itself.
            let _ = kill(self.keeper, Signal::SIGTERM);
            eventually("the keeper ends", SOON, || !is_alive(self.keeper));
        }
        let _ = umount2(&self.mount(), MntFlags::MNT_DETACH);
    }
}

fn content(n: u64) -> Vec<u8> {
    noise(n + 1, (n * 131 % 20_000) as usize)
}

#[test]
fn an_owner_that_is_told_to_stop_leaves_no_mount_and_no_process() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    node.assert_all_files_read();
    let worker = node.worker();
    kill(node.keeper, Signal::SIGTERM).unwrap();
    node.assert_gone(worker);
}

#[test]
fn a_worker_that_loses_its_keeper_leaves_no_dead_mount() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    let worker = node.worker();
    kill(node.keeper, Signal::SIGKILL).unwrap();
    node.assert_gone(worker);
}

#[test]
fn regression_a_worker_that_loses_its_keeper_before_it_serves_leaves_no_dead_mount() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    let worker = node.worker();
    // A program that outlives its keeper, and then does what any worker does.
    let program = node.scratch.path().join("late");
    let script =
        format!("#!/bin/sh\nsleep 0.3\nkill -9 $PPID\nexec {} \"$@\"\n", binary().display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // It waits for an answer that nobody can give any more.
    let _upgrade = Running::start(node.command("upgrade").arg(&program));
    eventually("the keeper is killed", SOON, || !is_alive(node.keeper));
    let own = node.scratch.path().to_str().unwrap();
    eventually("nothing is mounted", SOON, || {
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(own)
    });
    node.assert_gone(worker);
}

#[test]
fn twenty_killed_workers_are_replaced_and_counted() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (0..3).for_each(|_| node.assert_all_files_read()));
        for n in 0..20 {
            kill(node.worker(), Signal::SIGKILL).unwrap();
            std::thread::sleep(Duration::from_millis(n * 7 % 50));
        }
        eventually("the reader comes back", SOON, || reader.is_finished());
    });
    assert_eq!(node.status()["restarts"], 20);
}

#[test]
fn on_an_old_kernel_killed_workers_cost_errors_but_nobody_hangs() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start_with(&[&format!("--init-mask={LINUX_5_14:x}")]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for n in (0..300).cycle().take(2000) {
                match fs::read(node.mount().join(format!("d{}/f{n}", n % 5))) {
                    Ok(bytes) => assert!(bytes == content(n), "wrong bytes in file {n}"),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
                }
            }
        });
        for n in 0..10 {
            kill(node.worker(), Signal::SIGKILL).unwrap();
            std::thread::sleep(Duration::from_millis(n * 7 % 50));
        }
        eventually("the reader comes back", SOON, || reader.is_finished());
    });
    node.assert_all_files_read();
}

#[test]
fn an_upgrade_hands_the_mounts_to_another_program_and_a_bad_one_is_taken_back() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    let newer = node.scratch.path().canonicalize().unwrap().join("newer");
    copy_program(binary(), &newer);
    let program = || PathBuf::from(node.status()["program"].as_str().unwrap());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (0..5).for_each(|_| node.assert_all_files_read()));
        run(node.command("upgrade").arg(&newer), SOON).success();
        assert_eq!(program(), newer);
        eventually("the reader comes back", SOON, || reader.is_finished());
        reader.join().unwrap();
    });
    let outcome = run(node.command("upgrade").arg("/etc/passwd"), SOON);
    assert!(outcome.refusal().contains("/etc/passwd is no program"), "{}", outcome.stderr);
    let outcome = run(node.command("upgrade").arg("/bin/false"), SOON * 2);
    assert!(outcome.refusal().contains("/bin/false does not come up"), "{}", outcome.stderr);
    assert_eq!(program(), newer);
    node.assert_all_files_read();
    // Without an owner there is nothing to upgrade.
    run(node.command("umount").arg(node.mount()), SOON).success();
    eventually("the owner ends", SOON, || !is_alive(node.keeper));
    run(node.command("upgrade").arg(&newer), SOON).success();
}

/// Reads a file past the kernel's cache: it asks once, and not again by itself after an error.
fn read_directly(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What a worker drops that makes room for another one would be answered with EIO.
#[test]
fn regression_reads_that_wait_for_the_network_outlive_an_upgrade() {
    const READERS: u64 = 4;
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, mut node) = (Origin::new(), node::Node::new());
    // More than is fetched whole when an image is mounted.
    let content = |n: u64| noise(n + 1, 1_300_000);
    let files: Vec<Member> =
        (0..READERS).map(|n| Member::file(format!("f{n}"), content(n))).collect();
    let reference = origin.add("test/slow", Image::of(&files.chunks(1).collect::<Vec<_>>()));
    origin.attach_right("test/slow");
    let root = node.mount(&reference);
    let newer = node.directory("newer").join("undermount");
    copy_program(binary(), &newer);
    let before = origin.requests().len();
    origin.misbehave(|request| request.path.contains("/blobs/").then_some(Fault::Stall));
    thread::scope(|scope| {
        let read = |n: u64| {
            let path = root.join(format!("f{n}"));
            scope.spawn(move || read_directly(&path))
        };
        let readers: Vec<_> = (0..READERS).map(read).collect();
        let asked = || (origin.requests().len() - before) as u64;
        eventually("all readers wait for the network", SOON, || asked() >= READERS);
        run(node.command("upgrade").arg(&newer), SOON).success();
        assert!(readers.iter().all(|reader| !reader.is_finished()), "nobody has got an answer");
        origin.behave();
        for (n, reader) in (0..READERS).zip(readers) {
            let bytes = reader.join().unwrap().unwrap();
            assert!(bytes == content(n)[..4096], "other bytes in file {n}");
        }
    });
}

/// A worker that ends, and the next one, which shows what it can.
fn replace_worker(node: &Node) {
    let before = node.worker();
    kill(before, Signal::SIGKILL).unwrap();
    eventually("another worker serves", SOON, || node.worker() != before);
}

#[test]
fn regression_a_mount_that_one_worker_cannot_show_is_shown_by_the_next() {
    if lacking(&NEEDS) {
        return;
    }
    let mut node = Node::start();
    let read = |node: &Node| fs::read(node.mount().join("d3/f3"));
    let [blobs, away] = ["cache/blobs", "blobs"].map(|name| node.scratch.path().join(name));
    // What is here the next worker can show, whatever became of the registry.
    let reference = node.status()["mounts"][0]["reference"].as_str().unwrap().to_owned();
    run(node.command("pull").arg("--plain-http").arg(reference), SOON).success();
    node.registry = None;
    fs::rename(&blobs, &away).unwrap();
    replace_worker(&node);
    assert!(read(&node).is_err());
    let shown = node.status()["mounts"][0].clone();
    assert_eq!(shown["dir"].as_str(), node.mount().to_str());
    assert!(shown["trouble"].as_str().unwrap().contains("all reads of it fail"), "{shown}");

    fs::remove_dir_all(&blobs).unwrap();
    fs::rename(&away, &blobs).unwrap();
    replace_worker(&node);
    assert_eq!(read(&node).unwrap(), content(3));
    assert!(node.status()["mounts"][0]["trouble"].is_null());
}

#[test]
fn regression_what_the_kernel_shows_outlives_a_damaged_list_of_mounts() {
    if lacking(&NEEDS) {
        return;
    }
    let node = Node::start();
    let runtime = Runtime::of(&node.scratch.path().join("cache").canonicalize().unwrap());
    fs::write(runtime.mounts(), "[{\"dir\":").unwrap();
    for _ in 0..2 {
        replace_worker(&node);
        let shown = node.status()["mounts"][0].clone();
        assert_eq!(shown["dir"].as_str(), node.mount().to_str());
        assert!(shown["trouble"].as_str().unwrap().contains("was damaged"), "{shown}");
        assert_eq!(fs::read_to_string(runtime.damaged_mounts()).unwrap(), "[{\"dir\":");
    }
    let worker = node.worker();
    run(node.command("umount").arg(node.mount()), SOON).success();
    node.assert_gone(worker);
    assert!(!runtime.damaged_mounts().exists());
}
