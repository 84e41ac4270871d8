//! Images through view, adapter and a real mount, served by a worker that is killed, stopped or
//! cut off from its source.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};
use undermount_fs::session::DataMode;
use undermount_tests::archive::{Member, noise};
use undermount_tests::edge::{self, Verdict};
use undermount_tests::gallery::Gallery;
use undermount_tests::image::Image;
use undermount_tests::model::Model;
use undermount_tests::process::eventually;
use undermount_tests::requirement::{self, Need};
use undermount_tests::session::{LINUX_5_14, Node, NodeConfig};
use undermount_tests::tree::Tree;

const PROGRAM: &str = env!("CARGO_BIN_EXE_session-node");

/// Edge images that hold gigabytes, nearly all of them zeros.
const TOO_LONG_TO_READ: [&str; 2] = ["bomb of zeros", "sparse beyond 4 GiB"];

/// Longer than anything takes while a worker comes up at all.
const HANG: Duration = Duration::from_secs(180);

fn lacking() -> bool {
    requirement::lacking(&[Need::Root, Need::Fuse])
}

fn show(images: &[Image], config: NodeConfig) -> Node {
    Gallery::show(PROGRAM, images, config)
}

fn root(node: &Node, mount: &str, image: &Image) -> PathBuf {
    Gallery::root(node, mount, image)
}

fn bind(source: &Path, target: &Path) {
    let nothing = None::<&Path>;
    mount(Some(source), target, nothing, MsFlags::MS_BIND, nothing).unwrap();
}

/// Does `work` in another thread; panics if it does not come back.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(HANG).unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Two layers with everything that a tree can hold, the upper one changing the lower.
fn layers() -> [Vec<Member>; 2] {
    let lower = vec![
        Member::dir("").mode(0o750).owner(3, 4),
        Member::dir("etc"),
        Member::file("etc/before", "1969").mtime(-1, 999_999_999),
        Member::file("etc/long ago", "1901").mtime(-2_147_483_648, 1),
        Member::file("etc/far", "2500").mtime(16_725_225_600, 123_456_789),
        Member::file("etc/owned", "x").owner(4_000_000_000, 65_534).mode(0o6755),
        Member::file("etc/gone", "deleted above"),
        Member::file("etc/replaced", "lower"),
        Member::symlink("etc/link", "../usr/./bin"),
        Member::dir("dev").mode(0o1777),
        Member::char_device("dev/null", 1, 3),
        Member::block_device("dev/loop", 7, 300),
        Member::fifo("dev/pipe"),
        Member::file("ping", noise(1, 70_000)).xattr("user.note", "kept").mode(0o4711),
        Member::hardlink("ping6", "ping"),
        Member::file(b"odd\n\xff name", "odd"),
        Member::file("large", noise(2, 3_500_000)),
        Member::file("empty", ""),
    ];
    let upper = vec![
        Member::whiteout("etc", "gone"),
        Member::file("etc/replaced", "upper").mtime(5, 6),
        Member::dir("usr/bin").xattr("user.dir", "too"),
    ];
    [lower, upper]
}

#[test]
fn every_field_of_every_kind_of_entry_is_shown() {
    if lacking() {
        return;
    }
    let layers = layers();
    let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
    let image = Image::of(&layers);
    let mut node = show(std::slice::from_ref(&image), NodeConfig::default());
    Tree::read(&root(&node, "xattr", &image)).unwrap().assert_equals(&Model::tree_of(&layers));
    assert!(node.stop().success());
}

