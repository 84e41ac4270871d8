//! Many clients of one registry at once: some push, some read parts of what is there. Every
//! answer must be a success, and every byte right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::archive::noise;
use crate::distribution::{Api, sha256};

/// The most that a puller asks for at a time.
const PART: usize = 1 << 20;
const REPOSITORY: &str = "soak/shared";

/// How many clients there are, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// Clients that read parts of shared blobs, and at times what a pusher has just pushed.
    pub pullers: u64,
    /// Clients that push blobs and manifests.
    pub pushers: u64,
    /// How long they go on.
    pub duration: Duration,
    /// The size of a shared blob in bytes.
    pub blob: usize,
}

/// What was moved.
#[derive(Debug, Default)]
pub struct Moved {
    /// Parts that were read.
    pub parts: AtomicU64,
    /// Their bytes.
    pub pulled: AtomicU64,
    /// Images that were pushed.
    pub images: AtomicU64,
}

impl Soak {
    /// Lets all clients loose on `api`. Panics at the first answer that is not as it should be.
    pub fn run(&self, api: &Api) -> Moved {
        let shared: Vec<(String, Vec<u8>)> = (0..4)
            .map(|seed| {
                let blob = noise(seed, self.blob);
                (api.push_blob(REPOSITORY, &blob), blob)
            })
            .collect();
        let (moved, end) = (Moved::default(), Instant::now() + self.duration);
        thread::scope(|scope| {
            for puller in 0..self.pullers {
                let (moved, shared) = (&moved, &shared);
                scope.spawn(move || {
                    for round in 0.. {
                        if Instant::now() > end {
                            return;
                        }
                        let (digest, blob) = &shared[(puller + round) as usize % shared.len()];
                        let step = (puller * 7919 + round * 104_729) as usize;
                        pull_part(api, digest, blob, step, moved);
                    }
                });
            }
            for pusher in 0..self.pushers {
                let moved = &moved;
                scope.spawn(move || {
                    for round in 0.. {
                        if Instant::now() > end {
                            return;
                        }
                        push_image(api, pusher, round);
                        moved.images.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        moved
    }
}

fn pull_part(api: &Api, digest: &str, blob: &[u8], step: usize, moved: &Moved) {
    let from = step % blob.len();
    let to = (from + PART).min(blob.len());
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let range = format!("bytes={from}-{}", to - 1);
    let answer = api.send("GET", &path, &[("Range", &range)], b"");
    assert!(answer.expect(206).body == blob[from..to], "{path} {range}");
    moved.parts.fetch_add(1, Ordering::Relaxed);
    moved.pulled.fetch_add((to - from) as u64, Ordering::Relaxed);
}

/// Pushes an image of one layer and reads it back.
fn push_image(api: &Api, pusher: u64, round: u64) {
    let repository = format!("soak/pusher{pusher}");
    let layer = noise(1_000_000 + pusher * 100_000 + round, 300_000);
    let part = |bytes: &[u8]| {
        serde_json::json!({
            "mediaType": "application/x", "digest": sha256(bytes), "size": bytes.len(),
        })
    };
    api.push_blob(&repository, b"{}");
    let digest = api.push_blob(&repository, &layer);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part(b"{}"), "layers": [part(&layer)],
    });
    let tag = format!("t{round}");
    api.push_manifest(&repository, &tag, &manifest);
    let pulled = api.get(&format!("/v2/{repository}/manifests/{tag}"));
    assert!(pulled.expect(200).body == manifest.to_string().as_bytes());
    let pulled = api.get(&format!("/v2/{repository}/blobs/{digest}"));
    assert!(pulled.expect(200).body == layer);
}
