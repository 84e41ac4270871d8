//! The registry beside nginx that serves the same files: bytes per second, and what each byte
//! costs the server; then many clients at once.
//!
//! `cargo bench -p undermount-benches --bench registry [-- --seconds 60]`, where the seconds are
//! those of 64 pullers beside 16 pushers. Needs Debian's `nginx`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_tests::archive::noise;
use undermount_tests::distribution::Api;
use undermount_tests::process::{Running, SOON, program};
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
                        client.read(&self.paths[*blob], *from, load.piece);
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

/// Reads and forgets, over one connection, with as little work as can be.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream, buffer: vec![0; 1 << 20] }
    }

    fn read(&mut self, path: &str, from: usize, length: usize) {
        let last = from + length - 1;
        let range = format!("Range: bytes={from}-{last}\r\n");
        let range = if length == BLOB { "" } else { &range };
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: bench\r\n{range}\r\n").unwrap();
        let mut have = 0;
        let head = loop {
            let count = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(count > 0, "the server closed the connection");
            have += count;
            let end = self.buffer[..have].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        assert!(self.buffer.starts_with(b"HTTP/1.1 20"), "an error");
        let mut left = length - (have - head);
        while left > 0 {
            let most = left.min(self.buffer.len());
            let count = self.stream.read(&mut self.buffer[..most]).unwrap();
            assert!(count > 0, "the answer ended early");
            left -= count;
        }
    }
}

/// Debian's nginx with a configuration of its own.
struct Nginx {
    running: Running,
    address: String,
    _files: tempfile::TempDir,
}

impl Nginx {
    /// Serves the files below `root`.
    fn serve(root: &Path) -> Self {
        let files = tempfile::tempdir().unwrap();
        // The port is free once its listener is dropped.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (root, here) = (root.display(), files.path().display());
        let config = format!(
            "daemon off;\nuser root;\nworker_processes auto;\npid {here}/pid;\n\
             error_log stderr;\nevents {{}}\nhttp {{\n  access_log off;\n  sendfile on;\n  \
             tcp_nopush on;\n  keepalive_requests 100000;\n  \
             client_body_temp_path {here}/body;\n  proxy_temp_path {here}/proxy;\n  \
             fastcgi_temp_path {here}/fastcgi;\n  uwsgi_temp_path {here}/uwsgi;\n  \
             scgi_temp_path {here}/scgi;\n  \
             server {{ listen {address}; root {root}; }}\n}}\n"
        );
        let path = files.path().join("nginx.conf");
        fs::write(&path, config).unwrap();
        let running =
            Running::start(program("nginx").arg("-c").arg(&path).arg("-p").arg(files.path()));
        let end = Instant::now() + SOON;
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < end, "nginx does not listen: {}", running.stderr());
            thread::sleep(Duration::from_millis(10));
        }
        Self { running, address, _files: files }
    }
}

/// Processor time of a process and its children.
fn processor_time(process: u32) -> Duration {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    let all = children.split_whitespace().filter_map(|id| id.parse().ok()).chain([process]);
    all.map(own_processor_time).sum()
}

fn own_processor_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    // Linux tells them in hundredths of a second.
    Duration::from_millis(10 * ticks)
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
