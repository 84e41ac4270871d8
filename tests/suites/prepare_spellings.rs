//! The original's spellings: `undermount tripleo container image …` and OSP 13's
//! `undermount overcloud container image …`, with the flags and the words that scripts know.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use undermount_tests::archive::Member;
use undermount_tests::golden::apache;
use undermount_tests::image::{Image, Layer};
use undermount_tests::process::{
    Outcome, Running, SOON, binary, eventually, program, run, undermount,
};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// Runs `undermount` with the words of `line`, in `directory`.
fn call(directory: &Path, line: &str) -> Outcome {
    let mut command = undermount();
    command.current_dir(directory).env("HOME", directory).args(line.split_whitespace());
    run(&mut command, SOON)
}

fn read(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

fn keystone() -> Image {
    let layer = Layer::of(&[Member::file("a", "1")]);
    Image::with_labels(vec![layer], &[("version", "13.0"), ("release", "38")])
}

/// A registry with an image under two tags, or nothing where programs are missing.
fn registry(root: &Path) -> Option<Registry> {
    if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
        return None;
    }
    let registry = Registry::docker(root);
    for tag in ["13.0", "13.0-38"] {
        registry.push_image(&keystone(), &format!("rhosp13/openstack-keystone:{tag}"));
    }
    Some(registry)
}

#[test]
fn the_default_list_is_printed_and_prepares() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let line = "tripleo container image prepare default --release zed --local-push-destination \
                --enable-registry-login --output-env-file cip.yaml";
    let printed = call(path, line).success().stdout;
    assert_eq!(printed, read(path, "cip.yaml"));
    for part in [
        "\n  - push_destination: true\n",
        "\n      namespace: quay.io/tripleomastercentos9\n",
        "\n      ceph_haproxy_tag: 2.3\n",
        "\n  ContainerImageRegistryLogin: true\n",
    ] {
        assert!(printed.contains(part), "{part} not in {printed}");
    }
    let first = read(path, "cip.yaml");
    let line = "tripleo container image prepare default --release zed --output-env-file cip.yaml";
    call(path, line).success();
    assert_eq!(read(path, "cip.yaml.backup"), first);
    let line = "tripleo container image prepare --release zed -e cip.yaml --dry-run \
                --output-env-file env.yaml --output-images-file images.yaml";
    std::fs::write(
        path.join("cip.yaml"),
        "parameter_defaults:\n  ContainerImagePrepare:\n  - set: {namespace: h.invalid/n, tag: t}\n",
    )
    .unwrap();
    call(path, line).success();
    assert_eq!(read(path, "images.yaml").matches("imagename: ").count(), 95);
    let environment = read(path, "env.yaml");
    assert!(environment.contains("\n  ContainerNovaApiImage: h.invalid/n/openstack-nova-api:t\n"));
}

#[test]
fn nothing_to_prepare_is_no_failure_in_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let text = "parameter_defaults:\n  ContainerImagePrepare:\n  - includes: [no-such-image]\n";
    std::fs::write(directory.path().join("cip.yaml"), text).unwrap();
    let line = "tripleo container image prepare -e cip.yaml --output-env-file env.yaml";
    call(directory.path(), line).success();
    assert!(read(directory.path(), "env.yaml").ends_with("\nparameter_defaults: {}\n"));
}

#[test]
fn refusals_have_the_originals_words() {
    let directory = tempfile::tempdir().unwrap();
    let entry = |entry: &str| {
        let text = format!("parameter_defaults:\n  ContainerImagePrepare:\n  - {entry}\n");
        std::fs::write(directory.path().join("cip.yaml"), text).unwrap();
    };
    std::fs::write(directory.path().join("list.yaml"), "uploads: [{push_destination: d}]").unwrap();
    entry("{push_destination: h.invalid, includes: [keystone], modify_role: r, multi_arch: true}");
    for (line, words) in [
        (
            "tripleo container image prepare -e cip.yaml --cleanup bogus",
            "--cleanup must be one of: full, partial, none",
        ),
        (
            "tripleo container image prepare -e cip.yaml --release zed",
            "Cannot run a modify role on multi-arch image",
        ),
        (
            "tripleo container image prepare -e absent.yaml --release zed",
            "cannot read the environment file absent.yaml",
        ),
        ("tripleo container image push h.invalid/a/b/c:t", "Invalid container"),
        (
            "overcloud container image upload --config-file list.yaml",
            "list.yaml: imagename is required",
        ),
        (
            "overcloud container image upload --config-file absent.yaml",
            "cannot read the image list absent.yaml",
        ),
        (
            "overcloud container image prepare --set foo",
            "Malformed --set(foo). Use the variable=value format.",
        ),
    ] {
        let outcome = call(directory.path(), line);
        let said = outcome.refusal();
        assert!(said.contains(words), "{line}: {said}");
    }
}

