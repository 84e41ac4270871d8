//! `undermount image`: the images of registries and image-serve trees listed, described,
//! checked, repaired and deleted, and each refusal in its words.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use undermount_tests::archive::{Member, noise};
use undermount_tests::distribution::{Api, sha256};
use undermount_tests::image::{Image, Layer};
use undermount_tests::image_serve;
use undermount_tests::process::{Outcome, SOON, run, undermount};
use undermount_tests::registry::{Registry, files_below};
use undermount_tests::requirement::{Need, lacking};

fn image_of(seed: u64) -> Image {
    let file = Member::file(format!("file-{seed}"), noise(seed, 20_000));
    let labels = [("rdo_version", "v1"), ("name", "nova")];
    Image::with_labels(vec![Layer::of(&[Member::dir("d")]), Layer::of(&[file])], &labels)
}

/// A registry with images that are pushed without a program.
struct Fixture {
    root: tempfile::TempDir,
    registry: Registry,
}

impl Fixture {
    fn new(flags: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::undermount_with(root.path(), flags);
        Self { root, registry }
    }

    fn address(&self) -> &str {
        self.registry.address()
    }

    fn push(&self, image: &Image, repository: &str, tag: &str) {
        let api = Api(self.address().to_owned());
        for blob in image.blobs.values() {
            api.push_blob(repository, blob);
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        api.send("PUT", &path, &[], &image.manifest).expect(201);
    }

    /// The file of a blob or manifest.
    fn file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.root.path().join("blobs/sha256").join(&hex[..2]).join(hex)
    }
}

fn call(arguments: &[&str]) -> Outcome {
    let mut command = undermount();
    // No credentials of the machine's user.
    command.env("REGISTRY_AUTH_FILE", "/nonexistent/auth.json");
    run(command.arg("image").args(arguments), SOON)
}

fn output(arguments: &[&str]) -> String {
    call(arguments).success().stdout
}

fn json_of(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(&[arguments, &["--json"]].concat())).unwrap()
}

/// A tree with the same images as [`Fixture`] would have, and its name as a place.
fn tree(images: &[(&Image, &str, &str)]) -> (tempfile::TempDir, String) {
    let root = tempfile::tempdir().unwrap();
    for (image, repository, tag) in images {
        image_serve::write(root.path(), image, repository, tag);
    }
    let place = format!("image-serve:{}", root.path().display());
    (root, place)
}

fn size(image: &Image) -> usize {
    image.blobs.values().map(|blob| blob.len()).sum()
}

#[test]
fn images_are_listed_with_digests_and_sizes() {
    let (one, two) = (image_of(1), image_of(2));
    let f = Fixture::new(&[]);
    f.push(&one, "ns/nova", "t1");
    f.push(&two, "ns/nova", "t2");
    f.push(&two, "b", "latest");
    let (_root, place) =
        tree(&[(&one, "ns/nova", "t1"), (&two, "ns/nova", "t2"), (&two, "b", "latest")]);
    let entry = |image: &Image, repository: &str, tag: &str| {
        json!({
            "repository": repository, "tag": tag,
            "digest": image.digest(), "size": size(image),
        })
    };
    let nova = [entry(&one, "ns/nova", "t1"), entry(&two, "ns/nova", "t2")];
    let all = [entry(&two, "b", "latest"), nova[0].clone(), nova[1].clone()];
    for place in [f.address(), place.as_str()] {
        assert_eq!(json_of(&["list", place]), json!(all), "{place}");
    }
    assert_eq!(json_of(&["list", &format!("{}/ns/nova", f.address())]), json!(nova));
    assert_eq!(json_of(&["list", &format!("{place}:ns/nova")]), json!(nova));
    let text = output(&["list", &place]);
    assert!(text.lines().count() == 3 && text.starts_with(&format!("{place}:b:latest")), "{text}");
}

