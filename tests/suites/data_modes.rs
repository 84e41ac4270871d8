//! The ways in which the kernel gets the bytes of files: what both promise, and what passthrough
//! adds.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use undermount_fs::session::DataMode;
use undermount_tests::archive::{Member, noise};
use undermount_tests::gallery::Gallery;
use undermount_tests::image::Image;
use undermount_tests::node;
use undermount_tests::origin::Origin;
use undermount_tests::process::eventually;
use undermount_tests::requirement::{self, Need};
use undermount_tests::session::{LINUX_5_14, Node, NodeConfig};

const PROGRAM: &str = env!("CARGO_BIN_EXE_session-node");

/// Sizes of the files `f0`, `f1`, ... of [`image`]: none, one unit, several chunks.
const SIZES: [usize; 4] = [0, 5_000, 900_000, 3_500_000];

/// The modes that this machine has.
fn modes() -> Vec<DataMode> {
    if requirement::lacking(&[Need::Root, Need::Fuse]) {
        return Vec::new();
    }
    if requirement::lacking(&[Need::Passthrough]) {
        return vec![DataMode::Cached];
    }
    vec![DataMode::Cached, DataMode::Passthrough]
}

fn lacking_passthrough() -> bool {
    requirement::lacking(&[Need::Root, Need::Fuse, Need::Passthrough])
}

fn content(n: usize) -> Vec<u8> {
    noise(n as u64 + 1, SIZES[n])
}

fn image() -> Image {
    let members: Vec<Member> =
        (0..SIZES.len()).map(|n| Member::file(format!("f{n}"), content(n))).collect();
    Image::of(&[&members])
}

/// A node that shows [`image`], and the image's root.
fn show(data_mode: DataMode) -> (Node, PathBuf) {
    let image = image();
    let config = NodeConfig { data_mode, ..NodeConfig::default() };
    let node = Gallery::show(PROGRAM, std::slice::from_ref(&image), config);
    let root = Gallery::root(&node, "plain", &image);
    (node, root)
}

fn assert_all_read(root: &Path) {
    for n in 0..SIZES.len() {
        let path = root.join(format!("f{n}"));
        assert!(fs::read(&path).unwrap() == content(n), "{}", path.display());
    }
}

/// Forgets the pages that the kernel has of a file.
fn drop_pages(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn map(file: &File) -> Mmap {
    // SAFETY: images never change.
    unsafe { Mmap::map(file) }.unwrap()
}

/// Every object of a node's store, complete or not.
fn objects(node: &Node) -> Vec<PathBuf> {
    let files = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let cache = node.dir().join("cache");
    let complete = files(&cache.join("objects")).into_iter().flat_map(|fan| files(&fan));
    complete.chain(files(&cache.join("partial"))).collect()
}

fn evict(node: &Node) {
    for object in objects(node) {
        match fs::remove_file(&object) {
            // What has just been completed is called something else by now.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.unwrap(),
        }
    }
}

#[test]
fn files_held_open_and_mapped_survive_their_worker_and_open_again() {
    for mode in modes() {
        let (node, root) = show(mode);
        // Once with files that are not here yet, once with complete ones.
        for _ in 0..2 {
            let paths: Vec<PathBuf> =
                (1..SIZES.len()).map(|n| root.join(format!("f{n}"))).collect();
            let held: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
            let maps: Vec<Mmap> = held.iter().map(map).collect();
            let inodes: Vec<u64> = held.iter().map(|file| file.metadata().unwrap().ino()).collect();
            let first = node.worker().unwrap();
            node.kill_worker();
            for (n, path) in (1..).zip(&paths) {
                assert!(fs::read(path).unwrap() == content(n), "{mode}: {}", path.display());
                assert_eq!(fs::metadata(path).unwrap().ino(), inodes[n - 1]);
                assert!(maps[n - 1][..] == content(n)[..], "{mode}: the mapping of f{n}");
                let mut bytes = vec![0; SIZES[n]];
                drop_pages(&held[n - 1]);
                held[n - 1].read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes == content(n), "{mode}: the held f{n}");
            }
            node.wait_for_successor(first);
        }
        assert_all_read(&root);
    }
}

#[test]
fn files_whose_objects_are_evicted_while_open_read_and_open_again() {
    for mode in modes() {
        let (node, root) = show(mode);
        assert_all_read(&root);
        let held: Vec<File> =
            (0..SIZES.len()).map(|n| File::open(root.join(format!("f{n}"))).unwrap()).collect();
        for kills in 0..2 {
            evict(&node);
            for (n, file) in held.iter().enumerate() {
                drop_pages(file);
                let mut bytes = vec![0; SIZES[n]];
                file.read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes == content(n), "{mode}: the held f{n}");
            }
            assert_all_read(&root);
            if kills == 0 {
                let first = node.worker().unwrap();
                node.kill_worker();
                node.wait_for_successor(first);
            }
        }
        drop(held);
        assert_all_read(&root);
    }
}