#[test]
fn changed_images_without_a_destination_have_the_originals_names_in_its_spelling_alone() {
    let directory = tempfile::tempdir().unwrap();
    let entry = "{modify_role: r, modify_append_tag: -x, includes: ['openstack-keystone:'], \
                 set: {namespace: h.invalid/ns, tag: t}}";
    let text = format!(
        "parameter_defaults:\n  LocalContainerRegistry: 127.0.0.1\n  ContainerImagePrepare:\n  - {entry}\n"
    );
    fs::write(directory.path().join("cip.yaml"), text).unwrap();
    let flags = "prepare -e cip.yaml --release zed --dry-run --output-env-file env.yaml";
    for (words, host) in [("tripleo container image ", "h.invalid"), ("", "127.0.0.1:8787")] {
        let outcome = call(directory.path(), &format!("{words}{flags}")).success();
        let name = format!("  ContainerKeystoneImage: {host}/ns/openstack-keystone:t-x\n");
        let environment = read(directory.path(), "env.yaml");
        assert!(environment.contains(&name), "{environment}");
        let warns =
            outcome.stderr.contains("entries that change images and have no push_destination");
        assert_eq!(warns, !words.is_empty(), "{}", outcome.stderr);
    }
}

#[test]
fn an_image_is_pushed_listed_and_shown() {
    let root = tempfile::tempdir().unwrap();
    let Some(source) = registry(&root.path().join("source")) else { return };
    let target = Registry::docker(&root.path().join("target"));
    let (from, to) = (source.address(), target.address());
    let empty = format!("tripleo container image list --registry-url {to}");
    assert_eq!(call(root.path(), &empty).success().stdout, "\n");
    let framed = call(root.path(), &format!("{empty} --print-empty")).success().stdout;
    assert!(framed.contains("| Image Name |"), "{framed}");
    let push = format!(
        "tripleo container image push --registry-url {to} --append-tag=-fix {from}/rhosp13/openstack-keystone:13.0"
    );
    call(root.path(), &push).success();
    let name = format!("docker://{to}/rhosp13/openstack-keystone:13.0-fix");
    for (flags, expected) in [
        ("-f value", format!("{name}\n")),
        ("-f csv", format!("\"Image Name\"\n\"{name}\"\n")),
        ("-f yaml", format!("- Image Name: {name}\n")),
        ("-f json --noindent", format!("[{{\"Image Name\": \"{name}\"}}]\n")),
        ("-f csv --quote minimal", format!("Image Name\n{name}\n")),
        ("-f value --sort-column Nope --sort-descending", format!("{name}\n")),
    ] {
        let list = format!("tripleo container image list --registry-url docker://{to} {flags}");
        assert_eq!(call(root.path(), &list).success().stdout, expected);
    }
    let list = format!("tripleo container image list --registry-url {to} -c Size");
    let outcome = call(root.path(), &list);
    assert!(outcome.refusal().contains("No recognized column names"), "{}", outcome.stderr);
    let delete = format!(
        "tripleo container image delete -y --registry-url {to} {to}/rhosp13/openstack-keystone:13.0-fix"
    );
    let outcome = call(root.path(), &delete);
    let words = outcome.refusal();
    assert!(words.contains("Deleting not supported via the registry API"), "{words}");
    let show =
        format!("tripleo container image show docker://{from}/rhosp13/openstack-keystone:13.0");
    let columns = call(root.path(), &format!("{show} -f shell -c Tag -c Labels")).success().stdout;
    assert_eq!(columns, "labels=\"{'release': '38', 'version': '13.0'}\"\ntag=\"13.0\"\n");
    let outcome = call(root.path(), &format!("{show}-absent"));
    let words = format!("Not found image: {from}/rhosp13/openstack-keystone:13.0-absent");
    assert!(outcome.refusal().contains(&words), "{}", outcome.stderr);
    let shown = call(root.path(), &show).success().stdout;
    assert!(shown.starts_with("{\n  \"Name\": "), "{shown}");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["Digest"], keystone().digest().to_string());
    assert_eq!(shown["Labels"]["release"], "38");
    assert_eq!(shown["Tag"], "13.0");
}

