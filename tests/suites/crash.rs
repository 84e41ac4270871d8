//! Processes killed in the middle of their work: nothing half-written is served afterwards, and
//! the same command finishes the job.
#![allow(clippy::unwrap_used)]

use std::thread;
use std::time::{Duration, Instant};

use undermount_fs::digest::Digest;
use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::process::{Running, program};
use undermount_tests::registry::{Registry, get};
use undermount_tests::requirement::{Need, lacking};

/// How often a process is killed, each time at another moment of its work.
const ROUNDS: u64 = 10;

/// An image of three layers of 6 MiB that do not compress, another one for every seed.
fn large_image(seed: u64) -> Image {
    let layer = |n| Archive::of(&[Member::file(format!("f{n}"), noise(seed * 3 + n, 6 << 20))]);
    let layers = (0..3).map(|n| Layer::compressed(&layer(n), Compression::GzipStored));
    Image::from_layers(layers.collect())
}

/// Whatever of `image` the registry serves is whole and right; a manifest comes with its blobs.
fn assert_nothing_half_written(registry: &Registry, repository: &str, image: &Image) {
    let base = format!("http://{}/v2/{repository}", registry.address());
    let served: Vec<bool> = image
        .blobs
        .keys()
        .map(|digest| match get(&format!("{base}/blobs/{digest}")) {
            (200, body) => {
                assert_eq!(Digest::of(&body), *digest, "a wrong blob is served");
                true
            }
            (status, _) => {
                assert_eq!(status, 404);
                false
            }
        })
        .collect();
    for reference in ["latest", &image.digest().to_string()] {
        let (status, body) = get(&format!("{base}/manifests/{reference}"));
        if status == 200 {
            assert_eq!(body, image.manifest);
            assert!(served.iter().all(|served| *served), "a manifest without its blobs is served");
        } else {
            assert_eq!(status, 404);
        }
    }
}

#[test]
fn a_registry_killed_during_a_push_serves_nothing_half_written_and_takes_the_push_again() {
    if lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (root, layout) = (scratch.path().join("root"), scratch.path().join("layout"));
    let image = large_image(0);
    image.write_layout(&layout, "image");
    let mut registry = Registry::undermount(&root);
    let address = registry.address().to_owned();
    let undisturbed = Instant::now();
    registry.push(&layout, "image", "undisturbed:latest");
    let usual = undisturbed.elapsed();

    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let repository = format!("round{round}");
        // Every round of its own content, since blobs are shared between repositories.
        let image = large_image(round + 1);
        let layout = scratch.path().join(&repository);
        image.write_layout(&layout, "image");
        let mut push = Running::start(
            program("skopeo")
                .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:image", layout.display()))
                .arg(format!("docker://{address}/{repository}:latest")),
        );
        thread::sleep(usual.mul_f64((round + 1) as f64 / (ROUNDS + 1) as f64));
        registry.process().kill();
        let ended = push.wait(Duration::from_secs(60)).expect("skopeo gives up");
        interrupted += usize::from(!ended.success());

        registry = Registry::undermount_at(&root, &address);
        assert_nothing_half_written(&registry, &repository, &image);
        let reference = registry.push(&layout, "image", &format!("{repository}:latest"));
        let pulled = registry.pull(&reference, &scratch.path().join(format!("{repository}-back")));
        assert_eq!((pulled.digest(), pulled.blobs), (image.digest(), image.blobs));
    }
    assert!(interrupted >= 3, "only {interrupted} of {ROUNDS} pushes were interrupted");
}
