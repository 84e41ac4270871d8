//! Start-up packs: what profiles name, taken out of an image's layers.
//!
//! The registry makes them where the layers are, `prepare` where it has just copied them; they
//! differ in where contents come from, which is a [`Source`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use undermount_fs::blob::Blobs;
use undermount_fs::digest::Verified;
use undermount_fs::fill::{Filler, Layer, PackingError};
use undermount_fs::index::{Backing, IndexError, LayerTree};
use undermount_fs::object::{Store, StoreError, StoreLimits};
use undermount_fs::pack::{Packed, Profile};
use undermount_fs::source::{Scope, Source};
use undermount_fs::tree::{ImageTree, TreeError};

use super::{StartRecord, combined, place_units};

/// How long the source may take for a piece.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why no pack was made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// An index is not what it should be.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The layers do not make an image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The contents cannot be read, or the pack not be written.
    #[error(transparent)]
    Packing(#[from] PackingError),
    /// There is no room for the contents.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A temporary file failed.
    #[error("cannot use a temporary file")]
    Temporary(#[from] io::Error),
}

/// A layer with the index `tree`, whose contents are fetched in the name of `scope`.
///
/// # Errors
/// [`PackError`] where the index is malformed, contradicts itself or there is no memory for it.
pub fn packable_layer(tree: &Verified, scope: Scope) -> Result<Arc<Layer>, PackError> {
    let tree = LayerTree::new(Backing::sealed(tree.bytes())?)?;
    // Whoever pushed it may have made it.
    tree.check()?;
    Ok(Arc::new(Layer::new(Arc::new(tree), scope)))
}

/// What `records` name in the image that `layers` make, the lowest first.
///
/// # Errors
/// [`PackError::Tree`] where they make none.
pub fn profile_of(records: &[StartRecord], layers: &[Arc<Layer>]) -> Result<Profile, PackError> {
    let tree = ImageTree::merge(layers.iter().map(|layer| layer.tree.clone()).collect())?;
    Ok(place_units(&combined(records), &tree))
}

/// Packs what `profile` names. The contents come from `source` and are kept in a directory below
/// `scratch` meanwhile.
///
/// # Errors
/// [`PackError`] where the source does not deliver, or the disk fails.
pub async fn make_pack(
    profile: &Profile,
    layers: &[Arc<Layer>],
    source: Arc<dyn Source>,
    scratch: &Path,
) -> Result<Packed, PackError> {
    let scratch = tempfile::Builder::new().prefix("undermount-pack-").tempdir_in(scratch)?;
    let store = Store::open(scratch.path(), StoreLimits::default())?;
    let blobs = Blobs::open(&scratch.path().join("blobs"))?;
    let filler = Arc::new(Filler::new(Arc::new(store), Arc::new(blobs), source, TIMEOUT));
    let packed = filler.pack(profile, layers).await;
    // Before the directory goes.
    filler.written().await;
    Ok(packed?)
}
