//! The pieces of a node: those on its disk, those on their way, and how another one is fetched.
//!
//! ```text
//! wanted here (fetch) or by a peer that takes this node for the owner (obtain)
//!   -> on disk? on its way?      one transfer for all who want a piece
//!   -> transfer                  drives a Fetch: peers, then the registry
//!   -> verified -> whole         requests of this node get it; readers get the last byte
//!   -> pieces                    own or held, for later requests
//! ```

mod memory;
mod outage;
mod profiles;
mod transfer;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use undermount_fs::digest::Verified;
use undermount_fs::source::SourceError;
use undermount_fs::trail;

use super::arriving::Arriving;
use super::client::PeerClient;
use super::counters::{Counters, Exile, Traffic, Why};
use super::fetch::Upstream;
use super::member::{MemberId, Roster};
use super::origin::Origin;
use super::pace::Sent;
use super::pieces::{PieceKey, Pieces};
use super::profiles::Shelf;
use super::realm::Realms;
use super::standing::{Moment, Reason, Shunned, Standing};
use super::uploads::{UploadLimits, Uploads};
use super::wanted::Wanted;
use memory::{Memory, Room};
use outage::Outages;
use transfer::Transfer;

pub use profiles::KeepError;

/// The most bytes of whole pieces that stay in memory where the disk has no room for them.
const UNKEPT: u64 = 32 << 20;

/// The parts that an [`Exchange`] works with.
pub struct Parts {
    /// The members of the cluster.
    pub roster: Roster,
    /// The client that asks them.
    pub client: PeerClient,
    /// The way to the registries.
    pub origin: Arc<dyn Origin>,
    /// Decides who may have which piece.
    pub realms: Realms,
    /// The pieces on disk.
    pub pieces: Pieces,
    /// The profiles that are kept for others.
    pub profiles: Shelf,
    /// How many uploads may run.
    pub limits: UploadLimits,
}

/// The exchange of pieces with other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Exchange(Arc<Inner>);

struct Inner {
    roster: Roster,
    client: PeerClient,
    origin: Arc<dyn Origin>,
    realms: Realms,
    pieces: Pieces,
    profiles: Shelf,
    standing: Mutex<Standing>,
    uploads: Mutex<Uploads>,
    arriving: Mutex<HashMap<PieceKey, Arc<Arriving>>>,
    /// Those among `arriving` that are whole and stay there, the oldest first, with their sizes in
    /// bytes.
    unkept: Mutex<VecDeque<(PieceKey, u64)>>,
    memory: Memory,
    sent: Mutex<Sent>,
    outages: Outages,
    counters: Counters,
    start: Instant,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("own", &self.0.roster.own).finish_non_exhaustive()
    }
}

/// Where a piece is.
pub(super) enum Place {
    /// On disk.
    Stored,
    /// On its way.
    Arriving(Arc<Arriving>),
}

impl Exchange {
    /// An exchange that works with `parts`.
    pub fn new(parts: Parts) -> Self {
        let Parts { roster, client, origin, realms, pieces, profiles, limits } = parts;
        let seed = u64::from_le_bytes(roster.own.as_bytes()[..8].try_into().expect("8 bytes"));
        Self(Arc::new(Inner {
            roster,
            client,
            origin,
            realms,
            pieces,
            profiles,
            standing: Mutex::default(),
            uploads: Mutex::new(Uploads::new(limits, seed)),
            arriving: Mutex::default(),
            unkept: Mutex::default(),
            memory: Memory::default(),
            sent: Mutex::default(),
            outages: Outages::default(),
            counters: Counters::default(),
            start: Instant::now(),
        }))
    }

