//! Keeper and worker: a mount whose server is killed, crashes, is replaced or does not come up.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use undermount_tests::grove;
use undermount_tests::process::{SOON, copy_program, eventually};
use undermount_tests::requirement::{self, Need};
use undermount_tests::session::{LINUX_5_14, Node, NodeConfig, is_alive};

const PROGRAM: &str = env!("CARGO_BIN_EXE_session-node");

/// Longer than anything takes while a worker comes up at all.
const HANG: Duration = Duration::from_secs(180);

fn lacking() -> bool {
    requirement::lacking(&[Need::Root, Need::Fuse])
}

/// A small random number generator, so that a failing run can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// One thing that a program may do with the tree. `Err` is what it was told instead.
fn use_tree(mount: &Path, dice: &mut Dice) -> Result<(), String> {
    let (d, f) = (dice.roll(grove::DIRECTORIES), dice.roll(grove::FILES));
    let path = mount.join(grove::path(d, f));
    match dice.roll(4) {
        0 => walk(mount, d),
        1 => stat(&path, grove::inode(d, f)),
        2 => read_part(&path, grove::inode(d, f), dice),
        _ => read_whole(&path, grove::inode(d, f)),
    }
    .map_err(|error| format!("{}: {error}", path.display()))
}

fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn walk(mount: &Path, d: u64) -> std::io::Result<()> {
    let directories = names(mount)?;
    assert_eq!(directories.len() as u64, grove::DIRECTORIES, "{directories:?}");
    let files = names(&mount.join(format!("d{d:02}")))?;
    assert_eq!(files.len() as u64, grove::FILES, "{files:?}");
    Ok(())
}

fn stat(path: &Path, inode: u64) -> std::io::Result<()> {
    assert_eq!(fs::metadata(path)?.len(), grove::size(inode));
    match fs::metadata(path.with_extension("no")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map(|_| panic!("{} has a sibling", path.display())),
    }
}

fn read_part(path: &Path, inode: u64, dice: &mut Dice) -> std::io::Result<()> {
    let file = fs::File::open(path)?;
    let offset = dice.roll(300_000);
    let mut bytes = vec![0; 10_000];
    let len = file.read_at(&mut bytes, offset)?;
    let expected = grove::content(inode, offset, len);
    assert!(bytes[..len] == expected, "wrong bytes in {}", path.display());
    Ok(())
}

fn read_whole(path: &Path, inode: u64) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    let expected = grove::content(inode, 0, usize::MAX);
    assert!(bytes == expected, "wrong bytes in {}", path.display());
    Ok(())
}

