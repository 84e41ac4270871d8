//! Start-up packs and update packs, from a recorded start to a node that needs nothing else.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use undermount_tests::archive::{Member, noise};
use undermount_tests::artifact::{IndexBlobs, PATCH, TREE};
use undermount_tests::commands::runnable;
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node, PATIENCE};
use undermount_tests::podman::{self, Podman};
use undermount_tests::process::{Outcome, Running, eventually, program, run, undermount};
use undermount_tests::registry::{Registry, files_below};
use undermount_tests::requirement::{Need, lacking};

/// What the start in these tests reads, besides the shell and what it needs.
const READ: [usize; 3] = [150, 7, 299];

fn name(file: usize) -> String {
    format!("data/{file}")
}

fn content(file: usize) -> Vec<u8> {
    noise(file as u64, 60_000)
}

/// A shell above 300 files of 60,000 bytes.
fn shell_image() -> Image {
    let data: Vec<Member> = (0..300).map(|file| Member::file(name(file), content(file))).collect();
    Image::of(&[&data, &runnable(&["/bin/sh", "/bin/cat"])])
}

/// A registry with the image, and a directory for profiles.
struct Setting {
    scratch: TempDir,
    registry: Registry,
    reference: String,
    image: Image,
}

impl Setting {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Registry::undermount(&scratch.path().join("registry"));
        let image = shell_image();
        let reference = registry.push_image(&image, "shell");
        Self { scratch, registry, reference, image }
    }

    /// The same with a pack of the start.
    fn packed() -> Self {
        let setting = Self::new();
        setting.record();
        setting.pack(&[&setting.reference]).success();
        setting
    }

    fn profiles(&self) -> PathBuf {
        self.scratch.path().join("profiles")
    }

    fn profile(&self, words: &[&str]) -> Outcome {
        let mut command = undermount();
        command.arg("profile").args(&words[..1]).arg("--profiles").arg(self.profiles());
        run(command.args(&words[1..]), PATIENCE)
    }

    /// Records a start; the name of its profile.
    fn record(&self) -> String {
        let script = READ.map(|file| format!("cat /{} > /dev/null", name(file))).join("; ");
        let words = ["record", &self.reference, "--", "/bin/sh", "-c", &script];
        self.profile(&words).success().stdout.trim().to_owned()
    }

    fn pack(&self, words: &[&str]) -> Outcome {
        let mut command = undermount();
        let cache = self.scratch.path().join("pack-cache");
        command.args(["pack", "build"]).arg("--cache").arg(cache);
        run(command.arg("--profiles").arg(self.profiles()).args(words), PATIENCE)
    }

    /// The largest blob of the registry that is not among the layers of `image`: the pack.
    fn pack_blob(&self) -> PathBuf {
        let layers: Vec<String> =
            self.image.layers().iter().map(|(digest, _)| digest.hex()).collect();
        let blobs = files_below(&self.scratch.path().join("registry"));
        let is_layer = |path: &Path| layers.iter().any(|hex| path.to_string_lossy().contains(hex));
        let others = blobs.into_iter().filter(|(path, _)| !is_layer(path));
        others.max_by_key(|(_, size)| *size).unwrap().0
    }
}

fn local_bytes(node: &Node, directory: &Path) -> u64 {
    node.mount_status(directory)["local_bytes"].as_u64().unwrap()
}

fn run_start(directory: &Path) -> Outcome {
    let mut command = Command::new("chroot");
    let paths = READ.map(|file| format!("/{}", name(file)));
    run(command.arg(directory).arg("/bin/cat").args(paths), PATIENCE)
}

fn start_bytes() -> u64 {
    READ.iter().map(|file| content(*file).len() as u64).sum()
}

#[test]
fn a_recorded_start_comes_to_the_next_node_as_a_pack() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut setting = Setting::new();
    let profile = setting.record();
    let listed = setting.profile(&["list"]).success().stdout;
    assert!(listed.contains(&profile) && listed.contains(&setting.reference), "{listed}");
    setting.pack(&[&setting.reference.clone()]).success();

    let mut node = Node::new();
    let directory = node.mount(&setting.reference);
    eventually("the pack is here", PATIENCE, || local_bytes(&node, &directory) > start_bytes());
    eventually("nothing more comes", PATIENCE, || {
        let before = node.fetched(&directory);
        std::thread::sleep(std::time::Duration::from_secs(2));
        node.fetched(&directory) == before
    });
    assert!(node.fetched(&directory) < setting.image.compressed_size() / 3);
    setting.registry.process().kill();
    let said = run_start(&directory).success();
    let expected: String =
        READ.map(|file| String::from_utf8_lossy(&content(file)).into_owned()).concat();
    assert!(said.stdout == expected);
    node.umount(&directory);
}

