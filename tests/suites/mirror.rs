//! The pull-through mirror: in this process with a registry that counts and lies, and as the
//! agent serves it to real clients.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use undermount::mirror::{Mirror, MirrorStore};
use undermount::registry::client::{Client, ClientConfig, RetryPolicy, install_crypto_provider};
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::Fault;
use undermount_tests::image::Image;
use undermount_tests::node::{self, PATIENCE};
use undermount_tests::origin::Origin;
use undermount_tests::port;
use undermount_tests::process::{Running, SOON, binary, call, program, run, undermount};
use undermount_tests::requirement::{Need, lacking};

/// A mirror of one registry, in this process.
struct Mirrored {
    _dir: TempDir,
    origin: Origin,
    image: Image,
    address: SocketAddr,
    runtime: Runtime,
    shutdown: CancellationToken,
}

impl Mirrored {
    /// A mirror of a registry with an image of one layer of about 1 MiB as `test/image`.
    fn start() -> Self {
        Self::of("test/image", |origin| (ClientConfig::default(), origin.address()))
    }

    /// A mirror of a registry with such an image as `repository`; `known_as` says under which name
    /// it is mirrored, and how it is found.
    fn of(repository: &str, known_as: impl FnOnce(&Origin) -> (ClientConfig, String)) -> Self {
        install_crypto_provider();
        let image = Image::of(&[&[Member::file("a", noise(1, 1 << 20))]]);
        let origin = Origin::new();
        origin.add(repository, image.clone());
        let (config, name) = known_as(&origin);
        let dir = tempfile::tempdir().unwrap();
        let store = MirrorStore::open(&dir.path().join("mirror"), 1 << 30).unwrap();
        let first_pause = Duration::from_millis(1);
        let retry = RetryPolicy { retries: 1, first_pause, ..RetryPolicy::default() };
        let client = Client::new(ClientConfig { retry, ..config });
        let mirror = Mirror::new(store, client, vec![name]);
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        runtime.spawn(async move { mirror.serve(listener, &until).await });
        Self { _dir: dir, origin, image, address, runtime, shutdown }
    }

    /// What the mirror answers: status, digest header and body, or why there is none.
    fn ask(&self, method: Method, path: &str, range: Option<&str>) -> Result<(u16, Bytes), String> {
        self.runtime.block_on(ask(format!("http://{}{path}", self.address), method, range))
    }

    fn get(&self, path: &str) -> (u16, Bytes) {
        self.ask(Method::GET, path, None).unwrap()
    }

    fn layer(&self) -> (String, Bytes) {
        let (digest, _) = self.image.layers()[0];
        (digest.to_string(), self.image.blobs[&digest].clone())
    }

    /// The path of the layer's blob, as podman asks for it.
    fn blob(&self) -> String {
        let host = self.origin.address().replace(':', "_");
        format!("/v2/{host}/test/image/blobs/{}", self.layer().0)
    }

    /// How often the registry was asked to send the layer.
    fn fetches(&self) -> usize {
        let digest = self.layer().0;
        let requests = self.origin.requests();
        let sent = |method: &str, path: &str| method == "GET" && path.contains(&digest);
        requests.iter().filter(|request| sent(&request.method, &request.path)).count()
    }
}

impl Drop for Mirrored {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn ask(url: String, method: Method, range: Option<&str>) -> Result<(u16, Bytes), String> {
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let mut request = client.request(method, url);
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await.map_err(|error| error.to_string())?))
}

#[test]
fn many_readers_of_one_blob_cost_one_fetch() {
    let mirrored = Mirrored::start();
    let (digest, content) = mirrored.layer();
    let by_path = format!("http://{}{}", mirrored.address, mirrored.blob());
    let by_parameter = format!(
        "http://{}/v2/test/image/blobs/{digest}?ns={}",
        mirrored.address,
        mirrored.origin.address()
    );
    let urls = [by_path, by_parameter].into_iter().cycle().take(16);
    let answers = mirrored.runtime.block_on(async {
        let readers = urls.map(|url| tokio::spawn(ask(url, Method::GET, None)));
        let mut answers = Vec::new();
        for reader in readers.collect::<Vec<_>>() {
            answers.push(reader.await.unwrap().unwrap());
        }
        answers
    });
    for (status, body) in answers {
        assert!(status == 200 && body == content, "{status}, {} bytes", body.len());
    }
    assert_eq!(mirrored.get(&mirrored.blob()), (200, content));
    assert_eq!(mirrored.fetches(), 1);
}

