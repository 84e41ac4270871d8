//! The copier as a library: from and to registries, OCI layouts, archives, podman's storage and
//! the tree of the Apache, with whatever belongs to the images.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use undermount::image::{Descriptor, Platform, Reference, Repository, media_type, referrers};
use undermount::prepare::copy::place::{self, Destination};
use undermount::prepare::copy::{
    self, Attached, CopyError, CopyOptions, CopyReport, Indexing, Location, ManifestFormat,
};
use undermount::prepare::image_serve::ImageServe;
use undermount::prepare::progress::{Done, Unseen};
use undermount::prepare::sources::Sources;
use undermount::registry::client::{Client, ClientConfig};
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::Fault;
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::registry::{Registry, skopeo};
use undermount_tests::requirement::{Need, lacking};

const SIGNATURE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SBOM: &str = "application/spdx+json";

/// Copies, and what is needed to look at the outcome.
struct Copier {
    runtime: Runtime,
    client: Client,
    scratch: TempDir,
}

impl Copier {
    fn new() -> Self {
        let (runtime, client) = (Runtime::new().unwrap(), Client::new(ClientConfig::default()));
        Self { runtime, client, scratch: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).to_str().unwrap().to_owned()
    }

    fn copy(
        &self,
        sources: &[&str],
        to: &str,
        indexing: Indexing,
    ) -> Result<CopyReport, CopyError> {
        let options = CopyOptions {
            jobs: 4,
            streams: 4,
            indexing,
            attached: Attached::Always,
            manifests: ManifestFormat::Keep,
            image_serve: None,
            profiles: None,
            scratch: self.scratch.path().to_owned(),
            state: Some(self.scratch.path().join("state")),
        };
        let registries =
            Sources::new(self.client.clone(), Platform::host(), options.scratch.clone());
        let sources: Vec<Location> = sources.iter().map(|text| text.parse().unwrap()).collect();
        let to = Destination::parse(to, sources.len())?;
        self.runtime.block_on(async {
            let jobs = place::jobs(&sources, &to, &registries).await?;
            Ok(copy::run(jobs, &registries, &options, Arc::new(Unseen)).await.unwrap())
        })
    }

    /// A copy in which all goes well; gives what was done for each image.
    #[track_caller]
    fn copied(&self, sources: &[&str], to: &str) -> Vec<Done> {
        self.copied_with(sources, to, Indexing::Carry)
    }

    #[track_caller]
    fn copied_with(&self, sources: &[&str], to: &str, indexing: Indexing) -> Vec<Done> {
        let report = self.copy(sources, to, indexing).unwrap();
        assert!(report.is_whole(), "{report:?}");
        report.outcomes.into_iter().map(|(_, outcome)| outcome.unwrap()).collect()
    }

    /// The words of a copy that fails in its only image, or before it.
    #[track_caller]
    fn refusal(&self, source: &str, to: &str) -> String {
        match self.copy(&[source], to, Indexing::Carry) {
            Err(error) => error.to_string(),
            Ok(report) => report.failures().next().unwrap().1.to_string(),
        }
    }

    fn digest(&self, reference: &str) -> Option<Digest> {
        let reference: Reference = reference.parse().unwrap();
        let found = self.runtime.block_on(self.client.resolve(&reference)).unwrap();
        found.map(|found| found.digest)
    }

