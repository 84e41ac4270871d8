//! A start-up pack on its way into the store.
//!
//! ```text
//! head -> table -> frames with a unit that is missing here -> groups of neighbouring frames
//!   group by group, the next one on its way while one is unpacked:
//!     fetch its frames -> decompress -> hash every unit -> store -> wake who waits for it
//! ```
//!
//! Only units that the trees of the image's own layers name are kept. A frame that is wrong ends
//! the unpacking: whatever is still missing then comes span by span, as without a pack.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{StreamExt as _, iter};

use super::awaited::Unit;
use super::extract::{ExtractError, keep};
use super::{Content, Filler, Layer, chain};
use crate::digest::{Digest, Verified};
use crate::index::IndexError;
use crate::object::Store;
use crate::pack::{Frame, HEAD_MAX, PackError, PackedUnit, Table};
use crate::source::{Piece, PieceRequest, Priority, Scope, SourceError};

/// The first group is small, so that the first reads are answered early, in compressed bytes.
const FIRST_GROUP: u64 = 1024 * 1024;
/// Each group has twice the bytes of the one before, up to this many.
const LAST_GROUP: u64 = 4 * 1024 * 1024;
/// Groups that are on their way at the same time: one arrives while the next one is asked for.
const GROUPS: usize = 2;

/// Where a pack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackBlob {
    /// In whose name it is fetched.
    pub scope: Scope,
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of its head.
    pub head_size: u64,
    /// The digest of its head.
    pub head: Digest,
}

/// What became of a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Units that it brought.
    pub units: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Units that were not taken: of other layers, unknown to the layer, or of another size.
    pub foreign: u64,
    /// Bytes of the pack that were fetched.
    pub fetched: u64,
}

/// Why a pack was given up.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It cannot be fetched.
    #[error("start-up pack {pack}")]
    Source {
        /// The blob.
        pack: Digest,
        /// Why.
        source: SourceError,
    },
    /// It is damaged.
    #[error("start-up pack {pack}")]
    Pack {
        /// The blob.
        pack: Digest,
        /// What is wrong with it.
        source: PackError,
    },
    /// Its size cannot be that of a pack.
    #[error("start-up pack {pack}: a head of {head} bytes in a blob of {size} is impossible")]
    Size {
        /// The blob.
        pack: Digest,
        /// Bytes of the head, as the image's index says.
        head: u64,
        /// Bytes of the pack, as the image's index says.
        size: u64,
    },
    /// A unit of it has other contents than the layer.
    #[error("start-up pack {pack}: a unit is not what the layer holds: {reason}")]
    Wrong {
        /// The blob.
        pack: Digest,
        /// The chain of causes, in words.
        reason: String,
    },
    /// The process is shutting down.
    #[error("start-up pack {pack}: interrupted by a shutdown")]
    Interrupted {
        /// The blob.
        pack: Digest,
    },
}

/// A unit of a frame, with what the layer's index says of it; `None` where it says nothing.
type Known = Option<(Arc<Content>, usize)>;

/// A frame of which something is missing here.
struct Wanted {
    frame: Frame,
    units: Vec<Known>,
    /// Bytes of all wanted frames up to the end of this one.
    position: u64,
}

impl Filler {
    /// Brings in what `pack` holds of `layers`. Reads of what is on its way wait for it.
    ///
    /// # Errors
    /// [`UnpackError`] where the pack is of no (more) use; what it brought before stays.
    pub async fn unpack(
        &self,
        pack: &PackBlob,
        layers: &[Arc<Layer>],
    ) -> Result<Unpacked, UnpackError> {
        let outcome = self.unpack_frames(pack, layers).await;
        self.meter.unpacked(outcome.as_ref().ok());
        outcome
    }

    async fn unpack_frames(
        &self,
        pack: &PackBlob,
        layers: &[Arc<Layer>],
    ) -> Result<Unpacked, UnpackError> {
        let table = Arc::new(self.pack_table(pack).await?);
        let mut outcome = Unpacked { fetched: pack.head_size, ..Unpacked::default() };
        let wanted = self.wanted_frames(pack, &table, layers).await?;
        let units = |wanted: &Wanted| -> Vec<Unit> {
            wanted.units.iter().flatten().map(|(content, unit)| (content.key, *unit)).collect()
        };
        let announced = wanted
            .iter()
            .flat_map(|frame| units(frame).into_iter().map(|unit| (unit, frame.position)));
        let arrivals = self.awaited.announce(announced);
        let fetches = groups(wanted).into_iter().map(|group| {
            let table = table.clone();
            async move { (self.fetch_group(pack, &table, &group).await, group) }
        });
        let mut fetches = iter(fetches).buffered(GROUPS);
        while let Some((fetched, group)) = fetches.next().await {
            for (wanted, bytes) in group.into_iter().zip(fetched?) {
                let (position, units) = (wanted.position, units(&wanted));
                outcome.fetched += bytes.bytes().len() as u64;
                self.unpack_frame(pack, wanted, bytes, &mut outcome).await?;
                self.meter.fresh.add(&units);
                arrivals.settle(position, &units);
            }
        }
        Ok(outcome)
    }

