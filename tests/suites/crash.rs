//! `prepare` killed at random moments: nothing half-written is ever served, the same command
//! finishes the job with the same result, and no blob that had arrived is fetched again. (The
//! same of the registry is in `registry_server.rs`.)
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use undermount::image::Repository;
use undermount::registry::client::{Client, ClientConfig};
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::Fault;
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::PATIENCE;
use undermount_tests::origin::Origin;
use undermount_tests::process::{Running, run, undermount};
use undermount_tests::registry::{Registry, files_below, get};

/// How often a run is killed, each time at another moment of its work.
const KILLS: usize = 50;
const KILLS_IN_A_ROUND: usize = 5;
/// The repositories of the source: what comes from the first goes to a registry, what comes
/// from the second into the tree of the Apache.
const NAMESPACES: [&str; 2] = ["pushed", "exported"];
const NAMES: [&str; 3] = ["nova", "neutron", "keystone"];
const TEMPLATE: &str = "container_images_template:\n\
                        - {imagename: '{{namespace}}/nova:{{tag}}', params: [A{{name_suffix}}]}\n\
                        - {imagename: '{{namespace}}/neutron:{{tag}}', params: [B{{name_suffix}}]}\n\
                        - {imagename: '{{namespace}}/keystone:{{tag}}', params: [C{{name_suffix}}]}\n";

/// Three images on one base layer.
fn images() -> BTreeMap<&'static str, Image> {
    let base = Layer::of(&[Member::file("base", noise(1, 200_000))]);
    let image = |name: &'static str| {
        let own = Layer::of(&[Member::file(name, noise(name.len() as u64, 50_000))]);
        (name, Image::from_layers(vec![base.clone(), own]))
    };
    NAMES.into_iter().map(image).collect()
}

/// A source, a registry, and something that takes no uploads, served from a tree.
struct Site {
    scratch: tempfile::TempDir,
    source: Origin,
    registry: Registry,
    read_only: Origin,
}

impl Site {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let source = Origin::new();
        for namespace in NAMESPACES {
            for (name, image) in images() {
                source.add(&format!("{namespace}/{name}"), image);
            }
        }
        // Blobs come so slowly that many kills meet them on their way.
        source.misbehave(|request| {
            let slowly = Fault::Trickle(16 << 10, Duration::from_millis(4));
            request.path.contains("/blobs/").then_some(slowly)
        });
        let registry = Registry::undermount(&scratch.path().join("registry"));
        fs::write(scratch.path().join("template.j2"), TEMPLATE).unwrap();
        Self { scratch, source, registry, read_only: Origin::new() }
    }

    /// A round has its own destinations: a prefix of the registry, and a tree.
    fn round(&self, number: usize) -> Round<'_> {
        let directory = self.scratch.path().join(format!("round{number}"));
        fs::create_dir(&directory).unwrap();
        let entry = |destination: &str, namespace: &str| {
            format!(
                "  - push_destination: '{destination}'\n    set: {{namespace: {}/{namespace}, \
                 name_suffix: {namespace}, tag: latest}}\n",
                self.source.address(),
            )
        };
        let prefix = format!("{}/round{number}", self.registry.address());
        let [pushed, exported] = NAMESPACES;
        let entries = entry(&prefix, pushed) + &entry(&self.read_only.address(), exported);
        let text = format!("parameter_defaults:\n  ContainerImagePrepare:\n{entries}");
        fs::write(directory.join("prepare.yaml"), text).unwrap();
        let (jobs, asked) = (1 + 2 * (number % 2), self.source.requests().len());
        Round { site: self, jobs, directory, prefix, asked }
    }
}

struct Round<'a> {
    site: &'a Site,
    /// Images at a time. One by one, a kill finds images that are done and others that share
    /// their layers and have not begun.
    jobs: usize,
    directory: PathBuf,
    prefix: String,
    /// Requests that the source had seen when this was last looked at.
    asked: usize,
}