/// Bytes of a file that the kernel holds in memory, without reading it.
fn cached_bytes(path: &Path) -> u64 {
    let mut command = program("fincore");
    let said = run(command.args(["--bytes", "--noheadings", "--output=RES"]).arg(path), PATIENCE);
    said.success().stdout.trim().parse().unwrap()
}

#[test]
fn what_a_pack_brings_is_in_the_kernels_memory_before_it_is_read() {
    if lacking(node::NEEDS) || lacking(&[Need::Program("fincore")]) {
        return;
    }
    let setting = Setting::packed();
    let mut node = Node::new();
    let directory = node.mount(&setting.reference);
    await_readahead(&directory);
    // Who reads ahead is in nobody's way.
    node.umount(&directory);
}

#[test]
fn what_a_pack_brings_is_read_ahead_in_podmans_layers() {
    if lacking(podman::NEEDS) || lacking(&[Need::Program("fincore")]) {
        return;
    }
    let setting = Setting::packed();
    let node = Podman::new();
    let pull = ["pull", "--quiet", "--tls-verify=false", &setting.reference];
    node.run(&pull);
    let root = node.run(&["image", "mount", &setting.reference]).stdout;
    await_readahead(Path::new(root.trim_end()));
    node.run(&["image", "umount", &setting.reference]);
}

/// Waits until what the start reads of the image at `root`, and only that, is in memory.
fn await_readahead(root: &Path) {
    for file in READ {
        let (path, size) = (root.join(name(file)), content(file).len() as u64);
        eventually("the file is read ahead", PATIENCE, || cached_bytes(&path) >= size);
    }
    assert_eq!(cached_bytes(&root.join(name(8))), 0, "nobody will read it");
}

#[test]
fn a_damaged_pack_costs_nothing_but_its_transfer() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::packed();
    let blob = setting.pack_blob();
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let mut node = Node::new();
    let directory = node.mount(&setting.reference);
    for file in 0..300 {
        assert!(fs::read(directory.join(name(file))).unwrap() == content(file), "{file}");
    }
    node.umount(&directory);
}

/// The file of the update below that has changed, and what is in it now.
const CHANGED: usize = 3;

fn changed_content() -> Vec<u8> {
    noise(1003, 50_000)
}

/// The image of `setting` with a changed file and a new one, and an update pack from it; its name,
/// and what belongs to its index.
fn update(setting: &Setting) -> (String, IndexBlobs) {
    let changed = [Member::file(name(CHANGED), changed_content()), Member::file("new", "new")];
    let data: Vec<Member> = (0..300)
        .map(|file| Member::file(name(file), content(file)))
        .filter(|member| member.path != name(CHANGED).as_bytes())
        .chain(changed)
        .collect();
    let rebuilt = Image::of(&[&data, &runnable(&["/bin/sh", "/bin/cat"])]);
    let newer = setting.registry.push_image(&rebuilt, "newer");
    setting.pack(&["--update-from", &setting.reference, &newer]).success();
    let root = setting.scratch.path().join("registry");
    (newer, IndexBlobs::of(&setting.registry, &root, "newer", &rebuilt.digest()))
}

#[test]
fn an_update_pack_brings_what_has_changed() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut setting = Setting::new();
    let (newer, blobs) = update(&setting);
    // The tree comes as a difference: of the layer that has changed, nobody asks for the whole one.
    assert_eq!(blobs.files(PATCH).len(), 1);
    let mut node = Node::new();
    node.pull(&setting.reference);
    for tree in blobs.files(TREE) {
        fs::remove_file(tree).unwrap();
    }
    let directory = node.mount(&newer);
    let content_bytes = node.mount_status(&directory)["content_bytes"].as_u64().unwrap();
    eventually("all is here", PATIENCE, || local_bytes(&node, &directory) == content_bytes);
    let fetched = node.fetched(&directory);
    assert!(fetched < 60_000, "{fetched} bytes for a file of 50,000");
    setting.registry.process().kill();
    assert!(fs::read(directory.join(name(CHANGED))).unwrap() == changed_content());
    assert_eq!(fs::read(directory.join("new")).unwrap(), b"new");
    assert!(fs::read(directory.join(name(299))).unwrap() == content(299));
    node.umount(&directory);
}