    async fn pack_table(&self, pack: &PackBlob) -> Result<Table, UnpackError> {
        if pack.head_size > HEAD_MAX.min(pack.size) {
            let (head, size) = (pack.head_size, pack.size);
            return Err(UnpackError::Size { pack: pack.digest, head, size });
        }
        let range = 0..pack.head_size;
        let head = Piece { blob: pack.digest, range, digest: pack.head };
        let head = self.pack_pieces(pack, vec![head]).await?;
        let no_answer = || SourceError::Wrong {
            origin: pack.scope.to_string(),
            blob: pack.digest,
            reason: "no answer to a request for its head".to_owned(),
        };
        let head = head.into_iter().next().ok_or_else(no_answer).map_err(failed(pack))?;
        let table = Table::parse(pack.digest, head.bytes());
        table.map_err(|source| UnpackError::Pack { pack: pack.digest, source })
    }

    async fn pack_pieces(
        &self,
        pack: &PackBlob,
        pieces: Vec<Piece>,
    ) -> Result<Vec<Verified>, UnpackError> {
        let deadline = Instant::now() + self.patience.timeout;
        let (scope, priority) = (pack.scope.clone(), Priority::Pack);
        let request = PieceRequest { scope, pieces, priority, deadline };
        self.source.fetch(request).await.map_err(failed(pack))
    }

    /// The frames that hold something which is missing here.
    async fn wanted_frames(
        &self,
        pack: &PackBlob,
        table: &Arc<Table>,
        layers: &[Arc<Layer>],
    ) -> Result<Vec<Wanted>, UnpackError> {
        let (table, store, layers) = (table.clone(), self.store.clone(), layers.to_vec());
        let work = tokio::task::spawn_blocking(move || wanted_frames(&table, &store, &layers));
        work.await.map_err(|_| UnpackError::Interrupted { pack: pack.digest })
    }

    async fn fetch_group(
        &self,
        pack: &PackBlob,
        table: &Table,
        group: &[Wanted],
    ) -> Result<Vec<Verified>, UnpackError> {
        let pieces = group.iter().map(|wanted| table.piece(&wanted.frame)).collect();
        self.pack_pieces(pack, pieces).await
    }

    async fn unpack_frame(
        &self,
        pack: &PackBlob,
        wanted: Wanted,
        bytes: Verified,
        outcome: &mut Unpacked,
    ) -> Result<(), UnpackError> {
        let (store, pack) = (self.store.clone(), pack.digest);
        let work = move || {
            let contents = wanted.frame.contents(&bytes);
            let contents = contents.map_err(|source| UnpackError::Pack { pack, source })?;
            let mut came = Unpacked::default();
            for (known, bytes) in wanted.units.into_iter().zip(contents) {
                let Some((content, unit)) = known else {
                    came.foreign += 1;
                    continue;
                };
                came.units += 1;
                came.bytes += bytes.len() as u64;
                keep(&store, &content, unit, bytes).map_err(|error: ExtractError| {
                    UnpackError::Wrong { pack, reason: chain(&error) }
                })?;
            }
            Ok(came)
        };
        let came = tokio::task::spawn_blocking(work).await;
        let came = came.map_err(|_| UnpackError::Interrupted { pack })??;
        outcome.units += came.units;
        outcome.bytes += came.bytes;
        outcome.foreign += came.foreign;
        Ok(())
    }
}

fn failed(pack: &PackBlob) -> impl Fn(SourceError) -> UnpackError + use<> {
    let pack = pack.digest;
    move |source| UnpackError::Source { pack, source }
}

fn wanted_frames(table: &Table, store: &Store, layers: &[Arc<Layer>]) -> Vec<Wanted> {
    let layers: HashMap<Digest, &Layer> =
        layers.iter().map(|layer| (layer.digest(), &**layer)).collect();
    let mut wanted = Vec::new();
    let mut position = 0;
    for frame in table.frames() {
        // A unit that an index is too damaged to tell about is as good as unknown.
        let known = |unit: &PackedUnit| known(unit, &layers).ok().flatten();
        let units: Vec<Known> = frame.units.iter().map(known).collect();
        let is_missing =
            |(content, unit): &(Arc<Content>, usize)| !content.is_unit_stored(store, *unit);
        if units.iter().flatten().any(is_missing) {
            position += frame.range.end - frame.range.start;
            wanted.push(Wanted { frame: frame.clone(), units, position });
        }
    }
    wanted
}

/// What the index of its layer says about a unit.
fn known(unit: &PackedUnit, layers: &HashMap<Digest, &Layer>) -> Result<Known, IndexError> {
    let Some(layer) = layers.get(&unit.name.layer) else { return Ok(None) };
    let Some(content) = Content::of(&layer.tree, layer.tree.inode(unit.name.inode)?)? else {
        return Ok(None);
    };
    let number = unit.name.number as usize;
    let fits = content.all_units().contains(&number)
        && content.unit(number).length == u64::from(unit.length);
    Ok(fits.then(|| (Arc::new(content), number)))
}

/// Frames that are fetched together.
fn groups(wanted: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    let mut groups: Vec<Vec<Wanted>> = Vec::new();
    let (mut limit, mut end) = (FIRST_GROUP, 0);
    for frame in wanted {
        match groups.last_mut() {
            Some(group) if frame.position <= end => group.push(frame),
            _ => {
                let start = frame.position - (frame.frame.range.end - frame.frame.range.start);
                end = start + limit;
                limit = (limit * 2).min(LAST_GROUP);
                groups.push(vec![frame]);
            }
        }
    }
    groups
}
