//! What becomes of reads while the registry is away: they wait for it or fail, as the operator
//! wants it; who waits can be killed; and the log says it once.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use undermount::control::Runtime;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Running, SOON, eventually};
use undermount_tests::requirement::lacking;

/// More than is fetched whole when an image is mounted.
const SIZE: usize = 1_300_000;
/// How long a registry may be away without a read that fails: longer than a client tries by itself.
const RESTART: Duration = Duration::from_secs(8);

/// An image of two files of which nothing but the index is here, and its registry is away.
struct Scene {
    origin: Origin,
    node: Node,
    root: PathBuf,
}

impl Scene {
    fn new(flags: &[&str]) -> Self {
        let (origin, mut node) = (Origin::new(), Node::new());
        let files = ["one", "two"].map(|name| Member::file(name, noise(name.len() as u64, SIZE)));
        let reference = origin.add("outages/image", Image::of(&[&files[..1], &files[1..]]));
        origin.attach_right("outages/image");
        let root = node.mount_with(&reference, flags);
        origin.down();
        Self { origin, node, root }
    }

    /// The errno of a read, and how long it took.
    fn read(&self, name: &str) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        let outcome = fs::read(self.root.join(name));
        let took = begin.elapsed();
        // What has just failed is refused for a moment without another try.
        thread::sleep(Duration::from_millis(200));
        (outcome.err().map(|error| error.raw_os_error().unwrap()), took)
    }

    fn log(&self) -> String {
        fs::read_to_string(Runtime::of(&self.node.cache()).log()).unwrap()
    }

    fn trouble(&self) -> Option<String> {
        self.node.mount_status(&self.root)["trouble"].as_str().map(str::to_owned)
    }
}

#[test]
fn reads_wait_for_a_registry_that_is_restarted() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(&["--read-timeout", "120"]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| scene.read("one"));
        thread::sleep(RESTART);
        assert!(!reader.is_finished(), "it gave up: {:?}", reader.join());
        scene.origin.up();
        assert_eq!(reader.join().unwrap().0, None);
    });
    assert_eq!(scene.trouble(), None);
}

#[test]
fn reads_fail_with_their_registry_where_that_is_wanted() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(&["--read-timeout", "120", "--on-outage", "eio"]);
    let (errno, took) = scene.read("one");
    assert_eq!(errno, Some(libc::EIO));
    assert!(took < Duration::from_secs(100), "it waited for {took:?}");
    scene.origin.up();
    eventually("it reads again", SOON, || scene.read("one").0.is_none());
}

/// The kernel reads ahead, and once more what failed: that is one deadline all the same.
#[test]
fn regression_a_read_that_fails_takes_its_timeout_once() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(&["--read-timeout", "20"]);
    let (errno, took) = scene.read("one");
    assert_eq!(errno, Some(libc::EIO));
    let limit = Duration::from_secs(35);
    assert!(took < limit, "it took {took:?}");
}

#[test]
fn an_outage_is_told_once_for_an_image_with_who_is_to_blame() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(&["--read-timeout", "4"]);
    for name in ["one", "two", "one"] {
        assert_eq!(scene.read(name).0, Some(libc::EIO));
    }
    let trouble = scene.trouble().unwrap();
    // The kernel asks more than once for what a program reads once.
    let failed = trouble.split_once(" reads failed").and_then(|(text, _)| text.rsplit(' ').next());
    assert!(failed.unwrap().parse::<u32>().unwrap() >= 3, "{trouble}");
    scene.origin.up();
    eventually("it reads again", SOON, || scene.read("two").0.is_none());
    assert_eq!(scene.trouble(), None);
    let log = scene.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("cannot be fetched")).collect();
    let [line] = lines[..] else { panic!("told {} times:\n{log}", lines.len()) };
    let address = scene.origin.address();
    for words in [format!("{address}/outages/image"), format!("culprit=\"{address}\"")] {
        assert!(line.contains(&words), "{words} is not in {line}");
    }
    assert!(!log.contains("refused with EIO"), "each read was told:\n{log}");
}

/// Signals that end a process do so while it waits for bytes, long before they are given up.
#[test]
fn a_reader_that_waits_for_the_network_can_be_killed() {
    if lacking(node::NEEDS) {
        return;
    }
    let scene = Scene::new(&["--read-timeout", "600"]);
    let path = scene.root.join("one");
    let readers: [(&str, &[&str], Signal); 4] = [
        ("cat", &[], Signal::SIGKILL),
        ("cat", &[], Signal::SIGTERM),
        ("cat", &[], Signal::SIGINT),
        ("dd", &["of=/dev/null", "bs=4096"], Signal::SIGKILL),
    ];
    for (program, arguments, signal) in readers {
        // Whoever runs the tests in the background of a shell has it ignore SIGINT.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", program]);
        match program {
            "dd" => command.arg(format!("if={}", path.display())).args(arguments),
            _ => command.arg(&path),
        };
        let mut reader = Running::start(&mut command);
        eventually("the reader waits", SOON, || waits(reader.id()));
        reader.signal(signal);
        let status = reader.wait(SOON);
        assert!(status.is_some(), "{program} outlives {signal}");
    }
    scene.origin.up();
    assert_eq!(scene.read("one").0, None);
}

/// Whether a process sleeps in a read of the mount.
fn waits(process: u32) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}"));
    let call = read("syscall").unwrap_or_default();
    let program = read("comm").unwrap_or_default();
    let call = call.split(' ').next().and_then(|number| number.parse().ok());
    let is_read = [libc::SYS_read, libc::SYS_copy_file_range].map(Some).contains(&call);
    is_read && ["cat\n", "dd\n"].contains(&program.as_str())
}
