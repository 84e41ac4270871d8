//! `undermount prepare` where images come from files of this host: an air gap's archive, what
//! docker saved, podman's storage.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use undermount::image::{Reference, Repository};
use undermount::registry::client::{Client, ClientConfig};
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Outcome, SOON, run, undermount};
use undermount_tests::registry::{Registry, skopeo};
use undermount_tests::requirement::{Need, lacking};

const TEMPLATE: &str = "container_images_template:\n\
    - {imagename: '{{namespace}}/nova-api:{{tag}}', params: [NovaImage]}\n\
    - {imagename: '{{namespace}}/keystone:{{tag}}', params: [KeystoneImage]}\n";

/// An undercloud without a network, and its registry.
struct Isolated {
    directory: TempDir,
    registry: Registry,
}

impl Isolated {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::undermount(&directory.path().join("registry"));
        fs::write(directory.path().join("template.j2"), TEMPLATE).unwrap();
        Self { directory, registry }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn call(&self, line: &str) -> Outcome {
        let mut command = undermount();
        command.current_dir(self.directory.path()).env("HOME", self.directory.path());
        run(command.args(line.split_whitespace()), SOON)
    }

    /// Prepares the images of one entry that go to our registry, with `more` keys and flags.
    fn prepare(&self, set: &str, more: &str, flags: &str) -> Outcome {
        let destination = match more.contains("push_destination") {
            true => String::new(),
            false => format!("push_destination: '{}', ", self.registry.address()),
        };
        let text = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - {{{destination}{more} set: {{{set}}}}}\n"
        );
        fs::write(self.path("prepare.yaml"), text).unwrap();
        self.call(&format!(
            "prepare -e prepare.yaml --template-file template.j2 --output-env-file env.yaml {flags}"
        ))
    }

    /// What the environment says of nova.
    fn nova(&self) -> String {
        let text = fs::read_to_string(self.path("env.yaml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("  NovaImage: ")).unwrap();
        line.strip_prefix(self.registry.address()).unwrap().to_owned()
    }

    fn digest(&self, name: &str) -> Option<Digest> {
        let reference: Reference = format!("{}/{name}", self.registry.address()).parse().unwrap();
        let client = Client::new(ClientConfig::default());
        let found = Runtime::new().unwrap().block_on(client.resolve(&reference)).unwrap();
        found.map(|found| found.digest)
    }

    fn indexed_layers(&self, name: &str, image: &Image) -> usize {
        let repository: Repository = format!("{}/{name}", self.registry.address()).parse().unwrap();
        let client = Client::new(ClientConfig::default());
        let runtime = Runtime::new().unwrap();
        let found = runtime.block_on(client.index_artifacts(&repository, &image.digest())).unwrap();
        found.iter().map(|artifact| artifact.layers.len()).sum()
    }
}

fn images() -> [Image; 2] {
    let base = Layer::of(&[Member::file("base", noise(1, 100_000))]);
    ["nova-api", "keystone"].map(|name| {
        let own = Layer::of(&[Member::file("own", name)]);
        let labels = [("version", "13.0"), ("release", "40"), (name, "yes")];
        Image::with_labels(vec![base.clone(), own], &labels)
    })
}

/// A registry of the connected side: `ns/nova-api` and `ns/keystone` under three tags.
fn origin() -> Origin {
    let origin = Origin::new();
    for (name, image) in ["nova-api", "keystone"].into_iter().zip(images()) {
        origin.add(&format!("ns/{name}"), image);
    }
    origin
}

#[test]
fn a_set_that_was_prepared_elsewhere_is_prepared_again_from_its_archive() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let (origin, connected, isolated) = (origin(), Isolated::new(), Isolated::new());
    let far = origin.address().to_owned();
    connected.prepare(&format!("namespace: '{far}/ns', tag: latest"), "", "").success();
    let near = connected.registry.address().to_owned();
    for archive in [
        format!("oci:{}", isolated.text("set")),
        format!("oci-archive:{}", isolated.text("set.tar")),
    ] {
        let sources = format!("{near}/ns/nova-api:latest {near}/ns/keystone:latest");
        connected.call(&format!("image copy {sources} {archive}")).success();
    }
    drop((origin, connected));

    let [nova, _] = images();
    for (flags, place) in [
        (format!("--from oci:{}", isolated.text("set")), "one"),
        (format!("--from oci-archive:{}", isolated.text("set.tar")), "two"),
    ] {
        // The names are those of the registry that nobody reaches from here.
        let more = format!("push_destination: '{}/{place}',", isolated.registry.address());
        let set = format!("namespace: '{far}/ns', tag: latest");
        let planned = isolated.prepare(&set, &more, &format!("{flags} --dry-run")).success();
        assert!(
            planned.stderr.contains(&format!("{place}/ns/nova-api:latest")),
            "{}",
            planned.stderr
        );
        assert_eq!(isolated.digest(&format!("{place}/ns/nova-api:latest")), None);
        let outcome = isolated.prepare(&set, &more, &flags).success();
        // Nobody has to know the undercloud's name where no image goes there.
        assert!(!outcome.stderr.contains("control plane"), "{}", outcome.stderr);
        assert_eq!(isolated.nova(), format!("/{place}/ns/nova-api:latest"));
        assert_eq!(isolated.digest(&format!("{place}/ns/nova-api:latest")), Some(nova.digest()));
        assert_eq!(isolated.indexed_layers(&format!("{place}/ns/nova-api"), &nova), 2);
    }
    let set = format!("namespace: '{far}/ns', tag: other");
    let outcome = isolated.prepare(&set, "", &format!("--from oci:{}", isolated.text("set")));
    let words = outcome.refusal();
    assert!(words.contains("Not found image: oci:") && words.contains("keystone:other"), "{words}");
}

