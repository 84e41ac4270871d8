//! Mounted images beside the native file system and podman's overlay, in both data modes.
//!
//! `cargo bench -p undermount-benches --bench fs` as root, with `TMPDIR` on ext4;
//! `UNDERMOUNT_BENCH_IMAGE=LAYOUT:NAME` names the image (one is made of the host's files where it
//! is not set), `UNDERMOUNT_BENCH_ROUNDS` the rounds (7), `UNDERMOUNT_BENCH_ONLY` rows by a part of
//! their name.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use undermount_benches::figure::{Figures, median};
use undermount_benches::machine;
use undermount_benches::race::{Cost, Race};
use undermount_benches::stage::{self, LARGE, LARGE_FILE, Native, Overlay};
use undermount_tests::node::{Node, assert_no_process_left};
use undermount_tests::origin::Origin;
use undermount_tests::process::parent;

/// Bytes of a read from a small file, and of a random one.
const PAGE: usize = 4096;
/// Threads that open small files.
const THREADS: usize = 4;
/// Small files that are opened, and how often each thread opens all of them.
const SMALL_FILES: usize = 2000;
const TURNS: usize = 10;
/// Random reads of one run.
const RANDOM_READS: u64 = 20_000;
/// Full reads after which memory must not have grown.
const FULL_READS: usize = 20;
/// Growth that is none: pages that a heap keeps between allocations, in bytes.
const SLACK: f64 = 4e6;