impl Round<'_> {
    fn command(&self) -> Command {
        let mut command = undermount();
        command.current_dir(&self.directory).env("HOME", &self.directory);
        command.env_remove("XDG_STATE_HOME").env("TMPDIR", &self.directory);
        command.args(["prepare", "-e", "prepare.yaml", "--output-env-file", "env.yaml"]);
        command.args(["--template-file", "../template.j2", "--image-serve-dir", "tree"]);
        command.args(["--jobs", &self.jobs.to_string()]);
        command
    }

    fn tree(&self) -> PathBuf {
        self.directory.join("tree/v2")
    }

    fn repository(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.prefix, NAMESPACES[0])
    }

    /// The blobs that have arrived, by the namespace of the source that they came from.
    fn arrived(&self) -> BTreeSet<(usize, Digest)> {
        let mut arrived = BTreeSet::new();
        for (name, image) in images() {
            let (_, path) = self.repository(name).split_once('/').map(own).unwrap();
            let exported = self.tree().join(NAMESPACES[1]).join(name).join("blobs");
            for digest in image.blobs.keys() {
                let url =
                    format!("http://{}/v2/{path}/blobs/{digest}", self.site.registry.address());
                if let (200, bytes) = get(&url) {
                    assert_eq!(Digest::of(&bytes), *digest, "a wrong blob is served");
                    arrived.insert((0, *digest));
                }
                let is_file = |suffix| exported.join(format!("{digest}{suffix}")).exists();
                if is_file("") || is_file(".gz") {
                    arrived.insert((1, *digest));
                }
            }
        }
        arrived
    }

    /// The blobs that were asked from the source since this was last called.
    fn fetched(&mut self) -> Vec<(usize, Digest)> {
        let requests = self.site.source.requests();
        let new = requests[self.asked..].iter();
        let blob = |path: &str| {
            let (repository, digest) = path.split_once("/blobs/")?;
            let namespace = NAMESPACES.iter().position(|name| repository.contains(name))?;
            Some((namespace, digest.parse().ok()?))
        };
        let fetched = new.filter_map(|request| blob(&request.path)).collect();
        self.asked = requests.len();
        fetched
    }

    /// What the run came to: the tree, file by file, and what the registry serves.
    fn result(&self, client: &Client, runtime: &tokio::runtime::Runtime) -> Outcome {
        let tree = self.directory.join("tree");
        let files = files_below(&tree).into_iter().map(|(path, _)| {
            let name = path.strip_prefix(&tree).unwrap().to_owned();
            (name, Digest::of(&fs::read(path).unwrap()))
        });
        let mut pushed = BTreeMap::new();
        for (name, image) in images() {
            let repository: Repository = self.repository(name).parse().unwrap();
            let found = runtime.block_on(async {
                let tag = repository.tagged("latest".parse().unwrap());
                let manifest = client.manifest(&tag).await.unwrap();
                let indexes = client.index_artifacts(&repository, &image.digest()).await.unwrap();
                (manifest.digest, indexes.iter().map(|index| index.digest).collect())
            });
            assert_eq!(found.0, image.digest());
            pushed.insert(name, found);
        }
        assert!(self.directory.join("env.yaml").exists());
        Outcome { tree: files.collect(), pushed }
    }
}

fn own((host, path): (&str, &str)) -> (String, String) {
    (host.to_owned(), path.to_owned())
}

#[derive(Debug, PartialEq)]
struct Outcome {
    tree: BTreeMap<PathBuf, Digest>,
    /// Digests of the manifest and of the index artifacts, by image.
    pushed: BTreeMap<&'static str, (Digest, Vec<Digest>)>,
}

impl Outcome {
    #[track_caller]
    fn assert_equals(&self, other: &Self) {
        for path in self.tree.keys().chain(other.tree.keys()) {
            assert_eq!(self.tree.get(path), other.tree.get(path), "{}", path.display());
        }
        assert_eq!(self.pushed, other.pushed);
    }
}

/// Reads a tree over and over, as web servers and their clients do.
struct Reader {
    trees: Arc<Mutex<PathBuf>>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Reader {
    fn start(tree: PathBuf) -> Self {
        let (trees, stop) = (Arc::new(Mutex::new(tree)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&trees), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut read = 0;
            while !stopped.load(Ordering::SeqCst) {
                let tree = shared.lock().unwrap().clone();
                read += check_tree(&tree);
                thread::sleep(Duration::from_millis(2));
            }
            read
        });
        Self { trees, stop, thread }
    }

    fn look_at(&self, tree: PathBuf) {
        *self.trees.lock().unwrap() = tree;
    }

