//! The registry beside nginx that serves the same files: bytes per second, and what each byte
//! costs the server; then many clients at once.
//!
//! `cargo bench -p undermount-benches --bench registry [-- --seconds 60]`, where the seconds are
//! those of 64 pullers beside 16 pushers. Needs Debian's `nginx`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::traffic::{Client, Nginx, processor_time};
use undermount_tests::archive::noise;
use undermount_tests::distribution::Api;
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::soak::Soak;

const ROUNDS: usize = 5;
const BLOBS: usize = 4;
const BLOB: usize = 128 << 20;
/// The size of a piece as nodes ask for it.
const PIECE: usize = 4 << 20;
const REPOSITORY: &str = "bench/blobs";

/// How clients read.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    clients: usize,
    /// Bytes per request; the whole blob if as large.
    piece: usize,
    goal: f64,
}

const LOADS: [Load; 2] = [
    Load { name: "whole blobs, 4 clients", clients: 4, piece: BLOB, goal: 0.7 },
    Load { name: "pieces of 4 MiB, 64 clients", clients: 64, piece: PIECE, goal: 0.7 },
];

fn main() -> ExitCode {
    if lacking(&[Need::Program("nginx")]) {
        return ExitCode::SUCCESS;
    }
    println!("machine: {}", machine::describe());
    let mut figures = Figures::default();
    let root = tempfile::tempdir().unwrap();
    let mut registry = Registry::undermount_with(root.path(), &["--reads-per-client", "1000"]);
    let api = Api(registry.address().to_owned());
    println!("{BLOBS} blobs of {} MiB, read from the page cache", BLOB >> 20);
    let blobs: Vec<String> =
        (0..BLOBS as u64).map(|seed| api.push_blob(REPOSITORY, &noise(seed, BLOB))).collect();
    let nginx = Nginx::serve(root.path());
    let ours = Server {
        address: api.0.clone(),
        process: registry.process().id(),
        paths: blobs.iter().map(|digest| format!("/v2/{REPOSITORY}/blobs/{digest}")).collect(),
    };
    let theirs = Server {
        address: nginx.address.clone(),
        process: nginx.running.id(),
        paths: blobs.iter().map(|digest| file_of(digest)).collect(),
    };
    for load in LOADS {
        compare(&ours, &theirs, load, &mut figures);
    }
    drop(nginx);
    soak(&api, &mut figures);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where the registry keeps a blob, from its root on.
fn file_of(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap();
    format!("/blobs/sha256/{}/{hex}", &hex[..2])
}

struct Server {
    address: String,
    process: u32,
    paths: Vec<String>,
}

/// Bytes per second, and seconds of processor time per byte.
#[derive(Debug, Clone, Copy)]
struct Run {
    speed: f64,
    cost: f64,
}

fn compare(ours: &Server, theirs: &Server, load: Load, figures: &mut Figures) {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(ours.run(load));
        two.push(theirs.run(load));
    }
    let show = |runs: &[Run]| {
        let words = runs.iter().map(|run| {
            format!("{:.0} MiB/s at {:.2} s/GiB", run.speed / 1048576.0, run.cost * 1073741824.0)
        });
        words.collect::<Vec<_>>().join(", ")
    };
    println!("{}:\n  registry: {}\n  nginx:    {}", load.name, show(&one), show(&two));
    let median = |runs: &[Run], value: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let speed = median(&one, |run| run.speed) / median(&two, |run| run.speed);
    let cost = median(&one, |run| run.cost) / median(&two, |run| run.cost);
    figures.at_least(&format!("{}: throughput, x of nginx", load.name), speed, load.goal, "");
    figures
        .tell(&format!("{}: processor time per byte, x of nginx", load.name), format!("{cost:.2}"));
}

impl Server {
    /// Lets all clients read each blob once.
    fn run(&self, load: Load) -> Run {
        let (before, begin) = (processor_time(self.process), Instant::now());
        let requests: Vec<(usize, usize)> = (0..BLOBS)
            .flat_map(|blob| (0..BLOB).step_by(load.piece).map(move |from| (blob, from)))
            .collect();
        let share = requests.len().div_ceil(load.clients);
        thread::scope(|scope| {
            for share in requests.chunks(share) {
                scope.spawn(move || {
                    let mut client = Client::connect(&self.address);
                    for (blob, from) in share {
                        client.read(&self.paths[*blob], &range_of(*from, load.piece), load.piece);
                    }
                });
            }
        });
        let bytes = (BLOBS * BLOB) as f64;
        let time = begin.elapsed().as_secs_f64();
        let cost = (processor_time(self.process) - before).as_secs_f64();
        Run { speed: bytes / time, cost: cost / bytes }
    }
}

/// The header that asks for a part; nothing for a whole blob.
fn range_of(from: usize, length: usize) -> String {
    if length == BLOB {
        String::new()
    } else {
        format!("Range: bytes={from}-{}\r\n", from + length - 1)
    }
}

fn soak(api: &Api, figures: &mut Figures) {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|argument| argument == "--seconds");
    let seconds = given.map_or(10, |at| arguments[at + 1].parse().unwrap());
    let duration = Duration::from_secs(seconds);
    let moved = Soak { pullers: 64, pushers: 16, duration, blob: 32 << 20 }.run(api);
    let pulled = moved.pulled.load(Ordering::Relaxed) as f64 / 1048576.0 / seconds as f64;
    let parts = moved.parts.load(Ordering::Relaxed);
    let images = moved.images.load(Ordering::Relaxed);
    figures.tell(
        &format!("64 pullers and 16 pushers for {seconds} s, no error, no wrong byte"),
        format!("{parts} parts, {images} images, {pulled:.0} MiB/s"),
    );
}
