//! Profiles of starts: noticed by nodes, told to registries, and what registries and the copier
//! make of them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use undermount::image::artifact::pack::{Origin, PackEntry, Purpose};
use undermount::image::{Platform, Reference};
use undermount::prepare::copy::place::{self, Destination};
use undermount::prepare::copy::{self, Attached, CopyOptions, Indexing, ManifestFormat};
use undermount::prepare::progress::Unseen;
use undermount::prepare::sources::Sources;
use undermount::profile::{FileUnit, Profiles, StartRecord};
use undermount::registry::client::{Client, ClientConfig, RegistryError};
use undermount_fs::digest::Digest;
use undermount_fs::pack::UNITS_MAX;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::node::{self, Node, PATIENCE};
use undermount_tests::process::{Outcome, eventually, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// What the starts in these tests read: of 120 files of 60,000 bytes.
const READ: [usize; 5] = [50, 7, 99, 3, 60];

fn name(file: usize) -> String {
    format!("data/{file}")
}

fn content(file: usize) -> Vec<u8> {
    noise(file as u64, 60_000)
}

/// An image of the files; each build has another first file.
fn image(build: u64) -> Image {
    image_of(build, 120)
}

/// The same with another number of files.
fn image_of(build: u64, files: usize) -> Image {
    let marker = Member::file("build", noise(1000 + build, 100_000));
    let data = (0..files).map(|file| Member::file(name(file), content(file)));
    Image::of(&[&std::iter::once(marker).chain(data).collect::<Vec<_>>()])
}

fn units(names: impl IntoIterator<Item = String>) -> Vec<FileUnit> {
    names.into_iter().map(|path| FileUnit { path, number: 0 }).collect()
}

/// What a start of the image `manifest` read.
fn record(reference: &str, manifest: Digest, units: &[FileUnit]) -> StartRecord {
    StartRecord::new(reference.to_owned(), manifest, "service".to_owned()).with_start(units)
}

struct Setting {
    scratch: TempDir,
    registry: Registry,
    runtime: Runtime,
    client: Client,
}

impl Setting {
    fn with(flags: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Registry::undermount_with(&scratch.path().join("registry"), flags);
        let (runtime, client) = (Runtime::new().unwrap(), Client::new(ClientConfig::default()));
        Self { scratch, registry, runtime, client }
    }

    fn new() -> Self {
        Self::with(&[])
    }

    fn starts(&self, reference: &str, manifest: &Digest) -> Option<usize> {
        let reference: Reference = reference.parse().unwrap();
        let asked = self.client.recorded_starts(reference.repository(), manifest);
        self.runtime.block_on(asked).unwrap()
    }

    fn tell(&self, reference: &str, manifest: &Digest, json: Vec<u8>) -> Result<(), RegistryError> {
        let reference: Reference = reference.parse().unwrap();
        let told = self.client.offer_profile(reference.repository(), manifest, json);
        self.runtime.block_on(told)
    }

    /// The start-up packs of an image.
    fn packs(&self, reference: &str, manifest: &Digest) -> Vec<PackEntry> {
        let reference: Reference = reference.parse().unwrap();
        let found = self.client.index_artifacts(reference.repository(), manifest);
        let found = self.runtime.block_on(found).unwrap();
        let packs = found.into_iter().flat_map(|artifact| artifact.packs);
        packs.filter(|pack| pack.purpose == Purpose::Start).collect()
    }

    fn has_pack(&self, reference: &str, manifest: &Digest) -> bool {
        !self.packs(reference, manifest).is_empty()
    }
}

/// `undermount pack` with `words`.
fn pack(words: &[&str]) -> Outcome {
    run(undermount().arg("pack").args(words), PATIENCE)
}

/// Reads the files of a start below `directory`.
fn read_start(directory: &Path) {
    for file in READ {
        assert!(fs::read(directory.join(name(file))).unwrap() == content(file), "{file}");
    }
}

#[test]
fn what_a_node_tells_becomes_a_pack_of_this_build_and_at_once_of_the_next() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut setting = Setting::new();
    let first = image(1);
    let reference = setting.registry.push_image(&first, "service:1");
    let manifest = first.digest();
    assert_eq!(setting.starts(&reference, &manifest), Some(0));
    let told = record(&reference, manifest, &units(READ.map(name)));
    setting.tell(&reference, &manifest, told.to_json()).unwrap();
    assert_eq!(setting.starts(&reference, &manifest), Some(1));
    eventually("a pack", PATIENCE, || setting.has_pack(&reference, &manifest));

    let second = image(2);
    let newer = setting.registry.push_image(&second, "service:2");
    assert_eq!(setting.starts(&newer, &second.digest()), Some(0));
    eventually("a pack", PATIENCE, || setting.has_pack(&newer, &second.digest()));
    let mut node = Node::new();
    let directory = node.mount(&newer);
    let local = |node: &Node| node.mount_status(&directory)["local_bytes"].as_u64().unwrap();
    let wanted: u64 = READ.iter().map(|file| content(*file).len() as u64).sum();
    eventually("the pack is here", PATIENCE, || local(&node) >= wanted);
    assert!(node.fetched(&directory) < second.compressed_size() / 4);
    setting.registry.process().kill();
    read_start(&directory);
    node.umount(&directory);
}

