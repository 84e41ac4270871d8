//! A start-up pack on its way into the store.
//!
//! ```text
//! head -> table -> frames with a unit that is missing here -> groups of neighbouring frames
//!   group by group, others on their way while one is unpacked:
//!     fetch its frames -> decompress -> hash every unit -> hold -> wake who waits for it
//!                                                             `-> store
//! ```
//!
//! A unit can be read as soon as it is held in memory; the disk has it a little later. Head and
//! first frames are asked for before the trees of the image are here ([`Filler::open_pack`]).
//!
//! Only units that the trees of the image's own layers name are kept. A frame that is wrong ends
//! the unpacking: whatever is still missing then comes span by span, as without a pack.

mod frames;
mod opening;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::stream::{StreamExt as _, iter};
use tokio::sync::mpsc;

use self::frames::{Came, Wanted, local_units, next_group, take, wanted_frames};
use self::opening::Beginning;
use super::awaited::Arrivals;
use super::{Filler, Layer, chain};
use crate::digest::{Digest, Verified};
use crate::pack::{PackError, Table, UnitName};
use crate::source::{Scope, SourceError};

pub use self::opening::Opening;

/// The first group is small, so that the first reads are answered early, in compressed bytes.
const FIRST_GROUP: u64 = 1024 * 1024;
/// Each group has twice the bytes of the one before, up to this many.
const LAST_GROUP: u64 = 4 * 1024 * 1024;
/// No group has more than what arrives in this time, in seconds: its first frame waits for its last.
const GROUP_SECONDS: f64 = 0.25;
/// Groups that are on their way at the same time: one arrives while the next one is asked for.
const GROUPS: usize = 2;

/// Who wants to know which units of a pack can be read without waiting, in the order of the pack.
pub type Told = mpsc::UnboundedSender<Vec<UnitName>>;

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

/// Frames that arrived together.
struct Group {
    wanted: Vec<Wanted>,
    frames: Vec<Verified>,
}

impl Filler {
    /// Brings in what `pack` holds of `layers`. Reads of what is on its way wait for it; `told`
    /// hears of what is here.
    ///
    /// # Errors
    /// [`UnpackError`] where the pack is of no (more) use; what it brought before stays.
    pub async fn unpack(
        &self,
        pack: &PackBlob,
        layers: &[Arc<Layer>],
        told: Option<&Told>,
    ) -> Result<Unpacked, UnpackError> {
        let outcome = async {
            let beginning = self.pack_beginning(pack, 0).await?;
            self.unpack_frames(pack, beginning, layers, told).await
        };
        let outcome = outcome.await;
        self.meter.unpacked(outcome.as_ref().ok());
        outcome
    }

