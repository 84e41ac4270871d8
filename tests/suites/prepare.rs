//! `undermount prepare` from start to end: real registries as source and destination, and the
//! environment file that deployment reads.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use undermount::image::{Reference, Repository};
use undermount::registry::client::{Client, ClientConfig};
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::Fault;
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Outcome, Running, SOON, eventually, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// Two images and the parameters that name them, in the form of tripleo-common's template.
const TEMPLATE: &str = "\
container_images_template:

- imagename: \"{{namespace}}/{{name_prefix}}nova-api{{name_suffix}}:{{tag}}\"
  image_source: kolla
  params:
  - DockerNovaApiImage
  - DockerNovaConfigImage
  services:
  - OS::TripleO::Services::NovaApi

- imagename: \"{{namespace}}/{{name_prefix}}keystone{{name_suffix}}:{{tag}}\"
  image_source: kolla
  params:
  - DockerKeystoneImage
  services:
  - OS::TripleO::Services::Keystone
";

/// A directory to run `undermount prepare` in.
struct Undercloud {
    directory: TempDir,
}

impl Undercloud {
    /// With the template of two images and one entry, in YAML's flow style.
    fn new(entry: &str) -> Self {
        let undercloud = Self { directory: tempfile::tempdir().unwrap() };
        undercloud.write("template.yaml.j2", TEMPLATE);
        undercloud.prepare_file(entry);
        undercloud
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn prepare_file(&self, entry: &str) {
        let text = format!("parameter_defaults:\n  ContainerImagePrepare:\n  - {entry}\n");
        self.write("prepare.yaml", &text);
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = undermount();
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .args(["prepare", "-e", "prepare.yaml", "--output-env-file", "env.yaml"])
            .args(["--template-file", "template.yaml.j2"])
            .args(more);
        command
    }

    fn prepare(&self, more: &[&str]) -> Outcome {
        run(&mut self.command(more), SOON)
    }

    /// The failed run's words; it left no file behind.
    #[track_caller]
    fn refusal(&self, more: &[&str]) -> String {
        let outcome = self.prepare(more);
        let words = outcome.refusal().to_owned();
        self.has_only_inputs();
        words
    }

    /// No environment file, and no part of one.
    #[track_caller]
    fn has_only_inputs(&self) {
        let mut names: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // What a copy began is written down below it.
            .filter(|name| name != ".local")
            .collect();
        names.sort();
        assert_eq!(names, ["prepare.yaml", "template.yaml.j2"]);
    }

    /// The lines of the environment file below its header.
    fn environment(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("env.yaml")).unwrap();
        let (header, body) = text.split_once("\n\n").unwrap();
        assert!(header.starts_with("# Generated with the following on 20"), "{header}");
        assert!(header.contains("\n#   undermount prepare -e prepare.yaml"), "{header}");
        body.lines().map(str::to_owned).collect()
    }
}

/// Two images on one base layer.
fn images() -> [Image; 2] {
    let base = Layer::of(&[Member::file("base", noise(1, 300_000))]);
    let image = |name: &str| {
        let own = Layer::of(&[Member::file("own", name)]);
        let labels = [("version", "13.0"), ("release", "40")];
        Image::with_labels(vec![base.clone(), own], &labels)
    };
    [image("nova-api"), image("keystone")]
}

/// The bytes of both images' blobs, each blob once.
fn bytes_to_move() -> usize {
    let [mut nova, keystone] = images();
    nova.blobs.extend(keystone.blobs);
    nova.blobs.values().map(|blob| blob.len()).sum()
}

fn base_layer() -> Digest {
    images()[0].layers()[0].0
}

/// A source whose requests are counted, with both images under `ns`.
fn source() -> Origin {
    let origin = Origin::new();
    let [nova, keystone] = images();
    origin.add("ns/nova-api", nova);
    origin.add("ns/keystone", keystone);
    origin
}

fn entry(source: &Origin, destination: &Registry) -> String {
    format!(
        "{{push_destination: '{}', set: {{namespace: {}/ns, name_prefix: '', tag: latest}}}}",
        destination.address(),
        source.address()
    )
}

/// Debian's registry, which tells each request.
fn destination(root: &Path) -> Registry {
    Registry::docker_with(root, |config| config["log"]["accesslog"]["disabled"] = false.into())
}