    /// Pushes a manifest with one blob that says `text`.
    fn push(&self, to: &Reference, kind: &str, text: &str, subject: Option<&Image>) -> Digest {
        let client = &self.client;
        let blob = Bytes::from(text.to_owned());
        let config = Bytes::from_static(b"{}");
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": Descriptor::of(media_type::OCI_EMPTY, &config),
            "layers": [Descriptor::of(kind, &blob)],
        });
        if let Some(subject) = subject {
            let bytes = &subject.manifest;
            manifest["subject"] = json!(Descriptor::of(media_type::OCI_MANIFEST, bytes));
            manifest["artifactType"] = kind.into();
        }
        let manifest = Bytes::from(manifest.to_string());
        let digest = Digest::of(&manifest);
        self.runtime.block_on(async {
            for bytes in [&blob, &config] {
                client.push_blob(to.repository(), bytes).await.unwrap();
            }
            match subject {
                None => drop(client.put_manifest(to, media_type::OCI_MANIFEST, &manifest).await),
                Some(subject) => {
                    let listed = referrers::listed(&manifest, media_type::OCI_MANIFEST);
                    let (repository, subject) = (to.repository(), subject.digest());
                    let attached =
                        client.attach_manifest(repository, &subject, &listed, &manifest, None);
                    attached.await.unwrap();
                }
            }
        });
        digest
    }

    /// Signs an image as cosign does, and attaches a bill of materials to it.
    fn sign(&self, repository: &str, image: &Image) -> [Digest; 2] {
        let repository: Repository = repository.parse().unwrap();
        let tag = signature_tag(image).parse().unwrap();
        let signature = self.push(&repository.tagged(tag), SIGNATURE, "signed", None);
        let sbom =
            self.push(&repository.at(image.digest()), SBOM, "all that is in it", Some(image));
        [signature, sbom]
    }

    fn referrers(&self, repository: &str, image: &Image, kind: &str) -> Vec<Digest> {
        let repository: Repository = repository.parse().unwrap();
        let subject = image.digest();
        let found = self.client.referrers(&repository, &subject, Some(kind));
        self.runtime.block_on(found).unwrap().iter().map(|listed| listed.digest).collect()
    }

    fn indexed_layers(&self, repository: &str, image: &Image) -> usize {
        let repository: Repository = repository.parse().unwrap();
        let subject = image.digest();
        let found = self.client.index_artifacts(&repository, &subject);
        let found = self.runtime.block_on(found).unwrap();
        found.iter().map(|artifact| artifact.layers.len()).sum()
    }
}

fn signature_tag(image: &Image) -> String {
    format!("sha256-{}.sig", image.digest().hex())
}

/// Two images on one base layer.
fn images() -> [Image; 2] {
    let base = Layer::of(&[Member::file("base", noise(1, 300_000))]);
    ["nova", "neutron"].map(|name| {
        Image::from_layers(vec![base.clone(), Layer::of(&[Member::file("name", name)])])
    })
}

fn origin() -> Origin {
    let origin = Origin::new();
    for (name, image) in ["nova", "neutron"].into_iter().zip(images()) {
        origin.add(&format!("ns/{name}"), image);
    }
    origin
}

fn no(program: &'static str) -> bool {
    lacking(&[Need::Program(program)])
}

#[test]
fn a_prepared_set_crosses_an_air_gap_with_indexes_and_signatures() {
    if no("docker-registry") || no("skopeo") {
        return;
    }
    let copier = Copier::new();
    let origin = origin();
    let [nova, neutron] = images();
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let connected = Registry::undermount(roots[0].path());
    let isolated = Registry::docker(roots[1].path());
    let names = ["nova", "neutron"].map(|name| format!("{}/ns/{name}:latest", origin.address()));
    let names = [names[0].as_str(), names[1].as_str()];
    copier.copied_with(&names, connected.address(), Indexing::Build);
    let [signature, sbom] = copier.sign(&format!("{}/ns/nova", connected.address()), &nova);

    let prepared = ["nova", "neutron"].map(|name| format!("{}/ns/{name}", connected.address()));
    let archive = format!("oci-archive:{}", copier.path("set.tar"));
    copier.copied(&[&prepared[0], &prepared[1]], &archive);
    drop(connected);
    let all = skopeo(&["inspect", "--raw", &format!("{archive}:{}:latest", prepared[0])]);
    assert_eq!(Digest::of(all.as_bytes()), nova.digest());
    let members = tar_members(Path::new(&copier.path("set.tar")));
    let base = nova.layers()[0].0.hex();
    assert_eq!(members.iter().filter(|name| name.ends_with(&base)).count(), 1);

    for (through, to) in [(archive.as_str(), "mirror/"), ("", "")] {
        // Once straight out of the archive, once by way of a directory.
        let directory = format!("oci:{}", copier.path("set"));
        let from = if through.is_empty() {
            copier.copied(&[&archive], &directory);
            directory.as_str()
        } else {
            through
        };
        let place = format!("{}/{to}", isolated.address());
        copier.copied(&[from], &place);
        for (name, image) in [("nova", &nova), ("neutron", &neutron)] {
            let repository = format!("{place}ns/{name}");
            assert_eq!(copier.digest(&format!("{repository}:latest")), Some(image.digest()));
            assert_eq!(copier.indexed_layers(&repository, image), 2, "{repository}");
        }
        let repository = format!("{place}ns/nova");
        let tag = format!("{repository}:{}", signature_tag(&nova));
        assert_eq!(copier.digest(&tag), Some(signature));
        assert_eq!(copier.referrers(&repository, &nova, SBOM), [sbom]);
    }
}

