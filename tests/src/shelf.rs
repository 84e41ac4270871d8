//! An image shown without kernel, network or daemon: indexes, blobs and store in this process.
//!
//! What the mount shows, minus FUSE: hundreds of images a second instead of a few.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tempfile::TempDir;
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Filler, Layer};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::Indexer;
use undermount_fs::object::{Store, StoreLimits};
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Scope, Source, SourceError,
};
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{Attr, NewImage, NodeId, Read, SlotTable, View};

use crate::image::Image;
use crate::tree::{Fields, Tree, encode};

/// Bytes that one read asks for.
const READ: u32 = 200_000;
/// How long a read may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Blobs by the digest under which they are asked for, whatever they hold.
pub type BlobMap = BTreeMap<Digest, Bytes>;

/// An image on a shelf.
pub struct Shelf {
    view: View,
    root: NodeId,
    runtime: tokio::runtime::Runtime,
    _directory: TempDir,
}

impl Shelf {
    /// Indexes and merges the layers of `image`.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub fn of(image: &Image) -> Result<Self, String> {
        let mut blobs = image.blobs.clone();
        let mut trees = Vec::new();
        for (layer, _) in image.layers() {
            let mut indexer = Indexer::new();
            // It hangs up on what it refuses, and tells why at the end.
            let _ = indexer.write_all(&image.blobs[&layer]);
            let index = indexer.finish().map_err(|error| error.to_string())?;
            blobs.insert(Digest::of(&index.spans), index.spans);
            trees.push(index.tree.to_vec());
        }
        Self::of_indexes(blobs, trees)
    }

    /// Merges ready indexes, which need not be right.
    ///
    /// # Errors
    /// Why they are refused, in words.
    pub fn of_indexes(blobs: BlobMap, trees: Vec<Vec<u8>>) -> Result<Self, String> {
        let trees: Vec<Arc<LayerTree>> = trees
            .into_iter()
            .map(|tree| LayerTree::new(tree.into()).map(Arc::new).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?;
        let merged = ImageTree::merge(trees.clone()).map_err(|error| error.to_string())?;
        let directory = in_memory().unwrap();
        let store = Arc::new(Store::open(directory.path(), StoreLimits::default()).unwrap());
        let small = Arc::new(Blobs::open(&directory.path().join("blobs")).unwrap());
        let filler = Filler::new(store, small, Arc::new(Memory(blobs)), TIMEOUT);
        let view = View::new(Arc::new(filler));
        let layer = |tree: Arc<LayerTree>| Arc::new(Layer::new(tree, Scope::new("shelf/image")));
        let layers = trees.into_iter().map(layer).collect();
        let mut slots = SlotTable::open(&directory.path().join("slots")).unwrap();
        let manifest = Digest::of(b"manifest");
        let image = NewImage { manifest, tree: merged, layers };
        let name = view.add_image(image, &mut slots).unwrap();
        let root = match view.lookup(NodeId::IMAGES, name.hex().as_bytes()) {
            Ok(undermount_fs::view::Lookup::Found(attr)) => attr.node,
            other => return Err(format!("the image is not in the view: {other:?}")),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Ok(Self { view, root, runtime, _directory: directory })
    }

    /// Everything that the image shows, contents included.
    ///
    /// # Errors
    /// The first thing that cannot be read.
    pub fn tree(&self) -> Result<Tree, String> {
        let (mut tree, mut names) = (Tree::default(), BTreeMap::<NodeId, Vec<String>>::new());
        let root = self.view.getattr(self.root).map_err(|error| error.to_string())?;
        let mut stack = vec![(root, ".".to_owned())];
        while let Some((attr, path)) = stack.pop() {
            let fields = self.fields(&attr).map_err(|error| format!("{path}: {error}"))?;
            tree.entries.insert(path.clone(), Some(fields));
            if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                stack.extend(self.children(&attr, &path)?);
            } else {
                names.entry(attr.node).or_default().push(path);
            }
        }
        tree.group(names.into_values());
        Ok(tree)
    }

    fn children(&self, directory: &Attr, path: &str) -> Result<Vec<(Attr, String)>, String> {
        let mut children = Vec::new();
        let listed = self.view.readdir(directory.node, 2, |entry| {
            let name = encode(entry.name);
            let path = if path == "." { name } else { format!("{path}/{name}") };
            children.push((entry.attr, path));
            false
        });
        listed.map_err(|error| format!("{path}: {error}"))?;
        Ok(children)
    }

    fn fields(&self, attr: &Attr) -> Result<Fields, String> {
        let words = |error: undermount_fs::view::ViewError| error.to_string();
        let mut fields = Fields::new();
        let mut set = |field: &str, value: String| fields.insert(field.to_owned(), Some(value));
        set("mode", format!("{:04o}", attr.mode & 0o7777));
        set("uid", attr.uid.to_string());
        set("gid", attr.gid.to_string());
        let (seconds, nanos) = attr.mtime;
        set("mtime_ns", (i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).to_string());
        let device = libc::dev_t::from(attr.rdev);
        let kind = match attr.mode & libc::S_IFMT {
            libc::S_IFREG => {
                set("size", attr.size.to_string());
                set("sha256", self.sha256(attr)?);
                "file"
            }
            libc::S_IFDIR => "dir",
            libc::S_IFLNK => {
                set("linktarget", encode(&self.view.readlink(attr.node).map_err(words)?));
                "symlink"
            }
            libc::S_IFIFO => "fifo",
            kind => {
                set("rdev", format!("{}:{}", libc::major(device), libc::minor(device)));
                if kind == libc::S_IFCHR { "chr" } else { "blk" }
            }
        };
        set("type", kind.to_owned());
        let names = self.view.xattr_names(attr.node).map_err(words)?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = self.view.xattr(attr.node, name).map_err(words)?.unwrap_or_default();
            set(&format!("xattr:{}", encode(name)), STANDARD.encode(value));
        }
        Ok(fields)
    }

    fn sha256(&self, attr: &Attr) -> Result<String, String> {
        let mut hasher = undermount_fs::digest::Hasher::default();
        let mut offset = 0;
        while offset < attr.size {
            let bytes = self.read(attr.node, offset)?;
            if bytes.is_empty() {
                return Err("a read came back empty".to_owned());
            }
            hasher.update(&bytes);
            offset += bytes.len() as u64;
        }
        Ok(hasher.finish().hex())
    }

    /// Some bytes of a file.
    ///
    /// # Errors
    /// Why they cannot be had, in words.
    fn read(&self, node: NodeId, offset: u64) -> Result<Bytes, String> {
        let mut buffer = Vec::new();
        let begun = self.view.begin_read(node, offset, READ, &mut buffer);
        match begun.map_err(|error| error.to_string())? {
            Read::Done => Ok(buffer.into()),
            Read::Missing(miss) => {
                let read = self.view.finish_read(miss);
                self.runtime.block_on(read).map_err(|error| error.to_string())
            }
        }
    }
}

