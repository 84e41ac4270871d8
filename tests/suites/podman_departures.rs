//! Layers that podman has removed go, with their memory and their place in the cache, as soon as
//! nobody uses them, and no sooner: whoever does reads what he always read.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use undermount::control::Runtime;
use undermount::image::Reference;
use undermount::podman::store_name;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{SOON, binary, copy_program, eventually, run, undermount};
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const FILES: u64 = 40;

fn content(seed: u64, file: u64) -> Vec<u8> {
    noise(seed * 1_000 + file, 3_000 + file as usize * 500)
}

/// An image of three layers: files in directories, others above them, and a directory that hides
/// what lies below it.
fn layers(seed: u64) -> Vec<Layer> {
    let file = |n: u64| Member::file(format!("data/{}/{n}", n % 4), content(seed, n));
    let files: Vec<Member> = (0..FILES).map(file).collect();
    let (half, rest) = files.split_at(files.len() / 2);
    let directories: Vec<Member> =
        ["data", "data/0", "data/1", "data/2", "data/3", "opaque"].map(Member::dir).into();
    let below = [Member::file("opaque/below", noise(seed, 3_000))];
    let above = Member::file("opaque/above", noise(seed + 1, 3_000));
    vec![
        Layer::of(&[&directories, half, &below].concat()),
        Layer::of(&[&directories[..5], rest].concat()),
        Layer::of(&[Member::dir("opaque"), Member::opaque("opaque"), above]),
    ]
}