#[test]
fn a_pack_that_was_built_by_hand_stays_until_it_is_removed() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let first = image(1);
    let reference = setting.registry.push_image(&first, "service:1");
    let manifest = first.digest();
    let path = |name: &str| setting.scratch.path().join(name).to_str().unwrap().to_owned();
    let chosen = record(&reference, manifest, &units([8, 9].map(name)));
    fs::write(path("chosen.json"), chosen.to_json()).unwrap();
    let (file, cache) = (path("chosen.json"), path("cache"));
    pack(&["build", "--cache", &cache, "--profile", &file, &reference]).success();
    let by_hand = setting.packs(&reference, &manifest);
    assert_eq!(by_hand.iter().map(|pack| pack.origin).collect::<Vec<_>>(), [Origin::ByHand]);

    let told = record(&reference, manifest, &units(READ.map(name)));
    setting.tell(&reference, &manifest, told.to_json()).unwrap();
    // Packs are made one after the other: once the next build has one, this one's turn was before.
    let second = image(2);
    let newer = setting.registry.push_image(&second, "service:2");
    eventually("a pack", PATIENCE, || setting.has_pack(&newer, &second.digest()));
    assert_eq!(setting.packs(&newer, &second.digest())[0].origin, Origin::Registry);
    assert_eq!(setting.packs(&reference, &manifest), by_hand);

    let refused = pack(&["rm", "--update-from", &newer, &reference]);
    assert!(refused.refusal().contains("has no update pack"), "{}", refused.stderr);
    let said = pack(&["rm", &reference]).success().stdout;
    assert_eq!(said.trim(), manifest.to_string());
    eventually("a pack that the registry has made", PATIENCE, || {
        let packs = setting.packs(&reference, &manifest);
        packs.iter().map(|pack| pack.origin).eq([Origin::Registry])
    });
}

#[test]
fn lies_and_floods_are_refused_or_bounded() {
    let setting = Setting::new();
    let image = image(1);
    let reference = setting.registry.push_image(&image, "service");
    let manifest = image.digest();
    let refused = |manifest: &Digest, json: Vec<u8>, words: &str| {
        let said = setting.tell(&reference, manifest, json).unwrap_err().to_string();
        assert!(said.contains(words), "`{words}` is not in: {said}");
    };
    refused(&manifest, b"rubbish".to_vec(), "not a profile");
    let other = Digest::of(b"other");
    refused(&manifest, record(&reference, other, &[]).to_json(), "not of");
    refused(&other, record(&reference, other, &[]).to_json(), "has no manifest");
    let million = format!(
        "{{\"version\":2,\"reference\":\"r\",\"manifest\":\"{manifest}\",\"command\":\"\",\
         \"files\":[\"data/1\"],\"starts\":[[{}[0,0]]]}}",
        "[0,0],".repeat(1_000_000)
    );
    refused(&manifest, million.into_bytes(), &format!("at most {UNITS_MAX}"));
    // The registry hangs up before it has read so much, and may not be heard.
    setting.tell(&reference, &manifest, vec![b' '; 9 << 20]).unwrap_err();
    assert_eq!(setting.starts(&reference, &manifest), Some(0));

    // Files that are not there change nothing; what is there is packed beside them.
    let nowhere = units((0..1000).map(|file| format!("nowhere/{file}")));
    let half = [nowhere, units([name(1)])].concat();
    setting.tell(&reference, &manifest, record(&reference, manifest, &half).to_json()).unwrap();
    eventually("a pack", PATIENCE, || setting.has_pack(&reference, &manifest));
    assert!(setting.packs(&reference, &manifest)[0].size < 100_000);
    for _ in 0..20 {
        let told = record(&reference, manifest, &units(READ.map(name)));
        setting.tell(&reference, &manifest, told.to_json()).unwrap();
    }
    let starts = setting.starts(&reference, &manifest).unwrap();
    assert!(starts < 20, "{starts} starts of one command are kept");
}

