//! Images read through a view whose bytes come from memory: index, fetch, decode, keep, merge.

#![allow(clippy::unwrap_used)]

mod machine;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use machine::{Compress, Expected, Machine, MemorySource, archive, gzip, noise, publish, sample};
use undermount_fs::digest::Digest;
use undermount_fs::fill::{IngestError, Layer, Pace, Progress};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::LayerIndex;
use undermount_fs::object::StoreLimits;
use undermount_fs::source::{Priority, Scope};
use undermount_fs::view::ViewError;

#[tokio::test]
async fn every_file_reads_right_and_later_without_the_source() {
    let (source, index, expected) = sample(gzip);
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    assert!(machine.files(root).await == expected);
    source.down.store(true, Ordering::SeqCst);
    assert!(machine.files(root).await == expected);
}

#[tokio::test]
async fn every_codec_reads_right() {
    let frames = |bytes: &[u8]| -> Vec<u8> {
        bytes.chunks(400_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect()
    };
    let members = |bytes: &[u8]| -> Vec<u8> { bytes.chunks(90_000).flat_map(gzip).collect() };
    let one_frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let codecs: [&Compress; 4] = [&frames, &members, &one_frame, &|b| b.to_vec()];
    for compress in codecs {
        let (source, index, expected) = sample(compress);
        let machine = Machine::new(source);
        let root = machine.mount(&[index]);
        assert!(machine.files(root).await == expected);
    }
}

#[tokio::test]
async fn a_small_read_fetches_little_and_its_neighbours() {
    let (source, index, expected) = sample(gzip);
    let size = index.layer_size;
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    let node = machine.find(root, "lib/d3/f3").unwrap();
    assert!(machine.read(node, 0, 4096).await.unwrap() == expected["/lib/d3/f3"]);
    let fetched = source.fetched.load(Ordering::SeqCst);
    assert!(fetched < size / 3, "{fetched} of {size}");
    let neighbour = machine.find(root, "lib/d4/f4").unwrap();
    assert!(machine.read(neighbour, 0, 4096).await.unwrap() == expected["/lib/d4/f4"]);
    assert_eq!(source.fetched.load(Ordering::SeqCst), fetched);
}

#[tokio::test]
async fn a_large_file_comes_in_chunk_by_chunk() {
    let (source, index, expected) = sample(gzip);
    let size = index.layer_size;
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    let node = machine.find(root, "large").unwrap();
    let middle = machine.read(node, 3_000_000, 1000).await.unwrap();
    assert!(middle == expected["/large"][3_000_000..3_001_000]);
    assert!(source.fetched.load(Ordering::SeqCst) < size * 2 / 3);
    source.down.store(true, Ordering::SeqCst);
    assert!(machine.read(node, 3_000_500, 300).await.unwrap().len() == 300);
    assert!(matches!(machine.read(node, 0, 10).await, Err(ViewError::Fill(_))));
}

/// Spans lie across the chunks of a large file: none of them holds one whole.
#[tokio::test]
async fn regression_over_a_far_link_a_large_file_is_fetched_ahead_of_its_reader() {
    let source = Arc::new(MemorySource::default());
    source.round_trip_ms.store(30, Ordering::SeqCst);
    let index = publish(&source, gzip(&archive(&[("large", noise(1, 20_000_000))])));
    let size = index.layer_size;
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    let node = machine.find(root, "large").unwrap();
    for chunk in 0..5 {
        machine.read(node, chunk << 20, 1 << 20).await.unwrap();
    }
    // A quarter was read, and a third came with it.
    fetched(&source, size * 2 / 5).await;
}

#[tokio::test]
async fn over_a_far_link_the_rest_of_a_layer_comes_from_before_its_reader_as_well() {
    let source = Arc::new(MemorySource::default());
    source.round_trip_ms.store(30, Ordering::SeqCst);
    let files: Vec<_> = (0..40).map(|file| (format!("f{file}"), noise(file, 600_000))).collect();
    let index = publish_files(&source, &files);
    let size = index.layer_size;
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    for (path, content) in &files[30..] {
        let node = machine.find(root, path).unwrap();
        assert!(machine.read(node, 0, 1 << 20).await.unwrap() == content);
    }
    fetched(&source, size * 19 / 20).await;
}

/// Waits until `source` has delivered so many bytes.
async fn fetched(source: &MemorySource, bytes: u64) {
    let enough = async {
        while source.fetched.load(Ordering::SeqCst) < bytes {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), enough).await.expect("it comes unasked");
}

/// Damages every object and every part of one in the cache of `machine`, none of which is left in
/// memory: a byte in the middle, the size, or all of it.
async fn damage(machine: &Machine) -> usize {
    machine.view.filler().written().await;
    machine.view.filler().store().release_held(Duration::ZERO);
    let fans = std::fs::read_dir(machine.directory.path().join("objects")).unwrap();
    let directories =
        fans.map(|fan| fan.unwrap().path()).chain([machine.directory.path().join("partial")]);
    let mut count = 0;
    for directory in directories {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            match count % 3 {
                0 => bytes[middle] ^= 1,
                1 => bytes.truncate(middle),
                _ => bytes.fill(0),
            }
            std::fs::write(&path, bytes).unwrap();
            count += 1;
        }
    }
    count
}

