//! A machine that reads images whose blobs lie in memory, and images for it.

#![allow(clippy::unwrap_used, dead_code, reason = "each test file uses a part of it")]

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
use undermount_fs::fill::{Filler, Layer};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::{Indexer, LayerIndex};
use undermount_fs::object::{Store, StoreLimits};
use undermount_fs::session::Lookups;
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Priority, Scope, Source, SourceError,
};
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{Lookup, NewImage, NodeId, Read, SlotTable, View, ViewError};

/// Blobs in memory, with faults on demand.
#[derive(Default)]
pub struct MemorySource {
    pub blobs: Mutex<HashMap<Digest, Bytes>>,
    pub fetched: AtomicU64,
    /// The blobs of pieces that were asked for, and how urgent each was.
    pub asked: Mutex<Vec<(Digest, Priority)>>,
    pub down: AtomicBool,
    /// How long a request takes.
    pub round_trip_ms: AtomicU64,
    /// Whether whole blobs come in pieces.
    pub shares: AtomicBool,
    /// What nobody has of this blob: what begins at this byte or later.
    pub lost: Mutex<Option<(Digest, u64)>>,
    /// The repository that was deleted.
    pub deleted: Mutex<Option<Scope>>,
}

impl MemorySource {
    /// A piece, verified.
    fn piece(&self, piece: &Piece) -> Result<Verified, SourceError> {
        let blob = self.blob(&piece.blob)?;
        let bytes = blob.slice(piece.range.start as usize..piece.range.end as usize);
        self.fetched.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Verified::check(bytes, &piece.digest).map_err(|wrong| SourceError::Wrong {
            origin: "memory".into(),
            blob: piece.blob,
            reason: wrong.to_string(),
        })
    }

    /// A blob piece by piece, of which neighbours may share bytes.
    fn joined(&self, pieces: &[Piece]) -> Vec<Result<Bytes, SourceError>> {
        let mut end = 0;
        let part = |piece: &Piece| {
            let shared = (end - piece.range.start) as usize;
            end = piece.range.end;
            Ok(self.piece(piece)?.into_bytes().slice(shared..))
        };
        pieces.iter().map(part).collect()
    }

    fn is_lost(&self, piece: &Piece) -> bool {
        let lost = *self.lost.lock().unwrap();
        lost.is_some_and(|(blob, from)| piece.blob == blob && piece.range.start >= from)
    }

    fn exists(&self, scope: &Scope, blob: &Digest) -> Result<(), SourceError> {
        let missing = || SourceError::NotFound { origin: "memory".into(), blob: *blob };
        let deleted = self.deleted.lock().unwrap().as_ref() == Some(scope);
        if deleted { Err(missing()) } else { Ok(()) }
    }

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

    pub fn put(&self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.lock().unwrap().insert(digest, bytes);
        digest
    }
}

impl Source for MemorySource {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        let one = |piece: &Piece| {
            self.asked.lock().unwrap().push((piece.blob, request.priority));
            if self.is_lost(piece) {
                let (origin, reason) = ("memory".into(), "lost".into());
                return Err(SourceError::Unavailable { origin, reason });
            }
            self.exists(&request.scope, &piece.blob)?;
            self.piece(piece)
        };
        let answer = request.pieces.iter().map(one).collect();
        let round_trip = Duration::from_millis(self.round_trip_ms.load(Ordering::SeqCst));
        let answered = async move {
            tokio::time::sleep(round_trip).await;
            answer
        };
        answered.boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        if self.shares() && !request.pieces.is_empty() {
            let parts = stream::iter(self.joined(&request.pieces)).boxed();
            return async move { Ok(parts) }.boxed();
        }
        let exists = self.exists(&request.scope, &request.blob);
        let answer = exists.and_then(|()| self.blob(&request.blob)).map(|blob| {
            self.fetched.fetch_add(blob.len() as u64, Ordering::SeqCst);
            let chunks: Vec<_> = blob.chunks(10_000).map(Bytes::copy_from_slice).map(Ok).collect();
            stream::iter(chunks).boxed()
        });
        async move { answer }.boxed()
    }

    fn shares(&self) -> bool {
        self.shares.load(Ordering::SeqCst)
    }
}