/// What is below `root`, by path.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root).unwrap().to_owned();
                found.insert(path, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn expected(seed: u64) -> BTreeMap<PathBuf, Vec<u8>> {
    let file = |n: u64| (format!("data/{}/{n}", n % 4).into(), content(seed, n));
    let above = ("opaque/above".into(), noise(seed + 1, 3_000));
    (0..FILES).map(file).chain([above]).collect()
}

#[track_caller]
fn assert_all_right(root: &Path, seed: u64) {
    assert!(files(root) == expected(seed), "wrong files in {}", root.display());
}

/// How many layers are shown, leaving and dropped.
fn census(node: &Podman) -> [u64; 3] {
    let layers = &node.status()["store"]["layers"];
    ["shown", "leaving", "dropped"].map(|state| layers[state].as_u64().unwrap())
}

fn collect(node: &Podman) -> Command {
    let mut command = undermount();
    command.args(["cache", "gc", "--json", "--cache"]).arg(node.path("cache"));
    command
}

/// Has the agent look for what may go.
fn look(node: &Podman) {
    run(&mut collect(node), PATIENCE).success();
}

/// Has the agent look until nothing is shown or leaving.
#[track_caller]
fn assert_all_goes(node: &Podman) {
    let mut told = [u64::MAX; 3];
    eventually("all layers are dropped", PATIENCE, || {
        look(node);
        let found = census(node);
        if std::mem::replace(&mut told, found) != found {
            println!("shown, leaving, dropped: {found:?}");
        }
        found[..2] == [0, 0]
    });
}

fn upgrade(node: &Podman, name: &str) {
    let newer = node.path(name);
    copy_program(binary(), &newer);
    let before = node.status()["worker"].clone();
    run(node.undermount("upgrade").arg(&newer), PATIENCE).success();
    await_other_worker(node, &before);
}

fn await_other_worker(node: &Podman, before: &Value) {
    eventually("another worker serves", PATIENCE, || {
        let outcome = run(node.undermount("status").arg("--json"), PATIENCE);
        let status: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
        status["worker"].is_u64() && status["worker"] != *before
    });
}

fn kill_worker(node: &Podman) {
    let before = node.status()["worker"].clone();
    node.kill_worker();
    await_other_worker(node, &before);
}

/// Lines of a table in the agent's runtime directory.
fn lines(node: &Podman, table: &str) -> Vec<String> {
    let runtime = Runtime::of(&node.path("cache").canonicalize().unwrap());
    let text = fs::read_to_string(runtime.root().join(table)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// An image that podman uses, as far as the agent can tell, and that is asked for as podman does.
struct Used {
    directories: Vec<PathBuf>,
}

impl Used {
    fn pull(node: &Podman, image: &Image, repository: &str) -> Self {
        let reference = node.registry().push_image(image, repository);
        let reference: Reference = reference.parse().unwrap();
        let of_image = node.store().join(store_name(&reference));
        let layers = image.layers();
        let directories = layers.iter().map(|(digest, _)| of_image.join(digest.to_string()));
        let used = Self { directories: directories.collect() };
        for directory in &used.directories {
            ["diff", "info", "blob"].iter().for_each(|name| {
                fs::metadata(directory.join(name)).unwrap();
            });
            let mut options = OpenOptions::new();
            let counted = options.write(true).create(true).truncate(true);
            let error = counted.open(directory.join("use")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        used
    }

    /// Mounts the layers, as for a container.
    fn mount(&self, at: &Path) {
        fs::create_dir_all(at).unwrap();
        let lower: Vec<String> =
            self.directories.iter().rev().map(|dir| format!("{}/diff", dir.display())).collect();
        // The names of the store have `:` in them, at which the option would be cut.
        let lower = lower.join("\n").replace(':', "\\:").replace('\n', ":");
        let options = format!("lowerdir={lower}");
        let kind = Some("overlay");
        mount(kind, at, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
    }

    /// What podman does when it removes the image.
    fn remove(&self) {
        for directory in &self.directories {
            assert_eq!(fs::remove_dir(directory).unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}

#[test]
fn what_podman_has_removed_goes_and_comes_back_right() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let tools = || Layer::of(&userland(&["cat", "ls"]));
    let image = |seed| Image::from_layers([vec![tools()], layers(seed)].concat());
    let [first, second] =
        [1, 2].map(|seed| node.registry().push_image(&image(seed), &format!("test/image:{seed}")));
    node.assert_like_an_ordinary_pull(&first);
    node.output(&first, &["/bin/ls", "/data/0"]);
    look(&node);
    look(&node);
    assert_eq!(census(&node), [4, 0, 0], "podman uses them");
    let slots = lines(&node, "slots").len();
    assert!(slots >= 8, "{slots}");

    node.run(&["rmi", "--all", "--force"]);
    assert_all_goes(&node);
    assert_eq!(census(&node), [0, 0, 4]);
    assert_eq!(lines(&node, "layers"), Vec::<String>::new());
    assert_eq!(lines(&node, "slots"), [format!("gone {slots}")]);
    eventually("the name is forgotten", PATIENCE, || {
        look(&node);
        node.status()["store"]["images"] == serde_json::json!([])
    });

    // Other layers, and the same ones, in new slots.
    for reference in [&second, &first] {
        node.run_ordinary(&["rmi", "--all", "--force"]);
        node.assert_like_an_ordinary_pull(reference);
    }
    assert_eq!(node.status()["store"]["refused"], serde_json::json!({}), "lazily");
    assert_eq!(census(&node), [7, 0, 4], "the tools are one layer of both");
    node.run(&["rmi", &second]);
    eventually("the other image is left", PATIENCE, || {
        look(&node);
        census(&node)[..2] == [4, 0]
    });
    node.assert_like_an_ordinary_pull(&first);
    kill_worker(&node);
    assert_eq!(census(&node), [4, 0, 0]);
    node.assert_like_an_ordinary_pull(&first);
}

#[test]
fn a_container_on_layers_that_podman_has_removed_goes_on_with_whatever_worker() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let used = Used::pull(&node, &Image::from_layers(layers(1)), "test/one:1");
    let [root, other] = ["root", "other"].map(|name| node.path(name));
    used.mount(&root);
    let mut open = File::open(root.join("data/3/3")).unwrap();
    used.remove();
    let stays = |what: &str| {
        look(&node);
        look(&node);
        let [shown, leaving, _] = census(&node);
        assert_eq!([shown, leaving], [0, 3], "{what}");
    };
    stays("a mounted overlay");
    // Nothing of it was read so far.
    assert_eq!(fs::read_dir(root.join("data")).unwrap().count(), 4);
    assert!(fs::read(root.join("data/1/5")).unwrap() == content(1, 5));

    // The next image comes while it is there.
    let next = Used::pull(&node, &Image::from_layers(layers(2)), "test/next:1");
    next.mount(&other);
    assert_all_right(&other, 2);
    next.remove();
    umount2(&other, MntFlags::empty()).unwrap();
    eventually("the next image goes", PATIENCE, || {
        look(&node);
        census(&node)[..2] == [0, 3]
    });

    kill_worker(&node);
    stays("after a kill");
    assert_all_right(&root, 1);
    upgrade(&node, "newer");
    stays("after an upgrade");
    // Much of what the kernel knows goes, and has to be asked for again.
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    stays("after the kernel has dropped what nobody uses");
    assert_all_right(&root, 1);
    kill_worker(&node);

    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    stays("an open file");
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content(1, 3));
    drop(open);
    assert_all_goes(&node);
    assert_eq!(lines(&node, "layers"), Vec::<String>::new());
}

#[test]
fn layers_that_are_asked_for_while_they_leave_are_there() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let image = Image::from_layers(layers(1));
    let used = Used::pull(&node, &image, "test/one:1");
    let [root, again] = ["root", "again"].map(|name| node.path(name));
    used.mount(&root);
    used.remove();
    look(&node);
    look(&node);
    assert_eq!(census(&node), [0, 3, 0]);
    let used = Used::pull(&node, &image, "test/one:1");
    assert_eq!(census(&node), [3, 0, 0]);
    used.mount(&again);
    assert_all_right(&again, 1);
    umount2(&root, MntFlags::empty()).unwrap();
    assert_all_right(&again, 1);
    umount2(&again, MntFlags::empty()).unwrap();
    // podman says only once that it uses a layer: one that it uses all the same can go as well.
    used.remove();
    assert_all_goes(&node);
    used.mount(&again);
    assert_all_right(&again, 1);
    umount2(&again, MntFlags::empty()).unwrap();
}

#[test]
fn workers_that_are_killed_while_layers_come_and_go_show_nothing_wrong() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let stays = Used::pull(&node, &Image::from_layers(layers(1)), "test/stays:1");
    let root = node.path("root");
    stays.mount(&root);
    stays.remove();
    for round in 0..6 {
        let seed = 2 + round % 2;
        let image = Image::from_layers(layers(seed));
        let used = Used::pull(&node, &image, &format!("test/comes:{seed}"));
        let comes = node.path(&format!("comes-{round}"));
        used.mount(&comes);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| (0..3).for_each(|_| assert_all_right(&comes, seed)));
            while !reader.is_finished() {
                kill_worker(&node);
                // Not always there to be asked.
                drop(run(&mut collect(&node), SOON));
            }
            reader.join().unwrap();
        });
        umount2(&comes, MntFlags::empty()).unwrap();
        used.remove();
        look(&node);
        look(&node);
        assert_all_right(&root, 1);
    }
    umount2(&root, MntFlags::empty()).unwrap();
}
