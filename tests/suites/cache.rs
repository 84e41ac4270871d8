//! The cache of a node in use: damaged, verified, too small, collected.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tempfile::TempDir;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node, PATIENCE};
use undermount_tests::process::{Outcome, eventually, run, undermount};
use undermount_tests::registry::{Registry, files_below};
use undermount_tests::requirement::{Need, lacking};

/// A node, a registry that indexes what is pushed to it, and an image of two layers there: a
/// small one, and one that is not.
struct Setting {
    node: Node,
    registry: Registry,
    reference: String,
    files: BTreeMap<String, Vec<u8>>,
    _root: TempDir,
}

fn missing() -> bool {
    lacking(&[node::NEEDS, &[Need::Program("skopeo")]].concat())
}

fn setting() -> Setting {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let (image, files) = image(1);
    let reference = registry.push_image(&image, "test/cache:1");
    Setting { node: Node::new(), registry, reference, files, _root: root }
}

fn image(seed: u64) -> (Image, BTreeMap<String, Vec<u8>>) {
    let small = (0..40).map(|n| (format!("small/f{n}"), noise(seed * 1000 + n, 3000)));
    let other = (0..40).map(|n| (format!("other/f{n}"), noise(seed * 2000 + n, 90_000)));
    let large = [("other/large".to_owned(), noise(seed * 3000, 3_500_000))];
    let lower: Vec<_> = small.collect();
    let upper: Vec<_> = other.chain(large).collect();
    let members = |files: &[(String, Vec<u8>)]| -> Vec<Member> {
        files.iter().map(|(path, content)| Member::file(path, content)).collect()
    };
    let image = Image::of(&[&members(&lower), &members(&upper)]);
    (image, lower.into_iter().chain(upper).collect())
}

impl Setting {
    fn cache(&self, words: &[&str]) -> Outcome {
        let mut command = undermount();
        command.arg("cache").args(words).arg("--cache").arg(self.node.cache());
        run(&mut command, PATIENCE)
    }

    fn cache_json(&self, words: &[&str]) -> Value {
        let outcome = self.cache(&[words, &["--json"]].concat());
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{}", outcome.stderr))
    }

    /// Unmounts, and waits for the end of the owner: what a worker has fetched stays in its memory
    /// for a while, whatever becomes of its files.
    fn end(&mut self, mount: &Path) {
        self.node.umount(mount);
        node::assert_no_process_left(&self.node.cache());
    }

    fn assert_all_read(&self, mount: &Path) {
        for (path, content) in &self.files {
            assert!(read_cold(&mount.join(path)) == *content, "{path} has wrong bytes");
        }
    }

    /// Files of the cache that hold contents, indexes and manifests.
    fn kept(&self) -> Vec<PathBuf> {
        let kept = ["objects", "partial", "blobs"].map(|name| self.node.cache().join(name));
        let files = kept.iter().flat_map(|directory| files_below(directory));
        files.filter(|(_, size)| *size > 0).map(|(path, _)| path).collect()
    }
}

/// Reads a file from the mount, not from the page cache.
fn read_cold(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes
}

