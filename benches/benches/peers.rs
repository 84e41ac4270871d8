//! A node that hands out pieces beside nginx that serves the same files: bytes per second, and
//! what each byte costs the server; then a thousand requests at once, and the memory they take.
//!
//! `cargo bench -p undermount-benches --bench peers`. Needs Debian's `nginx-light`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use undermount::peer::client::PeerClient;
use undermount::peer::exchange::{Exchange, Parts};
use undermount::peer::fetch::{Ask, Mode};
use undermount::peer::keys::{Call, ClusterKeys, KeyFile, SecretKey};
use undermount::peer::member::{MemberId, Members, Roster};
use undermount::peer::pieces::{Keeping, PieceLimits, Pieces};
use undermount::peer::profiles::Shelf;
use undermount::peer::realm::{Realm, Realms};
use undermount::peer::server::PieceServer;
use undermount::peer::uploads::UploadLimits;
use undermount::peer::wanted::{Kind, PieceCall, Wanted};
use undermount::registry::client::{
    Client as RegistryClient, ClientConfig, install_crypto_provider,
};
use undermount::supply::{RegistryOrigin, RegistrySource};
use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::traffic::{Client, Nginx, processor_time};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::{Piece, Priority, Scope};
use undermount_tests::archive::noise;
use undermount_tests::requirement::{Need, lacking};

const ROUNDS: usize = 5;
const PIECES: u64 = 64;
const PIECE: usize = 4 << 20;
/// Clients that read at a time: as many as a node has slots.
const CLIENTS: usize = 16;
/// How often each client reads its share in a round.
const TURNS: usize = 4;
const CROWD: usize = 1000;
/// The goal of the project: beside nginx, in one run.
const GOAL: f64 = 0.6;
/// More than the slots can hold at once, and far less than a thousand pieces.
const MEMORY_MIB: f64 = 200.0;
const SERVER: MemberId = MemberId::from_bytes([1; 16]);
const ASKER: MemberId = MemberId::from_bytes([2; 16]);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, command, root] = &arguments[..]
        && command == "serve"
    {
        serve(Path::new(root));
        return ExitCode::SUCCESS;
    }
    if lacking(&[Need::Program("nginx")]) {
        return ExitCode::SUCCESS;
    }
    println!("machine: {}", machine::describe());
    let mut figures = Figures::default();
    let root = tempfile::tempdir().unwrap();
    let pieces = fill(root.path());
    let node = Node::start(root.path());
    let nginx = Nginx::serve(root.path());
    println!("{PIECES} pieces of {} MiB, {CLIENTS} clients", PIECE >> 20);
    let ours: Vec<Get> = pieces.iter().map(|piece| Get::signed(piece, Mode::Cached)).collect();
    let theirs: Vec<Get> = pieces.iter().map(Get::of_file).collect();
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(run(&node.address, node.process.id(), &ours));
        two.push(run(&nginx.address, nginx.running.id(), &theirs));
    }
    let median = |runs: &[Run], value: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    for (name, runs) in [("node", &one), ("nginx", &two)] {
        let words = runs.iter().map(|run| format!("{:.2} GB/s at {:.2} s/GB", run.speed, run.cost));
        println!("  {name}: {}", words.collect::<Vec<_>>().join(", "));
    }
    let speed = median(&one, |run| run.speed) / median(&two, |run| run.speed);
    let cost = median(&one, |run| run.cost) / median(&two, |run| run.cost);
    figures.at_least("pieces of 4 MiB: throughput, x of nginx", speed, GOAL, "");
    figures.tell("pieces of 4 MiB: processor time per byte, x of nginx", format!("{cost:.2}"));
    crowd(&node, &pieces, &mut figures);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn keys() -> ClusterKeys {
    ClusterKeys::new(&KeyFile::single(SecretKey::from_bytes([7; 32])))
}

/// Puts the pieces where a node keeps those that it owns.
fn fill(root: &Path) -> Vec<Piece> {
    let pieces = Pieces::open(root, PieceLimits::default()).unwrap();
    let piece = |seed| {
        let bytes = Verified::name(noise(seed, PIECE).into());
        pieces.put(&(Realm::Public, *bytes.digest()), &bytes, Keeping::Own);
        let (blob, digest) = (Digest::of(b"blob"), *bytes.digest());
        Piece { blob, range: 0..PIECE as u64, digest }
    };
    (0..PIECES).map(piece).collect()
}

