//! `undermount registry` with the clients that push to it: podman, buildah, and what docker sends.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use undermount_tests::archive::{Member, noise};
use undermount_tests::distribution::{Answer, Api, sha256};
use undermount_tests::image::Image;
use undermount_tests::process::{Outcome, SOON, call, program, run};
use undermount_tests::registry::Registry;
use undermount_tests::requirement::{Need, lacking};

static FIXTURES: AtomicUsize = AtomicUsize::new(0);

/// A registry and a client's own storage.
struct Fixture {
    files: tempfile::TempDir,
    registry: Registry,
}

impl Fixture {
    fn new(flags: &[&str]) -> Self {
        // The clients make an image's name of a layout's path: no capitals.
        let number = FIXTURES.fetch_add(1, Ordering::Relaxed);
        let name = format!("registry-clients-{}-{number}", std::process::id());
        let files = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
        std::fs::write(files.path().join("auth.json"), "{}").unwrap();
        let registry = Registry::undermount_with(&files.path().join("registry"), flags);
        Self { files, registry }
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs podman or buildah with storage of its own and no configuration of the machine's.
    fn client(&self, name: &str, arguments: &[&str]) -> Outcome {
        let mut command = program(name);
        command.args(["--root", &self.path("root"), "--runroot", &self.path("runroot")]);
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command.env("REGISTRY_AUTH_FILE", self.path("auth.json"));
        run(command.env("TMPDIR", self.files.path()), SOON)
    }

    /// Lets a client pull an image from a layout into its storage, and push it from there.
    fn push_with(&self, name: &'static str) {
        if lacking(&[Need::Root, Need::Program(name)]) {
            return;
        }
        let image = Image::of(&[&[Member::file("a", "1")], &[Member::file("b", noise(1, 30_000))]]);
        image.write_layout(Path::new(&self.path("layout")), "latest");
        let layout = format!("oci:{}:latest", self.path("layout"));
        let policy = self.path("policy.json");
        std::fs::write(
            &policy,
            json!({ "default": [{ "type": "insecureAcceptAnything" }] }).to_string(),
        )
        .unwrap();
        let pulled =
            self.client(name, &["pull", "--quiet", "--signature-policy", &policy, &layout]);
        let id = pulled.success().stdout.trim().to_owned();
        for (target, format) in [("one", "oci"), ("two", "v2s2")] {
            let target = format!("docker://{}/{name}/{target}:t", self.registry.address());
            let push = ["push", "--quiet", "--tls-verify=false", "--format", format];
            let flags = ["--signature-policy", &policy, &id, &target];
            self.client(name, &[&push[..], &flags].concat()).success();
        }
        let reference = format!("{}/{name}/one:t", self.registry.address());
        let back = self.registry.pull(&reference, Path::new(&self.path("back")));
        assert_eq!(back.layers().len(), 2);
        let manifest =
            Api(self.registry.address().to_owned()).get(&format!("/v2/{name}/two/manifests/t"));
        let kind = manifest.expect(200).header("content-type").unwrap();
        assert_eq!(kind, "application/vnd.docker.distribution.manifest.v2+json");
    }
}

#[test]
fn podman_pushes_in_either_format() {
    Fixture::new(&[]).push_with("podman");
}

#[test]
fn buildah_pushes_in_either_format() {
    Fixture::new(&[]).push_with("buildah");
}

#[test]
fn podman_logs_in_and_pushes_where_only_users_may() {
    if lacking(&[Need::Root, Need::Program("podman"), Need::Program("htpasswd")]) {
        return;
    }
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), call("htpasswd", &["-nbBC", "5", "alice", "wonder"])).unwrap();
    let f = Fixture::new(&["--htpasswd", users.path().to_str().unwrap()]);
    let address = f.registry.address().to_owned();
    let login = |password: &str| {
        let flags = ["login", "--tls-verify=false", "-u", "alice", "-p", password, &address];
        f.client("podman", &flags)
    };
    let refused = login("wrong");
    assert!(!refused.status.success() && refused.stderr.contains("invalid username/password"));
    login("wonder").success();
    f.push_with("podman");
    assert_eq!(
        Api(address).send("PUT", "/v2/a/manifests/x", &[], b"{}").error(401),
        "UNAUTHORIZED"
    );
}

/// Sends a body in pieces of unknown total length, as docker does.
fn patch_chunked(api: &Api, path: &str, blob: &[u8]) -> Answer {
    let mut stream = api.open("PATCH", path, &[("Transfer-Encoding", "chunked")]);
    for piece in blob.chunks(7000) {
        write!(stream, "{:x}\r\n", piece.len()).unwrap();
        stream.write_all(piece).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    Answer::read(stream).unwrap()
}

#[test]
fn a_push_as_docker_sends_it_is_taken() {
    let f = Fixture::new(&[]);
    let api = Api(f.registry.address().to_owned());
    assert_eq!(
        api.get("/v2/").expect(200).header("docker-distribution-api-version"),
        Some("registry/2.0")
    );
    let (config, layer) =
        (b"{\"architecture\":\"amd64\",\"os\":\"linux\"}".to_vec(), noise(1, 50_000));
    for blob in [&layer, &config] {
        let digest = sha256(blob);
        api.head(&format!("/v2/lib/app/blobs/{digest}")).expect(404);
        let begun = api.send("POST", "/v2/lib/app/blobs/uploads/", &[], b"");
        assert!(begun.expect(202).header("docker-upload-uuid").is_some());
        let patched = patch_chunked(&api, begun.location(), blob);
        let told = format!("0-{}", blob.len() - 1);
        assert_eq!(patched.expect(202).header("range"), Some(told.as_str()));
        let encoded = digest.replace(':', "%3A");
        let done = format!("{}?digest={encoded}", patched.location());
        api.send("PUT", &done, &[], b"").expect(201);
        api.head(&format!("/v2/lib/app/blobs/{digest}")).expect(200);
    }
    let manifest_type = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": sha256(&config), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": sha256(&layer), "size": layer.len(),
        }],
    });
    let digest = api.push_manifest("lib/app", "latest", &manifest);
    let accept = [("Accept", manifest_type), ("Accept", "application/vnd.oci.image.index.v1+json")];
    let pulled = api.send("GET", "/v2/lib/app/manifests/latest", &accept, b"");
    assert_eq!(pulled.expect(200).header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(pulled.header("content-type"), Some(manifest_type));
}