    /// As [`Self::unpack`], of a pack that was opened before `layers` were known.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub async fn unpack_opened(
        &self,
        opening: Opening,
        layers: &[Arc<Layer>],
        told: Option<&Told>,
    ) -> Result<Unpacked, UnpackError> {
        let Opening { pack, beginning } = opening;
        let interrupted = |_| UnpackError::Interrupted { pack: pack.digest };
        let outcome = async {
            let beginning = beginning.await.map_err(interrupted)??;
            self.unpack_frames(&pack, beginning, layers, told).await
        };
        let outcome = outcome.await;
        self.meter.unpacked(outcome.as_ref().ok());
        outcome
    }

    async fn unpack_frames(
        &self,
        pack: &PackBlob,
        beginning: Beginning,
        layers: &[Arc<Layer>],
        told: Option<&Told>,
    ) -> Result<Unpacked, UnpackError> {
        let Beginning { table, frames } = beginning;
        let fetched = pack.head_size + frames.values().map(length).sum::<u64>();
        let mut outcome = Unpacked { fetched, ..Unpacked::default() };
        let table = Arc::new(table);
        let wanted = self.wanted_frames(pack, &table, layers).await?;
        tell(told, local_units(&table, &wanted));
        let announced = wanted
            .iter()
            .flat_map(|frame| frame.known_units().into_iter().map(|unit| (unit, frame.position)));
        let arrivals = self.awaited.announce(announced);
        let (sender, arrived) = mpsc::channel(1);
        // Side by side: the link does not wait for what is unpacked, nor the other way round.
        let (fetched, unpacked) = tokio::join!(
            self.fetch_groups(pack, &table, wanted, frames, sender),
            self.unpack_groups(pack, arrived, &arrivals, told, &mut outcome),
        );
        drop(arrivals);
        outcome.fetched += fetched?;
        unpacked.map(|()| outcome)
    }

    /// Fetches frames, group by group, and sends them on until nobody takes them any more;
    /// returns how many bytes came.
    async fn fetch_groups(
        &self,
        pack: &PackBlob,
        table: &Table,
        wanted: Vec<Wanted>,
        early: HashMap<Digest, Verified>,
        sender: mpsc::Sender<Group>,
    ) -> Result<u64, UnpackError> {
        let (here, missing): (Vec<Wanted>, Vec<Wanted>) =
            wanted.into_iter().partition(|wanted| early.contains_key(&wanted.frame.digest));
        // Two frames may be the same bytes.
        let frames =
            here.iter().filter_map(|wanted| early.get(&wanted.frame.digest).cloned()).collect();
        // Where nobody takes it, nobody takes what follows.
        let _ = sender.send(Group { wanted: here, frames }).await;
        let mut rest = VecDeque::from(missing);
        let mut limit = FIRST_GROUP;
        let groups = std::iter::from_fn(|| {
            let group = next_group(&mut rest, limit);
            let quick = self.gauge.link().bytes_per_second * GROUP_SECONDS;
            limit = (limit * 2).min(LAST_GROUP).min(quick as u64);
            (!group.is_empty()).then_some(group)
        });
        let mut fetches = iter(groups)
            .map(|wanted| async move {
                let pieces = wanted.iter().map(|wanted| table.piece(&wanted.frame)).collect();
                Ok(Group { frames: self.pack_pieces(pack, pieces).await?, wanted })
            })
            .buffered(GROUPS);
        let mut bytes = 0;
        while let Some(group) = fetches.next().await.transpose()? {
            bytes += group.frames.iter().map(length).sum::<u64>();
            if sender.send(group).await.is_err() {
                break;
            }
        }
        Ok(bytes)
    }

    async fn unpack_groups(
        &self,
        pack: &PackBlob,
        mut arrived: mpsc::Receiver<Group>,
        arrivals: &Arrivals<'_>,
        told: Option<&Told>,
        outcome: &mut Unpacked,
    ) -> Result<(), UnpackError> {
        while let Some(Group { wanted, frames }) = arrived.recv().await {
            for (wanted, bytes) in wanted.into_iter().zip(frames) {
                let (position, units) = (wanted.position, wanted.known_units());
                let names = wanted.known_names();
                let came = self.unpack_frame(pack, wanted, bytes).await?;
                outcome.units += came.outcome.units;
                outcome.bytes += came.outcome.bytes;
                outcome.foreign += came.outcome.foreign;
                self.meter.unread.add(&units);
                arrivals.settle(position, &units);
                tell(told, names);
                self.behind.write(came.load).await;
            }
        }
        self.behind.all_written().await;
        Ok(())
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

    async fn unpack_frame(
        &self,
        pack: &PackBlob,
        wanted: Wanted,
        bytes: Verified,
    ) -> Result<Came, UnpackError> {
        let (behind, pack) = (self.behind.clone(), pack.digest);
        let work = move || {
            let contents = wanted.frame.contents(&bytes);
            let contents = contents.map_err(|source| UnpackError::Pack { pack, source })?;
            let came = take(&behind, wanted.units, contents);
            came.map_err(|error| UnpackError::Wrong { pack, reason: chain(&error) })
        };
        let came = tokio::task::spawn_blocking(work).await;
        came.map_err(|_| UnpackError::Interrupted { pack })?
    }
}

fn tell(told: Option<&Told>, units: Vec<UnitName>) {
    if let Some(told) = told.filter(|_| !units.is_empty()) {
        // Who does not listen any more does not want to know.
        let _ = told.send(units);
    }
}

fn length(frame: &Verified) -> u64 {
    frame.bytes().len() as u64
}