/// Serves the pieces below `root` until the end of the process, and says where.
fn serve(root: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    install_crypto_provider();
    runtime.block_on(async {
        let client = RegistryClient::new(ClientConfig::default());
        let registry = Arc::new(RegistrySource::new(client, Arc::default()));
        let origin = Arc::new(RegistryOrigin::new(registry, []));
        let (_members, roster) = Roster::new(SERVER, Members::default());
        let exchange = Exchange::new(Parts {
            roster,
            client: PeerClient::new(SERVER, keys(), reqwest::Client::new(), "http"),
            realms: Realms::new(keys(), SERVER, origin.clone()),
            origin,
            pieces: Pieces::open(root, PieceLimits::default()).unwrap(),
            profiles: Shelf::new(root.join("profiles")),
            limits: UploadLimits { per_member: 16, ..UploadLimits::default() },
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let router = PieceServer::new(exchange, keys(), None).router();
        undermount::registry::server::listen::serve(
            listener,
            None,
            router,
            &tokio_util::sync::CancellationToken::new(),
            Duration::ZERO,
        )
        .await;
    });
}

/// A node that serves in a process of its own.
struct Node {
    process: Child,
    address: String,
}

impl Node {
    fn start(root: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        let mut process = command.arg("serve").arg(root).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address: SocketAddr = address.trim().parse().unwrap();
        Self { process, address: address.to_string() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request for a piece.
struct Get {
    path: String,
    headers: String,
}

impl Get {
    fn signed(piece: &Piece, mode: Mode) -> Self {
        let wanted = Wanted {
            scope: Scope::new("r.example:8787/nova/nova-api"),
            piece: piece.clone(),
            priority: Priority::Demand,
            kind: Kind::Blob,
        };
        let ask = Ask { member: SERVER, mode, hop: 0, tried: Vec::new(), offset: 0 };
        let path = PieceCall::new(&wanted, &ask).target();
        let call = Call { to: Some(SERVER), method: "GET", target: &path, body: b"" };
        let signed = keys().sign(ASKER, &call, SystemTime::now());
        Self { headers: format!("Authorization: {}\r\n", signed.header), path }
    }

    fn of_file(piece: &Piece) -> Self {
        let path = format!("/own/public-{}", piece.digest.hex());
        Self { path, headers: String::new() }
    }
}

/// GB per second, and seconds of processor time per GB.
struct Run {
    speed: f64,
    cost: f64,
}

/// Has all clients read, each another part of the pieces at a time.
fn run(address: &str, process: u32, gets: &[Get]) -> Run {
    let (before, begin) = (processor_time(process), Instant::now());
    thread::scope(|scope| {
        for share in gets.chunks(gets.len().div_ceil(CLIENTS)) {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for get in share.iter().cycle().take(share.len() * TURNS) {
                    client.read(&get.path, &get.headers, PIECE);
                }
            });
        }
    });
    let gigabytes = (gets.len() * TURNS * PIECE) as f64 / 1e9;
    let cost = (processor_time(process) - before).as_secs_f64() / gigabytes;
    Run { speed: gigabytes / begin.elapsed().as_secs_f64(), cost }
}

/// A thousand connections ask for a piece at once and read slowly.
fn crowd(node: &Node, pieces: &[Piece], figures: &mut Figures) {
    let get = Get::signed(&pieces[0], Mode::Cached);
    let clients: Vec<Client> = (0..CROWD).map(|_| Client::connect(&node.address)).collect();
    let answered: Vec<Client> = clients
        .into_iter()
        .map(|mut client| {
            client.ask(&get.path, &get.headers);
            client
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let memory = resident_mib(node.process.id());
    let served = answered
        .into_iter()
        .filter_map(|mut client| client.status())
        .filter(|code| *code == 200)
        .count();
    figures.at_most(
        &format!("memory while {CROWD} requests wait, {served} of them served"),
        memory,
        MEMORY_MIB,
        " MiB",
    );
}

fn resident_mib(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1024.0
}