#[test]
fn every_right_edge_image_shows_its_tree() {
    if lacking() {
        return;
    }
    let cases: Vec<_> = edge::cases()
        .into_iter()
        .filter(|case| !TOO_LONG_TO_READ.contains(&case.name.as_str()))
        .filter_map(|case| match case.verdict {
            Verdict::Tree(tree) => Some((case.name, case.image, tree)),
            Verdict::Malformed(..) => None,
        })
        .collect();
    let images: Vec<Image> = cases.iter().map(|(_, image, _)| image.clone()).collect();
    let node = show(&images, NodeConfig::default());
    let mut wrong = Vec::new();
    for (name, image, expected) in &cases {
        match Tree::read(&root(&node, "xattr", image)) {
            Ok(tree) => wrong.extend(
                tree.differences(expected).into_iter().map(|line| format!("{name}: {line}")),
            ),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_plain_mount_refuses_attributes_once_and_for_all_but_lists_them() {
    if lacking() {
        return;
    }
    let layers = layers();
    let image = Image::of(&[&layers[0]]);
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    let file = root(&node, "plain", &image).join("ping");
    for _ in 0..2 {
        let error = xattr::get(&file, "user.note").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
    assert_eq!(xattr::list(&file).unwrap().collect::<Vec<_>>(), ["user.note"]);
    let file = root(&node, "xattr", &image).join("ping");
    assert_eq!(xattr::get(&file, "user.note").unwrap().unwrap(), b"kept");
    assert_eq!(xattr::get(&file, "user.other").unwrap(), None);
}

#[test]
fn what_was_seen_once_needs_no_worker() {
    if lacking() {
        return;
    }
    let layers = layers();
    let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
    let image = Image::of(&layers);
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    // Bound elsewhere, as images are for use: on the way through the mount lies the list of
    // images, which is always asked for.
    let root = node.dir().join("bound");
    fs::create_dir(&root).unwrap();
    bind(&self::root(&node, "plain", &image), &root);
    let look = move || {
        let missing = fs::metadata(root.join("etc/gone")).unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        let target = fs::read_link(root.join("etc/link")).unwrap();
        assert_eq!(target, Path::new("../usr/./bin"));
        let names = |dir| fs::read_dir(root.join(dir)).unwrap().count();
        assert_eq!((names("etc"), names("dev"), names("usr/bin")), (6, 3, 0));
        assert_eq!(fs::metadata(root.join("etc/owned")).unwrap().uid(), 4_000_000_000);
        fs::read(root.join("ping")).unwrap().len()
    };
    assert_eq!(look(), 70_000);
    let worker = node.worker().unwrap();
    kill(worker, Signal::SIGSTOP).unwrap();
    assert_eq!(in_time("a look at what the kernel has seen before", look), 70_000);
    kill(worker, Signal::SIGCONT).unwrap();
}

#[test]
fn regression_every_part_of_a_long_listing_brings_its_attributes() {
    if lacking() {
        return;
    }
    let members: Vec<Member> =
        (0..2000).map(|n| Member::file(format!("a rather long name for a file {n}"), "")).collect();
    let image = Image::of(&[&members]);
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    let bound = node.dir().join("bound");
    fs::create_dir(&bound).unwrap();
    bind(&root(&node, "plain", &image), &bound);
    let names: Vec<_> = fs::read_dir(&bound).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2000);
    // Whether we know when files were made is asked once.
    assert!(fs::metadata(bound.join(&names[0])).is_ok());
    let worker = node.worker().unwrap();
    kill(worker, Signal::SIGSTOP).unwrap();
    in_time("a look at what was listed", move || {
        names.iter().for_each(|name| assert!(fs::metadata(bound.join(name)).is_ok()));
    });
    kill(worker, Signal::SIGCONT).unwrap();
}

#[test]
fn the_mounts_are_read_only_and_read_a_megabyte_ahead() {
    if lacking() {
        return;
    }
    let node = show(&[Image::of(&[&layers()[0]])], NodeConfig::default());
    for name in ["plain", "xattr"] {
        let flags = statvfs(&node.dir().join(name)).unwrap().flags();
        let wanted = [FsFlags::ST_RDONLY, FsFlags::ST_NOSUID, FsFlags::ST_NODEV];
        assert!(wanted.into_iter().all(|flag| flags.contains(flag)), "{name}: {flags:?}");
        let dev = fs::metadata(node.dir().join(name)).unwrap().dev();
        let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
        let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        match fs::OpenOptions::new().write(true).open(&setting) {
            Ok(_) => assert_eq!(fs::read_to_string(&setting).unwrap().trim(), "1024", "{name}"),
            Err(error) => requirement::skipped(&format!("{setting}: {error}")),
        }
    }
}

/// Where neither realtime nor a smaller nice value is to be had there is nothing to see.
#[test]
fn on_a_busy_machine_the_threads_that_take_requests_come_before_others() {
    if lacking() {
        return;
    }
    let node = show(&[Image::of(&[&layers()[0]])], NodeConfig::default());
    // Whoever runs the tests may have a share of his own.
    let usual = scheduling(std::process::id().cast_signed()).1[0];
    let over = AtomicBool::new(false);
    let processors = thread::available_parallelism().unwrap().get();
    thread::scope(|scope| {
        for _ in 0..2 * processors + 1 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let is_urgent = |(policy, nice)| policy == libc::SCHED_RR || policy == 0 && nice < 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            eventually("threads that take requests are urgent", HANG, || {
                // Nobody remembers this directory: each listing asks again.
                fs::read_dir(node.dir().join("plain/images")).unwrap().for_each(drop);
                let (takers, others) = scheduling(node.worker().unwrap().as_raw());
                assert!(others.iter().all(|how| *how == usual), "{others:?}");
                // On a busy machine the second one takes a while to begin.
                takers.len() >= 2 && takers.into_iter().any(is_urgent)
            });
        }));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}

/// Policy and nice value of a thread.
type Scheduling = (i32, i32);

/// How the threads of a worker are scheduled: those that take requests, and the others.
fn scheduling(process: i32) -> (Vec<Scheduling>, Vec<Scheduling>) {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let stat = |thread: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(thread.unwrap().path().join("stat")).ok()?;
        let (head, rest) = text.rsplit_once(") ")?;
        // proc_pid_stat(5): the third field comes first.
        let field = |number: usize| rest.split(' ').nth(number - 3)?.trim().parse().ok();
        Some((head.contains("(fuser-"), (field(41)?, field(19)?)))
    };
    let (takers, others): (Vec<_>, Vec<_>) =
        threads.filter_map(stat).partition(|(takes_requests, _)| *takes_requests);
    let how = |threads: Vec<(bool, Scheduling)>| threads.into_iter().map(|(_, how)| how).collect();
    (how(takers), how(others))
}

#[test]
fn the_list_of_images_is_never_remembered() {
    if lacking() {
        return;
    }
    let image = Image::of(&[&layers()[0]]);
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    let other = Image::of(&[&[Member::file("other", "x")]]);
    let later = root(&node, "plain", &other);
    assert!(fs::metadata(&later).is_err());
    // The next worker shows one more.
    Gallery::hang(node.dir(), &[image, other]);
    let first = node.worker().unwrap();
    node.kill_worker();
    node.wait_for_successor(first);
    assert_eq!(fs::read(later.join("other")).unwrap(), b"x");
}

/// An image of 1,500 files in three layers, of which the upper replaces some of the lower.
fn large_image() -> (Image, BTreeMap<String, Vec<u8>>) {
    let mut files = BTreeMap::new();
    let layers: Vec<Vec<Member>> = (0..3_u64)
        .map(|layer| {
            (0..550_u64)
                .map(|n| {
                    let path = format!("d{}/e{}/f{}", n % 7, n % 3, n + layer * 500);
                    let size = if n == 42 { 2_500_000 } else { n * 97 % 30_000 };
                    let content = noise(layer * 1000 + n + 1, size as usize);
                    files.insert(path.clone(), content.clone());
                    Member::file(path, content)
                })
                .collect()
        })
        .collect();
    let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
    (Image::of(&layers), files)
}

/// Reads one file from the mount, not from the page cache.
fn read_cold(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads all files over and over, each reader in its own order, until told to stop. Gives the
/// errors; wrong bytes panic.
fn read_on(
    root: &Path,
    files: &BTreeMap<String, Vec<u8>>,
    skip: usize,
    stop: &AtomicBool,
) -> Vec<String> {
    let mut errors = Vec::new();
    for (path, content) in files.iter().cycle().skip(skip) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match read_cold(&root.join(path)) {
            Ok(bytes) => assert!(bytes == *content, "{path} has wrong bytes"),
            Err(error) => errors.push(format!("{path}: {error}")),
        }
    }
    errors
}

/// Walks over the whole tree, again and again, until told to stop; gives the errors.
fn walk_on(root: &Path, count: usize, stop: &AtomicBool) -> Vec<String> {
    let mut errors = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match walk(root) {
            Ok(found) => assert_eq!(found, count, "files are missing from the walk"),
            Err(error) => errors.push(format!("a walk: {error}")),
        }
    }
    errors
}