#[test]
fn a_damaged_patch_of_a_tree_costs_nothing_but_its_transfer() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let (newer, blobs) = update(&setting);
    for patch in blobs.files(PATCH) {
        let mut bytes = fs::read(&patch).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&patch, bytes).unwrap();
    }
    let mut node = Node::new();
    node.pull(&setting.reference);
    let directory = node.mount(&newer);
    assert!(node.fetched(&directory) < setting.image.compressed_size() / 3, "no layer came whole");
    assert!(fs::read(directory.join(name(CHANGED))).unwrap() == changed_content());
    node.umount(&directory);
}

#[test]
fn profiles_are_exported_imported_and_removed() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let name = setting.record();
    let exported = setting.profile(&["export", &name]).success().stdout;
    let file = setting.scratch.path().join("exported.json");
    fs::write(&file, exported).unwrap();
    setting.profile(&["rm", &name]).success();
    assert_eq!(setting.profile(&["list"]).success().stdout, "");
    let path = file.to_str().unwrap();
    assert_eq!(setting.profile(&["import", path]).success().stdout.trim(), name);
    let shown = setting.profile(&["show", &name]).success().stdout;
    assert!(shown.contains("/bin/sh -c cat /data/150"), "{shown}");
    setting.pack(&["--profile", path, &setting.reference]).success();
}

/// The scratch directory that a keeper which `recording` has started names.
fn scratch_of(recording: &Running) -> Option<PathBuf> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|process| {
        let read = |name| fs::read(process.path().join(name)).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        if !status.contains(&format!("\nPPid:\t{}\n", recording.id())) {
            return None;
        }
        let words = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let (_, rest) = words.split_once("/var/tmp/undermount-record-")?;
        Some(PathBuf::from(format!("/var/tmp/undermount-record-{}", rest.split('/').next()?)))
    })
}

#[test]
fn regression_a_recording_that_is_interrupted_leaves_nothing() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let mut command = undermount();
    command.args(["profile", "record", "--silence", "300", "--profiles"]).arg(setting.profiles());
    // The first process of a namespace does not stop.
    let forever = ["--", "/bin/sh", "-c", "/bin/sh -c 'kill -STOP $$'; :"];
    let mut recording = Running::start(command.arg(&setting.reference).args(forever));
    let mut scratch = None;
    eventually("an image is mounted", PATIENCE, || {
        scratch = scratch_of(&recording);
        scratch.is_some()
    });
    let scratch = scratch.unwrap();
    eventually("a start is recorded", PATIENCE, || scratch.join("start").exists());
    let pid = Pid::from_raw(recording.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let status = recording.wait(PATIENCE).expect("it ends");
    assert!(!status.success() && recording.stderr().contains("interrupted"));
    assert!(!scratch.exists(), "{}", scratch.display());
    node::assert_no_process_left(&scratch);
}

#[test]
fn what_cannot_be_packed_or_recorded_is_refused_with_the_reason() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let reference = setting.reference.as_str();
    let refused = |outcome: Outcome, words: &str| {
        let said = outcome.refusal();
        assert!(said.contains(words), "`{words}` is not in: {said}");
    };
    refused(setting.pack(&[reference]), "undermount profile record");
    refused(setting.profile(&["show", "123-456"]), "no profile is named `123-456`");
    refused(setting.profile(&["record", reference]), "the image names no command");
    let failing = ["record", reference, "--", "/bin/sh", "-c", "echo oh no; exit 3"];
    refused(setting.profile(&failing), "oh no");
    let rubbish = setting.scratch.path().join("rubbish.json");
    fs::write(&rubbish, "{}").unwrap();
    refused(setting.pack(&["--profile", rubbish.to_str().unwrap(), reference]), "rubbish.json");

    let other = Image::of(&[&[Member::file("a", "other")]]);
    let other = setting.registry.push_image(&other, "other");
    let name = setting.record();
    let file = setting.profiles().join(format!("{name}.json"));
    refused(setting.pack(&["--profile", file.to_str().unwrap(), &other]), "nothing to pack");

    let bare = setting.scratch.path().join("bare");
    let bare = Registry::undermount_with(&bare, &["--index", "off"]);
    let unindexed = bare.push_image(&setting.image, "shell");
    refused(setting.pack(&["--profile", file.to_str().unwrap(), &unindexed]), "has no index");
}
