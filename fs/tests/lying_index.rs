//! Indexes of somebody who wants to harm: what they can do to other images, and whether they are
//! found out.

#![allow(clippy::unwrap_used)]

mod machine;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use machine::{Machine, MemorySource, archive, gzip, noise, publish};
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, IngestError, Layer, Pace, Progress};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::LayerIndex;
use undermount_fs::source::{Priority, Scope};

const LARGE: usize = 5_000_000;

/// A layer with one file.
fn layer_of(source: &MemorySource, path: &str, content: Vec<u8>) -> LayerIndex {
    publish(source, gzip(&archive(&[(path, content)])))
}

fn tree(index: &LayerIndex) -> LayerTree {
    LayerTree::new(index.tree.to_vec().into()).unwrap()
}

/// The only content of a layer.
fn content(index: &LayerIndex) -> Content {
    let tree = tree(index);
    let (_, content) = Content::all(&tree).next().unwrap().unwrap();
    content
}

/// `index`, in whose tree other bytes stand in place of `old`.
fn with_bytes(index: LayerIndex, old: &[u8], new: &[u8]) -> LayerIndex {
    let mut tree = index.tree.to_vec();
    let at = tree.windows(old.len()).position(|bytes| bytes == old).unwrap();
    tree[at..at + new.len()].copy_from_slice(new);
    LayerIndex { tree: tree.into(), ..index }
}

/// Its own chunks, with the key of a library of another image that is of the same size.
#[tokio::test]
async fn regression_an_index_puts_nothing_in_the_place_of_another_images_file() {
    let source = Arc::new(MemorySource::default());
    let library = noise(1, LARGE);
    let right = layer_of(&source, "library", library.clone());
    let own = layer_of(&source, "evil", noise(2, LARGE));
    let key = *content(&own).key.digest();
    let lying = with_bytes(own, key.as_bytes(), content(&right).key.digest().as_bytes());
    let error = tree(&lying).check().unwrap_err();
    assert!(error.to_string().contains("not the one of its chunks"), "{error}");

    let machine = Machine::new(source);
    let evil = machine.mount_as(&[lying], b"evil");
    let node = machine.find(evil, "evil").unwrap();
    for offset in (0..LARGE as u64).step_by(1 << 20) {
        assert!(machine.read(node, offset, 1 << 20).await.is_err(), "nothing can be kept of it");
    }
    let image = machine.mount_as(&[right], b"image");
    let files = machine.files(image).await;
    assert!(files["/library"] == library);
}

/// The key of a large file for one of a few bytes, and the reverse.
#[tokio::test]
async fn regression_a_wrong_size_drops_no_object_of_another_image() {
    let source = Arc::new(MemorySource::default());
    let (large, small) = (noise(1, LARGE), noise(2, 5));
    let right =
        publish(&source, gzip(&archive(&[("large", large.clone()), ("small", small.clone())])));
    let machine = Machine::new(source.clone());
    let image = machine.mount_as(std::slice::from_ref(&right), b"image");
    let files = machine.files(image).await;
    assert!(files["/large"] == large && files["/small"] == small);

    let right = tree(&right);
    let keys: Vec<Digest> =
        Content::all(&right).map(|content| *content.unwrap().1.key.digest()).collect();
    for (path, size, key) in [("five", 5, keys[0]), ("more", LARGE, keys[1])] {
        let own = layer_of(&source, path, noise(3, size));
        let old = *content(&own).key.digest();
        let lying = with_bytes(own, old.as_bytes(), key.as_bytes());
        let evil = machine.mount_as(&[lying], path.as_bytes());
        let node = machine.find(evil, path).unwrap();
        assert!(machine.read(node, 0, 100).await.is_err(), "{path}");
    }
    source.down.store(true, Ordering::SeqCst);
    assert!(machine.files(image).await == files, "it is still here");
    assert_eq!(machine.view.filler().store().usage().damaged, 0);
}

/// Where pieces come from other nodes, they are held against the digests of the index itself.
#[tokio::test]
async fn regression_wrong_piece_digests_are_found_out_where_nodes_share() {
    let source = Arc::new(MemorySource::default());
    source.shares.store(true, Ordering::SeqCst);
    let files = [("a", noise(1, LARGE)), ("b", noise(2, LARGE))];
    let right = publish(&source, gzip(&archive(&files)));
    let header = *tree(&right).header();
    // The digest of the second span's piece.
    let mut spans = right.spans.to_vec();
    spans[64 + 96 + 16] ^= 1;
    let table = Digest::of(&spans[..header.span_table_size.get() as usize]);
    let spans = source.put(spans.into());
    let lying = with_bytes(right.clone(), header.spans.as_bytes(), spans.as_bytes());
    let lying = with_bytes(lying, header.span_table.as_bytes(), table.as_bytes());

    let machine = Machine::new(source.clone());
    let root = machine.mount(std::slice::from_ref(&lying));
    let layer = Layer::new(Arc::new(tree(&lying)), Scope::new("registry/image"));
    let (pace, progress) = (Pace::unlimited(Priority::Background), Progress::default());
    let error = machine.view.filler().complete(&layer, pace, &progress).await.unwrap_err();
    match error {
        IngestError::WrongIndex { right: found, .. } => assert!(*found == right),
        error => panic!("{error}"),
    }
    source.down.store(true, Ordering::SeqCst);
    let found = machine.files(root).await;
    assert!(found["/a"] == files[0].1 && found["/b"] == files[1].1, "all of it is here");
}
