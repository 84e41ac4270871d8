//! Images that a worker shows through the real view and adapter, from a directory instead of a
//! registry.
//!
//! ```text
//! <dir>/images.json   [{ manifest, trees: [digest of each layer's tree file] }]
//! <dir>/blobs/<hex>   layers, tree files, span files
//! <dir>/cache/        the store, filled by the worker
//! <dir>/slots         nodeids, kept for the next worker
//! <dir>/down          while it exists, the source delivers nothing
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use serde::{Deserialize, Serialize};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Filler, Layer};
use undermount_fs::index::LayerTree;
use undermount_fs::layer::{Indexer, LayerIndex};
use undermount_fs::object::{Store, StoreLimits};
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Scope, Source, SourceError,
};
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{NewImage, SlotTable, View, image_name};

use crate::image::Image;
use crate::session::{Node, NodeConfig};

/// How long the source takes for an answer.
const LATENCY: Duration = Duration::from_millis(15);
/// How long a read waits for the source.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A directory of images.
pub struct Gallery;

#[derive(Serialize, Deserialize)]
struct Hung {
    manifest: Digest,
    trees: Vec<Digest>,
}

impl Gallery {
    /// Puts `images` and their indexes into `dir`.
    pub fn hang(dir: &Path, images: &[Image]) {
        fs::create_dir_all(dir.join("blobs")).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(dir.join("blobs").join(digest.hex()), bytes).unwrap();
            digest
        };
        let mut hung = Vec::new();
        for image in images {
            let mut trees = Vec::new();
            for (layer, _) in image.layers() {
                let index = index(&image.blobs[&layer]);
                put(&image.blobs[&layer]);
                put(&index.spans);
                trees.push(put(&index.tree));
            }
            hung.push(Hung { manifest: image.digest(), trees });
        }
        fs::write(dir.join("images.json"), serde_json::to_vec(&hung).unwrap()).unwrap();
    }

    /// A node of `program` (`session-node`) that shows `images` in two mounts, `plain` without and
    /// `xattr` with extended attributes.
    pub fn show(program: &str, images: &[Image], config: NodeConfig) -> Node {
        let dir = tempfile::tempdir().unwrap();
        Self::hang(dir.path(), images);
        let mounts = vec!["plain".to_owned(), "xattr".to_owned()];
        let mut node = Node::start_in(program, NodeConfig { mounts, ..config }, dir);
        node.wait_until_ready();
        node
    }

    /// The root of an image in a node's mount called `mount`.
    pub fn root(node: &Node, mount: &str, image: &Image) -> PathBuf {
        let layers = image.layers();
        let trees = layers.iter().map(|(layer, _)| Digest::of(&index(&image.blobs[layer]).tree));
        node.dir().join(mount).join("images").join(image_name(&image.digest(), trees).hex())
    }

    /// The view of the images in `dir`; `None` if none hang there.
    pub fn open(dir: &Path) -> io::Result<Option<Arc<View>>> {
        let Ok(list) = fs::read(dir.join("images.json")) else { return Ok(None) };
        let images: Vec<Hung> = serde_json::from_slice(&list)?;
        let cache = dir.join("cache");
        let store = Store::open(&cache, StoreLimits::default()).map_err(io::Error::other)?;
        let blobs = Arc::new(Blobs::open(&cache.join("blobs"))?);
        let source = Arc::new(DirectorySource(dir.to_owned()));
        let view = View::new(Arc::new(Filler::new(Arc::new(store), blobs, source, TIMEOUT)));
        let mut slots = SlotTable::open(&dir.join("slots"))?;
        for Hung { manifest, trees } in images {
            let trees = trees
                .iter()
                .map(|tree| {
                    let bytes = fs::read(dir.join("blobs").join(tree.hex()))?;
                    LayerTree::new(bytes.into()).map(Arc::new).map_err(io::Error::other)
                })
                .collect::<io::Result<Vec<_>>>()?;
            let layer = |tree: &Arc<LayerTree>| Layer::new(tree.clone(), Scope::new("gallery"));
            let layers = trees.iter().map(layer).map(Arc::new).collect();
            let tree = ImageTree::merge(trees).map_err(io::Error::other)?;
            view.add_image(NewImage { manifest, tree, layers }, &mut slots)?;
        }
        Ok(Some(Arc::new(view)))
    }
}

fn index(blob: &[u8]) -> LayerIndex {
    let mut indexer = Indexer::new();
    indexer.write_all(blob).unwrap();
    indexer.finish().unwrap()
}

/// Delivers the blobs of a directory, slowly.
struct DirectorySource(PathBuf);

impl DirectorySource {
    fn blob(&self, blob: &Digest) -> Result<Bytes, SourceError> {
        let origin = "gallery".to_owned();
        if self.0.join("down").exists() {
            return Err(SourceError::Unavailable { origin, reason: "it is down".to_owned() });
        }
        let bytes = fs::read(self.0.join("blobs").join(blob.hex()));
        bytes.map(Bytes::from).map_err(|_| SourceError::NotFound { origin, blob: *blob })
    }

    fn piece(&self, piece: &Piece) -> Result<Verified, SourceError> {
        let range = piece.range.start as usize..piece.range.end as usize;
        let bytes = self.blob(&piece.blob)?.slice(range);
        Verified::check(bytes, &piece.digest).map_err(|wrong| SourceError::Wrong {
            origin: "gallery".to_owned(),
            blob: piece.blob,
            reason: wrong.to_string(),
        })
    }
}

impl Source for DirectorySource {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        async move {
            tokio::time::sleep(LATENCY).await;
            request.pieces.iter().map(|piece| self.piece(piece)).collect()
        }
        .boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        async move {
            tokio::time::sleep(LATENCY).await;
            let blob = self.blob(&request.blob)?;
            Ok(stream::iter([Ok(blob)]).boxed())
        }
        .boxed()
    }
}