fn main() -> ExitCode {
    println!("machine: {}", machine::describe());
    let bench = Bench::set_up();
    let mut best = Vec::new();
    for mode in ["cached", "passthrough"] {
        println!("\n--- data mode {mode}");
        best.push(bench.race_in(mode));
    }
    let mut figures = Figures::default();
    bench.judge(&best, &mut figures);
    bench.mount_ready(&mut figures);
    bench.memory(&mut figures);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What all rows run on.
struct Bench {
    origin: Origin,
    real: String,
    large: String,
    native: Native,
    large_file: PathBuf,
    small_files: Vec<PathBuf>,
    rounds: usize,
    only: String,
}

/// The goals of the rows that are raced, in their order: how many times as fast as the reference.
const GOALS: [(&str, f64); 6] = [
    ("warm sequential read of 256 MiB, x of ext4", 0.95),
    ("the same under overlayfs, x of ext4", 0.9),
    ("hot open+read+close, 4 threads, x of ext4", 0.7),
    ("random 4 KiB of a warm file, cold FUSE cache, x of ext4", 0.85),
    ("first walk, caches dropped, x of podman's overlay", 1.5),
    ("second walk, x of podman's overlay", 1.2),
];

impl Bench {
    fn set_up() -> Self {
        let origin = Origin::new();
        let image = stage::real_image();
        let native = Native::unpack(&image);
        let entries = walk_count(&native.overlay.dir);
        let (layers, size) = (image.layers().len(), image.compressed_size() >> 20);
        println!("image: {layers} layers, {entries} entries, {size} MiB compressed");
        let small_files = pick_small_files(&native.copy);
        let real = origin.add("bench/real", image);
        let large = origin.add("bench/large", stage::large_image());
        let large_file = native.copy.join(".large-file-of-the-bench");
        fs::write(&large_file, undermount_tests::archive::noise(1, LARGE)).unwrap();
        let setting = |name: &str| std::env::var(name).ok();
        let rounds = setting("UNDERMOUNT_BENCH_ROUNDS").map_or(7, |text| text.parse().unwrap());
        let only = setting("UNDERMOUNT_BENCH_ONLY").unwrap_or_default();
        Self { origin, real, large, native, large_file, small_files, rounds, only }
    }

    fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }

    /// The speeds of all rows in one mode.
    fn race_in(&self, mode: &str) -> Vec<Option<f64>> {
        let mut node = Node::new();
        node.pull_with(&["--data-mode", mode], &self.real);
        node.pull(&self.large);
        let (real, large) = (node.mount(&self.real), node.mount(&self.large));
        let servers = servers(&node);
        let large = large.join(LARGE_FILE);
        let overlay_scratch = node.directory("overlay");
        let empty = node.directory("empty");
        let lower = [large.parent().unwrap().to_owned(), empty];
        let overlay = Overlay::mount(&overlay_scratch, &lower);
        let stacked = overlay.dir.join(LARGE_FILE);
        let native = &self.large_file;
        let walks = self.walks(&real, &servers);
        if let Some(race) = self.walk_in_memory(&real, &servers) {
            let (speed, words) = race.speed();
            println!("first walk, the layers' blocks in memory: {speed:.2} ({words})");
        }
        let rows: [&dyn Fn() -> Option<Race>; 6] = [
            &|| Some(self.against(&servers, || read_through(&large), || read_through(native))),
            &|| Some(self.against(&servers, || read_through(&stacked), || read_through(native))),
            &|| Some(self.open_small_files(&real, &servers)),
            &|| Some(self.random_reads(&large, &servers)),
            &|| None,
            &|| None,
        ];
        let mut speeds = Vec::new();
        for (n, (name, _)) in GOALS.iter().enumerate() {
            let race = match n {
                4 => walks.as_ref().map(|(first, _)| first.speed()),
                5 => walks.as_ref().map(|(_, second)| second.speed()),
                _ if self.wants(name) => rows[n]().map(|race| race.speed()),
                _ => None,
            };
            if let Some((speed, words)) = &race {
                println!("{name}: {speed:.2} ({words})");
            }
            speeds.push(race.map(|(speed, _)| speed));
        }
        speeds
    }

    /// Races two pieces of work after each has been done once.
    fn against(&self, servers: &[i32], ours: impl Fn(), theirs: impl Fn()) -> Race {
        ours();
        theirs();
        Race::run(self.rounds, || Cost::of(servers, &ours), || Cost::of(&[], &theirs))
    }

    fn open_small_files(&self, root: &Path, servers: &[i32]) -> Race {
        let open = |root: &Path| open_all(root, &self.small_files);
        self.against(servers, || open(root), || open(&self.native.copy))
    }

    /// The objects are in the page cache of the store's file system, but not in that of the mount.
    fn random_reads(&self, large: &Path, servers: &[i32]) -> Race {
        let file = File::open(large).unwrap();
        let native = File::open(&self.large_file).unwrap();
        let ours = || {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            Cost::of(servers, || read_randomly(&file))
        };
        read_through(&self.large_file);
        read_through(large);
        Race::run(self.rounds, ours, || Cost::of(&[], || read_randomly(&native)))
    }

    /// First and second walks over the merged tree, against podman's overlay of the layers: the
    /// first with nothing in the kernel's caches, as after a start of the machine.
    fn walks(&self, root: &Path, servers: &[i32]) -> Option<(Race, Race)> {
        if !self.wants(GOALS[4].0) && !self.wants(GOALS[5].0) {
            return None;
        }
        let (mut first, mut second) = (Race::default(), Race::default());
        let overlay = &self.native.overlay.dir;
        for _ in 0..self.rounds {
            stage::forget_all();
            let ours = [(); 2].map(|()| Cost::of(servers, || stage::walk(root)));
            stage::forget_all();
            let theirs = [(); 2].map(|()| Cost::of(&[], || stage::walk(overlay)));
            first.add(ours[0], theirs[0]);
            second.add(ours[1], theirs[1]);
        }
        Some((first, second))
    }

    /// The first walk where the native file systems still have all their blocks in memory, as
    /// right after a pull: what is left of the difference without a disk.
    fn walk_in_memory(&self, root: &Path, servers: &[i32]) -> Option<Race> {
        if !self.wants(GOALS[4].0) {
            return None;
        }
        let overlay = &self.native.overlay.dir;
        let mut race = Race::default();
        for _ in 0..self.rounds {
            stage::forget_all();
            stage::walk(overlay);
            stage::forget_names();
            let theirs = Cost::of(&[], || stage::walk(overlay));
            race.add(Cost::of(servers, || stage::walk(root)), theirs);
        }
        Some(race)
    }

    /// A row holds where the better mode reaches its goal.
    fn judge(&self, modes: &[Vec<Option<f64>>], figures: &mut Figures) {
        for (n, (name, goal)) in GOALS.iter().enumerate() {
            let speeds = modes.iter().filter_map(|mode| mode[n]);
            if let Some(best) = speeds.max_by(f64::total_cmp) {
                figures.at_least(name, best, *goal, "");
            }
        }
    }

    /// The time from `undermount mount` to its end, with all indexes local.
    fn mount_ready(&self, figures: &mut Figures) {
        let name = "mount ready";
        if !self.wants(name) {
            return;
        }
        let mut node = Node::new();
        node.pull(&self.real);
        let dir = node.directory("ready");
        // Something else is mounted, so that the owner stays.
        let other = node.mount(&self.large);
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            times.push(node.try_mount(&self.real, &dir).success().elapsed);
            node.umount(&dir);
        }
        println!("\nmount ready, a running owner: {times:.1?}");
        let milliseconds = |times: &[Duration]| median(times).as_secs_f64() * 1e3;
        figures.at_most("mount ready, all indexes local", milliseconds(&times), 50.0, " ms");
        node.umount(&other);
        let mut times = Vec::new();
        for _ in 0..self.rounds.min(5) {
            assert_no_process_left(&node.cache());
            times.push(node.try_mount(&self.real, &dir).success().elapsed);
            node.umount(&dir);
        }
        println!("mount ready, no owner yet: {times:.1?}");
        figures
            .tell("the same with the start of an owner", format!("{:.0} ms", milliseconds(&times)));
    }

    /// Anonymous memory of keeper and worker while the image is read, also over and over.
    fn memory(&self, figures: &mut Figures) {
        if !self.wants("memory") {
            return;
        }
        let mut node = Node::new();
        let root = node.mount(&self.real);
        let servers = servers(&node);
        let memory = || -> f64 {
            let of = |pid: &i32| machine::anonymous_memory_of(&pid.to_string());
            servers.iter().map(of).sum::<u64>() as f64
        };
        let files = stage::files_below(&root);
        let mut read = Vec::new();
        println!("\nmemory of keeper and worker, mounted: {:.1} MB", memory() / 1e6);
        for _ in 0..=FULL_READS {
            read_all(&root, &files);
            read.push(memory());
        }
        println!(
            "after each full read: {:.1?} MB",
            read.iter().map(|m| m / 1e6).collect::<Vec<_>>()
        );
        let most = read.iter().copied().fold(0.0, f64::max);
        figures.at_most("anonymous memory, fully read", most / 1e6, 60.0, " MB");
        let growth = read[FULL_READS] - read[0];
        figures.at_most("growth over 20 full reads", growth / 1e6, SLACK / 1e6, " MB");
        drop(self.origin.requests());
    }
}

