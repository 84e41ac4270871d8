//! Copying images from one registry to another, beside `skopeo copy`.
//!
//! Source and destination are Debian's `docker-registry` on loopback, each round with a new
//! destination. `undermount prepare` runs without indexes, which `skopeo` does not build; what
//! they add is told as well. `cargo bench -p undermount-benches --bench copy`; set
//! `UNDERMOUNT_BENCH_MIB` for another size of the large blobs (256).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use undermount_benches::figure::{Figures, median};
use undermount_benches::machine;
use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::process::{program, undermount};
use undermount_tests::registry::Registry;

const ROUNDS: usize = 5;
/// Images that share layers, and those layers.
const IMAGES: usize = 20;
const SHARED: u64 = 5;

fn main() -> ExitCode {
    println!("machine: {}", machine::describe());
    let mut figures = Figures::default();
    let mib = std::env::var("UNDERMOUNT_BENCH_MIB").ok().and_then(|text| text.parse().ok());
    one_image(&mut figures, mib.unwrap_or(256));
    many_images(&mut figures);
    if figures.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A layer of `mib` MiB that does not compress.
fn layer(seed: u64, mib: usize) -> Layer {
    let archive = Archive::of(&[Member::file(format!("file{seed}"), noise(seed, mib << 20))]);
    Layer::compressed(&archive, Compression::GzipStored)
}

fn one_image(figures: &mut Figures, mib: usize) {
    let source = Source::new(vec![Image::from_layers(vec![layer(1, mib), layer(2, mib)])]);
    println!("one image: two layers of {mib} MiB");
    let measured = source.measure(Index::Off);
    measured.tell("one image");
    figures.at_least("one large image, x of skopeo copy", measured.ratio(), 0.8, "");
    figures.at_most("peak memory", measured.memory_mb(), 150.0, " MB");
    let indexed = source.measure(Index::Auto);
    indexed.tell("one image, with index");
    figures.tell("the same with its index, x of skopeo", format!("{:.3}", indexed.ratio()));
    figures.at_most("peak memory with index", indexed.memory_mb(), 150.0, " MB");
}

fn many_images(figures: &mut Figures) {
    let shared: Vec<Layer> = (0..SHARED).map(|seed| layer(100 + seed, 8)).collect();
    let image = |number: usize| {
        let own = layer(200 + number as u64, 1);
        Image::from_layers(shared.iter().cloned().chain([own]).collect())
    };
    let source = Source::new((0..IMAGES).map(image).collect());
    println!("{IMAGES} images: {SHARED} shared layers of 8 MiB, one of 1 MiB each");
    let measured = source.measure(Index::Off);
    measured.tell("20 images");
    let name = "20 images that share layers, x of skopeo copy";
    figures.at_least(name, measured.ratio(), 2.0, "");
    figures.at_most("peak memory for 20 images", measured.memory_mb(), 150.0, " MB");
    let indexed = source.measure(Index::Auto);
    indexed.tell("20 images, with indexes");
    figures.tell("the same with their indexes, x of skopeo", format!("{:.3}", indexed.ratio()));
    figures.at_most("peak memory for 20 with indexes", indexed.memory_mb(), 150.0, " MB");
}

#[derive(Clone, Copy)]
enum Index {
    Off,
    Auto,
}

/// A registry with the images to copy.
struct Source {
    registry: Registry,
    images: usize,
    scratch: TempDir,
}

/// The times of some rounds, and our largest memory.
struct Measured {
    ours: Vec<Duration>,
    skopeo: Vec<Duration>,
    memory: u64,
}

impl Measured {
    fn ratio(&self) -> f64 {
        median(&self.skopeo).as_secs_f64() / median(&self.ours).as_secs_f64()
    }

    fn memory_mb(&self) -> f64 {
        self.memory as f64 / 1e6
    }

    fn tell(&self, what: &str) {
        println!("{what}: undermount {:.2?}, skopeo {:.2?}", self.ours, self.skopeo);
    }
}

impl Source {
    fn new(images: Vec<Image>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Registry::docker(&scratch.path().join("source"));
        for (number, image) in images.iter().enumerate() {
            registry.push_image(image, &format!("ns/image{number}:latest"));
        }
        Self { registry, images: images.len(), scratch }
    }

    /// Copies everything in turns with `skopeo`.
    fn measure(&self, index: Index) -> Measured {
        let mut measured = Measured { ours: Vec::new(), skopeo: Vec::new(), memory: 0 };
        for _ in 0..ROUNDS {
            let (time, memory) = self.to_new_registry(|to| self.prepare(to, index));
            measured.ours.push(time);
            measured.memory = measured.memory.max(memory);
            measured.skopeo.push(self.to_new_registry(|to| self.skopeo(to)).0);
        }
        measured
    }

    fn to_new_registry<T>(&self, copy: impl FnOnce(&str) -> T) -> (Duration, T) {
        let root = self.scratch.path().join("destination");
        let destination = Registry::docker(&root);
        let begin = Instant::now();
        let copied = copy(destination.address());
        let time = begin.elapsed();
        drop(destination);
        fs::remove_dir_all(root).unwrap();
        (time, copied)
    }

    fn skopeo(&self, to: &str) {
        for number in 0..self.images {
            let image = |host: &str| format!("docker://{host}/ns/image{number}:latest");
            let mut skopeo = program("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
            skopeo
                .arg("--dest-tls-verify=false")
                .arg(image(self.registry.address()))
                .arg(image(to));
            assert!(skopeo.status().unwrap().success());
        }
    }

    /// Runs `undermount prepare`; gives its largest resident memory.
    fn prepare(&self, to: &str, index: Index) -> u64 {
        let mut template = "container_images_template:\n".to_owned();
        for number in 0..self.images {
            let image = format!("{{{{namespace}}}}/image{number}:{{{{tag}}}}");
            writeln!(template, "- {{imagename: '{image}', params: [P{number}]}}").unwrap();
        }
        let entry = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: '{to}'\n    \
             set: {{namespace: {}/ns, tag: latest}}\n",
            self.registry.address()
        );
        let write = |name: &str, text: &str| -> PathBuf {
            let path = self.scratch.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let index = match index {
            Index::Off => "off",
            Index::Auto => "auto",
        };
        let mut command = undermount();
        command.arg("prepare").arg("-e").arg(write("prepare.yaml", &entry));
        command.arg("--template-file").arg(write("template.j2", &template));
        command.arg("--output-env-file").arg(self.scratch.path().join("env.yaml"));
        command.args(["--index", index]).env("HOME", self.scratch.path());
        peak_memory(&mut command)
    }
}

/// Runs a command to its end; gives the largest resident memory that it had, in bytes.
fn peak_memory(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    loop {
        peak = high_water(&status).unwrap_or(0).max(peak);
        if let Some(exit) = child.try_wait().unwrap() {
            assert!(exit.success(), "{command:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `VmHWM`: it only grows, so the last one that was seen is nearly the last one.
fn high_water(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}