    /// Fetches a piece for this node itself, verified.
    ///
    /// # Errors
    /// [`SourceError`] where neither peers nor the registry have it; [`SourceError::Deadline`]
    /// where they do not deliver it by `deadline`.
    pub async fn fetch(&self, wanted: &Wanted, deadline: Instant) -> Result<Verified, SourceError> {
        let late =
            || SourceError::Deadline { origin: wanted.scope.to_string(), blob: wanted.piece.blob };
        let by = tokio::time::Instant::from(deadline);
        let realm = tokio::time::timeout_at(by, self.realms().of(&wanted.scope));
        let key = (realm.await.map_err(|_| late())?, wanted.piece.digest);
        let mut joined_in_vain = false;
        loop {
            let mut joined = true;
            let arriving = match self.place(&key) {
                Some(Place::Stored) => match self.read(key).await {
                    Some(piece) => return Ok(piece),
                    None if self.pieces().has(&key) => return Err(unreadable(wanted)),
                    // It was damaged and has been removed.
                    None => continue,
                },
                Some(Place::Arriving(arriving)) => arriving,
                None => {
                    let room = tokio::time::timeout_at(by, self.0.memory.room(wanted.size()));
                    let room = room.await.map_err(|_| late())?;
                    joined = false;
                    match self.obtain(key, wanted, 0, room) {
                        Place::Stored => continue,
                        Place::Arriving(arriving) => arriving,
                    }
                }
            };
            let piece = match arriving.whole(deadline).await.unwrap_or_else(|| Err(late())) {
                Ok(piece) => piece,
                // The transfer was begun for somebody else, who may have named a repository that
                // lacks the piece.
                Err(_) if joined && !joined_in_vain && Instant::now() < deadline => {
                    joined_in_vain = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            note_origin(arriving.upstream(), wanted);
            return Ok(piece);
        }
    }

    /// The place of the piece, if it is here or on its way.
    pub(super) fn place(&self, key: &PieceKey) -> Option<Place> {
        let arriving = self.arriving().get(key).cloned();
        match arriving {
            Some(arriving) => Some(Place::Arriving(arriving)),
            None => self.0.pieces.has(key).then_some(Place::Stored),
        }
    }

    /// Begins to fetch a piece, in the name of a request that was passed on `hop` times, unless it
    /// is here or on its way.
    pub(super) fn obtain(&self, key: PieceKey, wanted: &Wanted, hop: u8, room: Room) -> Place {
        let mut arriving = self.arriving();
        if let Some(present) = arriving.get(&key) {
            return Place::Arriving(present.clone());
        }
        if self.0.pieces.has(&key) {
            return Place::Stored;
        }
        // It is not known yet which source it will ask; until then nobody may wait for it as for
        // the registry.
        let nobody = Upstream::Probe(self.roster().own);
        let piece = Arc::new(Arriving::new(wanted.size(), nobody));
        arriving.insert(key, piece.clone());
        drop(arriving);
        let transfer = Transfer::new(self.clone(), key, wanted.clone(), piece.clone(), hop);
        tokio::spawn(async move {
            transfer.carry_out().await;
            drop(room);
        });
        Place::Arriving(piece)
    }

    /// Takes memory for a piece of `size` bytes that `member` asks for; `None` if none is free.
    pub(super) fn room_for(&self, member: MemberId, size: u64) -> Option<Room> {
        self.0.memory.room_for(member, size)
    }

    /// Leaves a whole piece among those on their way, since the disk has no room for it. The oldest
    /// of them give way beyond [`UNKEPT`].
    pub(super) fn leave_in_memory(&self, key: PieceKey, size: u64) {
        let mut unkept = self.0.unkept.lock().unwrap_or_else(PoisonError::into_inner);
        unkept.push_back((key, size));
        while unkept.iter().map(|(_, size)| size).sum::<u64>() > UNKEPT {
            let Some((oldest, _)) = unkept.pop_front() else { break };
            self.arriving().remove(&oldest);
        }
    }

    async fn read(&self, key: PieceKey) -> Option<Verified> {
        let exchange = self.clone();
        let piece =
            tokio::task::spawn_blocking(move || exchange.0.pieces.read(&key)).await.ok()??;
        self.counters().local.count(piece.bytes().len() as u64);
        Some(piece)
    }

    /// What this node has received from others and sent to them.
    pub fn traffic(&self) -> Traffic {
        let now = self.now();
        let (own_bytes, held_bytes) = self.0.pieces.bytes();
        let uploading = self.uploads().running() as u64;
        let mut standing = self.standing();
        let exile = |shunned: Shunned| {
            let (why, reason) = match shunned.reason {
                Reason::Unreachable => (Why::Unreachable, "does not answer".to_owned()),
                Reason::Foreign => (Why::Foreign, "is of another cluster or version".to_owned()),
                Reason::Lied(words) => (Why::Banned, format!("sent wrong bytes: {words}")),
            };
            let seconds = shunned.until.saturating_sub(now).as_secs();
            Exile { member: shunned.member, why, reason, seconds }
        };
        let shunned = standing.shunned(now).into_iter().map(exile).collect();
        let (hedged, lies) = (standing.hedged(), standing.lies());
        let counted = self.counters().traffic();
        Traffic { hedged, lies, uploading, own_bytes, held_bytes, shunned, ..counted }
    }

    /// The node's view of the cluster.
    pub fn roster(&self) -> &Roster {
        &self.0.roster
    }

    pub(super) fn client(&self) -> &PeerClient {
        &self.0.client
    }

    pub(super) fn origin(&self) -> &Arc<dyn Origin> {
        &self.0.origin
    }

    pub(super) fn realms(&self) -> &Realms {
        &self.0.realms
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.0.pieces
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The time since the exchange began.
    pub fn now(&self) -> Moment {
        self.0.start.elapsed()
    }

    /// The time until `moment`; zero once it has passed.
    fn until(&self, moment: Moment) -> Duration {
        moment.saturating_sub(self.now())
    }

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn uploads(&self) -> MutexGuard<'_, Uploads> {
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What uploads of pieces on disk have sent.
    pub fn sent(&self) -> MutexGuard<'_, Sent> {
        self.0.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<PieceKey, Arc<Arriving>>> {
        self.0.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece that is here, and that the disk or a lack of descriptors keeps from being read. Whoever
/// wants it may ask again later.
fn unreadable(wanted: &Wanted) -> SourceError {
    let reason = format!("piece {} cannot be read from the disk now", wanted.piece.digest);
    SourceError::Unavailable { origin: "this node".to_owned(), reason }
}

/// Notes for the read that waits for the piece where it came from.
fn note_origin(upstream: Upstream, wanted: &Wanted) {
    match upstream {
        Upstream::Registry => {
            let host = wanted.scope.as_str().split('/').next().unwrap_or_default();
            trail::delivered(trail::Origin::Registry, host, wanted.size());
        }
        Upstream::Probe(member) | Upstream::Member(member) => {
            trail::delivered(trail::Origin::Peer, &member.to_string(), wanted.size());
        }
    }
}

#[cfg(test)]
impl Exchange {
    /// Waits until nothing is on its way.
    pub(super) async fn settled(&self) {
        while !self.arriving().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[cfg(test)]
mod tests;
