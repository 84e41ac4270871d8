//! What it costs a start that its reads are recorded: 5,000 files of a local image read for the
//! first time through a mount, with and without.
//!
//! `cargo bench -p undermount-benches --bench recording` as root.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::race::{Cost, Race};
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::node::Node;
use undermount_tests::registry::Registry;

const ROUNDS: usize = 9;
const FILES: u64 = 5_000;
const SIZE: usize = 19_000;

fn main() -> ExitCode {
    println!("machine: {}", machine::describe());
    println!("workload: {FILES} files of {SIZE} bytes, {ROUNDS} rounds in turns");
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(&root.path().join("registry"), &["--profiles", "off"]);
    let file = |file| Member::file(format!("lib/d{}/f{file}", file % 97), noise(file, SIZE));
    let image = Image::of(&[&(0..FILES).map(file).collect::<Vec<_>>()]);
    let reference = registry.push_image(&image, "start");
    let config = |starts: &str| {
        let path = root.path().join(format!("{starts}.toml"));
        fs::write(&path, format!("[profiles]\nstarts = \"{starts}\"\n")).unwrap();
        path
    };
    let (keep, off) = (config("keep"), config("off"));
    let race = Race::run(ROUNDS, || start(&reference, &keep), || start(&reference, &off));
    let (speed, words) = race.speed();
    println!("with recording {words}");
    let mut figures = Figures::default();
    figures.at_least("speed of a start that is recorded", speed, 0.98, " x");
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads every file of a local image for the first time.
fn start(reference: &str, config: &Path) -> Cost {
    let config = ["--config", config.to_str().unwrap()];
    let mut node = Node::new();
    let mount = node.mount_with(reference, &config);
    node.pull_with(&config, reference);
    let cost = Cost::of(&[node.worker()], || read_all(&mount));
    node.umount(&mount);
    cost
}

fn read_all(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path);
        } else {
            assert!(!fs::read(&path).unwrap().is_empty());
        }
    }
}
