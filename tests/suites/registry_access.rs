//! Who may use `undermount registry`, and over which connections, with real clients.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use undermount_tests::archive::Member;
use undermount_tests::distribution::Api;
use undermount_tests::image::Image;
use undermount_tests::process::{Outcome, SOON, call, eventually, program, run, undermount};
use undermount_tests::registry::{Registry, skopeo};
use undermount_tests::requirement::{Need, lacking};

/// Password files and certificates.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A password file as Apache's program writes it.
    fn users(&self, name: &str, password: &str) -> String {
        let line = call("htpasswd", &["-nbBC", "5", name, password]);
        fs::write(self.path("users"), line).unwrap();
        self.text("users")
    }

    /// A certificate for 127.0.0.1 that signs itself, and its key.
    fn certificate(&self, common_name: &str) -> [String; 2] {
        let (certificate, key) = (self.text("ca.crt"), self.text("server.pem"));
        let subject = format!("/CN={common_name}");
        let name = "subjectAltName=IP:127.0.0.1";
        let words = "req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256";
        let mut arguments: Vec<&str> = words.split(' ').collect();
        arguments.extend(["-subj", &subject, "-addext", name, "-out", &certificate]);
        arguments.extend(["-keyout", &key]);
        call("openssl", &arguments);
        [certificate, key]
    }

    fn layout(&self, image: &Image) -> String {
        image.write_layout(&self.path("layout"), "image");
        format!("oci:{}:image", self.text("layout"))
    }
}

fn image() -> Image {
    Image::of(&[&[Member::file("file", "content")]])
}