fn tar_members(path: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let name = |entry: tar::Entry<'_, fs::File>| entry.path().unwrap().display().to_string();
    archive.entries().unwrap().map(|entry| name(entry.unwrap())).collect()
}

#[test]
fn an_image_that_is_there_gets_what_was_attached_to_it_since() {
    let (copier, origin) = (Copier::new(), origin());
    let (root, [nova, _]) = (tempfile::tempdir().unwrap(), images());
    let registry = Registry::undermount(root.path());
    let host = registry.address();
    copier.copied_with(
        &[&format!("{}/ns/nova", origin.address())],
        &format!("{host}/a/"),
        Indexing::Off,
    );
    let (from, to) = (format!("{host}/a/ns/nova"), format!("{host}/b/nova"));
    copier.copied(&[&from], &to);
    let [signature, sbom] = copier.sign(&from, &nova);
    assert!(matches!(copier.copied(&[&from], &to)[..], [Done::Copied { .. }]));
    assert_eq!(copier.digest(&format!("{to}:{}", signature_tag(&nova))), Some(signature));
    assert_eq!(copier.referrers(&to, &nova, SBOM), [sbom]);
    assert_eq!(copier.copied(&[&from], &to), [Done::Unchanged]);
}

#[test]
fn signatures_go_into_the_tree_of_the_apache_and_out_again() {
    let (copier, origin) = (Copier::new(), origin());
    let (root, [nova, _]) = (tempfile::tempdir().unwrap(), images());
    let registry = Registry::undermount(root.path());
    let from = format!("{}/ns/nova", registry.address());
    copier.copied_with(
        &[&format!("{}/ns/nova", origin.address())],
        registry.address(),
        Indexing::Build,
    );
    let [signature, sbom] = copier.sign(&from, &nova);
    let tree = format!("image-serve:{}", copier.path("tree"));
    copier.copied(&[&from], &tree);
    assert_eq!(copier.copied(&[&from], &tree), [Done::Unchanged]);
    let files = ImageServe::new(Path::new(&copier.path("tree")));
    assert_eq!(files.repositories(), ["ns/nova"]);
    copier.copied(&[&tree], &format!("{}/again/", registry.address()));
    let again = format!("{}/again/ns/nova", registry.address());
    assert_eq!(copier.digest(&again), Some(nova.digest()));
    assert_eq!(copier.digest(&format!("{again}:{}", signature_tag(&nova))), Some(signature));
    assert_eq!(copier.referrers(&again, &nova, SBOM), [sbom]);
    assert_eq!(copier.indexed_layers(&again, &nova), 2);
}

#[test]
fn what_docker_saves_becomes_the_same_image_each_time() {
    if no("skopeo") {
        return;
    }
    let copier = Copier::new();
    let [nova, _] = images();
    nova.write_layout(&copier.scratch.path().join("layout"), "nova");
    let saved = copier.path("saved.tar");
    let layout = format!("oci:{}:nova", copier.path("layout"));
    skopeo(&["copy", &layout, &format!("docker-archive:{saved}:quay.io/ns/nova:13")]);
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let archive = format!("docker-archive:{saved}");
    copier.copied(&[&archive], registry.address());
    let reference = format!("{}/ns/nova:13", registry.address());
    let pulled = registry.pull(&reference, &copier.scratch.path().join("pulled"));
    // The archives inside the layers are what they were.
    assert_eq!(diff_ids(&pulled), diff_ids(&nova));
    assert_eq!(copier.copied(&[&archive], registry.address()), [Done::Unchanged]);

    let mut bytes = fs::read(&saved).unwrap();
    let needle = &noise(1, 300_000)[1000..1100];
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] ^= 1;
    let damaged = copier.path("damaged.tar");
    fs::write(&damaged, bytes).unwrap();
    let words = copier.refusal(&format!("docker-archive:{damaged}"), registry.address());
    assert!(words.contains("damaged.tar is damaged: "), "{words}");
}