#[test]
fn regression_images_are_listed_in_the_order_of_the_catalog() {
    let root = tempfile::tempdir().unwrap();
    let Some(registry) = registry(root.path()) else { return };
    for name in ["ns/a-b", "ns/a"] {
        registry.push_image(&keystone(), &format!("{name}:t"));
    }
    let host = registry.address();
    let list = format!("tripleo container image list --registry-url {host} -f value");
    let listed = call(root.path(), &list).success().stdout;
    // Whole names would put `a-b:` before `a:`.
    let names = ["ns/a:t", "ns/a-b:t"].map(|name| format!("docker://{host}/{name}\n")).concat();
    assert!(listed.starts_with(&names), "{listed}");
}

/// Runs `undermount` with the words of `line` at a terminal, where somebody types `typed`.
fn at_a_terminal(directory: &Path, line: &str, typed: &str) -> Outcome {
    let mut command = program("sh");
    let undermount = format!("{} {line}", binary().display());
    command.arg("-c").arg(format!("printf '{typed}\\n' | script -qec '{undermount}' /dev/null"));
    command.current_dir(directory).env("HOME", directory);
    run(&mut command, SOON)
}

#[test]
fn an_image_is_deleted_only_if_somebody_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let line = "tripleo container image delete h.invalid/ns/name:t --registry-url h.invalid";
    let outcome = call(directory.path(), line);
    let words = outcome.refusal();
    for part in ["User interaction required, cannot confirm.", "Action not confirmed, exiting."] {
        assert!(words.contains(part), "{words}");
    }
    if lacking(&[Need::Program("script")]) {
        return;
    }
    let question = "Are you sure you want to delete this image [y/N]? ";
    for (typed, goes_on) in [("n", false), ("yes", true)] {
        // A terminal has one stream for everything.
        let said = at_a_terminal(directory.path(), line, typed).stdout;
        assert!(said.contains(question), "{said}");
        assert_eq!(!said.contains("Action not confirmed"), goes_on, "{said}");
        assert!(said.contains("error: "), "there is no such registry: {said}");
    }
}

#[test]
fn regression_an_image_of_another_registry_is_not_deleted_here() {
    let root = tempfile::tempdir().unwrap();
    let Some(source) = registry(&root.path().join("source")) else { return };
    let tree = root.path().join("tree");
    let server = apache::start(&tree);
    let to = server.address();
    let flags = format!("--registry-url {to} --image-serve-dir {}", tree.display());
    let name = "rhosp13/openstack-keystone:13.0";
    let push = format!("tripleo container image push {flags} {}/{name}", source.address());
    call(root.path(), &push).success();
    let delete = |host: &str| {
        call(root.path(), &format!("tripleo container image delete -y {flags} {host}/{name}"))
    };
    let tags = tree.join("v2/rhosp13/openstack-keystone/tags/list");
    delete("h.invalid").refusal();
    assert!(tags.exists());
    delete(&to).success();
    assert!(!tags.exists());
}

