//! The index of a layer: what it costs to build, to carry and to open.
//!
//! `cargo bench -p undermount-benches --bench index`; set `UNDERMOUNT_BENCH_MIB` for another
//! size of the layer (256).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use undermount_benches::figure::{Figures, in_turns, median};
use undermount_benches::{machine, workload};
use undermount_fs::index::{Backing, LayerTree};
use undermount_fs::layer::{Indexer, LayerIndex};

const ROUNDS: usize = 5;
const MILLION: usize = 1_000_000;
/// How this program calls itself to open an index in a fresh process.
const OPEN: &str = "--open-index";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == OPEN) {
        open_and_tell(Path::new(&arguments[at + 1]));
        return ExitCode::SUCCESS;
    }
    let mut figures = Figures::default();
    println!("machine: {}", machine::describe());
    build(&mut figures);
    open(&mut figures);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn index(blob: &[u8]) -> LayerIndex {
    let mut indexer = Indexer::new();
    blob.chunks(1 << 20).for_each(|chunk| indexer.write_all(chunk).unwrap());
    indexer.finish().unwrap()
}

/// The least that anybody does who checks a layer: inflate it and hash what comes out.
fn inflate_and_hash(blob: &[u8]) {
    let mut decoder = flate2::read::MultiGzDecoder::new(blob);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match decoder.read(&mut buffer).unwrap() {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    black_box(hasher.finalize());
}

fn build(figures: &mut Figures) {
    let mib = std::env::var("UNDERMOUNT_BENCH_MIB").ok().and_then(|text| text.parse().ok());
    let tar = workload::host_archive(mib.unwrap_or(256) << 20);
    let blob = workload::gzip(&tar);
    println!("layer: {} MiB of /usr, {} MiB as gzip", tar.len() >> 20, blob.len() >> 20);

    let one_core = || machine::on_one_core(|| drop(index(&blob)));
    let reference = || machine::on_one_core(|| inflate_and_hash(&blob));
    let (building, inflating) = in_turns(ROUNDS, one_core, reference);
    println!("index on one core:        {building:.2?}");
    println!("inflate + sha256:         {inflating:.2?}");
    let (free, _) = in_turns(ROUNDS, || drop(index(&blob)), || ());
    println!("index on all cores:       {free:.2?}");
    let ratio = |times: &[Duration]| median(&inflating).as_secs_f64() / median(times).as_secs_f64();
    figures.at_least(
        "index build, x of inflate + sha256, one core each",
        ratio(&building),
        0.5,
        "",
    );
    figures.tell("the same on all cores", format!("{:.3}", ratio(&free)));
    let speed = tar.len() as f64 / median(&free).as_secs_f64() / f64::from(1 << 20);
    figures.tell("archive bytes indexed", format!("{speed:.0} MiB/s"));

    let (one, two) = (index(&blob), index(&blob));
    assert!(one == two, "the same layer has the same index");
    let percent = |size: usize| 100.0 * size as f64 / blob.len() as f64;
    figures.at_most(
        "checkpoints and windows, of the gzip layer",
        percent(one.spans.len()),
        3.5,
        " %",
    );
    let sent = zstd::encode_all(&one.tree[..], 3).unwrap();
    figures.tell("tree as it is sent, of the gzip layer", format!("{:.3} %", percent(sent.len())));
}

fn open(figures: &mut Figures) {
    let mut indexer = Indexer::new();
    workload::many_files(MILLION, &mut indexer);
    let index = indexer.finish().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tree");
    fs::write(&path, &index.tree).unwrap();
    println!("index of {MILLION} files: {} MiB", index.tree.len() >> 20);
    drop(index);
    let mut runs: Vec<(Duration, u64)> = (0..ROUNDS).map(|_| open_in_a_process(&path)).collect();
    println!("open (time, anonymous bytes): {runs:?}");
    runs.sort();
    let (time, _) = runs[ROUNDS / 2];
    let memory = runs.iter().map(|(_, memory)| *memory).max().unwrap();
    figures.at_most("opening an index of 1,000,000 files", time.as_secs_f64() * 1e3, 1.0, " ms");
    figures.at_most("anonymous memory for it", memory as f64 / 1e6, 10.0, " MB");
}

fn open_in_a_process(path: &Path) -> (Duration, u64) {
    let output =
        Command::new(std::env::current_exe().unwrap()).arg(OPEN).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace().map(|word| word.parse::<u64>().unwrap());
    (Duration::from_nanos(words.next().unwrap()), words.next().unwrap())
}

/// Opens the index and finds one file, as the first look-up does.
fn open_and_tell(path: &Path) {
    let before = machine::anonymous_memory();
    let begin = Instant::now();
    let tree = LayerTree::new(Backing::load(File::open(path).unwrap()).unwrap()).unwrap();
    let root = tree.inode(0).unwrap();
    black_box(tree.entries(root).unwrap().len());
    let time = begin.elapsed();
    println!("{} {}", time.as_nanos(), machine::anonymous_memory().saturating_sub(before));
}
