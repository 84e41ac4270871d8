//! Images read through a view whose bytes come from memory: index, fetch, decode, keep, merge.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Filler, IngestError, Layer, Pace, Progress};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::{Indexer, LayerIndex};
use undermount_fs::object::{Store, StoreLimits};
use undermount_fs::source::{
    BlobRequest, BlobStream, PieceRequest, Priority, Scope, Source, SourceError,
};
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{Lookup, NewImage, NodeId, Read, SlotTable, View, ViewError};

/// Blobs in memory, with faults on demand.
#[derive(Default)]
struct MemorySource {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    fetched: AtomicU64,
    down: AtomicBool,
}

impl MemorySource {
    fn blob(&self, digest: &Digest) -> Result<Bytes, SourceError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(SourceError::Unavailable {
                origin: "memory".into(),
                reason: "down".into(),
            });
        }
        let blobs = self.blobs.lock().unwrap();
        let missing = || SourceError::NotFound { origin: "memory".into(), blob: *digest };
        blobs.get(digest).cloned().ok_or_else(missing)
    }

    fn put(&self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.lock().unwrap().insert(digest, bytes);
        digest
    }
}

impl Source for MemorySource {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        let one = |piece: &undermount_fs::source::Piece| {
            let blob = self.blob(&piece.blob)?;
            let bytes = blob.slice(piece.range.start as usize..piece.range.end as usize);
            self.fetched.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            Verified::check(bytes, &piece.digest).map_err(|wrong| SourceError::Wrong {
                origin: "memory".into(),
                blob: piece.blob,
                reason: wrong.to_string(),
            })
        };
        let answer = request.pieces.iter().map(one).collect();
        async move { answer }.boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let answer = self.blob(&request.blob).map(|blob| {
            self.fetched.fetch_add(blob.len() as u64, Ordering::SeqCst);
            let chunks: Vec<_> = blob.chunks(10_000).map(Bytes::copy_from_slice).map(Ok).collect();
            stream::iter(chunks).boxed()
        });
        async move { answer }.boxed()
    }
}

/// A machine: a cache directory, a source and a view.
struct Machine {
    directory: tempfile::TempDir,
    view: View,
}

impl Machine {
    fn new(source: Arc<MemorySource>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), StoreLimits::default()).unwrap());
        let blobs = Arc::new(Blobs::open(&directory.path().join("blobs")).unwrap());
        let timeout = Duration::from_secs(10);
        let filler = Filler::new(store, blobs, source, timeout);
        Self { directory, view: View::new(Arc::new(filler)) }
    }

    fn mount(&self, indexes: &[LayerIndex]) -> NodeId {
        let trees: Vec<Arc<LayerTree>> = indexes
            .iter()
            .map(|index| Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap()))
            .collect();
        let scope = Scope::new("registry/image");
        let layers =
            trees.iter().map(|tree| Arc::new(Layer::new(tree.clone(), scope.clone()))).collect();
        let manifest = Digest::of(b"manifest");
        let image = NewImage { manifest, tree: ImageTree::merge(trees).unwrap(), layers };
        let mut slots = SlotTable::open(&self.directory.path().join("slots")).unwrap();
        self.view.add_image(image, &mut slots).unwrap();
        self.child(NodeId::IMAGES, manifest.hex().as_bytes()).unwrap()
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match self.view.lookup(parent, name).unwrap() {
            Lookup::Found(attr) => Some(attr.node),
            _ => None,
        }
    }

    fn find(&self, root: NodeId, path: &str) -> Option<NodeId> {
        path.split('/').try_fold(root, |node, name| self.child(node, name.as_bytes()))
    }

    async fn read(&self, node: NodeId, offset: u64, length: u32) -> Result<Bytes, ViewError> {
        let mut buffer = Vec::new();
        match self.view.begin_read(node, offset, length, &mut buffer)? {
            Read::Done => Ok(buffer.into()),
            Read::Missing(miss) => self.view.finish_read(miss).await,
        }
    }

    /// Every regular file below `root` by path, read in pieces of 100,000 bytes.
    async fn files(&self, root: NodeId) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut stack = vec![(root, String::new())];
        while let Some((directory, path)) = stack.pop() {
            let mut children = Vec::new();
            self.view
                .readdir(directory, 2, |entry| {
                    children.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.attr));
                    false
                })
                .unwrap();
            for (name, attr) in children {
                let path = format!("{path}/{name}");
                if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                    stack.push((attr.node, path));
                } else if attr.mode & libc::S_IFMT == libc::S_IFREG {
                    let mut content = Vec::new();
                    while (content.len() as u64) < attr.size {
                        let offset = content.len() as u64;
                        content.extend(self.read(attr.node, offset, 100_000).await.unwrap());
                    }
                    files.insert(path, content);
                }
            }
        }
        files
    }
}

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Few values: it compresses, but not to nothing.
            b'a' + (state % 23) as u8
        })
        .collect()
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Puts a layer and its index blobs into the source.
fn publish(source: &MemorySource, blob: Vec<u8>) -> LayerIndex {
    let mut indexer = Indexer::new();
    indexer.write_all(&blob).unwrap();
    let index = indexer.finish().unwrap();
    source.put(blob.into());
    source.put(index.spans.clone());
    index
}

fn sample_files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = (0..300)
        .map(|i| (format!("lib/d{}/f{i}", i % 9), noise(i, 100 + i as usize * 61)))
        .collect();
    files.insert(100, ("large".into(), noise(1000, 5_300_000)));
    files.insert(200, ("exact".into(), noise(1001, 1024 * 1024)));
    files.push(("empty".into(), Vec::new()));
    files
}

fn sample(compress: impl Fn(&[u8]) -> Vec<u8>) -> (Arc<MemorySource>, LayerIndex, Expected) {
    let files = sample_files();
    let borrowed: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
    let source = Arc::new(MemorySource::default());
    let index = publish(&source, compress(&archive(&borrowed)));
    let expected = files.into_iter().map(|(path, bytes)| (format!("/{path}"), bytes)).collect();
    (source, index, expected)
}

/// Compresses a whole archive.
type Compress = dyn Fn(&[u8]) -> Vec<u8>;

type Expected = BTreeMap<String, Vec<u8>>;

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

/// Damages every object and every part of one in the cache of `machine`: a byte in the middle,
/// the size, or all of it.
fn damage(machine: &Machine) -> usize {
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
    assert!(damage(&machine) > 0);
    assert!(machine.files(root).await == expected);
    assert!(damage(&machine) > 100);
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
    tree[160..176].copy_from_slice(&other.tree[160..176]);
    let lying = LayerIndex { tree: tree.into(), ..honest };
    let machine = Machine::new(source);
    let root = machine.mount(&[lying]);
    let node = machine.find(root, "lib/d3/f3").unwrap();
    let error = machine.read(node, 0, 4096).await.unwrap_err();
    assert!(!expected["/lib/d3/f3"].is_empty());
    assert!(matches!(error, ViewError::Fill(_)), "{error}");
}