#[test]
fn what_the_original_takes_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let Some(source) = registry(&root.path().join("source")) else { return };
    let target = Registry::docker(&root.path().join("target"));
    let (from, to) = (source.address(), target.address());
    let push = format!(
        "tripleo container image push --cleanup --source-username alice --registry-url \
         docker://{to} docker://{from}/rhosp13/openstack-keystone:13.0"
    );
    let outcome = call(root.path(), &push).success();
    let words = "Skipping authentication - missing source password";
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    let discover = format!(
        "overcloud container image tag discover --tag-from-label version --image \
         docker://{to}/rhosp13/openstack-keystone:13.0"
    );
    assert_eq!(call(root.path(), &discover).success().stdout, "13.0\n");
}

#[test]
fn regression_flags_may_be_shortened_as_in_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let entries = "parameter_defaults: {ContainerImagePrepare: [{includes: [nothing]}]}";
    std::fs::write(path.join("cip.yaml"), entries).unwrap();
    let line = "tripleo container image prepare --environment-f cip.yaml --output-env env.yaml";
    call(path, line).success();
    assert!(read(path, "env.yaml").ends_with("parameter_defaults: {}\n"));
    let refused = call(path, "tripleo container image prepare --output e.yaml");
    assert!(refused.refusal().contains("unexpected argument '--output'"), "{}", refused.stderr);
}

#[test]
fn regression_the_last_of_repeated_flags_counts_and_lists_add_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let line = "overcloud container image prepare --namespace h.invalid/ns --tag=13.0 --tag=1.10 \
                --env-file a.yaml --output-env-file b.yaml --set name_prefix=p- \
                --set name_suffix=-s --exclude [^:]*(?<!nova-api-s):";
    let printed = call(path, line).success().stdout;
    let list = "container_images:\n- imagename: h.invalid/ns/p-nova-api-s:1.10\n";
    assert_eq!(printed, list);
    assert!(path.join("b.yaml").exists() && !path.join("a.yaml").exists());
    let printed = call(path, &format!("{line} --exclude nova-api")).success().stdout;
    assert_eq!(printed, "container_images: []\n");

    let entry = "[{includes: ['openstack-keystone:'], set: {namespace: h.invalid/ns, tag: t}, \
                 push_destination: true}]";
    for (name, parameter) in [
        ("cip.yaml", format!("ContainerImagePrepare: {entry}")),
        ("more.yaml", "LocalContainerRegistry: 127.0.0.2".to_owned()),
    ] {
        fs::write(path.join(name), format!("parameter_defaults: {{{parameter}}}")).unwrap();
    }
    let line = "tripleo container image prepare --release stein --release zed --dry-run --dry-run \
                -e cip.yaml --environment-file more.yaml --output-env-file c.yaml \
                --output-env-file d.yaml";
    call(path, line).success();
    let environment = read(path, "d.yaml");
    let image = "  ContainerKeystoneImage: 127.0.0.2:8787/ns/openstack-keystone:t\n";
    assert!(environment.contains(image) && !path.join("c.yaml").exists(), "{environment}");
}

#[test]
fn regression_a_missing_environment_file_is_an_empty_one_up_to_stein() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let text = "parameter_defaults: {ContainerImagePrepare: [{includes: [nothing]}]}";
    fs::write(path.join("cip.yaml"), text).unwrap();
    let flags = "prepare -e cip.yaml -e absent.yaml --output-env-file env.yaml";
    let call = |line: &str| call(path, &format!("{line} {flags}"));
    let warning = "there is no such environment file";
    let outcome = call("tripleo container image").success();
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    let outcome = call("overcloud container image").success();
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    let refusal = call("");
    assert!(refusal.refusal().contains("cannot read the environment file absent.yaml"));
}

#[test]
fn events_go_to_the_log_file_of_the_original_below_the_home_directory() {
    let directory = tempfile::tempdir().unwrap();
    let text = "parameter_defaults:\n  ContainerImagePrepare:\n  - includes: [no-such-image]\n";
    fs::write(directory.path().join("cip.yaml"), text).unwrap();
    let line = "tripleo container image prepare -e cip.yaml --output-env-file env.yaml --log-file";
    for _ in 0..2 {
        call(directory.path(), &format!("{line} prepare.log")).success();
    }
    let log = read(directory.path(), "prepare.log");
    assert_eq!(log.matches("no image of the template is asked for").count(), 2, "{log}");
    let outcome = call(directory.path(), &format!("{line} /nonexistent/prepare.log"));
    let words = outcome.refusal();
    assert!(words.contains("cannot write the log file /nonexistent/prepare.log"), "{words}");
}

