//! Who gets nothing from the peers of a cluster: hosts without its key, and nodes without the
//! credentials of a private repository, whatever they know.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use undermount::peer::fetch::Mode;
use undermount::peer::keys::{Call, ClusterKeys, KeyFile, ScopeKey, SecretKey, Ticket};
use undermount::peer::member::MemberId;
use undermount::peer::wanted::{Kind, PieceCall, Wanted};
use undermount::registry::client::install_crypto_provider;
use undermount_fs::digest::Digest;
use undermount_fs::source::{Piece, Priority, Scope};
use undermount_tests::cluster::{self, Cluster, ClusterNode, await_members};
use undermount_tests::process::call;
use undermount_tests::requirement::{Need, lacking};
use undermount_tests::wave::Files;

/// The port of peers.
const PORT: u16 = 8788;
const USER: &str = "overcloud";
const PASSWORD: &str = "a secret";

/// A private image on a node that has it whole, and somebody who wants it.
struct Stage {
    cluster: Cluster,
    reference: String,
    files: Files,
    holder: ClusterNode,
    /// A piece that the holder has: the config, which is one piece.
    piece: Piece,
    _scratch: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("users"), call("htpasswd", &["-nbBC", "5", USER, PASSWORD])).unwrap();
        let mut cluster = Cluster::with_flags(&["--htpasswd", &path("users"), "--pull", "users"]);
        let files = Files::new(20, 400_000);
        let image = files.image();
        let reference = cluster.push(&image, "private/files");
        let login = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let auth =
            format!("{{\"auths\":{{{:?}:{{\"auth\":{login:?}}}}}}}", cluster.registry_address());
        fs::write(path("auth.json"), auth).unwrap();
        let lines = format!("auth_file = {:?}\n", path("auth.json"));
        let holder = cluster.node_with(&lines, &cluster.peers(&[]));
        let wave = holder.mount_and_read(&reference, &files);
        assert_eq!(wave.right, files.len());
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let digest: Digest = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
        let size = manifest["config"]["size"].as_u64().unwrap();
        let piece = Piece { blob: digest, range: 0..size, digest };
        Self { cluster, reference, files, holder, piece, _scratch: scratch }
    }

    fn keys(&self) -> ClusterKeys {
        ClusterKeys::new(&KeyFile::read(&self.cluster.key_file()).unwrap())
    }

    /// The name of the holder.
    fn holder_id(&self) -> MemberId {
        self.holder.json("peers")["membership"]["own"].as_str().unwrap().parse().unwrap()
    }

    fn scope(&self) -> String {
        format!("{}/private/files", self.cluster.registry_address())
    }

    /// What the holder answers from a host of the network: status and length of the body.
    fn ask(
        &self,
        scope: &str,
        mode: Mode,
        keys: Option<&ClusterKeys>,
        ticket: Option<Ticket>,
    ) -> (u16, usize) {
        install_crypto_provider();
        let wanted = Wanted {
            scope: Scope::new(scope),
            piece: self.piece.clone(),
            priority: Priority::Demand,
            kind: Kind::Blob,
        };
        let call = PieceCall { wanted, mode, hop: 0, tried: Vec::new(), offset: 0 };
        let target = call.target();
        let to = Some(self.holder_id());
        let signed = Call { to, method: "GET", target: &target, body: b"" };
        let header = keys.map(|keys| keys.sign(asker(), &signed, SystemTime::now()).header);
        let address = SocketAddr::from((self.holder.host().address(), PORT));
        self.cluster.host().enter(|| {
            runtime().block_on(async {
                let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build();
                let mut request = client.unwrap().get(format!("http://{address}{target}"));
                if let Some(header) = header {
                    request = request.header("authorization", header);
                }
                if let Some(ticket) = ticket {
                    request = request.header("undermount-ticket", ticket.to_string());
                }
                let answer = request.send().await.unwrap();
                (answer.status().as_u16(), answer.bytes().await.unwrap().len())
            })
        })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn asker() -> MemberId {
    MemberId::from_bytes([7; 16])
}

#[test]
fn private_pieces_go_to_holders_of_the_credential_and_to_nobody_else() {
    if cluster::is_impossible() || lacking(&[Need::Program("htpasswd")]) {
        return;
    }
    let stage = Stage::new();
    let (keys, scope, size) = (stage.keys(), stage.scope(), stage.piece.range.end as usize);
    let ticket = |keys: &ClusterKeys, user: &str, password: &str, from: MemberId| {
        let registry = stage.cluster.registry_address();
        let key = ScopeKey::derive(&registry, user, password);
        let until = SystemTime::now() + Duration::from_secs(60);
        Some(Ticket::issue(keys, &key, from, stage.holder_id(), until))
    };
    let good = || ticket(&keys, USER, PASSWORD, asker());
    // The test is worth something: with everything in order the piece comes.
    let (status, length) = stage.ask(&scope, Mode::Cached, Some(&keys), good());
    assert_eq!((status, length), (200, size));

    let foreign = ClusterKeys::new(&KeyFile::single(SecretKey::from_bytes([9; 32])));
    let other = MemberId::from_bytes([8; 16]);
    let elsewhere = scope.replace("private/files", "public/files");
    for (what, answer) in [
        ("no ticket", stage.ask(&scope, Mode::Cached, Some(&keys), None)),
        ("no ticket, as the owner", stage.ask(&scope, Mode::Owner, Some(&keys), None)),
        (
            "another password",
            stage.ask(&scope, Mode::Cached, Some(&keys), ticket(&keys, USER, "guess", asker())),
        ),
        (
            "somebody else's ticket",
            stage.ask(&scope, Mode::Cached, Some(&keys), ticket(&keys, USER, PASSWORD, other)),
        ),
        (
            "a ticket of another cluster",
            stage.ask(&scope, Mode::Cached, Some(&keys), ticket(&foreign, USER, PASSWORD, asker())),
        ),
        ("no key", stage.ask(&scope, Mode::Cached, None, good())),
        ("another key", stage.ask(&scope, Mode::Cached, Some(&foreign), good())),
        ("the name of another repository", stage.ask(&elsewhere, Mode::Cached, Some(&keys), None)),
        ("another registry", stage.ask("other.example/files", Mode::Cached, Some(&keys), None)),
        (
            "another registry, as the owner",
            stage.ask("other.example/files", Mode::Owner, Some(&keys), None),
        ),
    ] {
        println!("{what}: {answer:?}");
        assert!((400..600).contains(&answer.0), "{what}: {answer:?}");
        assert!(answer.1 < size, "{what}: {answer:?}");
    }
}

#[test]
fn a_node_without_the_credential_cannot_mount_what_its_peers_have() {
    if cluster::is_impossible() || lacking(&[Need::Program("htpasswd")]) {
        return;
    }
    let stage = Stage::new();
    let poor = stage.cluster.node();
    await_members(std::slice::from_ref(&poor), 2);
    let refused = poor.try_mount(&stage.reference);
    assert!(!refused.status.success(), "{}", refused.stderr);
    assert_eq!(fs::read_dir(poor.path("mount")).unwrap().count(), 0);
    // Nothing of the image has come there.
    let cached = undermount_tests::registry::files_below(&poor.path("cache"));
    let bytes: u64 = cached.iter().map(|(_, size)| size).sum();
    assert!(bytes < stage.files.len() as u64 * 1000, "{cached:?}");
}

/// What the configuration says of certificates: those of one of two authorities that were made for
/// tests.
fn certificates(authority: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let file = |name| root.join(format!("agent/src/peer/tls/fixtures/{authority}-{name}.pem"));
    let (node, ca) = (file("node"), file("ca"));
    format!("tls_certificate = {node:?}\ntls_key = {node:?}\ntls_ca = {ca:?}\n")
}

#[test]
fn with_certificates_pieces_go_to_holders_of_one_of_the_same_authority_and_to_nobody_else() {
    if cluster::is_impossible() {
        return;
    }
    install_crypto_provider();
    let mut cluster = Cluster::new();
    let files = Files::new(40, 2_000_000);
    let reference = cluster.push(&files.image(), "test/files");
    let node = |authority| {
        cluster.node_with("", &format!("{}{}", cluster.peers(&[]), certificates(authority)))
    };
    let traffic = |node: &ClusterNode, way: &str| -> u64 {
        node.json("peers")["traffic"][way]["bytes"].as_u64().unwrap()
    };
    let read = |node: &ClusterNode| {
        let before = cluster.egress().bodies;
        let wave = node.mount_and_read(&reference, &files);
        assert_eq!((wave.right, &wave.failed[..]), (files.len(), &[][..]));
        cluster.egress().bodies - before
    };
    let first = node("cluster");
    let one = read(&first);
    let second = node("cluster");
    await_members(std::slice::from_ref(&second), 2);
    let again = read(&second);
    println!("the first took {one} bytes from the registry, the second {again}");
    assert!(again < 10_000, "all of it came from the first: {again} bytes of {one}");
    assert!(traffic(&second, "peer") as usize > 1_000_000);

    // It has the key, and hears of the others; its certificate is of another authority.
    let foreign = node("other");
    await_members(std::slice::from_ref(&foreign), 3);
    let given = traffic(&first, "uploaded") + traffic(&second, "uploaded");
    let alone = read(&foreign);
    assert!(alone + 10_000 > one, "it read for itself: {alone} bytes of {one}");
    assert_eq!(traffic(&foreign, "peer"), 0);
    assert_eq!(traffic(&first, "uploaded") + traffic(&second, "uploaded"), given);
    // Nor does anybody get through who shows none.
    let url = format!("http://{}:{PORT}/v1/members", first.host().address());
    let answer = cluster.host().enter(|| {
        runtime().block_on(async {
            let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build();
            client.unwrap().get(url).send().await.map(|answer| answer.status())
        })
    });
    assert!(answer.is_err(), "{answer:?}");
}
