//! Real podman on images that it reads lazily: they live as any other.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::run;
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

const TOOLS: [&str; 8] = ["sh", "cat", "ls", "id", "stat", "mkdir", "rm", "getfattr"];

/// Bytes in each of the files that nobody reads.
const UNREAD: usize = 400_000;

/// A runnable image of eighteen layers: files that replace, hide and delete each other, and much
/// that nobody reads.
fn image() -> Image {
    let mut layers = vec![Layer::of(&userland(&TOOLS))];
    for n in 1..18_u64 {
        let mut members = vec![
            Member::dir("data"),
            Member::file(format!("data/own-{n}"), format!("layer {n}")),
            Member::file("data/last", format!("layer {n}")),
            Member::file(format!("data/unread-{n}"), noise(n, UNREAD)),
        ];
        match n {
            5 => members.push(Member::whiteout("data", "own-3")),
            9 => members.extend([Member::dir("etc"), Member::file("etc/nine", "9")]),
            12 => members.extend([Member::opaque("etc"), Member::file("etc/twelve", "12")]),
            _ => {}
        }
        layers.push(Layer::of(&members));
    }
    Image::from_layers(layers)
}

#[test]
fn an_image_of_eighteen_layers_is_pulled_run_changed_built_on_and_pushed() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let image = image();
    let reference = node.registry().push_image(&image, "test/many:1");

    let before = node.sent();
    node.run(&["pull", "--quiet", &reference]);
    let words = node.output(&reference, &["/bin/sh", "-c", "cat /data/last; ls /data /etc"]);
    let fetched = node.sent() - before;
    assert!(words.starts_with("layer 17"), "{words}");
    assert!(!words.contains("own-3") && words.contains("own-4"), "{words}");
    assert!(!words.contains("nine") && words.contains("twelve"), "{words}");
    let size = image.compressed_size();
    assert!(fetched < size / 2, "{fetched} bytes of {size} were fetched");
    assert_eq!(node.status()["store"]["refused"], json!({}));

    let script = "echo new > /data/new; rm /data/own-4; cat /data/own-7 > /data/own-8";
    node.run(&["run", "--name", "changed", &reference, "/bin/sh", "-c", script]);
    let diff = node.run(&["diff", "changed"]).stdout;
    for line in ["A /data/new", "D /data/own-4", "C /data/own-8"] {
        assert!(diff.lines().any(|found| found == line), "no `{line}` in {diff}");
    }
    node.run(&["commit", "--quiet", "changed", "localhost/committed"]);
    let words = "cat /data/new /data/own-8; ls /data";
    let words = node.output("localhost/committed", &["/bin/sh", "-c", words]);
    assert!(words.starts_with("new\nlayer 7") && !words.contains("own-4"), "{words}");

    let derived = format!("{}/test/derived:1", node.registry().address());
    let file = node.path("Containerfile");
    fs::write(&file, format!("FROM {reference}\nRUN /bin/sh -c 'echo built > /built'\n")).unwrap();
    let context = node.path("");
    node.run(&["build", "-t", &derived, "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    node.run(&["push", "--quiet", &derived]);
    node.run_ordinary(&["pull", "--quiet", &derived]);
    let eager = ["run", "--rm", &derived, "/bin/sh", "-c", "cat /built /data/own-16"];
    assert_eq!(node.run_ordinary(&eager).stdout, "built\nlayer 16");

    node.run(&["rm", "--all"]);
    node.run(&["rmi", "--all", "--force"]);
    assert_eq!(node.run(&["images", "--quiet"]).stdout, "");
    assert_eq!(node.output(&derived, &["/bin/cat", "/built"]), "built\n", "lazily, once more");
}

#[test]
fn a_layer_that_was_never_downloaded_is_pushed_to_another_registry() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let other = Podman::new();
    let image = image();
    let reference = node.registry().push_image(&image, "test/many:1");
    node.run(&["pull", "--quiet", &reference]);
    let copy = format!("{}/test/copy:1", other.registry().address());
    node.run(&["push", "--quiet", &reference, &copy]);
    // podman compresses again what it pushes; another one checks the DiffIDs of what it pulls.
    let words = other.run_ordinary(&["run", "--rm", &copy, "/bin/cat", "/data/last"]).stdout;
    assert_eq!(words, "layer 17");
    let id = ["image", "inspect", "--format", "{{.Id}}"];
    let own = node.run(&[&id[..], &[&reference]].concat()).stdout;
    assert_eq!(other.run_ordinary(&[&id[..], &[&copy]].concat()).stdout, own, "the same config");
}