#[test]
fn parts_and_heads_are_answered_before_and_after_the_blob_is_here() {
    let mirrored = Mirrored::start();
    let (_, content) = mirrored.layer();
    let blob = mirrored.blob();
    assert_eq!(mirrored.ask(Method::HEAD, &blob, None), Ok((200, Bytes::new())));
    assert_eq!(mirrored.fetches(), 0, "a HEAD fetches nothing");
    for _ in 0..2 {
        let part = mirrored.ask(Method::GET, &blob, Some("bytes=1000-1999"));
        assert_eq!(part, Ok((206, content.slice(1000..2000))));
        let end = mirrored.ask(Method::GET, &blob, Some("bytes=-1"));
        assert_eq!(end, Ok((206, content.slice(content.len() - 1..))));
        assert_eq!(mirrored.ask(Method::GET, &blob, Some("bytes=9999999-")).unwrap().0, 416);
    }
    assert_eq!(mirrored.fetches(), 1);
}

#[test]
fn no_client_ever_gets_a_whole_blob_that_is_wrong() {
    let mirrored = Mirrored::start();
    let (_, content) = mirrored.layer();
    let blob = mirrored.blob();
    let faults = [Fault::Wrong, Fault::Short(1000), Fault::Reset(70_000)];
    for fault in faults {
        mirrored.origin.misbehave(move |request| {
            (request.method == "GET" && request.path.contains("/blobs/")).then_some(fault)
        });
        match mirrored.ask(Method::GET, &blob, None) {
            Ok((status, _)) => assert_eq!(status, 502, "a whole answer says that it failed"),
            Err(broken) => assert!(broken.contains("body"), "{broken}"),
        }
    }
    mirrored.origin.behave();
    assert_eq!(mirrored.get(&blob), (200, content), "a lie is not kept");
}

#[test]
fn a_registry_that_does_not_answer_is_stood_in_for() {
    let mirrored = Mirrored::start();
    let (_, content) = mirrored.layer();
    let host = mirrored.origin.address().replace(':', "_");
    let tag = format!("/v2/{host}/test/image/manifests/latest");
    let manifest = mirrored.get(&tag);
    assert_eq!(manifest.0, 200);
    assert_eq!(mirrored.get(&mirrored.blob()).0, 200);
    mirrored.origin.down();
    assert_eq!(mirrored.get(&tag), manifest);
    assert_eq!(mirrored.get(&mirrored.blob()), (200, content));
    let (status, words) = mirrored.get(&format!("/v2/{host}/test/image/manifests/other"));
    assert_eq!(status, 502);
    assert!(String::from_utf8_lossy(&words).contains("UNAVAILABLE"));
    // What the registry denies is not served from memory.
    mirrored.origin.up();
    mirrored.origin.require("user", "password");
    assert_eq!(mirrored.get(&tag).0, 403);
}

/// docker's `registry-mirrors` stand in for docker.io and are told of no registry: the path is all.
#[test]
fn docker_is_answered_for_docker_io_by_paths_alone() {
    let mirrored = Mirrored::of("library/busy", |origin| {
        let docker_mirror = format!("http://{}/", origin.address()).parse().ok();
        (ClientConfig { docker_mirror, ..ClientConfig::default() }, "docker.io".to_owned())
    });
    let (digest, content) = mirrored.layer();
    let manifest = mirrored.get("/v2/library/busy/manifests/latest");
    assert_eq!(manifest, (200, mirrored.image.manifest.clone()));
    let blob = format!("/v2/library/busy/blobs/{digest}");
    assert_eq!(mirrored.get(&blob), (200, content.clone()));
    assert_eq!(mirrored.fetches(), 1);
    if !lacking(&[Need::Program("skopeo")]) {
        // A client that knows no mirrors asks for the same paths.
        let source = format!("docker://{}/library/busy:latest", mirrored.address);
        let dir = tempfile::tempdir().unwrap();
        let layout = format!("oci:{}:image", dir.path().join("layout").display());
        call("skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", &source, &layout]);
        let copied = Image::read_layout(&dir.path().join("layout"), "image");
        assert_eq!(copied.digest(), mirrored.image.digest());
    }
    mirrored.origin.down();
    assert_eq!(mirrored.get("/v2/library/busy/manifests/latest"), manifest);
    assert_eq!(mirrored.get(&blob), (200, content));
}