#[tokio::test]
async fn what_is_damaged_on_disk_is_fetched_again_and_never_shown() {
    let (source, index, expected) = sample(gzip);
    let machine = Machine::new(source.clone());
    let root = machine.mount(&[index]);
    let large = machine.find(root, "large").unwrap();
    machine.read(large, 3_000_000, 1000).await.unwrap();
    assert!(damage(&machine).await > 0);
    assert!(machine.files(root).await == expected);
    assert!(damage(&machine).await > 100);
    source.down.store(true, Ordering::SeqCst);
    // Pieces that were fetched a moment ago may still serve; nothing else may.
    for path in ["lib/d3/f3", "large"] {
        let node = machine.find(root, path).unwrap();
        match machine.read(node, 0, 50).await {
            Ok(bytes) => assert!(bytes == expected[&format!("/{path}")][..50], "{path}"),
            Err(error) => assert!(matches!(error, ViewError::Fill(_)), "{error}"),
        }
    }
    source.down.store(false, Ordering::SeqCst);
    assert!(machine.files(root).await == expected);
}

#[tokio::test]
async fn upper_layers_hide_and_replace_lower_ones() {
    let source = Arc::new(MemorySource::default());
    let text = |text: &str| text.as_bytes().to_vec();
    let lower = archive(&[
        ("etc/a", text("lower a")),
        ("etc/b", text("lower b")),
        ("gone/x", text("x")),
        ("opaque/old", text("old")),
        ("plain", text("same content")),
    ]);
    let upper = archive(&[
        ("etc/a", text("upper a")),
        (".wh.gone", text("")),
        ("opaque/.wh..wh..opq", text("")),
        ("opaque/new", text("new")),
        ("copy", text("same content")),
    ]);
    let indexes = [publish(&source, gzip(&lower)), publish(&source, gzip(&upper))];
    let machine = Machine::new(source.clone());
    let root = machine.mount(&indexes);
    let expected: Expected = [
        ("/etc/a", "upper a"),
        ("/etc/b", "lower b"),
        ("/opaque/new", "new"),
        ("/plain", "same content"),
        ("/copy", "same content"),
    ]
    .map(|(path, content)| (path.to_owned(), text(content)))
    .into();
    assert_eq!(machine.files(root).await, expected);
    assert_eq!(machine.child(root, b"gone"), None);
}

#[tokio::test]
async fn regression_links_into_lower_layers_count() {
    let source = Arc::new(MemorySource::default());
    let mut upper = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    upper.append_link(&mut header, "link", "d/file").unwrap();
    let lower = archive(&[("d/file", b"content".to_vec())]);
    let indexes = [publish(&source, lower), publish(&source, upper.into_inner().unwrap())];
    let machine = Machine::new(source);
    let root = machine.mount(&indexes);
    let [file, link] = ["d/file", "link"].map(|path| machine.find(root, path).unwrap());
    assert_eq!(file, link);
    assert_eq!(machine.view.getattr(file).unwrap().nlink, 2);
}