/// Programs that use the tree until told to stop.
struct Users {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    errors: Arc<Mutex<Vec<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Users {
    fn start(mount: PathBuf, count: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let threads = (1..=count)
            .map(|seed| {
                let mount = mount.clone();
                let (stop, done, errors) = (stop.clone(), done.clone(), errors.clone());
                thread::spawn(move || {
                    let mut dice = Dice(seed * 0x9e37_79b9);
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = use_tree(&mount, &mut dice) {
                            errors.lock().unwrap().push(error);
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, done, errors, threads }
    }

    /// Stops them; each must come back from what it is doing. Gives what they were told.
    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        eventually("every program comes back", HANG, || {
            self.threads.iter().all(thread::JoinHandle::is_finished)
        });
        for thread in self.threads {
            thread.join().expect("no program has seen wrong bytes");
        }
        (self.done.load(Ordering::Relaxed), std::mem::take(&mut self.errors.lock().unwrap()))
    }
}

/// Kills `times` workers, each within `limit` of its start, wherever it may be by then.
fn kill_at_random(node: &Node, times: u64, limit: Duration) {
    let mut dice = Dice(4711);
    for _ in 0..times {
        let worker = node.worker().unwrap();
        thread::sleep(Duration::from_micros(dice.roll(limit.as_micros() as u64)));
        node.kill_worker();
        node.wait_for_successor(worker);
    }
}

#[test]
fn two_hundred_kills_at_random_moments_are_not_noticed() {
    if lacking() {
        return;
    }
    let mut node = Node::start(PROGRAM, NodeConfig::default());
    let users = Users::start(node.mount(), 4);
    kill_at_random(&node, 200, Duration::from_millis(60));
    let (done, errors) = users.finish();
    assert!(errors.is_empty(), "{} of {done} failed: {errors:#?}", errors.len());
    assert!(done > 200, "only {done} operations were under way");
    assert_eq!(node.restarts(), 200, "the keeper reports every one");
    assert!(node.stop().success());
}

#[test]
fn a_kernel_without_resend_gives_errors_but_never_hangs() {
    if lacking() {
        return;
    }
    let config = NodeConfig { init_mask: LINUX_5_14, ..NodeConfig::default() };
    let mut node = Node::start(PROGRAM, config);
    let users = Users::start(node.mount(), 4);
    kill_at_random(&node, 200, Duration::from_millis(60));
    let (done, errors) = users.finish();
    let eio = std::io::Error::from_raw_os_error(libc::EIO).to_string();
    assert!(errors.iter().all(|error| error.contains(&eio)), "{errors:#?}");
    assert!((errors.len() as u64) < done, "nothing worked");
    // Once nobody kills any more, everything reads.
    let users = Users::start(node.mount(), 4);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(users.finish().1, [""; 0]);
    assert!(node.stop().success());
}

#[test]
fn without_a_worker_requests_get_eio_until_one_comes_up() {
    if lacking() {
        return;
    }
    for init_mask in [u64::MAX, LINUX_5_14] {
        let answer_after = Duration::from_millis(400);
        let config = NodeConfig { answer_after, init_mask, ..NodeConfig::default() };
        let node = Node::start(PROGRAM, config);
        let file = node.mount().join(grove::path(1, 1));
        node.tell("broken", "");
        node.kill_worker();
        for _ in 0..20 {
            let start = Instant::now();
            let error = fs::read(&file).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        node.untell("broken");
        eventually("the file reads again", SOON, || fs::read(&file).is_ok());
    }
}

#[test]
fn a_worker_that_never_gets_ready_is_replaced() {
    if lacking() {
        return;
    }
    // Long enough for those that do get ready, also on a busy machine.
    let config = NodeConfig { ready_within: Duration::from_secs(4), ..NodeConfig::default() };
    let node = Node::start(PROGRAM, config);
    node.tell("deaf", "");
    let first = node.worker().unwrap();
    node.kill_worker();
    let deaf = node.wait_for_successor(first);
    let next = node.wait_for_successor(deaf);
    node.untell("deaf");
    assert!(!is_alive(deaf), "{deaf} has been killed, {next} is in its place");
    read_whole(&node.mount().join(grove::path(3, 3)), grove::inode(3, 3)).unwrap();
}

#[test]
fn a_worker_that_hangs_without_dying_is_replaced() {
    if lacking() {
        return;
    }
    let config = NodeConfig { silent_limit: Duration::from_secs(5), ..NodeConfig::default() };
    let node = Node::start(PROGRAM, config);
    let hung = node.worker().unwrap();
    // It has to have been alive once: a worker that never gives a sign is one from before there
    // were any.
    thread::sleep(Duration::from_secs(2));
    nix::sys::signal::kill(hung, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let reader = {
        let file = node.mount().join(grove::path(4, 2));
        thread::spawn(move || read_whole(&file, grove::inode(4, 2)))
    };
    node.wait_for_successor(hung);
    assert!(!is_alive(hung));
    eventually("the reader comes back", HANG, || reader.is_finished());
    reader.join().unwrap().unwrap();
}

#[test]
fn without_a_program_to_start_requests_get_eio_until_it_is_back() {
    if lacking() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (program, away) = (home.path().join("node"), home.path().join("away"));
    copy_program(Path::new(PROGRAM), &program);
    let answer_after = Duration::from_millis(400);
    let config = NodeConfig { answer_after, ..NodeConfig::default() };
    let node = Node::start(program.to_str().unwrap(), config);
    fs::rename(&program, &away).unwrap();
    node.kill_worker();
    let file = node.mount().join(grove::path(6, 6));
    let error = fs::read(&file).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    fs::rename(&away, &program).unwrap();
    eventually("the file reads again", SOON, || fs::read(&file).is_ok());
}

#[test]
fn a_request_that_kills_every_worker_gets_eio_and_others_are_served() {
    if lacking() {
        return;
    }
    // More than one worker has to come up and die in this time, also on a busy machine.
    let config = NodeConfig { unsound_limit: Duration::from_secs(8), ..NodeConfig::default() };
    let node = Node::start(PROGRAM, config);
    let error = fs::read(node.mount().join(grove::POISON)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(node.restarts() > 1);
    eventually("other files read", SOON, || {
        read_whole(&node.mount().join(grove::path(5, 5)), grove::inode(5, 5)).is_ok()
    });
}

#[test]
fn a_panic_costs_one_request_and_the_worker() {
    if lacking() {
        return;
    }
    let node = Node::start(PROGRAM, NodeConfig::default());
    let first = node.worker().unwrap();
    let error = fs::read(node.mount().join(grove::PANIC)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    node.wait_for_successor(first);
    assert_eq!(node.restarts(), 1);
    read_whole(&node.mount().join(grove::path(1, 2)), grove::inode(1, 2)).unwrap();
}

#[test]
fn an_open_file_and_a_mapping_survive_their_server() {
    if lacking() {
        return;
    }
    let node = Node::start(PROGRAM, NodeConfig::default());
    let inode = grove::inode(7, 4);
    let file = fs::File::open(node.mount().join(grove::path(7, 4))).unwrap();
    let expected = grove::content(inode, 0, usize::MAX);
    assert!(expected.len() > 100_000);
    // SAFETY: the tree never changes.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    assert_eq!(map[0], expected[0]);
    let first = node.worker().unwrap();
    node.kill_worker();
    assert!(map[..] == expected[..], "the mapping shows other bytes");
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    node.wait_for_successor(first);
}

#[test]
fn an_upgrade_replaces_the_program_and_a_bad_one_is_taken_back() {
    if lacking() {
        return;
    }
    let mut node = Node::start(PROGRAM, NodeConfig::default());
    let users = Users::start(node.mount(), 2);
    let newer = node.dir().join("newer");
    copy_program(Path::new(PROGRAM), &newer);
    let first = node.worker().unwrap();
    node.tell("replace", newer.to_str().unwrap());
    let second = node.wait_for_successor(first);
    assert_eq!(fs::read_link(format!("/proc/{second}/exe")).unwrap(), newer);

    node.tell("replace", "/bin/false");
    let third = node.wait_for_successor(second);
    assert_eq!(fs::read_link(format!("/proc/{third}/exe")).unwrap(), newer);
    node.tell("replace", "/no/such/program");
    let fourth = node.wait_for_successor(third);
    assert_eq!(fs::read_link(format!("/proc/{fourth}/exe")).unwrap(), newer);
    assert_eq!(users.finish().1, [""; 0]);
    assert!(node.stop().success());
}

#[test]
fn an_orderly_end_leaves_no_mount_and_no_process() {
    if lacking() {
        return;
    }
    for by_worker in [false, true] {
        let mut node = Node::start(PROGRAM, NodeConfig::default());
        let worker = node.worker().unwrap();
        let held = fs::File::open(node.mount().join(grove::path(2, 2))).unwrap();
        if by_worker {
            node.tell("done", "");
            assert!(node.keeper().wait(SOON).unwrap().success());
        } else {
            assert!(node.stop().success());
        }
        assert!(!node.is_mounted());
        assert!(!is_alive(worker));
        assert_eq!(node.farewell(), "Stop", "the keeper ends its worker at once");
        let error = (&held).read(&mut [0; 10]).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::ENOTCONN),
            "a file held open is dead, not stuck"
        );
    }
}

#[test]
fn a_first_worker_that_fails_ends_the_keeper_with_its_words() {
    if lacking() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("broken"), "").unwrap();
    let mut node = Node::start_in(PROGRAM, NodeConfig::default(), dir);
    let status = node.keeper().wait(SOON).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(node.keeper().stdout().contains("error: the grove is broken"));
    assert!(!node.is_mounted());
}

#[test]
fn an_orphaned_worker_detaches_the_mount_and_ends() {
    if lacking() {
        return;
    }
    let mut node = Node::start(PROGRAM, NodeConfig::default());
    let worker = node.worker().unwrap();
    node.keeper().kill();
    eventually("the worker ends", SOON, || !is_alive(worker));
    assert!(!node.is_mounted());
}

#[test]
fn a_mount_whose_keeper_and_worker_were_killed_is_dead_until_detached_or_kept_again() {
    if lacking() {
        return;
    }
    let mut node = Node::start(PROGRAM, NodeConfig::default());
    let worker = node.worker().unwrap();
    // Stopped, the worker cannot notice that it is orphaned before it is killed as well.
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    node.keeper().kill();
    node.kill_worker();
    eventually("the worker ends", SOON, || !is_alive(worker));
    let told = || fs::read_dir(node.mount()).err().and_then(|error| error.raw_os_error());
    eventually("the mount is dead", SOON, || told() == Some(libc::ENOTCONN));

    // The next keeper for the same directory finds the dead mount in its way.
    let config = NodeConfig { dir: node.dir().to_owned(), ..NodeConfig::default() };
    let config = serde_json::to_string(&config).unwrap();
    let mut keeper = undermount_tests::process::Running::start(
        std::process::Command::new(PROGRAM).args(["keeper", &config]),
    );
    keeper.wait_for(SOON, |text| text.contains("ready").then_some(()));
    read_whole(&node.mount().join(grove::path(9, 9)), grove::inode(9, 9)).unwrap();
    drop(keeper);
    assert!(!node.is_mounted());
}
