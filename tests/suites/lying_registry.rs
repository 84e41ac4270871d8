//! A registry that lies: about manifests, configs, sizes, lists and indexes. What it says is
//! refused by a sentence, or made up for; nothing wrong is shown, and no lie costs memory or time
//! out of proportion.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use undermount::image::artifact::LayerBlobs;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Content;
use undermount_fs::index::LayerTree;
use undermount_tests::archive::{Member, noise};
use undermount_tests::http::{Fault, Request, Response};
use undermount_tests::image::{Image, MANIFEST};
use undermount_tests::model::Model;
use undermount_tests::node::{self, Node, PATIENCE, is_mounted};
use undermount_tests::origin::{Origin, index_of, index_of_other_members};
use undermount_tests::process::{SOON, eventually, run};
use undermount_tests::requirement::lacking;
use undermount_tests::tree::Tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Nothing takes longer than this, on however loaded a machine.
const ENDLESS: Duration = Duration::from_secs(150);
/// What the worker may hold after all lies, in KiB: far less than the largest of them.
const MEMORY_MAX: u64 = 400 << 10;

/// What must become of a mount.
enum Verdict {
    /// It is refused, with these words among others.
    Refused(&'static str),
    /// It shows the right tree all the same.
    Right,
}
use Verdict::{Refused, Right};

type Distortion = Box<dyn FnMut(&Request, Response) -> Response + Send>;

struct Lie {
    name: &'static str,
    verdict: Verdict,
    distortion: Distortion,
    /// Indexes that are attached to the image.
    indexes: fn(&Image) -> Option<Vec<LayerBlobs>>,
}

fn lie(
    name: &'static str,
    verdict: Verdict,
    distortion: impl FnMut(&Request, Response) -> Response + Send + 'static,
) -> Lie {
    Lie { name, verdict, distortion: Box::new(distortion), indexes: |_| None }
}

fn lying_index(name: &'static str, indexes: fn(&Image) -> Option<Vec<LayerBlobs>>) -> Lie {
    Lie { name, verdict: Right, distortion: Box::new(|_, right| right), indexes }
}

fn members() -> Vec<Member> {
    vec![
        Member::dir("d"),
        Member::file("d/noise", noise(5, 1_300_000)),
        Member::file("d/text", "text\n".repeat(50_000)),
        Member::symlink("link", "d/text"),
        Member::file("last", "last"),
    ]
}

/// Changes the manifest wherever it is asked for; its digest then is another one.
fn of_manifest(request: &Request, right: Response, change: impl FnOnce(&mut Value)) -> Response {
    if !request.path.contains("/manifests/latest") {
        return right;
    }
    let mut manifest: Value = serde_json::from_slice(&right.body).unwrap();
    change(&mut manifest);
    Response::new(200, manifest.to_string()).header("Content-Type", MANIFEST)
}

/// Changes the list of what is attached.
fn of_referrers(request: &Request, right: Response, list: impl FnOnce() -> Response) -> Response {
    if request.path.contains("/referrers/") { list() } else { right }
}

fn manifests() -> Vec<Lie> {
    vec![
        lie("manifest of 100 MB", Refused("longer than"), |request, right| {
            of_manifest(request, right, |manifest| {
                manifest["annotations"] = json!({ "x": "y".repeat(100 << 20) });
            })
        }),
        lie("manifest without end", Refused("longer than"), |request, right| {
            match request.path.contains("/manifests/latest") {
                true => Response { fault: Some(Fault::Endless), ..right },
                false => right,
            }
        }),
        lie("manifest of another digest", Refused("wrong bytes"), |request, right| {
            match request.path.contains("/manifests/") {
                true => {
                    let mut wrong = right;
                    wrong.headers.retain(|(name, _)| *name != "Docker-Content-Digest");
                    wrong.header("Docker-Content-Digest", Digest::of(b"other").to_string())
                }
                false => right,
            }
        }),
        lie("manifest of ten thousand layers", Refused("layers"), |request, right| {
            of_manifest(request, right, |manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"] = vec![layer; 10_000].into();
            })
        }),
        lie("layer without a size", Refused("size"), |request, right| {
            of_manifest(request, right, |manifest| {
                manifest["layers"][0].as_object_mut().unwrap().remove("size");
            })
        }),
        lie("layer of an exabyte", Refused("bytes"), |request, right| {
            of_manifest(request, right, |manifest| {
                manifest["layers"][0]["size"] = (1_u64 << 60).into();
            })
        }),
        lie("layer that is one byte longer than said", Refused("bytes"), |request, right| {
            of_manifest(request, right, |manifest| {
                let size = manifest["layers"][0]["size"].as_u64().unwrap();
                manifest["layers"][0]["size"] = (size - 1).into();
            })
        }),
        lie("digest that names a path", Refused("digest"), |request, right| {
            of_manifest(request, right, |manifest| {
                manifest["layers"][0]["digest"] = "sha256:../../../etc/passwd".into();
            })
        }),
        lie("config of a gigabyte", Refused(""), |request, right| {
            of_manifest(request, right, |manifest| {
                manifest["config"]["size"] = (1 << 30).into();
            })
        }),
        lie("index of itself", Refused(""), |request, right| {
            match request.path.contains("/manifests/") {
                true => {
                    let platform = json!({ "os": "linux", "architecture": "amd64" });
                    let digest = Digest::of(b"itself");
                    let entry = json!({ "mediaType": INDEX, "digest": digest, "size": 9, "platform": platform });
                    let index =
                        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
                    Response::new(200, index.to_string()).header("Content-Type", INDEX)
                }
                false => right,
            }
        }),
        lie("manifest redirected in circles", Refused(""), |request, right| {
            match request.path.contains("/manifests/") {
                true => Response::new(307, "").header("Location", request.path.clone()),
                false => right,
            }
        }),
        lie("everything in gzip", Refused("gzip"), |request, right| {
            match request.path.contains("/blobs/") {
                true => right.header("Content-Encoding", "gzip"),
                false => right,
            }
        }),
    ]
}

