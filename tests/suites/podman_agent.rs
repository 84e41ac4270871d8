//! What the agent can be asked for beside podman: prefetch, pin, drain, mounts.
#![allow(clippy::unwrap_used)]

use std::fs;

use undermount_tests::archive::{Member, noise};
use undermount_tests::image::{Image, Layer};
use undermount_tests::origin::Origin;
use undermount_tests::podman::{NEEDS, PATIENCE, Podman};
use undermount_tests::process::{SOON, eventually, run, undermount};
use undermount_tests::requirement::lacking;
use undermount_tests::userland::userland;

/// A runnable image with a file of its own.
fn image(name: &str, seed: u64) -> Image {
    Image::from_layers(vec![
        Layer::of(&userland(&["cat"])),
        Layer::of(&[Member::file("name", name), Member::file("bulk", noise(seed, 1_500_000))]),
    ])
}

#[test]
fn what_an_environment_file_names_is_prefetched_and_needs_no_registry() {
    if lacking(NEEDS) {
        return;
    }
    let mut node = Podman::new();
    let registry = node.registry();
    let one = registry.push_image(&image("one", 1), "test/one:1");
    let two = registry.push_image(&image("two", 2), "test/two:1");
    let host = registry.address().to_owned();
    let file = node.path("environment.yaml");
    let text = format!(
        "# Generated\nparameter_defaults:\n  ContainerOneImage: {one}\n  \
         ContainerTwoImage: {two}\n  DockerInsecureRegistryAddress:\n  - {host}\n"
    );
    fs::write(&file, text).unwrap();
    let told = run(node.undermount("prefetch").arg("--from").arg(&file), PATIENCE).success().stdout;
    assert!(told.contains(&format!("{one} sha256:")) && told.contains(&two), "{told}");

    let list = node.path("list");
    fs::write(&list, format!("{host}/test/missing:1\n{one}\n")).unwrap();
    let outcome = run(node.undermount("prefetch").arg("--from").arg(&list), PATIENCE);
    assert!(!outcome.status.success() && outcome.stderr.contains("test/missing:1"));
    assert!(outcome.stdout.starts_with(&one), "the others are fetched: {}", outcome.stdout);

    // podman itself asks the registry for the manifest; the layers are here.
    let before = node.sent();
    assert_eq!(node.output(&one, &["/bin/cat", "/name"]), "one");
    let fetched = node.sent() - before;
    assert!(fetched < 30_000, "{fetched} bytes");
    node.stop_registry();
    let arguments = ["run", "--rm", &one, "/bin/cat", "/bulk"];
    // What a command says is kept as text.
    let bulk = noise(1, 1_500_000);
    assert!(node.run(&arguments).stdout == String::from_utf8_lossy(&bulk));
}

#[test]
fn what_prepare_writes_is_what_prefetch_reads() {
    if lacking(NEEDS) {
        return;
    }
    let mut node = Podman::new();
    let (from, to) = (Origin::new(), node.registry().address().to_owned());
    for (name, seed) in [("one", 7), ("two", 8)] {
        from.add(&format!("test/{name}"), image(name, seed));
    }
    let dir = node.path("prepare");
    fs::create_dir(&dir).unwrap();
    let template = "container_images_template:\n\
        - {imagename: '{{namespace}}/one:{{tag}}', params: [ContainerOneImage]}\n\
        - {imagename: '{{namespace}}/two:{{tag}}', params: [ContainerTwoImage]}\n";
    fs::write(dir.join("template.j2"), template).unwrap();
    let entry = format!(
        "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: '{to}'\n    \
         set: {{namespace: {}/test, tag: latest}}\n",
        from.address()
    );
    fs::write(dir.join("prepare.yaml"), entry).unwrap();
    let mut prepare = undermount();
    prepare.current_dir(&dir).env("HOME", &dir).env_remove("XDG_STATE_HOME");
    prepare.args(["prepare", "-e", "prepare.yaml", "--template-file", "template.j2"]);
    run(prepare.args(["--output-env-file", "env.yaml"]), PATIENCE).success();
    let mut prefetch = node.undermount("prefetch");
    run(prefetch.arg("--from").arg(dir.join("env.yaml")), PATIENCE).success();
    let references = ["one", "two"].map(|name| format!("{to}/test/{name}:latest"));
    for reference in &references {
        node.run(&["pull", "--quiet", reference]);
    }
    node.stop_registry();
    for (reference, name) in references.iter().zip(["one", "two"]) {
        assert_eq!(node.output(reference, &["/bin/cat", "/name"]), name);
    }
}