#[test]
fn an_image_is_shown_with_its_index_labels_and_tags() {
    let image = image_of(3);
    let f = Fixture::new(&[]);
    f.push(&image, "ns/nova", "t1");
    f.push(&image, "ns/nova", "t2");
    let name = format!("{}/ns/nova:t1", f.address());
    let shown = json_of(&["show", &name]);
    assert_eq!(shown["digest"], json!(image.digest()));
    assert_eq!(shown["labels"], json!({ "name": "nova", "rdo_version": "v1" }));
    assert_eq!((&shown["tags"], &shown["size"]), (&json!(["t1", "t2"]), &json!(size(&image))));
    let layers: Vec<_> = image.layers().iter().map(|(digest, _)| json!(digest)).collect();
    let listed = shown["layers"].as_array().unwrap();
    assert_eq!(listed.iter().map(|layer| layer["digest"].clone()).collect::<Vec<_>>(), layers);
    assert_eq!(shown["index"]["present"]["layers"], 2);
    let text = output(&["show", &name]);
    for line in ["(2 layers, 0 packs)", "label     rdo_version=v1", "tags      t1, t2"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (_root, place) = tree(&[(&image, "ns/nova", "t1")]);
    let shown = json_of(&["show", &format!("{place}:ns/nova:t1")]);
    assert_eq!((&shown["digest"], &shown["index"]), (&json!(image.digest()), &json!("none")));
}

#[test]
fn the_tag_that_the_labels_tell_is_found() {
    let image = image_of(4);
    let f = Fixture::new(&[]);
    for tag in ["current", "v1"] {
        f.push(&image, "ns/nova", tag);
    }
    let name = format!("{}/ns/nova:current", f.address());
    assert_eq!(output(&["discover", &name, "--tag-from-label", "rdo_version"]), "v1\n");
    for (flags, words) in [
        (
            &["--tag-from-label", "other"][..],
            "has no label other. Available labels: name, rdo_version",
        ),
        (&["--tag-from-label", "name"][..], "has no tag nova.\nAvailable tags: current, v1"),
        (&[][..], "No label specified. Available labels: name, rdo_version"),
    ] {
        let outcome = call(&[&["discover", &name], flags].concat());
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    }
}

#[test]
fn a_tag_is_deleted_alone_and_a_digest_with_all_its_tags() {
    let image = image_of(5);
    let f = Fixture::new(&["--index", "off"]);
    for tag in ["t1", "t2", "t3"] {
        f.push(&image, "ns/nova", tag);
    }
    let tags = || -> Vec<String> {
        let listed = json_of(&["list", f.address()]);
        listed
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["tag"].as_str().unwrap().into())
            .collect()
    };
    output(&["delete", &format!("{}/ns/nova:t1", f.address())]);
    assert_eq!(tags(), ["t2", "t3"]);
    output(&["delete", &format!("{}/ns/nova@{}", f.address(), image.digest())]);
    assert_eq!(tags(), [""; 0]);
    let again = call(&["delete", &format!("{}/ns/nova:t1", f.address())]);
    assert!(again.refusal().contains("not found"), "{}", again.stderr);
    let (root, place) = tree(&[(&image, "ns/nova", "t1")]);
    output(&["delete", &format!("{place}:ns/nova:t1")]);
    assert_eq!(json_of(&["list", &place]), json!([]));
    assert_eq!(files_below(&root.path().join("v2/ns")), []);
    let again = call(&["delete", &format!("{place}:ns/nova:t1")]);
    assert!(again.refusal().contains("the tree has no"), "{}", again.stderr);
    let by_digest = call(&["delete", &format!("{place}:ns/nova@{}", image.digest())]);
    assert!(
        by_digest.refusal().contains("name an image of a tree by its tag"),
        "{}",
        by_digest.stderr
    );
}

#[test]
fn a_registry_that_deletes_no_tags_is_asked_only_if_all_may_go() {
    if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::docker_with(root.path(), |config| {
        config["storage"]["delete"] = json!({ "enabled": true });
    });
    let name = registry.push_image(&image_of(6), "ns/nova:t1");
    let refused = call(&["delete", &name]);
    assert!(refused.refusal().contains("--all-tags deletes the image"), "{}", refused.stderr);
    output(&["delete", "--all-tags", &name]);
    assert_eq!(json_of(&["list", registry.address()]), json!([]));
}

