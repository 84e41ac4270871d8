//! One layer above different ones: podman knows a layer by the name of an image and its digest,
//! and what an opaque directory hides depends on what is below.
#![allow(clippy::unwrap_used)]

use undermount_tests::archive::Member;
use undermount_tests::image::{Image, Layer};
use undermount_tests::podman::{NEEDS, Podman};
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

/// A layer that hides whatever is in /etc below it.
fn opaque() -> Layer {
    Layer::of(&[Member::opaque("etc"), Member::dir("etc"), Member::file("etc/top", "top")])
}

/// A base with one file in /etc.
fn base(name: &str) -> Layer {
    Layer::of(&[Member::dir("etc"), Member::file(format!("etc/{name}"), name)])
}

fn tools() -> Layer {
    Layer::of(&userland(&["sh", "ls", "cat", "getfattr", "rm", "mkdir"]))
}

/// What is in /etc, but for what podman puts there.
#[track_caller]
fn etc(node: &Podman, image: &str) -> Vec<String> {
    let words = node.output(image, &["/bin/ls", "/etc"]);
    let podmans = ["hostname", "hosts", "resolv.conf", "mtab"];
    let own = |name: &&str| !podmans.contains(name);
    words.lines().filter(own).map(str::to_owned).collect()
}

/// How the opaque layer is served, in the words of `explain`.
fn way(node: &Podman, reference: &str) -> String {
    let mut explain = node.undermount("explain");
    undermount_tests::process::run(explain.arg(reference), undermount_tests::podman::PATIENCE)
        .success()
        .stdout
}

#[test]
fn a_tag_that_is_rebuilt_on_another_base_and_rolled_back_shows_what_it_should() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let tools = tools();
    let on = |name: &str| Image::from_layers(vec![tools.clone(), base(name), opaque()]);
    let (old, new) = (on("old"), on("new"));
    let reference = node.registry().push_image(&old, "test/tag:1");
    node.run(&[
        "run",
        "--detach",
        "--name",
        "running",
        &reference,
        "/bin/sh",
        "-c",
        "while :; do :; done",
    ]);
    assert_eq!(etc(&node, &reference), ["top"]);
    assert!(way(&node, &reference).contains("as whiteouts"), "{}", way(&node, &reference));
    let old_id = node.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).stdout;

    node.registry().push_image(&new, "test/tag:1");
    // The layers of one pull share an answer of the registry; this is another pull.
    std::thread::sleep(std::time::Duration::from_secs(6));
    node.run(&["pull", "--quiet", &reference]);
    assert_eq!(etc(&node, &reference), ["top"], "the new image");
    assert_eq!(etc(&node, old_id.trim()), ["top"], "the old image, under the same path");
    assert!(way(&node, &reference).contains("as extended attributes"));

    let words = node.run(&["exec", "running", "/bin/ls", "/etc"]).stdout;
    assert!(words.contains("top") && !words.contains("old"), "a container from before: {words}");

    node.registry().push_image(&old, "test/tag:1");
    std::thread::sleep(std::time::Duration::from_secs(6));
    node.run(&["pull", "--quiet", &reference]);
    assert_eq!(etc(&node, &reference), ["top"], "rolled back");
}

#[test]
fn an_image_that_is_built_on_another_shows_its_own_layers_above_it() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let tools = tools();
    let lower = Image::from_layers(vec![tools.clone(), base("lower"), opaque()]);
    let upper = Image::from_layers(vec![
        tools.clone(),
        base("lower"),
        opaque(),
        Layer::of(&[Member::dir("etc"), Member::file("etc/between", "")]),
        Layer::of(&[Member::opaque("etc"), Member::dir("etc"), Member::file("etc/upper", "")]),
    ]);
    let first = node.registry().push_image(&lower, "test/lower:1");
    let second = node.registry().push_image(&upper, "test/upper:1");
    assert_eq!(etc(&node, &first), ["top"]);
    assert_eq!(etc(&node, &second), ["upper"]);
    assert_eq!(etc(&node, &first), ["top"]);
    assert_eq!(node.status()["store"]["refused"], serde_json::json!({}));
}

#[test]
fn layers_with_and_without_extended_attributes_mix_in_one_image() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let attr = Member::file("etc/attr", "").xattr("user.layer", "third").xattr("user.more", "x");
    let layers = vec![
        tools(),
        Layer::of(&[Member::dir("etc"), Member::file("etc/plain", "")]),
        Layer::of(&[Member::dir("etc").xattr("user.directory", "yes"), attr]),
        Layer::of(&[Member::dir("etc"), Member::file("etc/late", "")]),
    ];
    let reference = node.registry().push_image(&Image::from_layers(layers), "test/mixed:1");
    let dump = |path: &str| node.output(&reference, &["/bin/getfattr", "-d", "-m", "user", path]);
    let words = dump("/etc/attr");
    assert!(words.contains("user.layer=\"third\"") && words.contains("user.more=\"x\""), "{words}");
    assert_eq!(dump("/etc/plain"), "");
    assert_eq!(dump("/etc/late"), "");
    // The directory of the topmost layer counts, as in an ordinary pull.
    assert_eq!(dump("/etc"), "");
    let script = "rm -r /etc/attr && mkdir /etc/attr && echo x > /etc/attr/y && ls /etc/attr";
    assert_eq!(node.output(&reference, &["/bin/sh", "-c", script]), "y\n");
}

#[test]
fn a_marker_in_the_root_of_a_layer_hides_no_more_than_in_an_ordinary_pull() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let below = [Member::file("early", "e"), Member::dir("d"), Member::file("d/early", "e")];
    // The second one hides in a directory as well, and so is shown above these layers only.
    let root = [Member::opaque(""), Member::dir("d"), Member::file("d/late", "l")];
    let both = [Member::opaque(""), Member::opaque("d"), Member::dir("d"), Member::file("d/f", "")];
    for (name, upper, hides) in [("root", &root[..], false), ("both", &both[..], true)] {
        let layers = vec![Layer::of(&below), Layer::of(upper), base("above")];
        let image = Image::from_layers(layers);
        let reference = node.registry().push_image(&image, &format!("test/{name}:1"));
        let tree = node.assert_like_an_ordinary_pull(&reference);
        assert!(tree.entries.contains_key("early"), "{name}");
        assert_eq!(tree.entries.contains_key("d/early"), !hides, "{name}");
    }
    assert_eq!(node.status()["store"]["refused"], serde_json::json!({}));
}