fn alter(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A way to spoil a file.
type Damage = (&'static str, fn(&Path));

#[test]
fn whatever_happens_to_the_files_of_the_cache_every_file_reads_right() {
    if missing() {
        return;
    }
    let damages: [Damage; 5] = [
        ("altered", alter),
        ("truncated", |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("zeroed", |path| {
            fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap()
        }),
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("replaced by a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    let mut setting = setting();
    for (what, damage) in damages {
        let mount = setting.node.mount(&setting.reference);
        // Part of a large file, too.
        let large = File::open(mount.join("other/large")).unwrap();
        posix_fadvise(&large, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        large.read_exact_at(&mut [0; 10], 2_000_000).unwrap();
        read_cold(&mount.join("small/f1"));
        drop(large);
        // What a read brings is written behind it.
        let mut kept = Vec::new();
        eventually(what, PATIENCE, || {
            thread::sleep(Duration::from_millis(100));
            let before = mem::replace(&mut kept, setting.kept());
            kept.len() > 40 && kept == before
        });
        kept.iter().for_each(|path| damage(path));
        // At once, in the mount that is there ...
        setting.assert_all_read(&mount);
        setting.end(&mount);
        setting.kept().iter().for_each(|path| damage(path));
        // ... and by a worker and a mount that come after.
        let mount = setting.node.mount(&setting.reference);
        setting.assert_all_read(&mount);
        setting.end(&mount);
    }
}

#[test]
fn verify_fetches_again_what_is_damaged_with_an_owner_and_without() {
    if missing() {
        return;
    }
    let mut setting = setting();
    setting.node.pull(&setting.reference);
    for with_owner in [true, false] {
        let mount = with_owner.then(|| setting.node.mount(&setting.reference));
        if !with_owner {
            node::assert_no_process_left(&setting.node.cache());
        }
        assert_eq!(setting.cache_json(&["verify"])["damaged"], 0);
        let kept = setting.kept();
        let large = kept.iter().find(|path| fs::metadata(path).unwrap().len() > 3_000_000).unwrap();
        let blobs = kept.iter().filter(|path| path.starts_with(setting.node.cache().join("blobs")));
        let victims: Vec<&PathBuf> = kept[..5].iter().chain([large]).chain(blobs).collect();
        let victims: std::collections::BTreeSet<_> = victims.into_iter().collect();
        victims.iter().for_each(|path| alter(path));
        let report = setting.cache_json(&["verify"]);
        assert_eq!(report["damaged"], victims.len(), "{report}");
        assert_eq!(report["repaired"], report["damaged"], "{report}");
        assert_eq!(report["lost"], Value::Array(Vec::new()));
        assert!(report["checked"]["count"].as_u64().unwrap() > 80, "{report}");
        if let Some(mount) = mount {
            setting.node.umount(&mount);
        }
    }
    let kept = setting.kept();
    let objects = kept.iter().filter(|path| path.starts_with(setting.node.cache().join("objects")));
    let victims: Vec<&PathBuf> = objects.take(3).collect();
    victims.iter().for_each(|path| alter(path));
    let Setting { registry, node, files, reference, _root } = setting;
    drop(registry);
    let registry = Registry::undermount(tempfile::tempdir().unwrap().path());
    let mut setting = Setting { registry, node, files, reference, _root };
    let outcome = setting.cache(&["verify"]);
    let said = &outcome.stdout;
    assert!(!outcome.status.success(), "{said}");
    assert_eq!(said.matches("lost: object ").count(), victims.len(), "{said}");
    // Its registry is asked once, not for each of them.
    assert_eq!(said.matches("lost: ").count(), victims.len() + 1, "{said}");
    // Everything else is here without the registry.
    let mount = setting.node.mount_with(&setting.reference, &["--on-outage", "eio"]);
    let wrong = setting.files.iter().filter(|(path, content)| {
        fs::read(mount.join(path)).map_or(true, |bytes| bytes != **content)
    });
    assert_eq!(wrong.count(), victims.len());
}

#[test]
fn gc_drops_what_no_image_needs_and_what_was_left_behind() {
    if missing() {
        return;
    }
    let mut setting = setting();
    setting.node.pull(&setting.reference);
    let old = setting.cache_json(&["status"]);
    let (image, files) = image(2);
    setting.registry.push_image(&image, "test/cache:1");
    setting.node.pull(&setting.reference);
    let both = setting.cache_json(&["status"]);
    assert!(both["objects"]["bytes"].as_u64() > old["objects"]["bytes"].as_u64(), "{both}");
    fs::create_dir(setting.node.cache().join("old-0")).unwrap();
    fs::write(setting.node.cache().join("old-0/object"), "x").unwrap();

    let report = setting.cache_json(&["gc"]);
    assert!(report["objects"]["count"].as_u64().unwrap() >= 80, "{report}");
    assert!(report["blobs"]["count"].as_u64().unwrap() >= 4, "{report}");
    assert_eq!((&report["records"], &report["leftovers"]), (&2.into(), &1.into()), "{report}");
    let left = setting.cache_json(&["status"]);
    assert_eq!(left["objects"], old["objects"], "the images are of one size");
    assert_eq!(left["pinned_bytes"], left["objects"]["bytes"], "{left}");
    assert_eq!(left["evictable_bytes"], 0);
    setting.files = files;
    let mount = setting.node.mount(&setting.reference);
    setting.assert_all_read(&mount);
    // What is complete stays, down to whatever size, unless that is allowed to go.
    assert_eq!(setting.cache_json(&["gc", "--to", "1MiB"])["objects"]["count"], 0);
    assert_eq!(setting.cache_json(&["status"])["objects"], old["objects"]);
}

#[test]
fn a_quota_that_is_too_small_for_an_image_is_refused_with_the_numbers() {
    if missing() {
        return;
    }
    let mut setting = setting();
    let directory = setting.node.directory("refused");
    let mut command = setting.node.command("mount");
    command.args(["--quota", "4MiB"]).arg(&setting.reference).arg(&directory);
    let outcome = run(&mut command, PATIENCE);
    assert!(!outcome.status.success());
    for word in ["7270400 bytes", "4194304", "--quota", "--evict-complete"] {
        assert!(outcome.stderr.contains(word), "`{word}` is not in: {}", outcome.stderr);
    }
    node::assert_no_process_left(&setting.node.cache());
    let flags = ["--quota", "4MiB", "--evict-complete"];
    let mount = setting.node.mount_with(&setting.reference, &flags);
    for _ in 0..2 {
        setting.assert_all_read(&mount);
        let status = setting.cache_json(&["status"]);
        assert!(status["objects"]["bytes"].as_u64().unwrap() <= 4 << 20, "{status}");
        assert!(status["evicted"].as_u64().unwrap() > 0, "{status}");
    }
}

#[test]
fn a_full_disk_costs_fetches_but_no_file() {
    if missing() {
        return;
    }
    let mut setting = setting();
    let cache = setting.node.directory("cache");
    mount(Some("none"), &cache, Some("tmpfs"), MsFlags::empty(), Some("size=3m")).unwrap();
    for flags in [&[][..], &["--cache-reserve", "1MiB"]] {
        let mount = setting.node.mount_with(&setting.reference, flags);
        setting.assert_all_read(&mount);
        setting.assert_all_read(&mount);
        let status = setting.cache_json(&["status"]);
        assert!(status["unkept"].as_u64().unwrap() > 0, "{status}");
        assert!(status["objects"]["bytes"].as_u64().unwrap() > 0, "{status}");
        setting.node.umount(&mount);
        node::assert_no_process_left(&setting.node.cache());
    }
    // What is not here does not count as complete.
    let outcome = run(setting.node.command("pull").arg(&setting.reference), PATIENCE);
    assert!(outcome.refusal().contains("the cache has no room for"), "{}", outcome.stderr);
    let status = setting.cache_json(&["status"]);
    assert_eq!(status["pinned_bytes"], 0, "{status}");
    umount2(&cache, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_cache_of_a_newer_version_is_refused() {
    if missing() {
        return;
    }
    let setting = setting();
    let cache = setting.node.directory("cache");
    fs::write(cache.join("VERSION"), "undermount cache 9\n").unwrap();
    let outcome = setting.cache(&["status"]);
    assert!(!outcome.status.success());
    assert!(outcome.stderr.contains("undermount cache 9"), "{}", outcome.stderr);
    let outcome = run(setting.node.command("pull").arg(&setting.reference), PATIENCE);
    assert!(outcome.stderr.contains("undermount cache 9"), "{}", outcome.stderr);
}
