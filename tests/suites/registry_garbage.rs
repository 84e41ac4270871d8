//! What `undermount registry` removes and never removes: garbage collected while pushes go on,
//! and pushes that a kill cuts off at any moment.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use undermount_tests::archive::noise;
use undermount_tests::distribution::{Api, sha256};
use undermount_tests::process::{SOON, eventually};
use undermount_tests::registry::{Registry, files_below};

/// How long images are pushed while garbage is collected.
const SOME_SECONDS: Duration = Duration::from_secs(4);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of layers that are no archives. Some are shared by all images, so that what one
/// deletes another needs.
struct Pushed {
    blobs: Vec<Vec<u8>>,
    manifest: String,
}

impl Pushed {
    fn new(seed: u64) -> Self {
        let shared = noise(seed % 3, 40_000);
        let blobs = vec![b"{}".to_vec(), shared, noise(1000 + seed, 20_000)];
        let part = |blob: &Vec<u8>| {
            json!({
                "mediaType": "application/x", "digest": sha256(blob), "size": blob.len(),
            })
        };
        let layers: Vec<Value> = blobs[1..].iter().map(part).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": part(&blobs[0]),
            "layers": layers, "annotations": { "seed": seed.to_string() },
        });
        Self { blobs, manifest: manifest.to_string() }
    }

    /// Pushes as clients do: what is there already is not sent again. `None` where the registry
    /// was killed, else the status of the manifest.
    fn push(&self, api: &Api, repository: &str, tag: &str) -> Option<u16> {
        for blob in &self.blobs {
            let digest = sha256(blob);
            let path = format!("/v2/{repository}/blobs/{digest}");
            if api.try_send("HEAD", &path, &[], b"").ok()?.status == 200 {
                continue;
            }
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            api.try_send("POST", &path, &[], blob).ok().filter(|answer| answer.status == 201)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("Content-Type", MANIFEST)];
        Some(api.try_send("PUT", &path, &headers, self.manifest.as_bytes()).ok()?.status)
    }

    fn assert_whole(&self, api: &Api, repository: &str, tag: &str) {
        let manifest = api.get(&format!("/v2/{repository}/manifests/{tag}"));
        assert!(manifest.expect(200).body == self.manifest.as_bytes(), "{repository}:{tag}");
        for blob in &self.blobs {
            let answer = api.get(&format!("/v2/{repository}/blobs/{}", sha256(blob)));
            assert!(answer.expect(200).body == *blob, "{repository}:{tag}");
        }
    }
}

struct Fixture {
    root: tempfile::TempDir,
    _registry: Registry,
    api: Api,
}

fn fixture(flags: &[&str]) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), flags);
    let api = Api(registry.address().to_owned());
    Fixture { root, _registry: registry, api }
}

fn collect(api: &Api, query: &str) -> Value {
    api.send("POST", &format!("/gc{query}"), &[], b"").expect(200).json()
}

fn assert_blobs_are_whole(root: &Path) {
    for (path, _) in files_below(&root.join("blobs/sha256")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let actual = sha256(&fs::read(&path).unwrap());
        assert_eq!(actual.strip_prefix("sha256:"), Some(name), "{}", path.display());
    }
}

#[test]
fn a_deleted_image_frees_its_space_and_leaves_what_others_need() {
    let f = fixture(&["--index", "off"]);
    let (one, two) = (Pushed::new(3), Pushed::new(6));
    for (image, tag) in [(&one, "one"), (&two, "two")] {
        assert_eq!(image.push(&f.api, "a", tag), Some(201));
    }
    assert_eq!(collect(&f.api, "?grace=0")["blobs"], 0);
    let path = format!("/v2/a/manifests/{}", sha256(one.manifest.as_bytes()));
    f.api.send("DELETE", &path, &[], b"").expect(202);
    assert_eq!(collect(&f.api, "")["blobs"], 0, "what was just pushed is young");
    let counted = collect(&f.api, "?grace=0&dry_run=true");
    assert_eq!(counted, collect(&f.api, "?grace=0"));
    let freed = 20_000 + one.manifest.len();
    assert_eq!(counted, json!({ "manifests": 0, "links": 1, "blobs": 2, "bytes": freed }));
    two.assert_whole(&f.api, "a", "two");
    assert_eq!(files_below(&f.root.path().join("blobs")).len(), 4);
}

#[test]
fn manifests_that_lost_their_tag_go_if_wished() {
    let f = fixture(&["--index", "off"]);
    for seed in [1, 2] {
        assert_eq!(Pushed::new(seed).push(&f.api, "a", "latest"), Some(201));
    }
    assert_eq!(collect(&f.api, "?grace=0")["manifests"], 0);
    assert_eq!(collect(&f.api, "?grace=0&untagged=true")["manifests"], 1);
    Pushed::new(2).assert_whole(&f.api, "a", "latest");
}

#[test]
fn only_who_may_push_may_collect_and_mistakes_are_told() {
    let f = fixture(&["--push", "none"]);
    assert_eq!(f.api.send("POST", "/gc", &[], b"").error(405), "UNSUPPORTED");
    f.api.get("/gc").expect(405);
    let f = fixture(&[]);
    for query in ["?grace=long", "?untagged=perhaps", "?dry_run=1"] {
        let answer = f.api.send("POST", &format!("/gc{query}"), &[], b"");
        assert_eq!(answer.error(400), "UNSUPPORTED", "{query}");
    }
}