#[test]
fn directories_of_environments_are_read_after_the_default_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir_all(path.join(".tripleo/environments")).unwrap();
    fs::create_dir(path.join("more")).unwrap();
    let entry = "[{includes: ['openstack-keystone:'], set: {namespace: h.invalid/ns, tag: t}, \
                 push_destination: true}]";
    let write = |name: &str, parameters: &str| {
        fs::write(path.join(name), format!("parameter_defaults: {{{parameters}}}")).unwrap();
    };
    write(
        ".tripleo/environments/a.yaml",
        &format!("ContainerImagePrepare: {entry}, LocalContainerRegistry: 127.0.0.3"),
    );
    write("more/b.yaml", "LocalContainerRegistry: 127.0.0.2");
    let line = "tripleo container image prepare --release zed --dry-run --environment-directory \
                more --output-env-file env.yaml";
    call(path, line).success();
    let environment = read(path, "env.yaml");
    let image = "  ContainerKeystoneImage: 127.0.0.2:8787/ns/openstack-keystone:t\n";
    assert!(environment.contains(image), "{environment}");
}

#[test]
fn regression_the_directory_that_the_environment_names_comes_after_the_others() {
    let directory = tempfile::tempdir().unwrap();
    for (name, address) in [("named", "127.0.0.2"), ("variable", "127.0.0.3")] {
        fs::create_dir(directory.path().join(name)).unwrap();
        let entry = "[{includes: ['openstack-keystone:'], set: {namespace: h.invalid/ns, tag: t}, \
                     push_destination: true}]";
        let text = format!(
            "parameter_defaults: {{ContainerImagePrepare: {entry}, LocalContainerRegistry: {address}}}"
        );
        fs::write(directory.path().join(name).join("a.yaml"), text).unwrap();
    }
    let mut command = undermount();
    command.current_dir(directory.path()).env("HOME", directory.path());
    command.env("TRIPLEO_ENVIRONMENT_DIRECTORY", "variable");
    let line =
        "tripleo container image prepare --release zed --dry-run --environment-directory named";
    let environment = run(command.args(line.split_whitespace()), SOON).success().stdout;
    assert!(environment.contains("127.0.0.3:8787/ns/openstack-keystone:t"), "{environment}");
}

#[test]
fn regression_a_file_that_cannot_be_written_is_told_before_registries_are_asked() {
    let directory = tempfile::tempdir().unwrap();
    let line =
        "overcloud container image prepare --namespace h.invalid/ns --tag-from-label version";
    for flag in ["--output-env-file", "--output-images-file"] {
        for path in [".", "absent/file.yaml"] {
            let outcome = call(directory.path(), &format!("{line} {flag} {path}"));
            assert!(outcome.refusal().contains(&format!("cannot write {path}")), "{outcome:?}");
        }
    }
}

#[test]
fn regression_an_upload_that_fails_speaks_of_no_environment_file() {
    let directory = tempfile::tempdir().unwrap();
    let list =
        "container_images:\n- imagename: 127.0.0.1:1/ns/a:t\n  push_destination: 127.0.0.1:1\n";
    fs::write(directory.path().join("images.yaml"), list).unwrap();
    let outcome =
        call(directory.path(), "overcloud container image upload --config-file images.yaml");
    let words = outcome.refusal();
    assert!(words.contains("1 of 1 images could not be copied\n"), "{words}");
    assert!(!words.contains("environment file"), "{words}");
}

#[test]
fn labels_are_discovered_as_in_osp_13() {
    let root = tempfile::tempdir().unwrap();
    let Some(registry) = registry(root.path()) else { return };
    let host = registry.address();
    let image = format!("{host}/rhosp13/openstack-keystone:13.0");
    let discover = |label: &str| {
        let line = "overcloud container image tag discover --image";
        call(root.path(), &format!("{line} {image} --tag-from-label {label}"))
    };
    assert_eq!(discover("{version}-{release}").success().stdout, "13.0-38\n");
    let outcome = discover("nope");
    let words = outcome.refusal();
    let expected = format!("Image {image} has no label nope. Available labels: release, version");
    assert!(words.contains(&expected), "{words}");
}