/// The requests with one of `methods` that the registry has seen.
fn requests(registry: &mut Registry, methods: &[&str]) -> Vec<String> {
    let text = settled_log(registry);
    let requests = text.lines().filter_map(|line| line.split('"').nth(1).map(str::to_owned));
    requests.filter(|request| methods.iter().any(|method| request.starts_with(method))).collect()
}

/// What a registry has said once it says no more: it notes a request after it has answered.
fn settled_log(registry: &mut Registry) -> String {
    let process = registry.process();
    let log = || process.stdout() + &process.stderr();
    let mut text = log();
    eventually("the registry notes no more", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut text, log());
        before == text
    });
    text
}

fn no_docker_registry() -> bool {
    lacking(&[Need::Program("docker-registry")])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// The digest of the manifest that `name` names, if it does.
fn digest_of(name: &str) -> Option<Digest> {
    let reference: Reference = name.parse().unwrap();
    let client = Client::new(ClientConfig::default());
    runtime().block_on(client.resolve(&reference)).unwrap().map(|found| found.digest)
}

/// The layers that the index artifacts of an image cover.
fn indexed_layers(repository: &str, image: &Image) -> Vec<Digest> {
    let repository: Repository = repository.parse().unwrap();
    let client = Client::new(ClientConfig::default());
    let found = runtime().block_on(client.index_artifacts(&repository, &image.digest())).unwrap();
    found.iter().flat_map(|artifact| artifact.layers.iter().map(|layer| layer.layer)).collect()
}

#[test]
fn images_are_copied_whole_and_the_environment_names_the_copies() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let outcome = undercloud.prepare(&[]).success();
    assert_eq!(outcome.stdout, "", "the environment went to its file");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "a line per image: {lines:?}");
    assert!(lines[1].starts_with("[2/2] ") && lines[1].contains(": copied "), "{lines:?}");

    let host = destination.address();
    for (name, image) in ["nova-api", "keystone"].into_iter().zip(images()) {
        assert_eq!(digest_of(&format!("{host}/ns/{name}:latest")), Some(image.digest()));
    }
    assert_eq!(
        undercloud.environment(),
        [
            "parameter_defaults:".to_owned(),
            "  DockerInsecureRegistryAddress:".to_owned(),
            format!("  - {host}"),
            format!("  DockerKeystoneImage: {host}/ns/keystone:latest"),
            format!("  DockerNovaApiImage: {host}/ns/nova-api:latest"),
            format!("  DockerNovaConfigImage: {host}/ns/nova-api:latest"),
        ]
    );
}

#[test]
fn a_layer_that_images_share_moves_once() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    undercloud.prepare(&[]).success();
    let blob = format!("/blobs/{}", base_layer());
    let asked = source.requests().iter().filter(|request| request.path.contains(&blob)).count();
    assert_eq!(asked, 1);
    let bytes: u64 = images()
        .iter()
        .flat_map(|image| image.blobs.clone())
        .map(|(_, blob)| blob.len() as u64)
        .sum();
    let base = images()[0].layers()[0].1;
    assert_eq!(source.blob_bytes(), bytes - base);
}

#[test]
fn regression_an_entry_takes_its_images_from_where_an_earlier_one_has_put_them() {
    if no_docker_registry() {
        return;
    }
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = roots.each_ref().map(|root| destination(root.path()));
    let source = source();
    let again = format!(
        "{{push_destination: '{}', set: {{namespace: {}/ns, name_prefix: '', tag: latest}}}}",
        second.address(),
        first.address()
    );
    let undercloud = Undercloud::new(&format!("{}\n  - {again}", entry(&source, &first)));
    undercloud.prepare(&[]).success();
    for (name, image) in ["nova-api", "keystone"].into_iter().zip(images()) {
        for host in [first.address(), second.address()] {
            assert_eq!(digest_of(&format!("{host}/ns/{name}:latest")), Some(image.digest()));
        }
    }
    let named = format!("  DockerKeystoneImage: {}/ns/keystone:latest", second.address());
    assert!(undercloud.environment().contains(&named));
}