#[test]
fn a_pinned_image_becomes_local_and_a_restart_remembers_it() {
    if lacking(NEEDS) {
        return;
    }
    let mut node = Podman::completing_within(1);
    let reference = node.registry().push_image(&image("pinned", 3), "test/pinned:1");
    let told = run(node.undermount("pin").arg(&reference), PATIENCE).success().stdout;
    assert!(told.starts_with("sha256:"), "{told}");
    let is_local = |node: &Podman| {
        let pin = node.status()["pins"][0].clone();
        pin["local_bytes"] == pin["content_bytes"] && pin["content_bytes"].as_u64() > Some(0)
    };
    eventually("the pinned image is local", PATIENCE, || is_local(&node));
    node.stop_registry();
    node.stop_agent();
    node.start_agent();
    eventually("the pin is remembered without a registry", PATIENCE, || is_local(&node));
    run(node.undermount("pin").arg("--undo").arg(&reference), SOON).success();
    assert!(node.status()["pins"].is_null());
    let outcome = run(node.undermount("pin").arg("--undo").arg(&reference), SOON);
    assert!(outcome.refusal().contains("is not pinned"), "{}", outcome.stderr);
}

#[test]
fn a_drained_agent_offers_nothing_new_and_tells_who_depends_on_it() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let used = node.registry().push_image(&image("used", 4), "test/used:1");
    let new = node.registry().push_image(&image("new", 5), "test/new:1");
    assert_eq!(node.output(&used, &["/bin/cat", "/name"]), "used");
    let dependants = || run(&mut node.undermount("drain"), SOON).success().stdout;
    eventually("podman's users are counted", SOON, || dependants() == format!("{used}\n"));
    assert_eq!(node.output(&new, &["/bin/cat", "/name"]), "new", "as without an agent");
    assert!(node.refused("drained") > 0);
    assert_eq!(dependants(), format!("{used}\n"));
    assert_eq!(node.output(&used, &["/bin/cat", "/name"]), "used", "what is used stays usable");
    node.run(&["rmi", "--all", "--force"]);
    eventually("podman's users are counted off", SOON, || dependants().is_empty());
    run(node.undermount("drain").arg("--undo"), SOON).success();
    let before = node.refused("drained");
    assert_eq!(node.output(&new, &["/bin/cat", "/name"]), "new");
    assert_eq!(node.refused("drained"), before);
}

#[test]
fn mount_and_status_use_the_agent() {
    if lacking(NEEDS) {
        return;
    }
    let node = Podman::new();
    let reference = node.registry().push_image(&image("mounted", 6), "test/mounted:1");
    let dir = node.path("mnt");
    fs::create_dir(&dir).unwrap();
    let worker = node.status()["worker"].clone();
    run(node.undermount("mount").arg(&reference).arg(&dir), PATIENCE).success();
    assert_eq!(fs::read_to_string(dir.join("name")).unwrap(), "mounted");
    let status = node.status();
    assert_eq!(status["worker"], worker, "no other process was started");
    assert_eq!(status["mounts"][0]["dir"].as_str(), dir.to_str());
    run(node.undermount("umount").arg(&dir), SOON).success();
    assert!(node.store_is_mounted(), "an agent stays");
}