#[test]
fn flags_stand_for_an_entry_as_in_osp_13() {
    let root = tempfile::tempdir().unwrap();
    let Some(registry) = registry(&root.path().join("registry")) else { return };
    let host = registry.address();
    let path = root.path();
    std::fs::write(
        path.join("roles.yaml"),
        "- name: Controller\n  CountDefault: 1\n  ServicesDefault:\n  - OS::TripleO::Services::Keystone\n",
    )
    .unwrap();
    std::fs::write(
        path.join("services.yaml"),
        "resource_registry:\n  OS::TripleO::Services::Keystone: /t/docker/services/keystone.yaml\n",
    )
    .unwrap();
    let line = format!(
        "overcloud container image prepare --namespace={host}/rhosp13 --prefix=openstack- \
         --tag=13.0 --tag-from-label {{version}}-{{release}} --push-destination=h.invalid:8787 \
         -e services.yaml -r roles.yaml --output-env-file env.yaml"
    );
    let printed = call(path, &line).success().stdout;
    assert_eq!(
        printed,
        format!(
            "container_images:\n- imagename: {host}/rhosp13/openstack-keystone:13.0-38\n  \
             push_destination: h.invalid:8787\n"
        )
    );
    // Files that map no service to a container leave nothing.
    std::fs::write(path.join("none.yaml"), "parameter_defaults: {ControllerCount: 1}\n").unwrap();
    let line = line.replace("services.yaml", "none.yaml").replace("env.yaml", "none-env.yaml");
    assert_eq!(call(path, &line).success().stdout, "container_images: []\n");
    let environment = read(path, "env.yaml");
    let (_, body) = environment.split_once("\n\n").unwrap();
    assert_eq!(
        body,
        "parameter_defaults:\n  \
         DockerKeystoneConfigImage: h.invalid:8787/rhosp13/openstack-keystone:13.0-38\n  \
         DockerKeystoneImage: h.invalid:8787/rhosp13/openstack-keystone:13.0-38\n"
    );
}

#[test]
fn what_is_not_pushed_is_named_where_it_comes_from_as_in_osp_13() {
    let root = tempfile::tempdir().unwrap();
    let line = "overcloud container image prepare --namespace=ns.invalid --tag=t --pull-source=h.invalid \
                --output-env-file env.yaml --exclude [^:]*(?<!nova-api):";
    let printed = call(root.path(), line).success().stdout;
    assert_eq!(
        printed,
        "container_images:\n- imagename: ns.invalid/centos-binary-nova-api:t\n  pull_source: h.invalid\n"
    );
    let environment = read(root.path(), "env.yaml");
    assert!(environment.contains("DockerNovaApiImage: ns.invalid/centos-binary-nova-api:t\n"));
}

#[test]
fn files_of_a_directory_tell_the_services_too_as_in_osp_13() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("d")).unwrap();
    let services = "resource_registry: {Api: /t/docker/services/api.yaml}\n";
    std::fs::write(root.path().join("d/a.yaml"), services).unwrap();
    std::fs::write(root.path().join("none.yaml"), "[]\n").unwrap();
    let line = "overcloud container image prepare --namespace=h.invalid/ns --roles-file none.yaml";
    let count = |flags: &str| {
        let outcome = call(root.path(), &format!("{line} {flags}"));
        outcome.success().stdout.matches("imagename").count()
    };
    assert!(count("--pull-source= --tag-from-label=") > 80);
    assert_eq!(count("--environment-directory d"), 0);
}