#[test]
fn what_a_mirror_does_not_do_is_refused_with_the_reason() {
    let mirrored = Mirrored::start();
    let host = mirrored.origin.address().replace(':', "_");
    let digest = format!("sha256:{}", "0".repeat(64));
    for (method, path, status, words) in [
        (Method::POST, format!("/v2/{host}/x/blobs/uploads/"), 405, "this is a mirror, push to"),
        (Method::DELETE, mirrored.blob(), 405, "DELETE is not supported"),
        (Method::GET, "/v2/x/manifests/y?ns=internal:80".into(), 404, "`internal:80/x` is in none"),
        (Method::GET, "/v2/library/x/manifests/y".into(), 404, "`library/x` is in none"),
        (Method::GET, format!("/v2/{host}/X/manifests/y"), 404, "is not the name of a repository"),
        (Method::GET, format!("/v2/{host}/x/blobs/md5:0"), 404, "is not a manifest or blob"),
        (Method::GET, "/v2/_catalog".into(), 404, "is not a manifest or blob"),
        (Method::GET, format!("/v2/{host}/test/image/blobs/{digest}"), 404, "not found"),
        (Method::GET, format!("/v2/{host}/test/none/manifests/y"), 404, "not found"),
    ] {
        let (found, body) = mirrored.ask(method.clone(), &path, None).unwrap();
        let said: Value = serde_json::from_slice(&body).unwrap();
        let message = said["errors"][0]["message"].as_str().unwrap();
        assert!(found == status && message.contains(words), "{method} {path}: {found} {message}");
    }
    assert_eq!(mirrored.get("/v2/").0, 200);
}

/// The binary under test with the capabilities that the agent's unit leaves it.
fn confined() -> Command {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("packaging")
        .join("systemd/undermount-agent.service");
    let unit = fs::read_to_string(unit).unwrap();
    let kept: String = unit
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .flat_map(str::split_whitespace)
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let mut command = program("setpriv");
    command.args(["--no-new-privs", "--inh-caps=-all", "--bounding-set"]);
    command.arg(format!("-all{kept}")).arg(binary());
    command
}

/// An agent with a mirror of `registry`, and where the mirror listens.
fn agent(dir: &Path, registry: &str) -> (Running, SocketAddr) {
    let free = port::unused();
    let config = format!(
        "[cache]\ndirectory = '{0}/cache'\n[store]\nmount = '{0}/store'\n\
         [mirror]\nlisten = '{free}'\nregistries = ['{registry}']\n",
        dir.display()
    );
    fs::write(dir.join("agent.toml"), config).unwrap();
    let manager = UnixDatagram::bind(dir.join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut agent = confined();
    agent.args(["agent", "--config"]).arg(dir.join("agent.toml"));
    let mut agent =
        Running::start(agent.env("NOTIFY_SOCKET", dir.join("notify")).env("RUST_LOG", "info"));
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"READY=1\n"), "the agent tells its service manager");
    agent.wait_for(SOON, |text| text.contains("the mirror listens").then_some(()));
    (agent, free)
}

#[test]
fn real_clients_pull_through_the_agent_and_from_it_when_the_registry_is_down() {
    let programs = ["skopeo", "podman", "unshare", "setpriv"].map(Need::Program);
    if lacking(&[node::NEEDS, &programs].concat()) {
        return;
    }
    let image = Image::of(&[&[Member::file("a", noise(1, 1 << 20))], &[Member::file("b", "b")]]);
    let (origin, reference) = Origin::with(image);
    let dir = tempfile::tempdir().unwrap();
    let (_agent, mirror) = agent(dir.path(), &origin.address());
    let source = format!("docker://{mirror}/{}", reference.replacen(':', "_", 1));
    let layout = format!("oci:{}:image", dir.path().join("layout").display());
    call("skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", &source, &layout]);
    assert!(origin.blob_bytes() > 1 << 20);
    // The agent mounts as well, with no more than its unit leaves it.
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let config = dir.path().join("agent.toml");
    let words = |word: &str| {
        let mut command = undermount();
        command.arg(word).arg("--config").arg(&config);
        command
    };
    run(words("mount").arg(&reference).arg(&mount), PATIENCE).success();
    assert_eq!(fs::read(mount.join("b")).unwrap(), b"b");
    run(words("umount").arg(&mount), SOON).success();
    let sent = origin.blob_bytes();
    // From now on the node is on its own. Podman asks the mirror of its own accord.
    origin.down();
    let script = "set -e; mount -t tmpfs none /var/lib; mount -t tmpfs none /run
        mkdir /run/etc; cp -a /etc/containers/. /run/etc; mount --bind /run/etc /etc/containers
        rm -f /etc/containers/storage.conf
        $1 setup podman --config $2/agent.toml
        # No layer store, so that podman pulls whole layers.
        rm /etc/containers/storage.conf
        podman pull --tls-verify=false $3
        podman image inspect $3 --format '{{len .RootFS.Layers}}'";
    let mut podman = program("unshare");
    podman.args(["--mount", "sh", "-uc", script, "sh"]);
    let outcome = run(podman.arg(binary()).arg(dir.path()).arg(&reference), PATIENCE).success();
    assert_eq!(outcome.stdout.lines().last(), Some("2"), "{outcome:?}");
    assert_eq!(origin.blob_bytes(), sent, "each blob was fetched once");
}