fn diff_ids(image: &Image) -> Value {
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    let config: Value = serde_json::from_slice(&image.blobs[&config]).unwrap();
    config["rootfs"]["diff_ids"].clone()
}

#[test]
fn podmans_storage_is_read_through_its_own_tools() {
    if lacking(&[Need::Root, Need::Program("skopeo")]) {
        return;
    }
    let copier = Copier::new();
    let [nova, _] = images();
    nova.write_layout(&copier.scratch.path().join("layout"), "nova");
    let storage = format!(
        "containers-storage:[vfs@{}+{}]localhost/ns/nova:13",
        copier.path("storage"),
        copier.path("run")
    );
    skopeo(&["copy", &format!("oci:{}:nova", copier.path("layout")), &storage]);
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    copier.copied(&[&storage], registry.address());
    let reference = format!("{}/ns/nova:13", registry.address());
    let pulled = registry.pull(&reference, &copier.scratch.path().join("pulled"));
    assert_eq!(pulled.layers().len(), 2);
    let missing = storage.replace("nova:13", "absent:1");
    let words = copier.refusal(&missing, registry.address());
    assert!(words.contains("absent:1") && words.contains("skopeo says: "), "{words}");
}

/// Writes an image for each of two architectures into a layout, lists of lists around them.
fn write_nested(directory: &Path, lists: usize) -> [Digest; 2] {
    let images = images();
    let mut listed: Vec<Value> = std::iter::zip(&images, ["amd64", "arm64"])
        .map(|(image, architecture)| {
            image.write_layout(directory, architecture);
            let mut descriptor = json!(Descriptor::of(media_type::OCI_MANIFEST, &image.manifest));
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            descriptor
        })
        .collect();
    for _ in 0..lists {
        let list = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": listed,
        });
        let bytes = list.to_string().into_bytes();
        let descriptor = Descriptor::of(media_type::OCI_INDEX, &bytes);
        fs::write(directory.join("blobs/sha256").join(descriptor.digest.hex()), bytes).unwrap();
        listed = vec![json!(descriptor)];
    }
    let top: Digest = listed[0]["digest"].as_str().unwrap().parse().unwrap();
    listed[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "ns/all:1"});
    let index = json!({"schemaVersion": 2, "manifests": listed});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    [top, images[0].digest()]
}

#[test]
fn lists_are_copied_whole_however_they_lie_in_each_other() {
    let copier = Copier::new();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount(root.path());
    let [top, child] = write_nested(&copier.scratch.path().join("two"), 2);
    let from = format!("oci:{}", copier.path("two"));
    copier.copied(&[&from], registry.address());
    assert_eq!(copier.digest(&format!("{}/ns/all:1", registry.address())), Some(top));
    let image = format!("{}/ns/all@{child}", registry.address());
    assert_eq!(copier.digest(&image), Some(child));
    copier.copied(&[&from], &format!("image-serve:{}", copier.path("tree")));
    write_nested(&copier.scratch.path().join("deep"), 9);
    let words = copier.refusal(&format!("oci:{}", copier.path("deep")), registry.address());
    assert!(words.contains("deeper than anybody can mean it"), "{words}");
}

#[test]
fn an_archive_that_lacks_an_image_is_gone_on_with_and_only_then_appears() {
    let copier = Copier::new();
    let origin = origin();
    let [_, neutron] = images();
    let own = neutron.layers()[1].0;
    let lacks = format!("/blobs/{own}");
    origin.misbehave(move |request| {
        request.path.contains(&lacks).then_some(Fault::Status(404, None))
    });
    let names = ["nova", "neutron"].map(|name| format!("{}/ns/{name}", origin.address()));
    let names = [names[0].as_str(), names[1].as_str()];
    let archive = format!("oci-archive:{}", copier.path("set.tar"));
    let report = copier.copy(&names, &archive, Indexing::Carry).unwrap();
    assert_eq!(report.failures().count(), 1);
    let words = report.unfinished[0].to_string();
    assert!(words.contains("set.tar was not written, for it lacks images"), "{words}");
    assert!(!Path::new(&copier.path("set.tar")).exists());

    // What a kill leaves: half a blob behind what is whole.
    let mut partial =
        fs::OpenOptions::new().append(true).open(copier.path("set.tar.partial")).unwrap();
    std::io::Write::write_all(&mut partial, &[7; 700]).unwrap();
    origin.behave();
    let before = origin.requests().len();
    copier.copied(&names, &archive);
    let blobs: Vec<String> = origin.requests()[before..]
        .iter()
        .filter(|request| request.path.contains("/blobs/"))
        .map(|request| request.path.clone())
        .collect();
    assert!(blobs.len() == 1 && blobs[0].contains(&own.to_string()), "{blobs:?}");
    assert!(!Path::new(&copier.path("set.tar.partial")).exists());
    let read = format!("{archive}:{}:latest", names[0]);
    copier.copied(&[&read], &format!("oci:{}:x", copier.path("out")));
    let out = Image::read_layout(&copier.scratch.path().join("out"), "x");
    assert_eq!(out.digest(), images()[0].digest());
}