#[test]
fn names_layers_and_digests_are_shared() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let base = vec![Layer::of(&userland(&TOOLS)), Layer::of(&[Member::file("base", "base")])];
    let with = |name: &str| {
        let mut layers = base.clone();
        layers.push(Layer::of(&[Member::file("own", name)]));
        Image::from_layers(layers)
    };
    let (one, two) = (with("one"), with("two"));
    let registry = node.registry();
    let first = registry.push_image(&one, "test/one:1");
    let second = registry.push_image(&two, "test/two:1");
    let alias = registry.push_image(&one, "test/alias:latest");
    let digest = format!("{}/test/one@{}", registry.address(), one.digest());
    for (reference, own) in [(&first, "one"), (&second, "two"), (&alias, "one"), (&digest, "one")] {
        let words = node.output(reference, &["/bin/cat", "/base", "/own"]);
        assert_eq!(words, format!("base{own}"), "{reference}");
    }
    node.run(&["rmi", &first]);
    for (reference, own) in [(&second, "two"), (&alias, "one"), (&digest, "one")] {
        assert_eq!(node.output(reference, &["/bin/cat", "/own"]), own, "{reference}");
    }
    assert_eq!(node.status()["store"]["refused"], json!({}));
}

#[test]
fn a_layer_that_an_image_lists_twice_is_podmans_to_pull() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let twice = Layer::of(&[Member::dir("same"), Member::file("same/file", "same")]);
    let layers = vec![
        Layer::of(&userland(&TOOLS)),
        twice.clone(),
        Layer::of(&[Member::dir("same"), Member::file("same/file", "other")]),
        twice,
    ];
    let reference = node.registry().push_image(&Image::from_layers(layers), "test/twice:1");
    assert_eq!(node.output(&reference, &["/bin/cat", "/same/file"]), "same");
    assert!(node.refused("repeated-layer") > 0);
    let words = run(node.undermount("explain").arg(&reference), PATIENCE).success().stdout;
    assert!(words.contains("lazy      2 of 4 layers"), "{words}");
    assert!(words.contains("podman pulls it: the image lists the layer more than once"), "{words}");
}

#[test]
fn an_image_without_an_index_is_pulled_as_ever() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let root = node.path("plain-registry");
    let plain = undermount_tests::registry::Registry::undermount_with(&root, &["--index", "off"]);
    let layers = vec![Layer::of(&userland(&TOOLS)), Layer::of(&[Member::file("file", "words")])];
    let reference = plain.push_image(&Image::from_layers(layers), "test/plain:1");
    assert_eq!(node.output(&reference, &["/bin/cat", "/file"]), "words");
    assert_eq!(node.refused("no-index"), 2);
}

#[test]
fn users_set_user_ids_and_capabilities_hold_in_containers_and_nobody_else_reaches_them() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let mut members = userland(&TOOLS);
    let copy = |name: &str, of: &str| {
        let original =
            members.iter().find(|member| member.path == format!("bin/{of}").into_bytes());
        let mut copy = original.unwrap().clone();
        copy.path = format!("bin/{name}").into_bytes();
        copy
    };
    // CAP_NET_BIND_SERVICE, permitted and effective (linux/capability.h, vfs_cap_data).
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    let able = copy("able", "cat").xattr("security.capability", capability);
    let becomes_root = copy("becomes-root", "id").mode(0o4755);
    let for_one = Member::file("for-one", "secret").mode(0o600).owner(1000, 1000);
    members.push(becomes_root);
    members.push(Member::char_device("nothing", 1, 3).mode(0o666));
    let layers = vec![
        Layer::of(&members),
        Layer::of(&[able, for_one, Member::file("x", "y").xattr("user.key", "value")]),
    ];
    let reference = node.registry().push_image(&Image::from_layers(layers), "test/rights:1");
    let as_user = |user: &str, command: &[&str]| {
        let arguments = [&["run", "--rm", "--user", user, &reference], command].concat();
        run(&mut node.command(&arguments), PATIENCE)
    };
    assert_eq!(as_user("1000:1000", &["/bin/id", "-u"]).success().stdout, "1000\n");
    assert_eq!(as_user("1000:1000", &["/bin/becomes-root", "-u"]).success().stdout, "0\n");
    assert_eq!(as_user("1000:1000", &["/bin/cat", "/for-one"]).success().stdout, "secret");
    assert!(!as_user("1001:1001", &["/bin/cat", "/for-one"]).status.success());
    let status = as_user("1000:1000", &["/bin/able", "/proc/self/status"]).success().stdout;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    assert_eq!(u64::from_str_radix(effective.trim(), 16).unwrap(), 1 << 10, "{status}");
    // The flags of our mounts, nosuid and nodev, are not those of the overlay above them.
    let open = ["run", "--rm", &reference, "/bin/cat", "/nothing"];
    assert_eq!(run(&mut node.ordinary_command(&open), PATIENCE).success().stdout, "");
    assert_eq!(run(&mut node.command(&open), PATIENCE).success().stdout, "", "the null device");
    let value = node.output(&reference, &["/bin/getfattr", "-n", "user.key", "/x"]);
    assert!(value.contains("user.key=\"value\""), "{value}");
    let names = node.output(&reference, &["/bin/getfattr", "-d", "/for-one"]);
    assert_eq!(names, "", "no extended attribute where there is none");

    // No program of the image is reachable from outside for anybody but root.
    for path in [node.store(), content_mounts(&node)] {
        let ls = format!("ls {}", path.display());
        let nobody = run(
            undermount_tests::process::program("setpriv").args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                &ls,
            ]),
            PATIENCE,
        );
        assert!(nobody.stderr.contains("Permission denied"), "{ls}: {}", nobody.stderr);
    }
}