/// A directory on which waiting for stable storage costs nothing, where there is one.
fn in_memory() -> std::io::Result<TempDir> {
    match Path::new("/dev/shm") {
        memory if memory.is_dir() => tempfile::tempdir_in(memory),
        _ => tempfile::tempdir(),
    }
}

/// Delivers what it has.
struct Memory(BlobMap);

impl Memory {
    fn blob(&self, blob: &Digest) -> Result<Bytes, SourceError> {
        let missing = || SourceError::NotFound { origin: "memory".to_owned(), blob: *blob };
        self.0.get(blob).cloned().ok_or_else(missing)
    }

    fn piece(&self, piece: &Piece) -> Result<Verified, SourceError> {
        let bytes = self.blob(&piece.blob)?;
        let wrong = |reason: String| SourceError::Wrong {
            origin: "memory".to_owned(),
            blob: piece.blob,
            reason,
        };
        let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        let range = at(piece.range.start)..at(piece.range.end);
        if range.start > range.end || range.end > bytes.len() {
            return Err(wrong("the blob is shorter".to_owned()));
        }
        Verified::check(bytes.slice(range), &piece.digest).map_err(|error| wrong(error.to_string()))
    }
}

impl Source for Memory {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        let answer = request.pieces.iter().map(|piece| self.piece(piece)).collect();
        async move { answer }.boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let answer = self.blob(&request.blob).map(|blob| stream::iter([Ok(blob)]).boxed());
        async move { answer }.boxed()
    }
}