#[test]
fn a_blob_file_is_gone_on_with_where_a_killed_run_stopped() {
    let copier = Copier::new();
    let origin = origin();
    let [nova, _] = images();
    let (base, size) = nova.layers()[0];
    let blobs = copier.scratch.path().join("set/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!(".undermount-{}.partial", base.hex()));
    let to = format!("oci:{}:x", copier.path("set"));
    let from = format!("{}/ns/nova", origin.address());
    fs::write(&partial, &nova.blobs[&base][..100_000]).unwrap();
    let before = origin.blob_bytes();
    copier.copied_with(&[&from], &to, Indexing::Build);
    let rest: u64 = nova.blobs.values().map(|blob| blob.len() as u64).sum();
    assert_eq!(origin.blob_bytes() - before, rest - 100_000);
    assert_eq!(Digest::of(&fs::read(blobs.join(base.hex())).unwrap()), base);

    // Damaged leftovers cost another transfer, and nothing else.
    fs::remove_file(blobs.join(base.hex())).unwrap();
    fs::write(&partial, vec![9; 100_000]).unwrap();
    let before = origin.blob_bytes();
    copier.copied_with(&[&from], &to, Indexing::Build);
    assert_eq!(origin.blob_bytes() - before, size - 100_000 + size);
    assert_eq!(Digest::of(&fs::read(blobs.join(base.hex())).unwrap()), base);
    assert!(!partial.exists());
}

#[test]
fn places_that_cannot_be_used_are_named() {
    let copier = Copier::new();
    let [nova, neutron] = images();
    let layout = copier.scratch.path().join("layout");
    nova.write_layout(&layout, "quay.io/ns/nova:1");
    neutron.write_layout(&layout, "quay.io/ns/neutron:1");
    let from = format!("oci:{}:ns/nova:1", layout.display());
    let to = format!("oci:{}:x", copier.path("out"));
    fs::write(copier.path("no.tar"), [b'x'; 2048]).unwrap();
    for (source, target, expected) in [
        (
            from.clone(),
            "docker-archive:x.tar:y".to_owned(),
            "docker-archive:x.tar:y can be read from only",
        ),
        (
            from.clone(),
            "containers-storage:x".to_owned(),
            "containers-storage:x can be read from only",
        ),
        (format!("oci:{}:absent", layout.display()), to.clone(), "Not found image: oci:"),
        (format!("oci:{}", layout.display()), to.clone(), "2 images cannot all be called oci:"),
        (
            format!("oci:{}", copier.path("none")),
            to.clone(),
            "is not an OCI image layout: it has no index.json",
        ),
        (
            format!("oci-archive:{}", copier.path("no.tar")),
            to.clone(),
            "is not a tar file without compression",
        ),
        (format!("docker-archive:{}:x", copier.path("none.tar")), to.clone(), "cannot read"),
        (
            format!("image-serve:{}:ns/nova:1", copier.path("none")),
            to,
            "Not found image: image-serve:",
        ),
    ] {
        let words = copier.refusal(&source, &target);
        assert!(words.contains(expected), "{words}\n  instead of {expected}");
    }
}

#[test]
fn an_archive_is_written_by_one_process_at_a_time() {
    let copier = Copier::new();
    let partial = copier.path("set.tar.partial");
    let file = fs::File::create(&partial).unwrap();
    let _held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let archive = format!("oci-archive:{}", copier.path("set.tar"));
    let origin = origin();
    let words = copier.refusal(&format!("{}/ns/nova", origin.address()), &archive);
    assert!(words.contains("another process writes"), "{words}");
}