fn walk(directory: &Path) -> std::io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { walk(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// Kills the worker 200 times while four programs open and read and one walks; gives what they
/// were told.
fn use_under_fire(config: NodeConfig) -> Vec<String> {
    const KILLS: u64 = 200;
    let (image, files) = large_image();
    let mut node = show(std::slice::from_ref(&image), config);
    let root = root(&node, "plain", &image);
    let stop = AtomicBool::new(false);
    let errors = thread::scope(|scope| {
        let (root, files, stop) = (&root, &files, &stop);
        let mut users: Vec<_> =
            (0..4).map(|n| scope.spawn(move || read_on(root, files, n * 300, stop))).collect();
        users.push(scope.spawn(move || walk_on(root, files.len(), stop)));
        for n in 0..KILLS {
            let worker = node.worker().unwrap();
            thread::sleep(Duration::from_millis(n * 37 % 80));
            node.kill_worker();
            node.wait_for_successor(worker);
        }
        stop.store(true, Ordering::Relaxed);
        eventually("every user comes back", HANG, || {
            users.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        users.into_iter().flat_map(|user| user.join().unwrap()).collect()
    });
    assert_eq!(node.restarts(), KILLS);
    // Nothing is broken for good.
    for (path, content) in &files {
        assert!(read_cold(&root.join(path)).unwrap() == *content, "{path}");
    }
    assert!(node.stop().success());
    errors
}

#[test]
fn users_do_not_notice_that_their_worker_is_killed_two_hundred_times() {
    if lacking() {
        return;
    }
    assert_eq!(use_under_fire(NodeConfig::default()), [""; 0]);
}

#[test]
fn in_passthrough_mode_they_do_not_notice_either() {
    if requirement::lacking(&[Need::Root, Need::Fuse, Need::Passthrough]) {
        return;
    }
    let config = NodeConfig { data_mode: DataMode::Passthrough, ..NodeConfig::default() };
    assert_eq!(use_under_fire(config), [""; 0]);
}

#[test]
fn users_of_an_old_kernel_get_errors_but_never_hang_or_see_wrong_bytes() {
    if lacking() {
        return;
    }
    let config = NodeConfig { init_mask: LINUX_5_14, ..NodeConfig::default() };
    let eio = std::io::Error::from_raw_os_error(libc::EIO).to_string();
    let errors = use_under_fire(config);
    assert!(errors.iter().all(|error| error.contains(&eio)), "{errors:#?}");
}

#[test]
fn inodes_open_files_and_mappings_are_the_same_after_a_restart() {
    if lacking() {
        return;
    }
    let (image, files) = large_image();
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    let root = root(&node, "plain", &image);
    let (path, content) = files.iter().find(|(_, content)| content.len() > 2_000_000).unwrap();
    let file = fs::File::open(root.join(path)).unwrap();
    // SAFETY: images never change.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    assert_eq!(map[0], content[0]);
    let inodes = || -> Vec<u64> {
        let inode = |path: &String| fs::metadata(root.join(path)).unwrap().ino();
        files.keys().map(inode).collect()
    };
    let before = inodes();
    let first = node.worker().unwrap();
    node.kill_worker();
    assert!(map[..] == content[..]);
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == *content);
    node.wait_for_successor(first);
    assert_eq!(inodes(), before);
}

#[test]
fn a_lost_source_gives_eio_and_the_same_file_reads_once_it_is_back() {
    if lacking() {
        return;
    }
    let image = Image::of(&[&layers()[0]]);
    let node = show(std::slice::from_ref(&image), NodeConfig::default());
    let file = root(&node, "plain", &image).join("large");
    node.tell("down", "");
    let lost = file.clone();
    let error = in_time("a read without a source", move || fs::read(lost).unwrap_err());
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    node.untell("down");
    // What has just failed is refused for a moment without another try.
    eventually("the file reads again", HANG, || fs::read(&file).is_ok());
    assert!(fs::read(&file).unwrap() == noise(2, 3_500_000));
}
