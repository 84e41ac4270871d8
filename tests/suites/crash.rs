//! `prepare` killed in the middle of its work: nothing half-written is served afterwards, and the
//! same command finishes the job. (The same of the registry is in `registry_server.rs`.)
#![allow(clippy::unwrap_used)]

use std::fs;
use std::thread;

use undermount_fs::digest::Digest;
use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::node::PATIENCE;
use undermount_tests::origin::Origin;
use undermount_tests::process::{Running, run, undermount};
use undermount_tests::registry::{Registry, get};

/// How often a process is killed, each time at another moment of its work.
const ROUNDS: u64 = 10;

/// An image of three layers of 4 MiB that do not compress, another one for every seed.
fn large_image(seed: u64) -> Image {
    let layer = |n| Archive::of(&[Member::file(format!("f{n}"), noise(seed * 3 + n, 4 << 20))]);
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
fn a_killed_prepare_leaves_nothing_half_written_and_the_same_command_finishes() {
    let scratch = tempfile::tempdir().unwrap();
    let origin = Origin::new();
    let registry = Registry::undermount(&scratch.path().join("root"));
    // Every round of its own content, since the registry keeps what it once got.
    let images = |round: u64| {
        let images = [large_image(50 + 2 * round), large_image(51 + 2 * round)];
        for (image, name) in images.iter().zip(["cron", "memcached"]) {
            origin.add(&format!("round{round}/x-{name}"), image.clone());
        }
        images
    };
    let command = |round: u64| {
        let file = scratch.path().join(format!("round{round}.yaml"));
        let text = format!(
            "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: {}\n    \
             set: {{namespace: {}/round{round}, name_prefix: x, tag: latest}}\n    \
             includes: ['x-cron:', 'x-memcached:']\n",
            registry.address(),
            origin.address(),
        );
        fs::write(&file, text).unwrap();
        let mut command = undermount();
        command.arg("prepare").arg("-e").arg(&file).arg("--output-env-file");
        command.arg(file.with_extension("env.yaml"));
        command
    };
    images(0);
    let usual = run(&mut command(0), PATIENCE).success().elapsed;
    let mut interrupted = 0;
    for round in 1..=ROUNDS {
        let images = images(round);
        let mut prepare = Running::start(&mut command(round));
        thread::sleep(usual.mul_f64(round as f64 / (ROUNDS + 1) as f64));
        prepare.kill();
        let env_file = scratch.path().join(format!("round{round}.env.yaml"));
        interrupted += usize::from(!env_file.exists());
        let names = ["cron", "memcached"].map(|name| format!("round{round}/x-{name}"));
        for (image, name) in images.iter().zip(&names) {
            assert_nothing_half_written(&registry, name, image);
        }
        run(&mut command(round), PATIENCE).success();
        let env = fs::read_to_string(&env_file).unwrap();
        for (image, name) in images.iter().zip(&names) {
            assert!(env.contains(&format!("{}/{name}:latest", registry.address())), "{env}");
            let reference = format!("{}/{name}:latest", registry.address());
            let pulled = registry.pull(&reference, &scratch.path().join(name.replace('/', "-")));
            assert_eq!((pulled.digest(), &pulled.blobs), (image.digest(), &image.blobs));
        }
    }
    assert!(interrupted >= 3, "only {interrupted} of {ROUNDS} runs were interrupted");
}