/// A machine: a cache directory, a source and a view.
pub struct Machine {
    pub directory: tempfile::TempDir,
    pub view: View,
    pub layers: Mutex<Vec<Arc<Layer>>>,
}

impl Machine {
    pub fn new(source: Arc<MemorySource>) -> Self {
        Self::with_limits(source, StoreLimits::default())
    }

    pub fn with_limits(source: Arc<MemorySource>, limits: StoreLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), limits).unwrap());
        let blobs = Arc::new(Blobs::open(&directory.path().join("blobs")).unwrap());
        let timeout = Duration::from_secs(10);
        let filler = Filler::new(store, blobs, source, timeout);
        let view = View::new(Arc::new(filler)).with_lookups(Lookups::create().unwrap());
        Self { directory, view, layers: Mutex::default() }
    }

    pub fn mount(&self, indexes: &[LayerIndex]) -> NodeId {
        self.mount_as(indexes, b"manifest")
    }

    pub fn mount_as(&self, indexes: &[LayerIndex], manifest: &[u8]) -> NodeId {
        self.mount_in(Scope::new("registry/image"), indexes, manifest)
    }

    pub fn mount_in(&self, scope: Scope, indexes: &[LayerIndex], manifest: &[u8]) -> NodeId {
        let trees: Vec<Arc<LayerTree>> = indexes
            .iter()
            .map(|index| Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap()))
            .collect();
        let layers: Vec<_> =
            trees.iter().map(|tree| Arc::new(Layer::new(tree.clone(), scope.clone()))).collect();
        *self.layers.lock().unwrap() = layers.clone();
        let manifest = Digest::of(manifest);
        let image = NewImage { manifest, tree: ImageTree::merge(trees).unwrap(), layers };
        let mut slots = SlotTable::open(&self.directory.path().join("slots")).unwrap();
        let name = self.view.add_image(image, &mut slots).unwrap();
        self.child(NodeId::IMAGES, name.hex().as_bytes()).unwrap()
    }

    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match self.view.lookup(parent, name).unwrap() {
            Lookup::Found(attr) => Some(attr.node),
            _ => None,
        }
    }

    pub fn find(&self, root: NodeId, path: &str) -> Option<NodeId> {
        path.split('/').try_fold(root, |node, name| self.child(node, name.as_bytes()))
    }

    pub async fn read(&self, node: NodeId, offset: u64, length: u32) -> Result<Bytes, ViewError> {
        let mut buffer = Vec::new();
        match self.view.begin_read(node, offset, length, &mut buffer)? {
            Read::Done => Ok(buffer.into()),
            Read::Missing(miss) => self.view.finish_read(miss).await,
        }
    }

    /// Every regular file below `root` by path, read in pieces of 100,000 bytes.
    pub async fn files(&self, root: NodeId) -> BTreeMap<String, Vec<u8>> {
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

pub fn noise(seed: u64, size: usize) -> Vec<u8> {
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

pub fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Puts a layer and its index blobs into the source.
pub fn publish(source: &MemorySource, blob: Vec<u8>) -> LayerIndex {
    let mut indexer = Indexer::new();
    indexer.write_all(&blob).unwrap();
    let index = indexer.finish().unwrap();
    source.put(blob.into());
    source.put(index.spans.clone());
    index
}

pub fn sample_files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = (0..300)
        .map(|i| (format!("lib/d{}/f{i}", i % 9), noise(i, 100 + i as usize * 61)))
        .collect();
    files.insert(100, ("large".into(), noise(1000, 5_300_000)));
    files.insert(200, ("exact".into(), noise(1001, 1024 * 1024)));
    files.push(("empty".into(), Vec::new()));
    files
}

pub fn sample(compress: impl Fn(&[u8]) -> Vec<u8>) -> (Arc<MemorySource>, LayerIndex, Expected) {
    let files = sample_files();
    let borrowed: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
    let source = Arc::new(MemorySource::default());
    let index = publish(&source, compress(&archive(&borrowed)));
    let expected = files.into_iter().map(|(path, bytes)| (format!("/{path}"), bytes)).collect();
    (source, index, expected)
}

/// Compresses a whole archive.
pub type Compress = dyn Fn(&[u8]) -> Vec<u8>;

pub type Expected = BTreeMap<String, Vec<u8>>;
