//! The wrapper that stands before the original `openstack`: what it hands to us, what to the
//! original, and how `undercloud install` gets its images. A stand-in takes the original's place.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use undermount_tests::process::{Outcome, SOON, binary, like, run};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// Says how it was called, and that it knows two flags.
const ORIGINAL: &str = "#!/bin/sh\necho \"original $*\"\ncase \" $* \" in *\" --help \"*) \
                        echo '-y, --yes --disable-container-prepare' ;; esac\n";
/// A roles file with one service.
const ROLES: &str =
    "[{name: Undercloud, CountDefault: 1, ServicesDefault: [OS::TripleO::Services::Keystone]}]";

/// A home directory with programs.
struct Undercloud(TempDir);

impl Undercloud {
    fn new() -> Self {
        let undercloud = Self(tempfile::tempdir().unwrap());
        undercloud.write("original", ORIGINAL);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(undercloud.path("original"), mode).unwrap();
        fs::create_dir(undercloud.path("bin")).unwrap();
        std::os::unix::fs::symlink(binary(), undercloud.path("bin/undermount")).unwrap();
        undercloud
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Heat templates of a release, which name images as it does.
    fn install_templates(&self, keystone: &str) {
        let directory = self.path("templates/deployment/keystone");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("keystone.yaml"), format!("parameters:\n  {keystone}:\n"))
            .unwrap();
        self.write("templates/roles_data_undercloud.yaml", ROLES);
    }

    /// Images of the registry `host`, and an undercloud.conf that asks for them with `more` lines.
    fn configure(&self, host: &str, more: &str) {
        let home = self.0.path().display();
        self.write(
            "images.yaml",
            &format!(
                "parameter_defaults:\n  ContainerImagePrepare:\n  - set:\n      \
                 namespace: {host}/ns\n      name_prefix: p\n      tag: t\n"
            ),
        );
        self.write(
            "undercloud.conf",
            &format!(
                "[DEFAULT]\ntemplates = {home}/templates\ncontainer_images_file = images.yaml\n\
                 custom_env_files = {home}/undermount-images.yaml\n{more}"
            ),
        );
    }