#[test]
fn regression_without_roles_no_service_runs_as_in_osp_13() {
    let directory = tempfile::tempdir().unwrap();
    let services = "resource_registry: {Api: /t/docker/services/api.yaml}\n";
    fs::write(directory.path().join("services.yaml"), services).unwrap();
    let line =
        "overcloud container image prepare -e services.yaml --tag t --output-env-file env.yaml";
    for (flags, words) in [
        ("", "there are no roles"),
        ("--roles-file absent.yaml", "cannot read the roles file absent.yaml"),
    ] {
        let outcome = call(directory.path(), &format!("{line} {flags}")).success();
        assert_eq!(outcome.stdout, "container_images: []\n");
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        assert!(read(directory.path(), "env.yaml").ends_with("\nparameter_defaults: {}\n"));
    }
    fs::write(directory.path().join("roles.yaml"), "name: Controller\n").unwrap();
    let outcome = call(directory.path(), &format!("{line} -r roles.yaml"));
    assert!(outcome.refusal().contains("a roles file is a list"), "{}", outcome.stderr);
}

#[test]
fn lists_of_images_are_uploaded() {
    let root = tempfile::tempdir().unwrap();
    let Some(source) = registry(&root.path().join("source")) else { return };
    let target = Registry::docker(&root.path().join("target"));
    let (from, to) = (source.address(), target.address());
    let list = format!(
        "container_images:\n- imagename: {from}/rhosp13/openstack-keystone:13.0\n  push_destination: {to}/\n"
    );
    std::fs::write(root.path().join("images.yaml"), list).unwrap();
    call(root.path(), "overcloud container image upload --config-file images.yaml").success();
    let list = format!("tripleo container image list --registry-url {to} -f value");
    let listed = call(root.path(), &list).success().stdout;
    assert_eq!(listed, format!("docker://{to}/rhosp13/openstack-keystone:13.0\n"));
}

#[test]
fn kolla_is_asked_for_the_images_that_it_would_build() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    // Stands in for kolla-build: notes how it was called and prints a tree.
    let script = "#!/bin/sh\necho \"$@\" >called\ngrep -h list_dep \"$4\" >>called\n\
                  echo '{\"base\": [\"cron\", {\"openstack-base\": [\"nova-api\"]}]}'\n";
    let program = path.join("kolla-build");
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let list =
        "container_images: [{imagename: 'ns/centos-binary-nova-api:t'}, {imagename: a/cron}]";
    std::fs::write(path.join("images.yaml"), list).unwrap();
    std::fs::write(path.join("kolla.conf"), "[DEFAULT]\n").unwrap();
    let build = |flag: &str, search: &str| {
        let line = "overcloud container image build --config-file images.yaml \
                    --kolla-config-file kolla.conf";
        let mut command = undermount();
        command.current_dir(path).env("HOME", path).env("PATH", search);
        run(command.args(line.split_whitespace()).arg(flag), SOON)
    };
    let search = format!("{}:/usr/bin:/bin", path.display());
    let printed = build("--list-images", &search).success().stdout;
    assert_eq!(printed, "- base\n- cron\n- openstack-base\n- nova-api\n");
    let called = read(path, "called");
    assert!(called.starts_with("--config-file kolla.conf --config-file /"), "{called}");
    assert!(called.contains(" nova-api cron\nlist_dependencies=true"), "{called}");
    let printed = build("--list-dependencies", &search).success().stdout;
    assert_eq!(printed, "base:\n- cron\n- openstack-base:\n  - nova-api\n");
    let outcome = build("--list-images", "/nonexistent");
    let words = outcome.refusal();
    assert!(words.contains("`kolla-build` is needed and not installed"), "{words}");
}

#[test]
fn passwords_among_the_arguments_are_covered_at_once() {
    // A registry that takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut command = undermount();
    command.args(["tripleo", "container", "image", "list", "--registry-url", &address]);
    command.args(["--username", "alice", "--password", "hush-hush"]);
    let mut running = Running::start(&mut command);
    let path = format!("/proc/{}/cmdline", running.id());
    let arguments = || fs::read_to_string(&path).unwrap();
    eventually("the password is covered", SOON, || {
        arguments().contains("\0tripleo\0") && !arguments().contains("hush")
    });
    assert!(arguments().ends_with("alice\0--password\0*********\0"), "{}", arguments());
    running.kill();
}
