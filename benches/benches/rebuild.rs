//! A node that has an image, and then gets a rebuilt one: three packages are newer, which make
//! about 1 % of its files.
//!
//! `cargo bench -p undermount-benches --bench rebuild` as root;
//! `UNDERMOUNT_BENCH_IMAGE=LAYOUT:NAME` names an image of gzip layers with a Debian system
//! (one is bootstrapped where it is not set).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use undermount_benches::figure::Figures;
use undermount_benches::rebuild::rebuilt;
use undermount_benches::{machine, stage};
use undermount_tests::debian::{self, debian};
use undermount_tests::image::Image;
use undermount_tests::node::Node;
use undermount_tests::registry::Registry;

const PACKAGES: usize = 3;
const PERCENT_OF_FILES: f64 = 1.0;

fn main() -> ExitCode {
    println!("machine: {}", machine::describe());
    let old = match std::env::var_os("UNDERMOUNT_BENCH_IMAGE") {
        Some(_) => stage::real_image(),
        None => Image::read_layout(&debian().unwrap().layout(), debian::NAME),
    };
    let new = rebuilt(&old, PACKAGES, PERCENT_OF_FILES);
    let size = new.image.compressed_size();
    let (all, changed) = new.files;
    println!(
        "image: {} layers, {} MiB compressed, {all} files; of which {changed} have changed, with {}",
        new.image.layers().len(),
        size >> 20,
        new.packages.join(", ")
    );
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let mut node = Node::new();
    node.pull(&registry.push_image(&old, "bench/old:1"));
    let mount = node.mount(&registry.push_image(&new.image, "bench/new:1"));
    let mut figures = Figures::default();
    read_all(&mount);
    let fetched = node.fetched(&mount);
    let percent = |bytes: u64| 100.0 * bytes as f64 / size as f64;
    figures
        .tell("files that have changed", format!("{:.2} %", 100.0 * changed as f64 / all as f64));
    figures
        .tell("the same, compressed, of the image", format!("{:.2} %", percent(new.changed_bytes)));
    figures.at_most("fetched for a full read of the rebuilt image", percent(fetched), 6.0, " %");
    figures.tell("its trees as they are sent", format!("{:.2} %", percent(new.tree_bytes())));
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads every regular file below `directory`.
fn read_all(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read_all(&entry.path());
        } else if kind.is_file() {
            std::io::copy(&mut File::open(entry.path()).unwrap(), &mut std::io::sink()).unwrap();
        }
    }
}
