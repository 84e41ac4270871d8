//! What hosts say about registries: registries.conf with mirrors, credential helpers, proxies,
//! and registries at IPv6 addresses.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use undermount_fs::digest::Digest;
use undermount_tests::archive::Member;
use undermount_tests::http::{Response, Server};
use undermount_tests::image::{Image, MANIFEST};
use undermount_tests::network::{self, Network};
use undermount_tests::origin::Origin;
use undermount_tests::process::{Outcome, SOON, like, program, run, undermount};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

/// A host with its own files about registries.
struct Host {
    home: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn registries_conf(&self, text: &str) {
        self.write(".config/containers/registries.conf", text);
    }

    /// `undermount image copy IMAGE oci:out:x`, with a log of everything.
    fn copy(&self, image: &str) -> Command {
        let mut command = undermount();
        command.env("HOME", self.home.path()).env_remove("REGISTRY_AUTH_FILE");
        command.env_remove("CONTAINERS_REGISTRIES_CONF").current_dir(self.home.path());
        command.args(["--log", "trace", "image", "copy", image, "oci:out:x"]);
        command
    }

    #[track_caller]
    fn copied(&self, image: &str) -> Outcome {
        self.copied_by(&mut self.copy(image))
    }

    #[track_caller]
    fn copied_by(&self, copy: &mut Command) -> Outcome {
        let outcome = run(copy, SOON).success();
        let copied = Image::read_layout(&self.home.path().join("out"), "x");
        assert_eq!(copied.digest(), self::image().digest());
        outcome
    }

    /// The same command where the file `hosts` of the host is /etc/hosts.
    fn with_own_hosts(&self, command: &Command) -> Command {
        const SCRIPT: &str = "mount --bind \"$1\" /etc/hosts; shift; exec \"$@\"";
        let mut own = program("unshare");
        own.args(["--mount", "sh", "-euc", SCRIPT, "sh"]).arg(self.home.path().join("hosts"));
        own.arg(command.get_program());
        like(own, command)
    }
}

fn image() -> Image {
    Image::of(&[&[Member::file("file", "content")]])
}

fn origin() -> Origin {
    let origin = Origin::new();
    origin.add("ns/nova", image());
    origin
}

#[test]
fn mirrors_are_asked_first_and_the_location_last() {
    let (host, near, home) = (Host::new(), origin(), origin());
    let conf = format!(
        "[[registry]]\nprefix = 'registry.invalid/tripleo'\nlocation = '{}/ns'\n\
         [[registry.mirror]]\nlocation = '{}/ns'\n",
        home.address(),
        near.address(),
    );
    host.registries_conf(&conf);
    host.copied("registry.invalid/tripleo/nova");
    assert!(!near.requests().is_empty());
    assert!(home.requests().iter().all(|request| !request.path.contains("/blobs/")));
    near.down();
    fs::remove_dir_all(host.home.path().join("out")).unwrap();
    host.copied("registry.invalid/tripleo/nova");
    assert!(home.requests().iter().any(|request| request.path.contains("/blobs/")));
}

#[test]
fn a_blocked_registry_and_a_broken_file_are_named() {
    let host = Host::new();
    host.registries_conf("[[registry]]\nprefix = 'registry.invalid'\nblocked = true\n");
    let words = run(&mut host.copy("registry.invalid/ns/nova"), SOON).refusal().to_owned();
    assert!(
        words.contains("image registry.invalid/ns/nova:latest: registries.conf blocks it"),
        "{words}"
    );
    host.registries_conf("[[registry]]\nblocked = 7\n");
    let words = run(&mut host.copy("registry.invalid/ns/nova"), SOON).refusal().to_owned();
    assert!(words.contains("registries.conf:2: "), "{words}");
}

#[test]
fn an_insecure_registry_is_spoken_to_without_tls() {
    if lacking(&[Need::Root, Need::Program("unshare")]) {
        return;
    }
    let (host, origin) = (Host::new(), origin());
    // A name that is not loopback by itself.
    host.write("hosts", "127.0.0.1 localhost registry.test\n");
    let location = origin.address().replace("127.0.0.1", "registry.test");
    let reference = format!("{location}/ns/nova");
    let words = run(&mut host.with_own_hosts(&host.copy(&reference)), SOON).refusal().to_owned();
    assert!(words.contains("does not speak TLS"), "{words}");
    host.registries_conf(&format!("[[registry]]\nlocation = '{location}'\ninsecure = true\n"));
    host.copied_by(&mut host.with_own_hosts(&host.copy(&reference)));
}