#[test]
fn an_unchanged_image_costs_no_upload() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, mut destination) = (source(), destination(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    for index in ["auto", "off"] {
        undercloud.prepare(&["--index", index]).success();
        let (writes, blob_bytes) =
            (requests(&mut destination, &["POST", "PUT", "PATCH"]), source.blob_bytes());
        let outcome = undercloud.prepare(&["--index", index]).success();
        assert_eq!(outcome.stderr.matches(": unchanged").count(), 2, "{}", outcome.stderr);
        assert_eq!(requests(&mut destination, &["POST", "PUT", "PATCH"]), writes);
        assert_eq!(source.blob_bytes(), blob_bytes);
    }
}

#[test]
fn each_copied_image_has_its_index() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let indexed = |name: &str, image: &Image| {
        indexed_layers(&format!("{}/ns/{name}", destination.address()), image)
    };
    let [nova, keystone] = images();
    undercloud.prepare(&["--index", "off"]).success();
    assert!(indexed("nova-api", &nova).is_empty());
    // What was copied without gets its index when it is wanted.
    undercloud.prepare(&[]).success();
    for (name, image) in [("nova-api", nova), ("keystone", keystone)] {
        let layers: Vec<_> = image.layers().into_iter().map(|(digest, _)| digest).collect();
        assert_eq!(indexed(name, &image), layers);
    }
}

#[test]
fn our_own_registry_is_a_destination_too() {
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), Registry::undermount(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    undercloud.prepare(&[]).success();
    for (name, image) in ["nova-api", "keystone"].into_iter().zip(images()) {
        let repository = format!("{}/ns/{name}", destination.address());
        assert_eq!(digest_of(&format!("{repository}:latest")), Some(image.digest()));
        assert_eq!(indexed_layers(&repository, &image).len(), 2);
    }
    let again = undercloud.prepare(&[]).success();
    assert_eq!(again.stderr.matches(": unchanged").count(), 2, "{}", again.stderr);
}

#[test]
fn labels_tell_the_tag() {
    if no_docker_registry() || lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker(root.path());
    let [nova, _] = images();
    for tag in ["13.0-40", "latest"] {
        registry.push_image(&nova, &format!("ns/nova-api:{tag}"));
    }
    let host = registry.address();
    let undercloud = Undercloud::new(&format!(
        "{{tag_from_label: '{{version}}-{{release}}', includes: [nova], \
          set: {{namespace: {host}/ns, name_prefix: '', tag: latest}}}}"
    ));
    undercloud.prepare(&[]).success();
    let line = format!("  DockerNovaApiImage: {host}/ns/nova-api:13.0-40");
    assert!(undercloud.environment().contains(&line));

    undercloud.prepare_file(&format!(
        "{{tag_from_label: version, includes: [nova], \
          set: {{namespace: {host}/ns, name_prefix: '', tag: latest}}}}"
    ));
    let before = undercloud.environment();
    let outcome = undercloud.prepare(&[]);
    let words = outcome.refusal();
    assert!(words.contains(&format!("Image {host}/ns/nova-api has no tag 13.0.")), "{words}");
    assert!(words.contains("Available tags: 13.0-40, latest"), "{words}");
    assert_eq!(undercloud.environment(), before, "the former file is untouched");
}

#[test]
fn regression_up_to_stein_only_images_with_all_of_the_labels_are_changed() {
    let source = source();
    let host = source.address();
    for (release, labels, is_changed) in [
        ("stein", "version, release", true),
        ("stein", "version, absent", false),
        ("queens", "version, absent", false),
        ("train", "version, absent", true),
        ("train", "absent", false),
    ] {
        let undercloud = Undercloud::new(&format!(
            "{{push_destination: h.invalid, modify_role: r, modify_append_tag: -x, \
              modify_only_with_labels: [{labels}], includes: [nova], \
              set: {{namespace: {host}/ns, name_prefix: '', tag: latest}}}}"
        ));
        undercloud.prepare(&["--dry-run", "--release", release]).success();
        let environment = undercloud.environment().join("\n");
        assert_eq!(environment.contains(":latest-x"), is_changed, "{release}: {environment}");
    }
}