    /// How many files were read; panics where one was not what it should be.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Every file of a tree is what its name says; a tag leads to whole images.
fn check_tree(tree: &Path) -> usize {
    let mut read = 0;
    for (path, _) in visible_files(tree) {
        let Ok(bytes) = fs::read(&path) else { continue };
        read += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let directory = path.parent().unwrap();
        if let Some(hex) = name.strip_prefix("sha256:") {
            let expected = hex.trim_end_matches(".gz");
            assert_eq!(Digest::of(&bytes).hex(), expected, "{}", path.display());
        } else if name == "index.json" && path.to_string_lossy().contains("/manifests/") {
            let expected = directory.file_name().unwrap().to_str().unwrap();
            assert_eq!(Digest::of(&bytes).to_string(), expected);
        } else if name.ends_with(".type-map") {
            let text = String::from_utf8(bytes).unwrap();
            let uris: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("URI: ")).collect();
            assert!(uris.len() > 1, "{text}");
            for manifest in &uris[1..] {
                assert_whole(directory, manifest);
            }
        } else if name != ".htaccess" {
            serde_json::from_slice::<serde_json::Value>(&bytes)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    read
}

/// The files of a tree that a web server shows.
fn visible_files(tree: &Path) -> Vec<(PathBuf, u64)> {
    // A directory that vanishes while it is read has nothing to be checked.
    let files = std::panic::catch_unwind(|| files_below(tree)).unwrap_or_default();
    let hidden = |path: &PathBuf| path.to_string_lossy().contains("/.undermount-");
    files.into_iter().filter(|(path, _)| !hidden(path)).collect()
}

/// The manifest of a tag is there with all of its blobs.
fn assert_whole(manifests: &Path, uri: &str) {
    let bytes = fs::read(manifests.join(uri)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap();
        let blobs = manifests.with_file_name("blobs");
        let is_there = |suffix| blobs.join(format!("{digest}{suffix}")).exists();
        assert!(is_there("") || is_there(".gz"), "{digest} is missing below {uri}");
    }
}

/// Numbers that need not be good (xorshift).
struct Random(u64);

impl Random {
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % 1_000_000) as f64 / 1e6
    }
}

#[test]
fn a_prepare_killed_at_fifty_random_moments_comes_to_the_same_end() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut random = Random(seed);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = Client::new(ClientConfig::default());
    let site = Site::new();
    let first = site.round(0);
    let mut usual = run(&mut first.command(), PATIENCE).success().elapsed;
    let undisturbed = first.result(&client, &runtime);
    assert!(!undisturbed.tree.is_empty());
    let reader = Reader::start(first.tree());
    let mut interrupted = 0;
    for number in 1..=KILLS / KILLS_IN_A_ROUND {
        let mut round = site.round(number);
        reader.look_at(round.tree());
        let mut arrived = BTreeSet::new();
        // Several kills for each set of destinations: the next meets what the last one left.
        for attempt in 0..KILLS_IN_A_ROUND {
            let (mut prepare, begin) = (Running::start(&mut round.command()), Instant::now());
            // The first run took longer than those that follow it, on a busy machine much longer:
            // one with everything to do that is over before its kill tells what is usual now.
            match prepare.wait(usual.mul_f64(0.7 * random.fraction())) {
                None => prepare.kill(),
                Some(_) if attempt == 0 => usual = begin.elapsed(),
                Some(_) => {}
            }
            interrupted += usize::from(!round.directory.join("env.yaml").exists());
            for blob in round.fetched() {
                assert!(!arrived.contains(&blob), "{blob:?} had arrived, round {number}");
            }
            arrived.extend(round.arrived());
        }
        run(&mut round.command(), PATIENCE).success();
        for blob in round.fetched() {
            assert!(!arrived.contains(&blob), "{blob:?} had arrived, round {number}");
        }
        let result = round.result(&client, &runtime);
        result.assert_equals(&undisturbed);
    }
    let read = reader.finish();
    println!("{interrupted} of {KILLS} runs were interrupted, {read} files were read meanwhile");
    assert!(interrupted >= KILLS / 4, "only {interrupted} of {KILLS} runs were interrupted");
    assert!(read > 0);
}