/// Runs `skopeo copy`, which may fail.
fn copy(arguments: &[&str]) -> Outcome {
    let mut command = program("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]).args(arguments);
    // No credentials of the machine's user.
    run(command.env("REGISTRY_AUTH_FILE", "/nonexistent/auth.json"), SOON)
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

#[test]
fn users_push_with_their_password_and_everyone_pulls() {
    if lacking(&[Need::Program("skopeo"), Need::Program("htpasswd")]) {
        return;
    }
    let (files, root) = (Files::new(), tempfile::tempdir().unwrap());
    let users = files.users("alice", "wonder:land");
    let registry = Registry::undermount_with(root.path(), &["--htpasswd", &users]);
    let target = format!("docker://{}/a:x", registry.address());
    let (source, plain) = (files.layout(&image()), "--dest-tls-verify=false");
    for wrong in [&[plain, "--dest-no-creds"][..], &[plain, "--dest-creds", "alice:land"][..]] {
        let outcome = copy(&[wrong, &[&source, &target]].concat());
        assert!(outcome.refusal().contains("log in for this"), "{}", outcome.stderr);
    }
    copy(&[plain, "--dest-creds", "alice:wonder:land", &source, &target]).success();
    let back = format!("oci:{}:back", files.text("back"));
    copy(&["--src-tls-verify=false", "--src-no-creds", &target, &back]).success();
    let api = Api(registry.address().to_owned());
    api.get("/v2/a/manifests/x").expect(200);
    assert_eq!(api.send("DELETE", "/v2/a/manifests/x", &[], b"").error(401), "UNAUTHORIZED");
    let alice = basic("alice:wonder:land");
    api.send("DELETE", "/v2/a/manifests/x", &[("Authorization", &alice)], b"").expect(202);
}

#[test]
fn a_private_registry_gives_nothing_to_strangers() {
    if lacking(&[Need::Program("skopeo"), Need::Program("htpasswd")]) {
        return;
    }
    let (files, root) = (Files::new(), tempfile::tempdir().unwrap());
    let users = files.users("alice", "secret");
    let flags = ["--htpasswd", &users, "--pull", "users"];
    let registry = Registry::undermount_with(root.path(), &flags);
    let target = format!("docker://{}/a:x", registry.address());
    let source = files.layout(&image());
    let plain = "--dest-tls-verify=false";
    copy(&[plain, "--dest-creds", "alice:secret", &source, &target]).success();
    let back = format!("oci:{}:back", files.text("back"));
    copy(&["--src-tls-verify=false", "--src-no-creds", &target, &back]).refusal();
    copy(&["--src-tls-verify=false", "--src-creds", "alice:secret", &target, &back]).success();
    let api = Api(registry.address().to_owned());
    for path in ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/x", "/token"] {
        assert_eq!(api.get(path).error(401), "UNAUTHORIZED", "{path}");
    }
}

#[test]
fn passwords_are_in_no_log() {
    if lacking(&[Need::Program("htpasswd")]) {
        return;
    }
    let (files, root) = (Files::new(), tempfile::tempdir().unwrap());
    let users = files.users("alice", "hunter22");
    let flags = ["--htpasswd", &users, "--access-log", "--log", "trace"];
    let mut registry = Registry::undermount_with(root.path(), &flags);
    let api = Api(registry.address().to_owned());
    for pair in ["alice:hunter22", "alice:hunter23"] {
        api.send("POST", "/v2/a/blobs/uploads/", &[("Authorization", &basic(pair))], b"");
    }
    let log = registry.process().stderr();
    assert!(log.contains("status=202") && log.contains("status=401"), "{log}");
    for secret in ["hunter22", "hunter23", &STANDARD.encode("alice:hunter22")] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn skopeo_talks_to_it_over_tls_and_a_renewed_certificate_is_used() {
    if lacking(&[Need::Program("skopeo"), Need::Program("openssl")]) {
        return;
    }
    let (files, root) = (Files::new(), tempfile::tempdir().unwrap());
    let [certificate, key] = files.certificate("first");
    let flags = ["--tls-cert", &certificate, "--tls-key", &key];
    let registry = Registry::undermount_with(root.path(), &flags);
    let address = registry.address().strip_prefix("https://").unwrap().to_owned();
    let target = format!("docker://{address}/a:x");
    let (source, trust) = (files.layout(&image()), files.text(""));
    copy(&["--dest-cert-dir", &trust, &source, &target]).success();
    files.certificate("second");
    skopeo(&["inspect", "--cert-dir", &trust, &target]);
    let served = served_certificate(&address);
    assert!(served.contains("second"), "{served}");
}

/// The subject of the certificate that a server shows.
fn served_certificate(address: &str) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", address]);
    run(&mut openssl, SOON).stdout
}

fn refusal(root: &Path, arguments: &[&str]) -> String {
    let mut command = undermount();
    command.arg("registry").arg("--root").arg(root).args(["--listen", "127.0.0.1:0"]);
    run(command.args(arguments), SOON).refusal().to_owned()
}

#[test]
fn what_cannot_protect_is_refused_at_the_start() {
    if lacking(&[Need::Program("openssl")]) {
        return;
    }
    let (files, root) = (Files::new(), tempfile::tempdir().unwrap());
    let refused = |arguments: &[&str], words: &str| {
        let refusal = refusal(root.path(), arguments);
        assert!(refusal.contains(words), "{arguments:?}: {refusal}");
    };
    fs::write(files.path("users"), "alice:{SHA}abc\n").unwrap();
    let users = files.text("users");
    refused(&["--htpasswd", &users], "line 1: the password is not hashed with bcrypt");
    refused(&["--htpasswd", "/nonexistent/users"], "cannot read `/nonexistent/users`");
    let mut homeless = undermount();
    let outcome = run(homeless.args(["registry", "--listen", "127.0.0.1:0"]), SOON);
    assert!(outcome.refusal().contains("  --root <DIR>"));
    refused(&["--pull", "users"], "only users may pull, and there is no list of users");
    refused(&["--push", "users"], "only users may push, and there is no list of users");
    let [certificate, key] = files.certificate("one");
    refused(&["--tls-cert", &certificate], "--tls-key");
    refused(&["--tls-cert", &certificate, "--tls-key", &users], &format!("cannot read `{users}`"));
    refused(&["--tls-cert", &users, "--tls-key", &key], "holds no certificate");
    let other = Files::new();
    let [_, other_key] = other.certificate("two");
    refused(&["--tls-cert", &certificate, "--tls-key", &other_key], "cannot be used together");
}

#[test]
fn a_client_that_reads_too_much_at_a_time_is_told_to_wait() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), &["--reads-per-client", "2"]);
    let api = Api(registry.address().to_owned());
    let blob = undermount_tests::archive::noise(1, 30_000_000);
    let path = format!("/v2/a/blobs/{}", api.push_blob("a", &blob));
    // Each has begun with its answer, and no more of it is taken, so neither ends.
    let reads = [(), ()].map(|()| {
        let mut read = api.open("GET", &path, &[]);
        let mut status = [0; 12];
        read.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        read
    });
    let read_a_part = || api.send("GET", &path, &[("Range", "bytes=0-9")], b"");
    let answer = read_a_part();
    assert_eq!(answer.error(429), "TOOMANYREQUESTS");
    assert_eq!(answer.header("retry-after"), Some("1"));
    api.head(&path).expect(200);
    api.get("/v2/a/tags/list").expect(404);
    let metrics = String::from_utf8(api.get("/metrics").body.clone()).unwrap();
    assert!(metrics.contains("undermount_registry_refused_reads_total 1"), "{metrics}");
    drop(reads);
    eventually("their end makes room", SOON, || read_a_part().status == 206);
}