fn blobs() -> Vec<Lie> {
    let of_config = |change: fn(&mut Value)| {
        move |request: &Request, right: Response| {
            let config = serde_json::from_slice::<Value>(&right.body);
            match (request.path.contains("/blobs/"), config) {
                (true, Ok(mut config)) if config.get("rootfs").is_some() => {
                    change(&mut config);
                    Response::new(200, config.to_string())
                }
                _ => right,
            }
        }
    };
    vec![
        lie(
            "config of another image",
            Refused(""),
            of_config(|config| {
                config["rootfs"]["diff_ids"] = json!([Digest::of(b"other")]);
            }),
        ),
        lie("layer of zeros", Refused(""), |request, right| match right.body.len() {
            1_000_000.. if request.path.contains("/blobs/") => {
                Response { body: vec![0; right.body.len()].into(), ..right }
            }
            _ => right,
        }),
        lie("layer that goes on without end", Right, |request, right| match right.body.len() {
            1_000_000.. if request.path.contains("/blobs/") => {
                Response { fault: Some(Fault::Endless), ..right }
            }
            _ => right,
        }),
    ]
}

fn lists() -> Vec<Lie> {
    let entry = |n: u64| {
        let digest = Digest::of(&n.to_le_bytes());
        let kind = "application/vnd.undermount.index.v1";
        json!({ "mediaType": MANIFEST, "digest": digest, "size": 700, "artifactType": kind })
    };
    let list = |entries: Vec<Value>| {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        Response::new(200, index.to_string()).header("Content-Type", INDEX)
    };
    let million = list(
        (0..1_000_000)
            .map(|n| json!({ "mediaType": MANIFEST, "digest": Digest::of(b"x"), "size": n }))
            .collect(),
    );
    vec![
        lie("list of a million entries", Right, move |request, right| {
            of_referrers(request, right, || million.clone())
        }),
        lie("list of thousands of indexes that are not there", Right, move |request, right| {
            of_referrers(request, right, || list((0..5_000).map(entry).collect()))
        }),
        lie("list in circles", Right, move |request, right| {
            let next = format!("<{}>; rel=\"next\"", request.path);
            of_referrers(request, right, || list(Vec::new()).header("Link", next))
        }),
        lie("list that goes on elsewhere", Right, move |request, right| {
            let next = "<http://127.0.0.1:1/v2/x/referrers/y>; rel=\"next\"";
            of_referrers(request, right, || list(Vec::new()).header("Link", next))
        }),
        lie("list of HTML", Right, |request, right| {
            of_referrers(request, right, || Response::new(200, "<html>"))
        }),
    ]
}

