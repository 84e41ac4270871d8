//! The layers of an image in the registry's own storage, as something that contents can be read
//! from.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Filler, Layer};
use undermount_fs::index::{Backing, LayerTree};
use undermount_fs::object::{Store, StoreLimits};
use undermount_fs::source::{BlobRequest, BlobStream, PieceRequest, Scope, Source, SourceError};

use super::super::blocking::blocking;
use super::super::indexing::Image;
use super::super::storage::{Storage, StorageError};
use super::MakingError;
use crate::image::artifact::LayerEntry;

/// How long the disk may take for a piece.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pieces of a whole blob, in bytes.
const CHUNK: u64 = 1 << 20;

/// The layers of an image.
pub struct Shelf {
    storage: Arc<Storage>,
    scope: Scope,
    filler: Arc<Filler>,
    _scratch: TempDir,
}

impl Shelf {
    /// The layers of `image`, whose contents are kept in a temporary directory meanwhile.
    ///
    /// # Errors
    /// [`MakingError`] where there is none.
    pub fn open(storage: Arc<Storage>, image: &Image) -> Result<Self, MakingError> {
        let scratch = tempfile::Builder::new().tempdir_in(storage.uploads_dir())?;
        let store = Store::open(scratch.path(), StoreLimits::default());
        let store = store.map_err(std::io::Error::other)?;
        let blobs = Blobs::open(&scratch.path().join("blobs"))?;
        let source = Arc::new(Local(storage.clone()));
        let filler = Filler::new(Arc::new(store), Arc::new(blobs), source, TIMEOUT);
        let scope = Scope::new(&format!("registry/{}", image.repository));
        Ok(Self { storage, scope, filler: Arc::new(filler), _scratch: scratch })
    }

    /// Reads contents of the layers.
    pub fn filler(&self) -> &Arc<Filler> {
        &self.filler
    }

    /// The layers that the `entries` of an index artifact name.
    ///
    /// # Errors
    /// [`MakingError`] where an index is missing or damaged.
    pub fn layers(&self, entries: &[LayerEntry]) -> Result<Vec<Arc<Layer>>, MakingError> {
        let layer = |entry: &LayerEntry| {
            let whole = 0..entry.tree_blob.size;
            let packed = read(&self.storage, &entry.tree_blob.digest, whole)?;
            let tree = entry.unpack_tree(&packed.ok_or(MakingError::Gone)?)?;
            let tree = LayerTree::new(Backing::sealed(tree.bytes())?)?;
            Ok(Arc::new(Layer::new(Arc::new(tree), self.scope.clone())))
        };
        entries.iter().map(layer).collect()
    }
}

/// The bytes of `range` of a blob; `None` where the registry has none such, or less of it.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn read(
    storage: &Storage,
    blob: &Digest,
    range: Range<u64>,
) -> Result<Option<Bytes>, StorageError> {
    let Some(found) = storage.any_blob(&(*blob).into())? else { return Ok(None) };
    if range.start > range.end || range.end > found.size {
        return Ok(None);
    }
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let read = found.file.read_exact_at(&mut bytes, range.start);
    Ok(read.is_ok().then(|| bytes.into()))
}

/// The storage as a source of pieces.
struct Local(Arc<Storage>);

impl Local {
    fn pieces(storage: &Storage, request: &PieceRequest) -> Result<Vec<Verified>, SourceError> {
        let one = |piece: &undermount_fs::source::Piece| {
            let bytes = bytes(storage, &piece.blob, piece.range.clone())?;
            Verified::check(bytes, &piece.digest).map_err(|wrong| SourceError::Wrong {
                origin: ORIGIN.to_owned(),
                blob: piece.blob,
                reason: wrong.to_string(),
            })
        };
        request.pieces.iter().map(one).collect()
    }
}

const ORIGIN: &str = "the registry's storage";

fn bytes(storage: &Storage, blob: &Digest, range: Range<u64>) -> Result<Bytes, SourceError> {
    match read(storage, blob, range) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(SourceError::NotFound { origin: ORIGIN.to_owned(), blob: *blob }),
        Err(error) => {
            let (origin, reason) = (ORIGIN.to_owned(), error.to_string());
            Err(SourceError::Unavailable { origin, reason })
        }
    }
}

impl Source for Local {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        let storage = self.0.clone();
        async move { blocking(move || Self::pieces(&storage, &request)).await }.boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let storage = self.0.clone();
        let chunks = (0..request.size.div_ceil(CHUNK)).map(move |number| {
            let start = number * CHUNK;
            bytes(&storage, &request.blob, start..(start + CHUNK).min(request.size))
        });
        let stream: BlobStream = Box::pin(futures_util::stream::iter(chunks));
        async move { Ok(stream) }.boxed()
    }
}