#[test]
fn helpers_give_passwords_that_nobody_sees() {
    let (host, origin) = (Host::new(), origin());
    origin.require("alice", "hunter2");
    let address = origin.address();
    let helper = |script: &str| {
        host.write("bin/docker-credential-test", &format!("#!/bin/sh\nread -r server\n{script}\n"));
        let path = host.home.path().join("bin/docker-credential-test");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let search = format!("{}/bin:{}", host.home.path().display(), std::env::var("PATH").unwrap());
    let reference = format!("{address}/ns/nova");
    let copy = || run(host.copy(&reference).env("PATH", &search), SOON);
    for file in [
        format!("{{\"credHelpers\": {{\"{address}\": \"test\"}}}}"),
        "{\"credsStore\": \"test\"}".to_owned(),
    ] {
        host.write(".docker/config.json", &file);
        helper(&format!(
            "[ \"$1$server\" = 'get{address}' ] && \
             echo '{{\"ServerURL\": \"x\", \"Username\": \"alice\", \"Secret\": \"hunter2\"}}'"
        ));
        let outcome = copy().success();
        assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
        for (script, expected) in [
            (
                "echo 'credentials not found in native keychain'; exit 1",
                "wants credentials and none are configured",
            ),
            (
                "echo 'the vault is locked'; exit 1",
                "docker-credential-test fails: the vault is locked",
            ),
            ("echo hunter2", "docker-credential-test does not answer with a user and a password"),
        ] {
            helper(script);
            let words = copy().refusal().to_owned();
            assert!(words.contains(expected) && !words.contains("hunter2"), "{words}");
        }
    }
    host.write(".docker/config.json", "{\"credsStore\": \"../evil\"}");
    let words = copy().refusal().to_owned();
    assert!(words.contains("`../evil` is not the name of a credential helper"), "{words}");
    host.write(".docker/config.json", "{\"credsStore\": \"absent\"}");
    let words = copy().refusal().to_owned();
    assert!(words.contains("cannot run docker-credential-absent"), "{words}");
}

#[test]
fn requests_go_through_the_proxy_of_the_environment() {
    let host = Host::new();
    let image = image();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let proxy = Server::start(move |request| {
        log.lock().unwrap().push(request.path.clone());
        let path = request.path.strip_prefix("http://registry.invalid").unwrap_or_default();
        let digest = path.rsplit('/').next().and_then(|last| last.parse::<Digest>().ok());
        match digest.and_then(|digest| image.blobs.get(&digest)) {
            Some(blob) => Response::new(200, blob.clone()),
            None if path.ends_with("/manifests/latest") => {
                Response::new(200, image.manifest.clone()).header("Content-Type", MANIFEST)
            }
            None => Response::new(404, ""),
        }
    });
    let mut command = host.copy("registry.invalid/ns/nova");
    command.arg("--plain-http").env("HTTP_PROXY", format!("http://{}", proxy.address()));
    command.env("http_proxy", format!("http://{}", proxy.address()));
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    run(&mut command, SOON).success();
    let asked_so_far = asked.lock().unwrap().len();
    assert!(asked_so_far > 0);
    // No proxy reaches what it is told not to reach.
    let refused =
        run(command.env("NO_PROXY", "registry.invalid").env("no_proxy", "registry.invalid"), SOON);
    assert!(refused.refusal().contains("cannot be reached"), "{}", refused.stderr);
    assert_eq!(asked.lock().unwrap().len(), asked_so_far);
}

#[test]
fn registries_have_ipv6_addresses_too() {
    if lacking(&[network::NEEDS, &[Need::Program("docker-registry")]].concat()) {
        return;
    }
    let (host, root) = (Host::new(), tempfile::tempdir().unwrap());
    // Not every machine has an IPv6 address of its own.
    let network = Network::new();
    let machine = network.host(1000);
    let there = |command: &Command| like(machine.command(command.get_program().as_ref()), command);
    let change = |config: &mut Value| config["http"]["addr"] = "[::1]:0".into();
    let registry = Registry::docker_on(&machine, root.path(), change);
    assert!(registry.address().starts_with("[::1]:"), "{}", registry.address());
    write_layout(host.home.path());
    let to = format!("{}/ns/nova:1", registry.address());
    let mut push = undermount();
    push.env("HOME", host.home.path()).current_dir(host.home.path());
    push.args(["image", "copy", "oci:layout:x", &to]);
    run(&mut there(&push), SOON).success();
    host.copied_by(&mut there(&host.copy(&to)));
}

fn write_layout(directory: &Path) {
    image().write_layout(&directory.join("layout"), "x");
}