/// The right index of the image's layer, with other bytes for its tree.
fn with_tree(image: &Image, change: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<LayerBlobs>> {
    let (layer, _) = image.layers()[0];
    let right = index_of(&image.blobs[&layer]);
    let mut tree = right.tree.to_vec();
    change(&mut tree);
    Some(vec![LayerBlobs { tree: tree.into(), ..right }])
}

/// Gives the large file the key of a content that is another one.
fn with_another_key(tree: &mut [u8]) {
    let right = LayerTree::new(tree.to_vec().into()).unwrap();
    let mut contents = Content::all(&right).map(|content| content.unwrap().1);
    let key = *contents.find(Content::is_large).unwrap().key.digest();
    let at = tree.windows(32).position(|bytes| bytes == key.as_bytes()).unwrap();
    tree[at] ^= 1;
}

fn indexes() -> Vec<Lie> {
    vec![
        lying_index("index of another layer", |image| {
            let (layer, _) = image.layers()[0];
            let other = Image::of(&[&[Member::file("other", noise(6, 1_500_000))]]);
            let other = index_of(&other.blobs[&other.layers()[0].0]);
            Some(vec![LayerBlobs { layer, ..other }])
        }),
        lying_index("index for another DiffID", |image| with_tree(image, |tree| tree[48] ^= 1)),
        lying_index("index of no version", |image| with_tree(image, |tree| tree[8] = 200)),
        lying_index("index without inodes", |image| {
            with_tree(image, |tree| tree[192..200].fill(0))
        }),
        lying_index("index whose directories hold everything", |image| {
            with_tree(image, |tree| {
                // The root's entries become those of all directories.
                for inode in tree[320..320 + 64 * 2].chunks_exact_mut(64) {
                    inode[44..48].copy_from_slice(&5_u32.to_le_bytes());
                }
            })
        }),
        lying_index("index with a name of a path", |image| {
            with_tree(image, |tree| {
                let at = tree.windows(4).position(|name| name == b"last").unwrap();
                tree[at..at + 4].copy_from_slice(b"../x");
            })
        }),
        lying_index("index of a file with another key", |image| {
            with_tree(image, |tree| with_another_key(tree))
        }),
        lying_index("index of noise", |image| with_tree(image, |tree| *tree = noise(7, 10_000))),
        lying_index("index that is empty", |image| with_tree(image, Vec::clear)),
        lying_index("index of 300 MiB in a few KiB", |image| {
            with_tree(image, |tree| *tree = vec![0; 300 << 20])
        }),
        lying_index("spans of another layer", |image| {
            let (layer, _) = image.layers()[0];
            let right = index_of(&image.blobs[&layer]);
            Some(vec![LayerBlobs { spans: Bytes::from(noise(8, 5_000)), ..right }])
        }),
    ]
}

/// Mounts the image while the registry lies; refused or right, never wrong.
fn tell(lies: Vec<Lie>) {
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, mut node) = (Origin::new(), Node::new());
    // Keeps one worker for all lies.
    let well = origin.add("lies/well", Image::of(&[&[Member::file("well", "well")]]));
    node.mount(&well);
    let worker = node.worker();
    let mut expected = Model::tree_of(&[&members()]);
    expected.open("last", "mtime_ns");
    let mut wrong = Vec::new();
    for (number, Lie { name, verdict, distortion, indexes }) in lies.into_iter().enumerate() {
        // A layer of its own, so that nothing of it is here yet.
        let image = {
            let mut own = members();
            own.push(Member::file("last", "last").mtime(1_700_000_000 + number as i64, 0));
            Image::of(&[&own])
        };
        let repository = format!("lies/lie{number}");
        let reference = origin.add(&repository, image.clone());
        if let Some(indexes) = indexes(&image) {
            origin.attach(&repository, &indexes);
        }
        origin.distort(distortion);
        let directory = node.directory(&repository);
        let begin = Instant::now();
        let outcome = node.try_mount(&reference, &directory);
        let took = begin.elapsed();
        println!("{name}: {} after {took:.1?}", outcome.stderr.trim_end());
        assert!(took < ENDLESS, "{name}: took {took:?}");
        let mounted = is_mounted(&directory);
        match verdict {
            Refused(_) if mounted => wrong.push(format!("{name}: mounted")),
            Refused(words) if !outcome.refusal().contains(words) => {
                wrong.push(format!("{name}: {}", outcome.stderr));
            }
            Refused(_) => {}
            Right if !mounted => wrong.push(format!("{name}: {}", outcome.stderr)),
            Right => {
                origin.behave();
                let found = Tree::read(&directory).unwrap().differences(&expected);
                wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
            }
        }
        if mounted {
            node.umount(&directory);
        }
        origin.behave();
    }
    assert_eq!(node.worker(), worker, "the worker was restarted");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let peak = peak_memory(worker);
    assert!(peak < MEMORY_MAX, "the worker took {peak} KiB");
}

