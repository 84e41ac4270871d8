//! The layers of an image, read out of its repository in the registry's own storage.
//!
//! What an index artifact names is what somebody pushed: a blob that its repository does not have
//! is not there for it, wherever else in the registry it may be.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::Layer;
use undermount_fs::source::{
    BlobRequest, BlobStream, Piece, PieceRequest, Scope, Source, SourceError,
};

use super::super::name::Repository;
use super::super::storage::{Storage, StorageError};
use super::MakingError;
use crate::blocking::blocking;
use crate::image::artifact::LayerEntry;
use crate::profile::packable_layer;

/// Pieces of a whole blob, in bytes.
const CHUNK: u64 = 1 << 20;
const ORIGIN: &str = "the registry's storage";

/// The blobs of a repository.
#[derive(Clone)]
pub struct Shelf {
    storage: Arc<Storage>,
    repository: Repository,
}

impl Shelf {
    /// Those of `repository`.
    pub fn new(storage: Arc<Storage>, repository: Repository) -> Self {
        Self { storage, repository }
    }

    /// The layers that the `entries` of an index artifact name.
    ///
    /// # Errors
    /// [`MakingError`] where an index is missing or damaged.
    pub fn layers(&self, entries: &[LayerEntry]) -> Result<Vec<Arc<Layer>>, MakingError> {
        let scope = Scope::new(&format!("registry/{}", self.repository));
        let layer = |entry: &LayerEntry| {
            let packed = self.read(&entry.tree_blob.digest, 0..entry.tree_blob.size)?;
            let tree = entry.unpack_tree(&packed.ok_or(MakingError::Gone)?)?;
            Ok(packable_layer(&tree, scope.clone())?)
        };
        entries.iter().map(layer).collect()
    }

    /// The bytes of `range` of a blob; `None` where the repository has none such, or less of it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn read(&self, blob: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        let found = self.storage.blob(&self.repository, &(*blob).into())?;
        let Some(found) = found.filter(|found| range.end <= found.size) else { return Ok(None) };
        let Some(length) = range.end.checked_sub(range.start) else { return Ok(None) };
        let mut bytes = vec![0; length as usize];
        let read = found.file.read_exact_at(&mut bytes, range.start);
        Ok(read.is_ok().then(|| bytes.into()))
    }

    fn bytes(&self, blob: &Digest, range: Range<u64>) -> Result<Bytes, SourceError> {
        match self.read(blob, range) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(SourceError::NotFound { origin: ORIGIN.to_owned(), blob: *blob }),
            Err(error) => {
                let (origin, reason) = (ORIGIN.to_owned(), error.to_string());
                Err(SourceError::Unavailable { origin, reason })
            }
        }
    }

    fn pieces(&self, request: &PieceRequest) -> Result<Vec<Verified>, SourceError> {
        let one = |piece: &Piece| {
            let bytes = self.bytes(&piece.blob, piece.range.clone())?;
            Verified::check(bytes, &piece.digest).map_err(|wrong| SourceError::Wrong {
                origin: ORIGIN.to_owned(),
                blob: piece.blob,
                reason: wrong.to_string(),
            })
        };
        request.pieces.iter().map(one).collect()
    }
}

impl Source for Shelf {
    fn fetch(&self, request: PieceRequest) -> BoxFuture<'_, Result<Vec<Verified>, SourceError>> {
        let shelf = self.clone();
        async move { blocking(move || shelf.pieces(&request)).await }.boxed()
    }

    fn stream(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let shelf = self.clone();
        let chunks = (0..request.size.div_ceil(CHUNK)).map(move |number| {
            let start = number * CHUNK;
            shelf.bytes(&request.blob, start..(start + CHUNK).min(request.size))
        });
        let stream: BlobStream = Box::pin(futures_util::stream::iter(chunks));
        async move { Ok(stream) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::storage::testing::fixture;
    use super::*;

    #[test]
    fn a_blob_of_another_repository_is_not_there() {
        let fixture = fixture();
        let (storage, digest) = (Arc::new(fixture.storage), Digest::of(b"private"));
        storage.put_blob(&digest.into(), b"private").unwrap();
        storage.change(&fixture.repository).link_blob(&digest.into()).unwrap();
        let read = |repository: &str, range: Range<u64>| {
            let shelf = Shelf::new(storage.clone(), Repository::parse(repository).unwrap());
            shelf.read(&digest, range).unwrap()
        };
        assert_eq!(read("a/b", 0..7).unwrap(), "private");
        assert_eq!(read("a/b", 2..4).unwrap(), "iv");
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 4..2;
        assert!(read("a/b", 0..8).is_none() && read("a/b", backwards).is_none());
        assert!(read("other", 0..7).is_none());
        let shelf = Shelf::new(storage.clone(), Repository::parse("other").unwrap());
        let error = shelf.bytes(&digest, 0..7).unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    }
}