#[test]
fn a_registry_that_takes_no_profiles_says_so() {
    let setting = Setting::with(&["--profiles", "off"]);
    let image = image(1);
    let reference = setting.registry.push_image(&image, "service");
    let manifest = image.digest();
    assert_eq!(setting.starts(&reference, &manifest), None);
    let told = record(&reference, manifest, &units(READ.map(name)));
    let refused = setting.tell(&reference, &manifest, told.to_json()).unwrap_err().to_string();
    assert!(refused.contains("takes no profiles"), "{refused}");
}

#[test]
fn a_node_notices_a_start_and_tells_the_registry() {
    if lacking(node::NEEDS) {
        return;
    }
    let setting = Setting::new();
    let image = image(1);
    let reference = setting.registry.push_image(&image, "service");
    let manifest = image.digest();
    let mut node = Node::new();
    let directory = node.mount(&reference);
    read_start(&directory);
    eventually("the registry was told", PATIENCE, || {
        setting.starts(&reference, &manifest) == Some(1)
    });
    let kept = Profiles::new(node.cache().join("profiles")).list().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].1.common_units(), units(READ.map(name)));
    eventually("a pack", PATIENCE, || setting.has_pack(&reference, &manifest));
    node.umount(&directory);
}

#[test]
fn without_packs_a_node_fetches_what_its_earlier_starts_have_read() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut setting = Setting::with(&["--profiles", "off"]);
    let reference = setting.registry.push_image(&image_of(1, 400), "service:1");
    let mut node = Node::new();
    let directory = node.mount(&reference);
    read_start(&directory);
    let recorded = Profiles::new(node.cache().join("profiles"));
    eventually("the start was recorded", PATIENCE, || recorded.list().unwrap().len() == 1);
    node.umount(&directory);

    // Another build, on a node that has lost everything but the profile.
    let second = image_of(2, 400);
    let newer = setting.registry.push_image(&second, "service:2");
    let mut node = Node::new();
    let kept = Profiles::new(node.cache().join("profiles"));
    kept.add(recorded.list().unwrap().remove(0).1).unwrap();
    let directory = node.mount(&newer);
    let local = |node: &Node| node.mount_status(&directory)["local_bytes"].as_u64().unwrap();
    let wanted: u64 = READ.iter().map(|file| content(*file).len() as u64).sum();
    eventually("what the start reads is here", PATIENCE, || local(&node) >= wanted);
    let fetched = || {
        let before = node.fetched(&directory);
        std::thread::sleep(std::time::Duration::from_secs(2));
        (node.fetched(&directory) == before).then_some(before)
    };
    eventually("nothing more comes", PATIENCE, || fetched().is_some());
    assert!(fetched().unwrap() < second.compressed_size() / 2);
    setting.registry.process().kill();
    read_start(&directory);
    node.umount(&directory);
}

#[test]
fn copied_images_get_packs_by_the_profiles_of_an_earlier_build() {
    if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
        return;
    }
    let setting = Setting::new();
    let (image, other) = (image(2), image(3));
    let source = setting.registry.push_image(&image, "service:2");
    let unknown = setting.registry.push_image(&other, "unknown:3");
    let destination = Registry::docker(&setting.scratch.path().join("docker"));
    let profiles = setting.scratch.path().join("profiles");
    let earlier = Digest::of(b"an earlier build");
    let known = record("somewhere:5000/service:1", earlier, &units(READ.map(name)));
    Profiles::new(profiles.clone()).add(known).unwrap();
    let options = CopyOptions {
        jobs: 2,
        streams: 2,
        indexing: Indexing::Build,
        attached: Attached::Never,
        manifests: ManifestFormat::Keep,
        image_serve: None,
        profiles: Some(profiles),
        scratch: setting.scratch.path().to_owned(),
        state: None,
    };
    let sources = Sources::new(setting.client.clone(), Platform::host(), options.scratch.clone());
    let locations = [source.parse().unwrap(), unknown.parse().unwrap()];
    let to = Destination::parse(destination.address(), locations.len()).unwrap();
    setting.runtime.block_on(async {
        let jobs = place::jobs(&locations, &to, &sources).await.unwrap();
        let report = copy::run(jobs, &sources, &options, Arc::new(Unseen)).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
    });
    let copied = format!("{}/service:2", destination.address());
    let packs = setting.packs(&copied, &image.digest());
    assert_eq!(packs.len(), 1);
    assert_eq!(packs[0].origin, Origin::Prepare);
    assert!(packs[0].size < image.compressed_size() / 4);
    // This registry tells of no referrers, and deletes nothing.
    pack(&["rm", &copied]).success();
    assert!(!setting.has_pack(&copied, &image.digest()));
    assert!(pack(&["rm", &copied]).refusal().contains("has no start-up pack"));
    let without = format!("{}/unknown:3", destination.address());
    assert!(!setting.has_pack(&without, &other.digest()), "no profile is of this repository");
}