#[tokio::test]
async fn completing_a_layer_makes_it_local_and_checks_its_index() {
    let (source, index, expected) = sample(gzip);
    let machine = Machine::new(source.clone());
    let root = machine.mount(std::slice::from_ref(&index));
    let filler = machine.view.filler();
    let layer = |index: &LayerIndex| {
        let tree = Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap());
        Layer::new(tree, Scope::new("registry/image"))
    };
    let progress = Progress::default();
    filler
        .complete(&layer(&index), Pace::unlimited(Priority::Background), &progress)
        .await
        .unwrap();
    assert_eq!(progress.bytes(), index.layer_size);
    source.down.store(true, Ordering::SeqCst);
    assert!(machine.files(root).await == expected);

    source.down.store(false, Ordering::SeqCst);
    let mut lying = index.clone();
    let mut tree = lying.tree.to_vec();
    let mode_of_root = 320;
    tree[mode_of_root] ^= 0o7;
    lying.tree = tree.into();
    let error = filler
        .complete(&layer(&lying), Pace::unlimited(Priority::Background), &progress)
        .await
        .unwrap_err();
    assert!(matches!(error, IngestError::WrongIndex { .. }), "{error}");
}

#[tokio::test]
async fn an_index_that_lies_about_contents_never_gives_wrong_bytes() {
    let (source, honest, expected) = sample(gzip);
    let other = publish(&source, gzip(&archive(&[("lib/d3/f3", noise(77, 283))])));
    // The keys of one layer with the bytes of another.
    let mut tree = honest.tree.to_vec();
    tree[16..48].copy_from_slice(other.layer.as_bytes());
    tree[80..144].copy_from_slice(&other.tree[80..144]);
    tree[144..176].copy_from_slice(&other.tree[144..176]);
    let lying = LayerIndex { tree: tree.into(), ..honest };
    let machine = Machine::new(source);
    let root = machine.mount(&[lying]);
    let node = machine.find(root, "lib/d3/f3").unwrap();
    let error = machine.read(node, 0, 4096).await.unwrap_err();
    assert!(!expected["/lib/d3/f3"].is_empty());
    assert!(matches!(error, ViewError::Fill(_)), "{error}");
}

#[tokio::test]
async fn regression_a_layer_whose_spans_nobody_has_is_fetched_whole() {
    let (source, index, expected) = sample(gzip);
    source.blobs.lock().unwrap().remove(&Digest::of(&index.spans));
    let machine = Machine::new(source);
    let root = machine.mount(&[index]);
    assert!(machine.files(root).await == expected);
}

#[tokio::test]
async fn regression_a_layer_that_comes_whole_is_read_where_the_store_has_no_room() {
    let (source, index, expected) = sample(gzip);
    source.blobs.lock().unwrap().remove(&Digest::of(&index.spans));
    let limits = StoreLimits { quota: Some(0), ..StoreLimits::default() };
    let machine = Machine::with_limits(source, limits);
    let root = machine.mount(&[index]);
    for (path, offset) in [("lib/d3/f3", 0), ("large", (3 << 20) - 50_000)] {
        let node = machine.find(root, path).unwrap();
        let whole = &expected[&format!("/{path}")][offset as usize..];
        let bytes = machine.read(node, offset, 100_000).await.unwrap();
        assert!(bytes == whole[..whole.len().min(100_000)], "{path}");
    }
}

#[tokio::test]
async fn regression_where_a_window_is_lost_a_read_begins_earlier() {
    let (source, index, expected) = sample(gzip);
    source.shares.store(true, Ordering::SeqCst);
    let table = LayerTree::new(index.tree.to_vec().into()).unwrap();
    let table = table.header().span_table_size.get();
    *source.lost.lock().unwrap() = Some((Digest::of(&index.spans), table));
    let machine = Machine::new(source.clone());
    let size = index.layer_size;
    let root = machine.mount(&[index]);
    let node = machine.find(root, "lib/d6/f150").unwrap();
    let read = machine.read(node, 0, 4096).await.unwrap();
    assert!(read == expected["/lib/d6/f150"][..4096]);
    // The layer was fetched from its beginning to the file, and no further.
    let fetched = source.fetched.load(Ordering::SeqCst);
    assert!(fetched < size, "{fetched} of {size}");
    assert!(machine.files(root).await == expected);
}