/// Where the content mounts of the node's agent are.
fn content_mounts(node: &Podman) -> PathBuf {
    let cache = node.path("cache").canonicalize().unwrap();
    undermount::control::Runtime::of(&cache).content(false)
}

#[test]
fn a_lazy_container_is_the_same_tree_as_an_ordinary_one() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let mut layers = vec![
        userland(&["sh", "cat"]),
        vec![
            Member::dir("kinds").mode(0o2750).owner(7, 8),
            Member::file("kinds/empty", ""),
            Member::file("kinds/odd \n name", "x").mtime(5, 500).mode(0o6711),
            Member::symlink("kinds/link", "../nowhere"),
            Member::hardlink("kinds/hard", "kinds/empty"),
            Member::char_device("kinds/null", 1, 3),
            Member::block_device("kinds/block", 7, 9),
            Member::fifo("kinds/fifo"),
            Member::file("kinds/attr", "a").xattr("user.one", "1").xattr("user.two", [0, 255]),
            Member::dir("hidden"),
            Member::file("hidden/below", "below"),
            Member::dir("hidden/sub"),
            Member::file("hidden/sub/below", "below"),
            Member::file("gone", "gone"),
        ],
        vec![
            Member::opaque("hidden"),
            Member::dir("hidden").mode(0o711),
            Member::dir("hidden/sub"),
            Member::file("hidden/sub/above", "above"),
            Member::whiteout("", "gone"),
            Member::dir("replaced"),
        ],
    ];
    layers.push(vec![
        Member::dir("kinds").mode(0o2750).owner(7, 8),
        Member::whiteout("kinds", "null"),
        Member::file("kinds/late", noise(3, 3_000_000)),
    ]);
    let layers =
        layers.iter().map(|members| Layer::compressed(&Archive::of(members), Compression::Gzip));
    let image = Image::from_layers(layers.collect());
    let reference = node.registry().push_image(&image, "test/kinds:1");
    let expected = node.assert_like_an_ordinary_pull(&reference);
    assert!(expected.field("kinds/attr", "xattr:user.two").is_some());
    assert!(!expected.entries.contains_key("hidden/below"));
    assert_eq!(node.status()["store"]["refused"], json!({}));
}

#[test]
fn every_platform_of_a_manifest_list_can_be_pulled() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let shared = Layer::of(&userland(&TOOLS));
    let below =
        |name: &str| Layer::of(&[Member::dir("etc"), Member::file(format!("etc/{name}"), name)]);
    let above =
        Layer::of(&[Member::opaque("etc"), Member::dir("etc"), Member::file("etc/top", "")]);
    let image = |architecture: &str| {
        let layers = vec![shared.clone(), below(architecture), above.clone()];
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Image::assemble(layers, &config)
    };
    let layout = node.path("layout");
    for architecture in ["amd64", "arm64"] {
        image(architecture).write_layout(&layout, architecture);
    }
    let reference = push_list(&node, &layout, "test/list:1");
    for architecture in ["amd64", "arm64"] {
        node.run(&["pull", "--quiet", "--arch", architecture, &reference]);
        let arguments = ["run", "--rm", "--arch", architecture, &reference, "/bin/ls", "/etc"];
        let words = node.run(&arguments).stdout;
        assert!(words.contains("top"), "{architecture}: {words}");
        assert!(!words.contains("md64") && !words.contains("rm64"), "{architecture}: {words}");
    }
    assert_eq!(node.status()["store"]["refused"], json!({}));
}

/// Pushes all images of a layout under one name.
fn push_list(node: &Podman, layout: &std::path::Path, repository: &str) -> String {
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let manifests = index["manifests"].as_array_mut().unwrap();
    for entry in manifests {
        let architecture = entry["annotations"]["org.opencontainers.image.ref.name"].clone();
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry.as_object_mut().unwrap().remove("annotations");
    }
    index["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    let inner = index.to_string();
    let digest = undermount_fs::digest::Digest::of(inner.as_bytes());
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &inner).unwrap();
    let outer = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest,
            "size": inner.len(),
            "annotations": { "org.opencontainers.image.ref.name": "list" },
        }],
    });
    fs::write(&path, outer.to_string()).unwrap();
    let reference = format!("{}/{repository}", node.registry().address());
    let source = format!("oci:{}:list", layout.display());
    let target = format!("docker://{reference}");
    undermount_tests::registry::skopeo(&[
        "copy",
        "--all",
        "--quiet",
        "--dest-tls-verify=false",
        &source,
        &target,
    ]);
    reference
}