#[test]
fn labels_in_files_tell_the_tag() {
    let isolated = Isolated::new();
    let origin = origin();
    let far = origin.address().to_owned();
    for name in ["nova-api", "keystone"] {
        for tag in ["13.0-40", "current"] {
            let target = format!("oci:{}:q.example/ns/{name}:{tag}", isolated.text("set"));
            isolated.call(&format!("image copy {far}/ns/{name}:latest {target}")).success();
        }
    }
    drop(origin);
    let set = format!("namespace: 'oci:{}:q.example/ns', tag: current", isolated.text("set"));
    isolated.prepare(&set, "tag_from_label: '{version}-{release}',", "").success();
    assert_eq!(isolated.nova(), "/ns/nova-api:13.0-40");
    isolated.prepare(&set, "tag_from_label: absent,", "").success();
    assert_eq!(isolated.nova(), "/ns/nova-api:current");
    let outcome = isolated.prepare(&set, "tag_from_label: nova-api, includes: [nova],", "");
    let words = outcome.refusal();
    assert!(words.contains("has no tag yes.\nAvailable tags: 13.0-40, current"), "{words}");
    // Without a tag the last one stands in, where the release has it so.
    let more = format!("pull_source: 'oci:{}', tag_from_label: version,", isolated.text("set"));
    let outcome = isolated.prepare("namespace: q.example/ns", &more, "--release zed");
    let words = outcome.refusal();
    assert!(words.contains("has no tag 13.0."), "{words}");
}

#[test]
fn what_docker_saved_and_podman_stores_is_prepared() {
    if lacking(&[Need::Root, Need::Program("skopeo")]) {
        return;
    }
    let isolated = Isolated::new();
    for (name, image) in ["nova-api", "keystone"].into_iter().zip(images()) {
        let layout = isolated.path(name);
        image.write_layout(&layout, "t");
        let store = format!("[vfs@{}+{}]", isolated.text("store"), isolated.text("run"));
        for target in [
            format!(
                "docker-archive:{}:q.example/ns/{name}:t",
                isolated.text(&format!("{name}.tar"))
            ),
            format!("containers-storage:{store}localhost/ns/{name}:t"),
        ] {
            skopeo(&["copy", "--quiet", &format!("oci:{}:t", layout.display()), &target]);
        }
    }
    let saved = format!("--from docker-archive:{}", isolated.text("nova-api.tar"));
    isolated.prepare("namespace: q.example/ns, tag: t", "includes: [nova],", &saved).success();
    assert_eq!(isolated.nova(), "/ns/nova-api:t");
    let docker = isolated.digest("ns/nova-api:t").unwrap();

    // A layout for each image, as skopeo writes them.
    let set = format!("namespace: 'oci:{}', tag: t", isolated.directory.path().display());
    isolated.prepare(&set, "", "").success();
    assert_eq!(isolated.nova(), "/nova-api:t");
    let [nova, _] = images();
    assert_eq!(isolated.digest("nova-api:t"), Some(nova.digest()));
    assert_ne!(docker, nova.digest(), "docker's archive has no layer compressed");

    let store =
        format!("containers-storage:[vfs@{}+{}]", isolated.text("store"), isolated.text("run"));
    let more = format!("push_destination: '{}/stored',", isolated.registry.address());
    isolated.prepare(&format!("namespace: '{store}localhost/ns', tag: t"), &more, "").success();
    assert_eq!(isolated.nova(), "/stored/ns/nova-api:t");
    assert!(isolated.digest("stored/ns/keystone:t").is_some());
}

#[test]
fn files_that_do_not_do_are_refused() {
    let isolated = Isolated::new();
    fs::create_dir(isolated.path("empty")).unwrap();
    let from =
        |text: &str| isolated.prepare("namespace: n/ns, tag: t", "", &format!("--from {text}"));
    for (text, words) in [
        ("quay.io/ns", "`quay.io/ns` are no files with images: oci:DIR"),
        ("oci:set:ns/nova-api:t", "are no files with images"),
        ("oci:empty", "empty is not an OCI image layout: it has no index.json"),
        ("docker-archive:absent.tar", "cannot read absent.tar"),
    ] {
        let outcome = from(text);
        assert!(outcome.refusal().contains(words), "{text}: {}", outcome.stderr);
    }
    let outcome =
        isolated.prepare("namespace: 'oci:empty:ns', tag: t", "push_destination: null,", "");
    let words = outcome.refusal();
    assert!(
        words.contains(
            "oci:empty:ns/nova-api:t is read from files of this host, where no node can pull it: \
             give its entry a push_destination"
        ),
        "{words}"
    );
}