#[test]
fn a_dry_run_tells_what_would_move_and_copies_nothing() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, mut destination) = (source(), destination(root.path()));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let host = destination.address().to_owned();
    let dry = ["--dry-run", "--output-images-file", "images.yaml"];
    let told = undercloud.prepare(&dry).success().stderr;
    assert_eq!(undercloud.environment().len(), 6);
    let list = fs::read_to_string(undercloud.path("images.yaml")).unwrap();
    assert_eq!(list.matches("push_destination: ").count(), 2, "{list}");
    assert!(requests(&mut destination, &["POST", "PUT", "PATCH"]).is_empty());
    // The base layer, 300,000 bytes of noise, counts once.
    assert_eq!(told.matches("come with images before it").count(), 1, "{told}");
    let total = format!("{host}: {:.2} KiB", bytes_to_move() as f64 / 1024.0);
    assert!(told.contains(&total), "{total} in {told}");
    assert!(told.contains(" to move and to store, each blob counted once"), "{told}");

    undercloud.prepare(&["--index", "off"]).success();
    let told = undercloud.prepare(&dry).success().stderr;
    assert!(told.contains(&format!("{host}/ns/keystone:latest: 0 B to move, ")), "{told}");
    assert!(told.contains(&format!("{host}: 0 B to move")), "{told}");

    source.down();
    let told = undercloud.prepare(&dry).success().stderr;
    assert!(told.contains(&format!("{host}/ns/nova-api:latest: image ")), "{told}");

    // A destination that is down is not asked image by image.
    undercloud.prepare_file(
        "{push_destination: '127.0.0.1:1', set: {namespace: h.invalid/ns, name_prefix: '', tag: t}}",
    );
    let told = undercloud.prepare(&dry).success().stderr;
    assert!(told.contains("127.0.0.1:1/ns/nova-api:t: 127.0.0.1:1 does not answer"), "{told}");
}

#[test]
fn other_tools_get_the_images_in_their_words() {
    let undercloud = Undercloud::new("{set: {namespace: h.invalid/ns, tag: t}}");
    let format = |tool: &str| {
        undercloud.prepare(&["--output-format", tool]).success();
        undercloud.environment().join("\n")
    };
    assert_eq!(
        format("kolla"),
        "keystone_image_full: h.invalid/ns/centos-binary-keystone:t\n\
         nova_api_image_full: h.invalid/ns/centos-binary-nova-api:t"
    );
    let edpm = format("edpm");
    assert!(edpm.contains("    keystoneAPIImage: h.invalid/ns/centos-binary-keystone:t"), "{edpm}");
    assert!(edpm.contains("\n---\n"), "{edpm}");
}

#[test]
fn malformed_yaml_is_refused_with_file_line_and_column() {
    let undercloud = Undercloud::new("{}");
    undercloud.write("prepare.yaml", "parameter_defaults:\n  ContainerImagePrepare: a: b\n");
    let words = undercloud.refusal(&[]);
    assert!(words.contains("prepare.yaml:2:"), "{words}");
    assert!(words.contains("malformed YAML"), "{words}");
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_anything_is_copied() {
    let source = source();
    let host = source.address();
    let undercloud = Undercloud::new(&format!(
        "{{push_destination: {host}, set: {{namespace: {host}/ns, name_prefix: '', tag: latest}}}}"
    ));
    let words = undercloud.refusal(&["--output-images-file", "absent/images.yaml"]);
    assert!(words.contains("cannot write absent/images.yaml"), "{words}");
    assert!(source.requests().is_empty());
}

#[test]
fn an_entry_that_matches_no_image_is_refused() {
    let undercloud = Undercloud::new("{includes: [no-such-image]}");
    let words = undercloud.refusal(&[]);
    assert!(words.contains("no image of the template is asked for"), "{words}");
}

#[test]
fn an_unreachable_registry_is_named() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    source.down();
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let words = undercloud.refusal(&[]);
    assert!(words.contains(&source.address()), "{words}");
    assert!(words.contains("2 of 2 images could not be copied"), "{words}");
}

#[test]
fn what_fails_is_told_and_the_rest_is_copied() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let destination = destination(root.path());
    let [nova, _] = images();
    let source = Origin::new();
    source.add("ns/nova-api", nova.clone());
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let words = undercloud.refusal(&[]);
    let (from, to) = (source.address(), destination.address());
    assert!(words.contains("1 of 2 images could not be copied"), "{words}");
    assert!(
        words.contains(&format!(
            "{to}/ns/keystone:latest: Not found image: {from}/ns/keystone:latest"
        )),
        "{words}"
    );
    assert_eq!(digest_of(&format!("{to}/ns/nova-api:latest")), Some(nova.digest()));

    let outcome = undercloud.prepare(&["--skip-missing"]).success();
    assert!(outcome.stderr.contains("left out: Not found image"), "{}", outcome.stderr);
    let environment = undercloud.environment().join("\n");
    assert!(environment.contains("DockerNovaApiImage") && !environment.contains("Keystone"));
}