/// A layer of many small files of noise that no compression makes small; `changed` have other
/// contents.
fn build_of(changed: &[usize]) -> Vec<(String, Vec<u8>)> {
    let content = |file: usize| {
        let seed = if changed.contains(&file) { 50_000 + file } else { file };
        noise(seed as u64, 30_000)
    };
    (0..900).map(|file| (format!("lib/f{file:04}"), content(file))).collect()
}

fn publish_files(source: &MemorySource, files: &[(String, Vec<u8>)]) -> LayerIndex {
    let borrowed: Vec<_> =
        files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
    publish(source, gzip(&archive(&borrowed)))
}

#[tokio::test]
async fn who_reads_all_of_a_rebuilt_layer_fetches_what_is_new() {
    let source = Arc::new(MemorySource::default());
    let old = publish_files(&source, &build_of(&[]));
    // In neighbouring spans, as if somebody read in order what is missing.
    let files = build_of(&[10, 60, 110, 500]);
    let new = publish_files(&source, &files);
    let machine = Machine::new(source.clone());
    machine.files(machine.mount(&[old])).await;
    let before = source.fetched.load(Ordering::SeqCst);
    let size = new.layer_size;
    let root = machine.mount_as(&[new], b"rebuilt");
    let expected: Expected =
        files.into_iter().map(|(path, bytes)| (format!("/{path}"), bytes)).collect();
    assert!(machine.files(root).await == expected);
    let fetched = source.fetched.load(Ordering::SeqCst) - before;
    assert!(fetched < size / 3, "{fetched} of {size}");
}

/// Images share layers; each is fetched in a name of its own, which may come to nothing.
#[tokio::test]
async fn regression_a_shared_layer_is_had_in_the_name_of_any_image_that_has_it() {
    for gone in ["registry/first", "registry/second"].map(Scope::new) {
        let (source, index, expected) = sample(gzip);
        let machine = Machine::new(source.clone());
        machine.mount_in(Scope::new("registry/first"), std::slice::from_ref(&index), b"first");
        let second = Scope::new("registry/second");
        let root = machine.mount_in(second, std::slice::from_ref(&index), b"second");
        *source.deleted.lock().unwrap() = Some(gone.clone());
        assert!(machine.files(root).await == expected, "without {gone}");
    }
}

/// Small layers come whole, as a stream.
#[tokio::test]
async fn regression_a_shared_layer_that_comes_whole_is_had_in_the_name_of_any_image_too() {
    let source = Arc::new(MemorySource::default());
    let files = [("a", noise(1, 9_000)), ("b", noise(2, 9_000))];
    let index = publish(&source, gzip(&archive(&files)));
    let machine = Machine::new(source.clone());
    machine.mount_in(Scope::new("registry/first"), std::slice::from_ref(&index), b"first");
    let second = Scope::new("registry/second");
    let root = machine.mount_in(second.clone(), &[index], b"second");
    *source.deleted.lock().unwrap() = Some(second);
    let file = machine.find(root, "a").unwrap();
    assert_eq!(machine.read(file, 0, 9_000).await.unwrap(), files[0].1);
}

#[tokio::test]
async fn regression_a_layer_that_one_repository_has_not_is_waited_for_where_another_is_away() {
    let (source, index, expected) = sample(gzip);
    let machine = Machine::new(source.clone());
    machine.mount_in(Scope::new("registry/first"), std::slice::from_ref(&index), b"first");
    let second = Scope::new("registry/second");
    let root = machine.mount_in(second.clone(), &[index], b"second");
    let [early, late] = ["lib/d0/f0", "lib/d2/f299"];
    machine.read(machine.find(root, early).unwrap(), 0, 10).await.unwrap();
    *source.deleted.lock().unwrap() = Some(second);
    source.down.store(true, Ordering::SeqCst);
    let back = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        source.down.store(false, Ordering::SeqCst);
    };
    let file = machine.find(root, late).unwrap();
    let (read, ()) = tokio::join!(machine.read(file, 0, 100_000), back);
    assert!(read.unwrap() == expected[&format!("/{late}")]);
}
