//! The wrapper that stands before the original `openstack`: what it hands to us, what to the
//! original, and how `undercloud install` gets its images. A stand-in takes the original's place.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use undermount_tests::process::{Outcome, SOON, binary, run};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// Says how it was called, and that it knows one flag.
const ORIGINAL: &str = "#!/bin/sh\necho \"original $*\"\n\
                        case \" $* \" in *\" --help \"*) echo --disable-container-prepare ;; esac\n";

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

    fn openstack(&self, line: &str) -> Outcome {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("packaging");
        let mut command = Command::new(packaging.join("bin/openstack"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command.env("HOME", self.0.path()).env_remove("RUST_LOG");
        command.env("UNDERMOUNT_ORIGINAL_OPENSTACK", self.path("original"));
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        run(&mut command, SOON)
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
    let home = undercloud.0.path().display().to_string();
    let registry = Registry::undermount(&undercloud.path("registry"));
    let host = registry.address();
    undercloud.write(
        "images.yaml",
        &format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - set: {{namespace: '{host}/ns', tag: t}}\n"
        ),
    );
    undercloud.write(
        "roles.yaml",
        "[{name: Undercloud, CountDefault: 1, ServicesDefault: [OS::TripleO::Services::Keystone]}]",
    );
    let settings = format!(
        "[DEFAULT]\nlocal_ip = 192.0.2.1/24\ncontainer_images_file = {home}/images.yaml\n\
         custom_env_files = {home}/undermount-images.yaml\nroles_file={home}/roles.yaml\n\
         [other]\nroles_file = /nonexistent\n"
    );
    undercloud.write("undercloud.conf", &settings);
    let outcome = undercloud.openstack("undercloud install --no-validations").success();
    let called = "original undercloud install --no-validations --disable-container-prepare\n";
    assert_eq!(outcome.stdout, called, "{}", outcome.stderr);
    let environment = undercloud.read("undermount-images.yaml");
    let (_, body) = environment.split_once("\n\n").unwrap();
    let keystone = format!("{host}/ns/centos-binary-keystone:t");
    assert_eq!(
        body,
        format!(
            "parameter_defaults:\n  DockerInsecureRegistryAddress:\n  - {host}\n  \
             DockerKeystoneConfigImage: {keystone}\n  DockerKeystoneImage: {keystone}\n\
             resource_registry:\n  \
             OS::TripleO::Services::ContainerImagePrepare: OS::Heat::None\n"
        )
    );

    // What cannot be prepared is not installed, and the images of before stay.
    undercloud.write("images.yaml", "parameter_defaults: [");
    let outcome = undercloud.openstack("undercloud upgrade -y");
    assert!(outcome.refusal().contains("images.yaml"), "{}", outcome.stderr);
    assert_eq!(undercloud.read("undermount-images.yaml"), environment);

    // Who does not ask for it gets the original.
    undercloud.write("undercloud.conf", "[DEFAULT]\n");
    let outcome = undercloud.openstack("undercloud upgrade -y").success();
    assert_eq!(outcome.stdout, "original undercloud upgrade -y\n");
    assert!(outcome.stderr.contains("does not name"), "{}", outcome.stderr);
}