#[test]
fn garbage_is_collected_by_the_clock() {
    let f = fixture(&["--gc-interval", "1", "--gc-grace", "1"]);
    f.api.push_blob("a", b"nobody needs this");
    let blobs = f.root.path().join("blobs");
    eventually("nothing is left", SOON, || files_below(&blobs).is_empty());
}

/// Pushes, deletes and collects side by side for some seconds, and longer where the disk is slow:
/// until so many images are there. Gives those, and how many pushes were refused because a blob had
/// been collected.
fn push_while_collecting(
    api: &Api,
    query: &str,
    least: usize,
) -> (Vec<(String, String, u64)>, u64) {
    let (pushed, refused) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let (begin, done) = (Instant::now(), AtomicBool::new(false));
    let is_over = |pushed: usize| {
        let elapsed = begin.elapsed();
        elapsed > SOME_SECONDS && pushed >= least || elapsed > SOON
    };
    thread::scope(|scope| {
        let pushers: Vec<_> = (0..4_u64)
            .map(|pusher| {
                let (pushed, refused, is_over) = (&pushed, &refused, &is_over);
                scope.spawn(move || {
                    let repository = format!("pusher/{}", pusher % 2);
                    for round in 0.. {
                        if is_over(pushed.lock().unwrap().len()) {
                            return;
                        }
                        let seed = pusher * 10_000 + round;
                        let (image, tag) = (Pushed::new(seed), format!("t{seed}"));
                        match image.push(api, &repository, &tag).unwrap() {
                            201 if round % 2 == 0 => {
                                pushed.lock().unwrap().push((repository.clone(), tag, seed));
                            }
                            201 => {
                                let digest = sha256(image.manifest.as_bytes());
                                let path = format!("/v2/{repository}/manifests/{digest}");
                                api.send("DELETE", &path, &[], b"").expect(202);
                            }
                            400 => drop(refused.fetch_add(1, Ordering::Relaxed)),
                            other => panic!("{other}"),
                        }
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                collect(api, query);
            }
        });
        for pusher in pushers {
            pusher.join().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    (pushed.into_inner().unwrap(), refused.into_inner())
}

#[test]
fn no_push_is_lost_or_refused_while_garbage_is_collected() {
    let f = fixture(&["--index", "off"]);
    let (pushed, refused) = push_while_collecting(&f.api, "?grace=600", 11);
    assert_eq!(refused, 0);
    assert!(pushed.len() > 10, "{}", pushed.len());
    collect(&f.api, "?grace=0&untagged=true");
    for (repository, tag, seed) in &pushed {
        Pushed::new(*seed).assert_whole(&f.api, repository, tag);
    }
    // What is left is what the images need: their own layer and manifest each, and what is shared.
    let mut needed: HashSet<String> = HashSet::new();
    for image in pushed.iter().map(|(_, _, seed)| Pushed::new(*seed)) {
        needed.extend(image.blobs.iter().map(|blob| sha256(blob)));
        needed.insert(sha256(image.manifest.as_bytes()));
    }
    assert_eq!(files_below(&f.root.path().join("blobs")).len(), needed.len());
}

#[test]
fn without_any_grace_a_push_is_refused_or_whole() {
    let f = fixture(&["--index", "off"]);
    let (pushed, refused) = push_while_collecting(&f.api, "?grace=0", 1);
    println!("{} pushed, {refused} refused", pushed.len());
    assert!(!pushed.is_empty());
    for (repository, tag, seed) in pushed {
        Pushed::new(seed).assert_whole(&f.api, &repository, &tag);
    }
}

#[test]
fn killed_again_and_again_under_pushers_the_registry_keeps_what_it_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let flags = ["--index", "off", "--gc-interval", "1", "--gc-grace", "600"];
    let acknowledged: Mutex<Vec<(String, String, u64)>> = Mutex::default();
    let seeds = AtomicU64::new(0);
    for round in 0..20_u64 {
        let mut registry = Registry::undermount_with(root.path(), &flags);
        let api = Api(registry.address().to_owned());
        thread::scope(|scope| {
            for pusher in 0..4 {
                let (api, seeds, acknowledged) = (&api, &seeds, &acknowledged);
                scope.spawn(move || {
                    loop {
                        let seed = seeds.fetch_add(1, Ordering::Relaxed);
                        let (repository, tag) = (format!("r/{}", pusher % 2), format!("t{seed}"));
                        match Pushed::new(seed).push(api, &repository, &tag) {
                            Some(201) => {
                                acknowledged.lock().unwrap().push((repository, tag, seed));
                            }
                            Some(other) => panic!("{other}"),
                            None => return,
                        }
                    }
                });
            }
            let count = || acknowledged.lock().unwrap().len();
            let before = count();
            // Moments that differ from round to round.
            thread::sleep(Duration::from_millis(20 + round * 7919 % 300));
            // With a slow disk nothing is acknowledged so soon.
            eventually("pushes are acknowledged", SOON, || count() > before + 1);
            registry.process().kill();
        });
        drop(registry);
        assert_blobs_are_whole(root.path());
    }
    let registry = Registry::undermount_with(root.path(), &flags);
    let api = Api(registry.address().to_owned());
    let acknowledged = acknowledged.into_inner().unwrap();
    println!("{} pushes acknowledged over 20 kills", acknowledged.len());
    assert!(acknowledged.len() > 20);
    for (repository, tag, seed) in &acknowledged {
        Pushed::new(*seed).assert_whole(&api, repository, tag);
    }
}
