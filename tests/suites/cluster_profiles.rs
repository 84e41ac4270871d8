//! Nodes that tell each other what starts read, since their registry makes no packs of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use undermount_tests::archive::{Member, noise};
use undermount_tests::cluster::{self, Cluster, ClusterNode, await_members};
use undermount_tests::image::Image;
use undermount_tests::process::{SOON, eventually};

/// A start is over after ten seconds without a read, and told within ten more.
const TOLD: Duration = Duration::from_secs(180);
const FILES: usize = 400;
const SIZE: usize = 60_000;
/// What a start reads.
const READ: [usize; 5] = [150, 7, 299, 3, 60];

fn name(file: usize) -> String {
    format!("data/{file}")
}

fn content(file: usize) -> Vec<u8> {
    noise(file as u64, SIZE)
}

/// An image of the files; each build has another first file.
fn image(build: u64) -> Image {
    let marker = Member::file("build", noise(1000 + build, 100_000));
    let data = (0..FILES).map(|file| Member::file(name(file), content(file)));
    Image::of(&[&std::iter::once(marker).chain(data).collect::<Vec<_>>()])
}

/// Reads in the mount of `node` what a start reads.
fn start(node: &ClusterNode) {
    for file in READ {
        let path = node.path("mount").join(name(file));
        assert!(fs::read(path).unwrap() == content(file), "{file}");
    }
}

/// Bytes of the mounted image that `node` has.
fn local(node: &ClusterNode) -> u64 {
    node.json("status")["mounts"][0]["local_bytes"].as_u64().unwrap()
}

/// Waits until `node` has fetched what it knows that the start will read.
fn await_foreseen(node: &ClusterNode) {
    let done = || node.log().contains("fetched what earlier starts have read");
    eventually("what the start reads is here", SOON, done);
    eventually("and written", SOON, || local(node) >= (READ.len() * SIZE) as u64);
    assert!(local(node) < (FILES * SIZE) as u64 / 2, "and not everything");
}

/// How many profiles `node` keeps for the cluster.
fn kept(node: &ClusterNode) -> usize {
    let directories = fs::read_dir(node.path("cache/profiles-of-peers"));
    let directories = directories.into_iter().flatten().map(|entry| entry.unwrap().path());
    directories.map(|directory| fs::read_dir(directory).unwrap().count()).sum()
}

#[test]
fn what_a_start_has_read_on_one_node_is_fetched_first_on_others() {
    if cluster::is_impossible() {
        return;
    }
    let mut cluster = Cluster::new();
    let first = cluster.push(&image(1), "nova/service:1");
    let next = cluster.push(&image(2), "nova/service:2");
    let nodes = cluster.nodes(2);
    nodes[0].mount(&first);
    start(&nodes[0]);
    eventually("both nodes keep its profile", TOLD, || nodes.iter().all(|node| kept(node) == 1));

    let before = cluster.egress();
    nodes[1].mount(&first);
    await_foreseen(&nodes[1]);
    assert!(cluster.egress().since(before).bodies < SIZE as u64, "it came from the first node");

    let shy = cluster.node_with("", &(cluster.peers(&[]) + "[profiles]\nstarts = \"keep\"\n"));
    let late = cluster.node();
    await_members(std::slice::from_ref(&shy), 4);
    await_members(std::slice::from_ref(&late), 4);
    shy.mount(&next);
    late.mount(&next);
    await_foreseen(&late);
    assert_eq!(local(&shy), 0, "who tells nobody is told nothing");
    cluster.kill_registry();
    cluster::kill_all(&nodes);
    start(&late);
}