#[test]
fn both_modes_serve_as_a_lower_directory_of_an_overlay() {
    for mode in modes() {
        let (node, root) = show(mode);
        let dir = |name: &str| {
            let dir = node.dir().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let (upper, work, merged) = (dir("upper"), dir("work"), dir("bound"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            root.display(),
            upper.display(),
            work.display()
        );
        let kind = Some("overlay");
        mount(kind, &merged, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
        for _ in 0..2 {
            assert_all_read(&merged);
        }
        // Changing a file copies it up, which reads it in yet another way.
        let changed = File::options().write(true).open(merged.join("f3")).unwrap();
        changed.write_all_at(b"changed", 1_000_000).unwrap();
        let mut expected = content(3);
        expected[1_000_000..1_000_007].copy_from_slice(b"changed");
        assert!(fs::read(merged.join("f3")).unwrap() == expected, "{mode}");
        assert_all_read(&root);
    }
}

#[test]
fn in_passthrough_mode_the_kernel_reads_complete_files_without_a_worker() {
    if lacking_passthrough() {
        return;
    }
    let (node, root) = show(DataMode::Passthrough);
    assert_all_read(&root);
    let files: Vec<File> =
        (1..SIZES.len()).map(|n| File::open(root.join(format!("f{n}"))).unwrap()).collect();
    let worker = node.worker().unwrap();
    kill(worker, Signal::SIGSTOP).unwrap();
    for (n, file) in (1..).zip(&files) {
        let mut bytes = vec![0; SIZES[n]];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(n), "f{n}");
        assert!(map(file)[..] == bytes[..], "the mapping of f{n}");
    }
    kill(worker, Signal::SIGCONT).unwrap();
}

#[test]
fn in_passthrough_mode_an_incomplete_file_is_read_through_the_worker() {
    if lacking_passthrough() {
        return;
    }
    let (node, root) = show(DataMode::Passthrough);
    let path = root.join("f3");
    let file = File::open(&path).unwrap();
    // A part of it arrives; the rest of the object is a hole.
    let mut bytes = vec![0; 10];
    file.read_exact_at(&mut bytes, 2_000_000).unwrap();
    node.tell("down", "");
    let mut rest = vec![0; 1000];
    let again = File::open(&path).unwrap();
    if again.read_exact_at(&mut rest, 10_000).is_ok() {
        assert!(rest == content(3)[10_000..11_000], "a hole was read as zeros");
    }
    node.untell("down");
    eventually("the file reads", node::PATIENCE, || fs::read(&path).is_ok());
    assert!(fs::read(&path).unwrap() == content(3));
}

#[test]
fn passthrough_is_refused_at_the_mount_where_kernel_or_store_lack_it() {
    if lacking_passthrough() {
        return;
    }
    let (origin, reference) = Origin::with(image());
    let mut node = node::Node::new();
    let directory = node.directory("mount");
    let mask = format!("--init-mask={LINUX_5_14:x}");
    let outcome = node.try_mount_with(&["--data-mode=passthrough", &mask], &reference, &directory);
    assert!(outcome.refusal().contains("takes Linux 6.9 or later"), "{}", outcome.stderr);

    // A cache on an overlay, as in a container.
    let stacked = node.directory("stacked");
    let parts = ["lower", "upper", "work"].map(|name| node.directory(name));
    let [lower, upper, work] = parts.each_ref().map(|part| part.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let kind = Some("overlay");
    mount(kind, &stacked, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
    let mut other = node::Node::in_cache(&stacked.join("cache"));
    let outcome = other.try_mount_with(&["--data-mode=passthrough"], &reference, &directory);
    nix::mount::umount2(&stacked, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let words = outcome.refusal();
    assert!(words.contains("does not work with the store in"), "{words}");
    assert!(words.contains(stacked.to_str().unwrap()), "{words}");
    drop(origin);
}

#[test]
fn the_mounts_of_an_owner_have_one_mode() {
    if lacking_passthrough() {
        return;
    }
    let (_origin, reference) = Origin::with(image());
    let mut node = node::Node::new();
    let (one, two) = (node.directory("one"), node.directory("two"));
    node.try_mount_with(&["--data-mode=passthrough"], &reference, &one).success();
    assert_eq!(node.status()["data_mode"], "passthrough");
    let outcome = node.try_mount_with(&["--data-mode=cached"], &reference, &two);
    assert!(
        outcome.refusal().contains("mounts in data mode passthrough, not cached"),
        "{}",
        outcome.stderr
    );
    node.try_mount_with(&[], &reference, &two).success();
    assert_all_read(&one);
    assert_all_read(&two);
    let outcome = node.try_mount_with(&["--data-mode=fast"], &reference, &two);
    assert!(outcome.stderr.contains("expected `cached` or `passthrough`"), "{}", outcome.stderr);
}
