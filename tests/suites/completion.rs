//! What is mounted becomes local in the background: each layer in one stream, checked at its end.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use undermount_tests::archive::{Member, noise};
use undermount_tests::image::Image;
use undermount_tests::model::Model;
use undermount_tests::node::{self, Node, PATIENCE};
use undermount_tests::origin::{Origin, index_of_other_members};
use undermount_tests::process::eventually;
use undermount_tests::requirement::lacking;
use undermount_tests::tree::Tree;

fn is_local(node: &Node, directory: &Path) -> bool {
    let status = node.mount_status(directory);
    assert!(status["trouble"].is_null(), "{status}");
    status["local_bytes"] == status["content_bytes"]
}

/// Two layers that are streamed, and a small one.
fn layers() -> [Vec<Member>; 3] {
    [
        vec![Member::file("base", noise(1, 2_500_000)), Member::file("gone", noise(2, 5_000))],
        vec![Member::dir("d"), Member::file("d/large", noise(3, 1_400_000))],
        vec![Member::whiteout("", "gone"), Member::file("small", "small")],
    ]
}

#[test]
fn each_layer_streams_once_in_order_and_then_nothing_is_needed_of_the_registry() {
    if lacking(node::NEEDS) {
        return;
    }
    let layers = layers();
    let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
    let image = Image::of(&layers);
    let (origin, reference) = Origin::with(image.clone());
    origin.attach_right("test/image");
    let mut node = Node::new();
    let directory = node.mount_completing(&reference, 1);
    eventually("all is here", PATIENCE, || is_local(&node, &directory));
    for (layer, size) in image.layers() {
        let path = format!("/v2/test/image/blobs/{layer}");
        let requests = origin.requests().into_iter().filter(|it| it.method == "GET");
        let ranges = requests.filter(|it| it.path == path).map(|request| request.range());
        let mut end = 0;
        for (first, last) in ranges.map(|range| range.unwrap_or((0, u64::MAX))) {
            assert_eq!(first, end, "{layer} of {size} bytes: a part comes again, or out of order");
            end = last.saturating_add(1).min(size);
        }
        assert_eq!(end, size, "{layer}");
    }
    origin.down();
    Tree::read(&directory).unwrap().assert_equals(&Model::tree_of(&layers));
}

#[test]
fn an_index_that_lies_is_told_of_in_status_and_replaced_at_the_next_mount() {
    if lacking(node::NEEDS) {
        return;
    }
    let right = [Member::dir("d"), Member::file("d/noise", noise(4, 1_500_000))];
    let image = Image::of(&[&right]);
    let (origin, reference) = Origin::with(image.clone());
    let lie = [Member::dir("d").mode(0o777), Member::file("d/noise", noise(4, 1_500_000))];
    origin.attach("test/image", &index_of_other_members(&image, &lie));
    let mut node = Node::new();
    let directory = node.mount_completing(&reference, 1);
    let trouble = || node.mount_status(&directory)["trouble"].to_string();
    eventually("the lie is found", PATIENCE, || trouble().contains("not the one of its bytes"));
    let again = node.mount(&reference);
    Tree::read(&again).unwrap().assert_equals(&Model::tree_of(&[&right]));
}