/// Flips a byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_in_a_registry_is_found_and_repaired_from_another() {
    let (one, two) = (image_of(7), image_of(8));
    let (damaged, whole) = (Fixture::new(&[]), Fixture::new(&["--index", "off"]));
    for f in [&damaged, &whole] {
        f.push(&one, "ns/nova", "t1");
        f.push(&two, "ns/glance", "t1");
    }
    let counts = json_of(&["verify", damaged.address()]);
    assert_eq!((&counts["damage"], &counts["manifests"]), (&json!([]), &json!(4)), "with indexes");
    // A layer that both images have, taken from one of their repositories.
    let shared = one.layers()[0].0.to_string();
    let api = Api(damaged.address().to_owned());
    api.send("DELETE", &format!("/v2/ns/nova/blobs/{shared}"), &[], b"").expect(202);
    let lacking = call(&["verify", damaged.address()]);
    assert!(
        lacking.stdout.contains(&format!("ns/nova:t1: {shared}: not found")),
        "{}",
        lacking.stdout
    );
    output(&["verify", damaged.address(), "--from", whole.address()]);
    let layer = one.layers()[1].0.to_string();
    damage(&damaged.file(&layer));
    let lost = two.layers()[1].0.to_string();
    fs::remove_file(damaged.file(&lost)).unwrap();
    damage(&damaged.file(&two.digest().to_string()));
    let found = call(&["verify", damaged.address(), "--json"]);
    assert_eq!(found.status.code(), Some(1), "{}", found.stderr);
    let report: Value = serde_json::from_str(&found.stdout).unwrap();
    let mut images: Vec<_> =
        report["damage"].as_array().unwrap().iter().map(|damage| damage["image"].clone()).collect();
    images.sort_by_key(Value::to_string);
    // The manifest that is damaged hides the layer that is lost.
    assert_eq!(images, ["ns/glance:t1", "ns/nova:t1"]);
    let text = output(&["verify", damaged.address(), "--from", whole.address()]);
    assert_eq!(text.matches("repaired").count(), 3, "{text}");
    assert!(text.contains(" 0 damaged"), "{text}");
    assert_eq!(json_of(&["verify", damaged.address()])["damage"], json!([]));
    assert_eq!(sha256(&fs::read(damaged.file(&layer)).unwrap()), layer);
}

#[test]
fn damage_in_a_tree_is_found_and_repaired_from_a_registry() {
    let image = image_of(9);
    let whole = Fixture::new(&["--index", "off"]);
    whole.push(&image, "ns/nova", "t1");
    let (root, place) = tree(&[(&image, "ns/nova", "t1")]);
    let base = root.path().join("v2/ns/nova");
    let layer = base.join(format!("blobs/{}.gz", image.layers()[0].0));
    damage(&layer);
    let config =
        image.blobs.keys().find(|blob| image.layers().iter().all(|(layer, _)| layer != *blob));
    fs::remove_file(base.join(format!("blobs/{}", config.unwrap()))).unwrap();
    let found = call(&["verify", &place]);
    assert_eq!(found.status.code(), Some(1), "{}", found.stderr);
    assert_eq!(
        found.stdout.matches(&format!("damaged {place}:ns/nova:t1")).count(),
        2,
        "{}",
        found.stdout
    );
    output(&["verify", &place, "--from", whole.address()]);
    let again = output(&["verify", &format!("{place}:ns/nova:t1")]);
    assert!(again.contains("1 manifests, 3 blobs"), "{again}");
    damage(&base.join(format!("manifests/{}/index.json", image.digest())));
    assert_eq!(call(&["verify", &place]).status.code(), Some(1));
    output(&["verify", &place, "--from", whole.address()]);
    assert_eq!(json_of(&["verify", &place])["damage"], json!([]));
}

#[test]
fn garbage_is_collected_in_a_directory_and_through_a_registry_that_runs() {
    let image = image_of(10);
    let f = Fixture::new(&["--index", "off"]);
    f.push(&image, "ns/nova", "t1");
    output(&["delete", &format!("{}/ns/nova@{}", f.address(), image.digest())]);
    let counted = json_of(&["gc", f.address(), "--grace", "0", "--dry-run"]);
    assert_eq!(counted["blobs"], 4);
    let root = f.root.path().to_str().unwrap().to_owned();
    let busy = call(&["gc", &root]);
    assert!(busy.refusal().contains("is served by another registry process"), "{}", busy.stderr);
    let text = output(&["gc", f.address(), "--grace", "0"]);
    assert!(text.starts_with("removed 0 manifests and 4 blobs"), "{text}");
    f.push(&image, "ns/nova", "t1");
    f.push(&image_of(11), "ns/nova", "t1");
    let Fixture { root: directory, registry } = f;
    drop(registry);
    let text = output(&["gc", &root, "--grace", "0", "--untagged", "--dry-run"]);
    assert!(text.starts_with("would remove 1 manifests"), "{text}");
    assert_eq!(json_of(&["gc", &root, "--grace", "0", "--untagged"])["manifests"], 1);
    drop(directory);
    let gone = call(&["gc", &root]);
    assert!(gone.refusal().contains("is no registry's directory"), "{}", gone.stderr);
}