#[test]
fn wrong_credentials_are_refused_and_never_told() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    source.require("alice", "right");
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let words = undercloud.refusal(&["--log", "trace"]);
    assert!(words.contains("wants credentials and none are configured"), "{words}");

    let prepare = fs::read_to_string(undercloud.path("prepare.yaml")).unwrap();
    for (password, works) in [("hunter2", false), ("right", true)] {
        let host = source.address();
        let login =
            format!("  ContainerImageRegistryCredentials: {{'{host}': {{alice: {password}}}}}\n");
        undercloud.write("prepare.yaml", &(prepare.clone() + &login));
        let outcome = undercloud.prepare(&["--log", "trace"]);
        assert!(!outcome.stderr.contains(password), "{}", outcome.stderr);
        if works {
            outcome.success();
        } else {
            let words = outcome.refusal();
            assert!(words.contains("refuses access with the credentials of alice: 401"), "{words}");
            undercloud.has_only_inputs();
        }
    }
}

#[test]
fn a_blob_with_other_bytes_is_not_passed_on() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, destination) = (source(), destination(root.path()));
    let blob = format!("/blobs/{}", base_layer());
    source.misbehave(move |request| request.path.contains(&blob).then_some(Fault::Wrong));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let words = undercloud.refusal(&[]);
    assert!(words.contains(&format!("blob {}", base_layer())), "{words}");
    assert!(words.contains("wrong bytes"), "{words}");
    let host = destination.address();
    assert_eq!(digest_of(&format!("{host}/ns/nova-api:latest")), None);
    assert!(!files_named(root.path(), &base_layer()), "the blob was stored");
}

fn files_named(root: &Path, digest: &Digest) -> bool {
    let files = undermount_tests::registry::files_below(root);
    files.iter().any(|(path, _)| path.to_string_lossy().contains(&digest.hex()))
}

#[test]
fn a_layer_that_ends_too_early_is_refused() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let destination = destination(root.path());
    let whole = Layer::of(&[Member::file("a", noise(2, 100_000))]);
    let cut = whole.blob.as_ref().unwrap().slice(..50_000);
    let damaged = Layer { digest: Digest::of(&cut), size: 50_000, blob: Some(cut), ..whole };
    let digest = damaged.digest;
    let source = source();
    source.add("ns/keystone", Image::from_layers(vec![damaged]));
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let words = undercloud.refusal(&[]);
    assert!(words.contains(&format!("layer {digest} of ")), "{words}");
    assert!(words.contains("truncated"), "{words}");
    assert_eq!(digest_of(&format!("{}/ns/keystone:latest", destination.address())), None);
}

#[test]
fn a_killed_run_leaves_nothing_half_done_and_the_next_one_finishes() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (source, mut destination) = (source(), destination(root.path()));
    let blob = format!("/blobs/{}", base_layer());
    source.misbehave(move |request| {
        let slowly = Fault::Trickle(1000, Duration::from_millis(100));
        request.path.contains(&blob).then_some(slowly)
    });
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let mut running = Running::start(&mut undercloud.command(&[]));
    destination.process().wait_for(SOON, |text| text.contains("POST").then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    running.kill();
    undercloud.has_only_inputs();
    let host = destination.address().to_owned();
    let name = |image: &str| format!("{host}/ns/{image}:latest");
    assert_eq!((digest_of(&name("nova-api")), digest_of(&name("keystone"))), (None, None));

    source.behave();
    undercloud.prepare(&[]).success();
    let [nova, keystone] = images();
    assert_eq!(digest_of(&name("nova-api")), Some(nova.digest()));
    assert_eq!(digest_of(&name("keystone")), Some(keystone.digest()));
}

#[test]
fn an_interrupted_run_says_so_and_leaves_nothing() {
    if no_docker_registry() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (source, mut destination) = (source(), destination(root.path()));
    let blob = format!("/blobs/{}", base_layer());
    source.misbehave(move |request| {
        let slowly = Fault::Trickle(1000, Duration::from_millis(100));
        request.path.contains(&blob).then_some(slowly)
    });
    let undercloud = Undercloud::new(&entry(&source, &destination));
    let mut command = undercloud.command(&[]);
    let mut running = Running::start(command.env("TMPDIR", scratch.path()));
    destination.process().wait_for(SOON, |text| text.contains("POST").then_some(()));
    running.signal(nix::sys::signal::Signal::SIGINT);
    let status = running.wait(SOON).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(running.stderr().contains("interrupted"), "{}", running.stderr());
    undercloud.has_only_inputs();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