/// The most memory that the process has had, in KiB.
fn peak_memory(process: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn lies_about_manifests_are_refused() {
    tell(manifests());
}

#[test]
fn lies_about_blobs_are_refused_or_made_up_for() {
    tell(blobs());
}

#[test]
fn lies_about_what_is_attached_are_made_up_for() {
    tell(lists());
}

#[test]
fn indexes_that_lie_are_noticed_and_built_anew() {
    tell(indexes());
}

fn listing(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn regression_what_a_lying_index_has_shown_is_gone_at_the_next_mount() {
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, mut node) = (Origin::new(), Node::new());
    // Keeps the content mounts, and with them what the kernel remembers of them.
    let well = origin.add("lies/well", Image::of(&[&[Member::file("well", "well")]]));
    node.mount(&well);
    let right = [
        Member::dir("a"),
        Member::file("a/true", "x"),
        Member::dir("b"),
        Member::file("b/right", "x"),
    ];
    let lie = [
        Member::dir("a"),
        Member::dir("a/deep"),
        Member::file("a/deep/false", "x"),
        Member::dir("b"),
        Member::file("b/wrong", "x"),
        Member::dir("c"),
    ];
    let image = Image::of(&[&right]);
    let reference = origin.add("lies/tree", image.clone());
    origin.attach("lies/tree", &index_of_other_members(&image, &lie));
    let directory = node.directory("lying");
    node.try_mount(&reference, &directory).success();
    assert_eq!(listing(&directory), ["a", "b", "c"]);
    assert_eq!(listing(&directory.join("a")), ["deep"]);

    let pull = run(node.command("pull").arg(&reference), PATIENCE);
    assert!(pull.refusal().contains("not the one of its bytes"), "{}", pull.stderr);
    // Whoever uses the mount keeps what it was made of, also with another worker.
    let worker = node.worker();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("another worker", SOON, || node.worker() != worker);
    assert_eq!(listing(&directory.join("b")), ["wrong"]);
    node.umount(&directory);

    node.try_mount(&reference, &directory).success();
    let found = Tree::read(&directory).unwrap().differences(&Model::tree_of(&[&right]));
    assert!(found.is_empty(), "{found:#?}");
}

/// Versions before 1 of the rules took large files with keys of other images' files.
#[test]
fn regression_an_index_that_an_older_version_took_is_looked_through_again() {
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, mut node) = (Origin::new(), Node::new());
    let well = origin.add("lies/well", Image::of(&[&[Member::file("well", "well")]]));
    node.mount(&well);
    let image = Image::of(&[&members()]);
    let (layer, _) = image.layers()[0];
    let tree = with_tree(&image, |tree| with_another_key(tree)).unwrap().remove(0).tree;
    let reference = origin.add("lies/old", image);
    let hex = Digest::of(&tree).hex();
    let directory = node.cache().join("blobs").join(&hex[..2]);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(&hex), tree).unwrap();
    let record = json!({ "tree": format!("sha256:{hex}"), "trust": "registry" });
    let place = node.cache().join("layers").join(layer.hex());
    fs::write(&place, record.to_string()).unwrap();
    let directory = node.mount(&reference);
    assert!(fs::read(directory.join("d/noise")).unwrap() == noise(5, 1_300_000));
    let record: Value = serde_json::from_slice(&fs::read(place).unwrap()).unwrap();
    assert_eq!(record["trust"], "self", "it was built anew");
}