    fn command(&self, line: &str) -> Command {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("packaging");
        let mut command = Command::new(packaging.join("bin/openstack"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command.env("HOME", self.0.path()).env_remove("RUST_LOG").env_remove("TRIPLEO_COMPAT");
        command.env("UNDERMOUNT_ORIGINAL_OPENSTACK", self.path("original"));
        command.env("UNDERMOUNT_TRIPLEO_RELEASE_FILE", self.path("release"));
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        command
    }

    fn openstack(&self, line: &str) -> Outcome {
        run(&mut self.command(line), SOON)
    }
}

#[test]
fn commands_about_container_images_come_to_us_and_all_others_stay() {
    let undercloud = Undercloud::new();
    for line in [
        "tripleo container image prepare default --release zed",
        "--debug tripleo container image prepare default --release zed",
    ] {
        let said = undercloud.openstack(line).success().stdout;
        assert!(said.contains("\n  ContainerImagePrepare:\n"), "{said}");
    }
    let outcome = undercloud.openstack("overcloud container image prepare --set foo");
    assert!(outcome.refusal().contains("Malformed --set(foo)"));
    for line in ["server list -f value", "--debug overcloud deploy", "undercloud backup"] {
        assert_eq!(undercloud.openstack(line).success().stdout, format!("original {line}\n"));
    }
}

#[test]
fn an_undercloud_is_installed_with_the_images_that_we_prepared() {
    if lacking(&[Need::Program("awk")]) {
        return;
    }
    let undercloud = Undercloud::new();
    let registry = Registry::undermount(&undercloud.path("registry"));
    let host = registry.address();
    undercloud.install_templates("DockerKeystoneImage");
    undercloud.configure(host, "local_ip = 192.0.2.1/24\n[other]\nroles_file = /nonexistent\n");
    let outcome = undercloud.openstack("undercloud install --no-validations").success();
    let called = "original undercloud install --no-validations --disable-container-prepare\n";
    assert_eq!(outcome.stdout, called, "{}", outcome.stderr);
    let environment = undercloud.read("undermount-images.yaml");
    let (_, body) = environment.split_once("\n\n").unwrap();
    let keystone = format!("{host}/ns/p-keystone:t");
    assert_eq!(
        body,
        format!(
            "parameter_defaults:\n  DockerInsecureRegistryAddress:\n  - 192.0.2.1:8787\n  \
             - 192.168.24.3:8787\n  - {host}\n  DockerKeystoneConfigImage: {keystone}\n  DockerKeystoneImage: {keystone}\n\
             resource_registry:\n  \
             OS::TripleO::Services::ContainerImagePrepare: OS::Heat::None\n"
        )
    );

    // What cannot be prepared is not installed, and the images of before stay.
    undercloud.write("images.yaml", "parameter_defaults: [");
    let outcome = undercloud.openstack("undercloud upgrade -y");
    assert!(outcome.refusal().contains("images.yaml"), "{}", outcome.stderr);
    fs::remove_file(undercloud.path("images.yaml")).unwrap();
    let outcome = undercloud.openstack("undercloud upgrade -y");
    let words = "environment files that do not exist: images.yaml";
    assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    assert_eq!(undercloud.read("undermount-images.yaml"), environment);

    // Who does not ask for it gets the original.
    undercloud.write("undercloud.conf", "[DEFAULT]\n");
    let outcome = undercloud.openstack("undercloud upgrade -y").success();
    assert_eq!(outcome.stdout, "original undercloud upgrade -y\n");
    assert!(outcome.stderr.contains("does not name"), "{}", outcome.stderr);
}

/// An undercloud with templates of Train or later, and a registry without certificate.
fn undercloud_of_train(more: &str) -> (Undercloud, Registry) {
    let undercloud = Undercloud::new();
    let registry = Registry::undermount(&undercloud.path("registry"));
    undercloud.install_templates("ContainerKeystoneImage");
    undercloud.configure(registry.address(), more);
    (undercloud, registry)
}

#[test]
fn regression_the_installed_templates_tell_the_release_and_others_count_more() {
    if lacking(&[Need::Program("awk")]) {
        return;
    }
    let (undercloud, registry) = undercloud_of_train("container_insecure_registries = a:1, b:2\n");
    undercloud.openstack("undercloud install").success();
    let environment = undercloud.read("undermount-images.yaml");
    let keystone = format!("\n  ContainerKeystoneImage: {}/ns/p-keystone:t\n", registry.address());
    assert!(environment.contains(&keystone), "{environment}");
    let insecure = format!(
        ".ctlplane.localdomain\n  - 192.168.24.1\n  - 192.168.24.3\n  - a:1\n  - b:2\n  - {}\n",
        registry.address()
    );
    assert!(environment.contains(&insecure), "{environment}");
    let said = undercloud.openstack("tripleo container image prepare default").success().stdout;
    assert!(said.contains("quay.io/tripleomastercentos9"), "{said}");

    undercloud.write("release", "stein\n");
    undercloud.openstack("undercloud install").success();
    let environment = undercloud.read("undermount-images.yaml");
    assert!(environment.contains("\n  DockerKeystoneImage: "), "{environment}");
    run(undercloud.command("undercloud install").env("TRIPLEO_COMPAT", "wallaby"), SOON).success();
    let environment = undercloud.read("undermount-images.yaml");
    assert!(environment.contains("\n  ContainerKeystoneImage: "), "{environment}");

    fs::remove_file(undercloud.path("release")).unwrap();
    fs::remove_dir_all(undercloud.path("templates/deployment")).unwrap();
    let outcome = undercloud.openstack("undercloud install");
    let words = "cannot tell which release of TripleO this is";
    assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    assert!(!outcome.stdout.contains("original"), "{}", outcome.stdout);
}

#[test]
fn regression_the_roles_file_is_found_as_the_original_finds_it() {
    if lacking(&[Need::Program("awk")]) {
        return;
    }
    let (undercloud, _registry) = undercloud_of_train("roles_file = mine.yaml\n");
    let outcome = undercloud.openstack("undercloud install");
    assert!(outcome.refusal().contains("templates/mine.yaml"), "{}", outcome.stderr);
    undercloud.write("templates/mine.yaml", ROLES);
    undercloud.openstack("undercloud install").success();
    let environment = undercloud.read("undermount-images.yaml");
    assert!(environment.contains("ContainerKeystoneImage"), "{environment}");
    let none = "[{name: Undercloud, CountDefault: 1, ServicesDefault: []}]";
    undercloud.write("mine.yaml", none);
    undercloud.openstack("undercloud install").success();
    let environment = undercloud.read("undermount-images.yaml");
    assert!(!environment.contains("ContainerKeystoneImage"), "{environment}");
}

#[test]
fn regression_nothing_is_copied_in_a_dry_run_or_before_an_upgrade_is_confirmed() {
    if lacking(&[Need::Program("awk")]) {
        return;
    }
    let (undercloud, _registry) = undercloud_of_train("");
    let outcome = undercloud.openstack("undercloud install --dry-run").success();
    assert_eq!(outcome.stdout, "original undercloud install --dry-run\n");
    let outcome = undercloud.openstack("undercloud upgrade");
    assert!(outcome.refusal().contains("not confirmed"), "{}", outcome.stderr);
    assert!(!undercloud.path("undermount-images.yaml").exists());

    undercloud.write("yes", "y\n");
    let wrapper = undercloud.command("undercloud upgrade");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" <yes", "sh"]).arg(wrapper.get_program());
    let outcome = run(&mut like(command, &wrapper), SOON).success();
    let called = "original undercloud upgrade --yes --disable-container-prepare\n";
    assert_eq!(outcome.stdout, called, "{}", outcome.stderr);
    assert!(undercloud.path("undermount-images.yaml").exists());
}

#[test]
fn regression_what_the_original_reads_in_undercloud_conf_counts() {
    if lacking(&[Need::Program("awk")]) {
        return;
    }
    let (undercloud, registry) = undercloud_of_train("");
    // Nothing listens at the mirror.
    undercloud.write(
        "images.yaml",
        "parameter_defaults:\n  ContainerImagePrepare:\n  \
         - {set: {namespace: docker.io/ns, name_prefix: p}, tag_from_label: v}\n",
    );
    undercloud.write("more.yaml", "parameter_defaults: {ContainerImageRegistryCredentials: {}}\n");
    let home = undercloud.0.path().display().to_string();
    undercloud.write(
        "undercloud.conf",
        &format!(
            "[DEFAULT]\n# custom_env_files = /nonexistent\ntemplates : '{home}/templates'\n\
             container_images_file = \"images.yaml\"\n\
             custom_env_files = more.yaml , {home}/undermount-images.yaml ,\n  more.yaml\n\
             container_registry_mirror = http://127.0.0.1:1/\nadditional_architectures = ppc64le , x\n"
        ),
    );
    let outcome = undercloud.openstack("-v --debug undercloud install -q");
    assert!(outcome.refusal().contains("connection refused"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("cannot read"), "{}", outcome.stderr);

    undercloud.configure(registry.address(), "");
    let called = "original -v --debug undercloud install -q --disable-container-prepare\n";
    let outcome = undercloud.openstack("-v --debug undercloud install -q").success();
    assert_eq!(outcome.stdout, called, "{}", outcome.stderr);
}