/// Keeper and worker of a node.
fn servers(node: &Node) -> Vec<i32> {
    let worker = node.worker();
    vec![worker, parent(worker)]
}

fn walk_count(dir: &Path) -> usize {
    let output = std::process::Command::new("find").arg(dir).output().unwrap();
    output.stdout.iter().filter(|&&byte| byte == b'\n').count()
}

/// Files of 1 byte to 64 KiB, evenly taken from the whole tree.
fn pick_small_files(dir: &Path) -> Vec<PathBuf> {
    let small: Vec<PathBuf> = stage::files_below(dir)
        .into_iter()
        .filter(|path| (1..=64 << 10).contains(&fs::metadata(dir.join(path)).unwrap().len()))
        .collect();
    let step = (small.len() / SMALL_FILES).max(1);
    small.into_iter().step_by(step).take(SMALL_FILES).collect()
}

fn read_through(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, LARGE);
}

/// Opens, reads and closes all `files`, in several threads that begin at different ones.
fn open_all(root: &Path, files: &[PathBuf]) {
    let paths: Vec<PathBuf> = files.iter().map(|file| root.join(file)).collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let paths = &paths;
            scope.spawn(move || {
                let mut buffer = [0; PAGE];
                let skip = thread * paths.len() / THREADS;
                for path in paths.iter().cycle().skip(skip).take(TURNS * paths.len()) {
                    assert!(File::open(path).unwrap().read(&mut buffer).unwrap() > 0);
                }
            });
        }
    });
}

fn read_randomly(file: &File) {
    let mut buffer = [0; PAGE];
    let mut place = 1_u64;
    for _ in 0..RANDOM_READS {
        // A full period over all pages (Knuth's multiplier, odd increment).
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = (place >> 33) % (LARGE / PAGE) as u64;
        file.read_exact_at(&mut buffer, page * PAGE as u64).unwrap();
    }
}

/// Reads every file, and makes the kernel forget its pages, so that the next read asks again.
fn read_all(root: &Path, files: &[PathBuf]) {
    let mut buffer = vec![0; 256 << 10];
    for path in files {
        let mut file = File::open(root.join(path)).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
}