/// The artifacts that belong to an image.
fn index_artifacts(address: &str, repository: &str, image: &Image) -> usize {
    let path = format!("/v2/{repository}/referrers/{}", image.digest());
    let listed = Api(address.to_owned()).get(&path).json();
    listed["manifests"].as_array().unwrap().len()
}

#[test]
fn a_set_of_images_goes_through_an_archive_with_its_indexes() {
    let images = [image_of(20), image_of(21)];
    let (here, there) = (Fixture::new(&[]), Fixture::new(&["--index", "off"]));
    let names = ["ns/nova:t1", "ns/glance:t1"].map(|name| format!("{}/{name}", here.address()));
    here.push(&images[0], "ns/nova", "t1");
    here.push(&images[1], "ns/glance", "t1");
    let directory = tempfile::tempdir().unwrap();
    let archive = format!("oci-archive:{}", directory.path().join("set.tar").display());
    output(&["copy", &names[0], &names[1], &archive]);
    output(&["push", &archive, there.address()]);
    for (image, repository) in images.iter().zip(["ns/nova", "ns/glance"]) {
        let shown = json_of(&["show", &format!("{}/{repository}:t1", there.address())]);
        assert_eq!(shown["digest"], json!(image.digest()));
        assert_eq!(shown["index"]["present"]["layers"], 2);
        assert_eq!(index_artifacts(there.address(), repository, image), 1);
    }
    assert_eq!(json_of(&["verify", there.address()])["damage"], json!([]));
    let again = call(&["copy", &names[0], &format!("{}/ns/nova:t1", there.address())]).success();
    assert!(again.stderr.contains("unchanged"), "{}", again.stderr);
}

#[test]
fn a_copy_says_what_failed_and_does_the_rest() {
    let f = Fixture::new(&[]);
    f.push(&image_of(22), "ns/nova", "t1");
    let (there, lost) = (Fixture::new(&[]), format!("{}/ns/lost:t1", f.address()));
    let name = format!("{}/ns/nova:t1", f.address());
    let outcome = call(&["copy", &lost, &name, there.address()]);
    for words in ["1 of 2 images could not be copied", "ns/lost:t1: Not found image"] {
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    }
    assert_eq!(json_of(&["list", there.address()]).as_array().unwrap().len(), 1);
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let f = Fixture::new(&["--push", "none"]);
    let empty = tempfile::tempdir().unwrap();
    let empty = format!("image-serve:{}", empty.path().display());
    let (address, image) = (f.address(), format!("{}/a:t", f.address()));
    for (arguments, words) in [
        (&["list", "image-serve:"][..], "names no registry (HOST[:PORT]) and no tree"),
        (&["list", &empty][..], "is no image-serve tree: it has no directory `v2`"),
        (&["list", "127.0.0.1:1"][..], "connection refused"),
        (&["show", address][..], "names no image: add its path and tag"),
        (&["show", &image][..], "not found"),
        (&["delete", &image][..], "this registry is read-only"),
        (&["verify", address, "--from", &image][..], "--from is a registry or tree"),
        (&["gc", address][..], "this registry is read-only"),
        (&["push", &image, address][..], "is in a registry: use `image copy`"),
        (&["push", "oci:/nonexistent", "oci:/x"][..], "is no registry: use `image copy`"),
        (&["copy", "oci:", address][..], "`oci:` names no file or directory"),
        (&["copy", "oci:/nonexistent", address][..], "/nonexistent"),
    ] {
        let outcome = call(arguments);
        assert!(outcome.refusal().contains(words), "{arguments:?}: {}", outcome.stderr);
    }
}
