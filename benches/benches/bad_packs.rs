//! What a pack costs that is of no use: time to ready with it against the same image without packs.
//!
//! ```text
//! benches/corpus/build.py DIRECTORY nova-api debian
//! UNDERMOUNT_BENCH_CORPUS=DIRECTORY/oci cargo bench -p undermount-benches --bench bad_packs
//! ```
//!
//! as root, with skopeo; see [`undermount_benches::start`] for its variables. Each row is a group
//! of its own: missing,truncated,head,middle,start,everything,image.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use undermount::image::{Platform, Reference};
use undermount::registry::client::{Client, ClientConfig};
use undermount_benches::figure::Figures;
use undermount_benches::machine;
use undermount_benches::start::{PYTHON, Setting, Subject};
use undermount_fs::digest::Digest;
use undermount_tests::artifact::{IndexBlobs, PACK};
use undermount_tests::node::NEEDS;
use undermount_tests::requirement::lacking;

/// A start is that much slower at most.
const GOAL: f64 = 1.05;

/// What is done to the file of a pack with these bytes.
type Damage = fn(&Path, Vec<u8>);

/// Packs that are damaged: group, what is wrong, and how that is done.
const DAMAGED: [(&str, &str, Damage); 4] = [
    ("missing", "missing", |file, _| fs::remove_file(file).unwrap()),
    ("truncated", "truncated", |file, bytes| fs::write(file, &bytes[..bytes.len() / 2]).unwrap()),
    ("head", "damaged in its head", |file, bytes| flip(file, bytes, 70)),
    ("middle", "damaged in its middle", |file, bytes| {
        let middle = bytes.len() / 2;
        flip(file, bytes, middle);
    }),
];

/// Packs of something else: group, what they hold, and the command that reads it.
const STALE: [(&str, &str, &str); 2] = [
    (
        "start",
        "of another start",
        "find /usr/share /usr/bin -xdev -type f -exec cat {} + >/dev/null",
    ),
    ("everything", "of all files", "find / -xdev -type f -exec cat {} + >/dev/null"),
];

fn main() -> ExitCode {
    if lacking(NEEDS) {
        return ExitCode::SUCCESS;
    }
    println!("machine: {}", machine::describe());
    let setting = Setting::open();
    let Some(nova) = setting.packed("openstack-nova-api", "nova-api", &PYTHON) else {
        return ExitCode::SUCCESS;
    };
    let mut figures = Figures::default();
    for (_, what, damage) in DAMAGED.iter().filter(|(group, ..)| setting.is_wanted(group)) {
        let file = pack_file(&setting, &nova);
        let bytes = fs::read(&file).unwrap();
        damage(&file, bytes.clone());
        measure(&setting, &nova, what, &mut figures);
        fs::write(&file, bytes).unwrap();
    }
    for (group, what, script) in STALE.iter().filter(|(group, ..)| setting.is_wanted(group)) {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        let reference = nova.reference.clone();
        setting.pack(&Subject { reference, command: words.to_vec() }, group);
        measure(&setting, &nova, what, &mut figures);
    }
    if setting.is_wanted("image") {
        give_pack_of_another_image(&setting, &nova);
        measure(&setting, &nova, "of another image", &mut figures);
    }
    let reached = figures.print();
    println!("\n{}", figures.markdown());
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(setting: &Setting, nova: &Subject, what: &str, figures: &mut Figures) {
    let measured = setting.bench(nova, "lazy,pack", ("1gbit", "0ms"));
    let ratio = measured.of("lazy-pack", "ready_ratio");
    figures.at_most(&format!("time to ready with a pack {what} / without"), ratio, GOAL, "");
}

fn flip(file: &Path, mut bytes: Vec<u8>, place: usize) {
    bytes[place] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// The file of the registry that holds the image's pack.
fn pack_file(setting: &Setting, subject: &Subject) -> PathBuf {
    let reference: Reference = subject.reference.parse().unwrap();
    let (root, name) = (setting.scratch.path().join("registry"), reference.repository().path());
    let manifest = runtime().block_on(manifest(&client(&reference), &reference));
    let blobs = IndexBlobs::of(&setting.registry, &root, name, &manifest);
    blobs.files(PACK).remove(0)
}

/// Names the Debian's pack as that of `subject`.
fn give_pack_of_another_image(setting: &Setting, subject: &Subject) {
    let other = setting.packed("debian", "debian", &["/bin/sh", "-c"]).unwrap();
    let bytes = fs::read(pack_file(setting, &other)).unwrap();
    let [from, to]: [Reference; 2] =
        [&other, subject].map(|subject| subject.reference.parse().unwrap());
    let client = client(&to);
    let attach = async {
        let theirs = manifest(&client, &from).await;
        let ours = manifest(&client, &to).await;
        let found = client.index_artifacts(from.repository(), &theirs).await.unwrap();
        let pack = found[0].packs[0].clone();
        client.push_blob(to.repository(), &bytes.into()).await.unwrap();
        client.attach_pack(to.repository(), &ours, pack, Vec::new()).await.unwrap()
    };
    assert!(runtime().block_on(attach), "the image has an index");
}

async fn manifest(client: &Client, reference: &Reference) -> Digest {
    client.image(reference, &Platform::host()).await.unwrap().raw.digest
}

fn client(reference: &Reference) -> Client {
    undermount::registry::client::install_crypto_provider();
    let client = Client::new(ClientConfig::default());
    client.allow_plain_http(reference.repository().host());
    client
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
