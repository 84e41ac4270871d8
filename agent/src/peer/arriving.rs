//! A piece on its way here, read by others while it arrives.
//!
//! ```text
//! Transfer: append, append, ... -> digest right: complete -> readers get the last byte
//!                                    ` wrong: begin_anew  -> readers are cut off
//! Reader:   next, next, ...     -> None at the end, or CutOff
//! ```
//!
//! Readers get what has arrived at once, except for the last byte, which follows when the digest
//! has turned out right. So nobody ever gets a whole wrong piece from a node that was itself lied
//! to, and whoever does send one is a liar. Where wrong bytes arrived, the piece begins anew, and
//! its readers are cut off: they go on elsewhere.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;
use undermount_fs::digest::Verified;
use undermount_fs::source::SourceError;

use super::fetch::Upstream;
use super::uploads::Have;

/// A piece on its way.
#[derive(Debug)]
pub struct Arriving {
    size: u64,
    /// The source that was asked last.
    from: Mutex<Upstream>,
    bytes: Mutex<Vec<Bytes>>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
enum State {
    Coming(Coming),
    /// All of it is here; the number is that of the attempt.
    Whole(Verified, u32),
    Failed(SourceError),
}

impl State {
    /// The attempt to which the readable bytes belong.
    fn attempt(&self) -> u32 {
        match self {
            Self::Coming(coming) => coming.attempt,
            Self::Whole(_, attempt) => *attempt,
            Self::Failed(_) => 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Coming {
    /// The source that it waits for.
    from: Upstream,
    /// The bytes that have arrived in this attempt.
    bytes: u64,
    /// How often the piece began anew.
    attempt: u32,
}

impl Arriving {
    /// A piece of `size` bytes of which nothing has arrived, and which waits for `from`.
    pub fn new(size: u64, from: Upstream) -> Self {
        let coming = Coming { from, bytes: 0, attempt: 0 };
        let (state, _) = watch::channel(State::Coming(coming));
        Self { size, from: Mutex::new(from), bytes: Mutex::default(), state }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How much of it is here; `None` where it has failed.
    pub fn have(&self) -> Option<Have> {
        match &*self.state.borrow() {
            State::Coming(coming) => {
                Some(Have::Arriving { begun: coming.bytes > 0, from: coming.from })
            }
            State::Whole(..) => Some(Have::Whole),
            State::Failed(_) => None,
        }
    }

    /// Waits until some of it has arrived, or until it has failed.
    pub async fn begun(&self) {
        let mut state = self.state.subscribe();
        // It fails only when the sender is gone, which `self` holds.
        let _ = state
            .wait_for(|state| !matches!(state, State::Coming(coming) if coming.bytes == 0))
            .await;
    }

    /// Waits for the whole piece; `None` when `deadline` passes.
    ///
    /// # Errors
    /// [`SourceError`] where it cannot be fetched.
    pub async fn whole(&self, deadline: Instant) -> Option<Result<Verified, SourceError>> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| !matches!(state, State::Coming(_)));
        let ended = tokio::time::timeout_at(deadline.into(), ended).await.ok()?;
        match &*ended.ok()? {
            State::Coming(_) => None,
            State::Whole(piece, _) => Some(Ok(piece.clone())),
            State::Failed(error) => Some(Err(error.clone())),
        }
    }

    /// Notes the source that it waits for now.
    pub fn asked(&self, from: Upstream) {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = from;
        self.change(|coming| coming.from = from);
    }

    /// The source that was asked last: where a whole piece came from.
    pub fn upstream(&self) -> Upstream {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes that have arrived.
    pub fn append(&self, bytes: Bytes) {
        let length = bytes.len() as u64;
        self.chunks().push(bytes);
        self.change(|coming| coming.bytes += length);
    }

    /// Drops what has arrived, which was wrong.
    pub fn begin_anew(&self) {
        let mut chunks = self.chunks();
        if !std::mem::take(&mut *chunks).is_empty() {
            self.change(|coming| {
                coming.bytes = 0;
                coming.attempt += 1;
            });
        }
    }

    /// All bytes that have arrived, in one stretch of memory.
    pub fn joined(&self) -> Bytes {
        let chunks = self.chunks();
        match chunks.as_slice() {
            [only] => only.clone(),
            several => several.concat().into(),
        }
    }

    /// Notes that the piece is whole and right; its readers get the last byte.
    pub fn complete(&self, piece: Verified) {
        self.state.send_modify(|state| {
            let attempt = state.attempt();
            *state = State::Whole(piece, attempt);
        });
        self.chunks().clear();
    }

    /// Notes that the piece cannot be fetched; its readers are cut off.
    pub fn fail(&self, error: SourceError) {
        self.state.send_replace(State::Failed(error));
        self.chunks().clear();
    }

    /// A reader from byte `offset` on.
    pub fn reader(&self, offset: u64) -> Reader {
        let state = self.state.subscribe();
        let attempt = state.borrow().attempt();
        Reader { state, attempt, next: offset }
    }

    /// Bytes from `position` on, as many as lie in one stretch of memory below `end`.
    fn stretch(&self, position: u64, end: u64) -> Option<Bytes> {
        let mut start = 0;
        for chunk in self.chunks().iter() {
            let chunk_end = start + chunk.len() as u64;
            if position < chunk_end {
                let from = (position - start) as usize;
                return Some(chunk.slice(from..(end.min(chunk_end) - start) as usize));
            }
            start = chunk_end;
        }
        None
    }

    fn change(&self, change: impl FnOnce(&mut Coming)) {
        self.state.send_modify(|state| {
            if let State::Coming(coming) = state {
                change(coming);
            }
        });
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a piece as it arrives.
#[derive(Debug)]
pub struct Reader {
    state: watch::Receiver<State>,
    attempt: u32,
    next: u64,
}

/// The rest of the piece will not arrive here: whoever reads it asks somebody else for that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the piece does not come here")]
pub struct CutOff;

impl Reader {
    /// Waits for the next bytes of `piece`, which has made this reader; `None` at its end.
    ///
    /// # Errors
    /// [`CutOff`] where the piece has failed or begun anew.
    pub async fn next(&mut self, piece: &Arriving) -> Result<Option<Bytes>, CutOff> {
        loop {
            if self.next >= piece.size {
                return Ok(None);
            }
            let (next, attempt) = (self.next, self.attempt);
            // The last byte is not shown before the digest has turned out right.
            let last = piece.size - 1;
            let more = self.state.wait_for(|state| match state {
                State::Coming(coming) => coming.bytes.min(last) > next || coming.attempt != attempt,
                State::Whole(..) | State::Failed(_) => true,
            });
            let state = more.await.map_err(|_| CutOff)?.clone();
            if state.attempt() != attempt {
                return Err(CutOff);
            }
            let bytes = match state {
                State::Coming(coming) => piece.stretch(next, coming.bytes.min(last)),
                State::Whole(whole, _) => Some(whole.into_bytes().slice(next as usize..)),
                State::Failed(_) => return Err(CutOff),
            };
            // None: it became whole, or began anew, a moment ago.
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                self.next += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const PIECE: &[u8] = b"0123456789";

    fn read(reader: &mut Reader, piece: &Arriving) -> Option<Result<Option<Bytes>, CutOff>> {
        reader.next(piece).now_or_never()
    }

    #[tokio::test]
    async fn what_has_come_can_be_read_but_for_the_last_byte() {
        let piece = Arriving::new(10, Upstream::Registry);
        let mut reader = piece.reader(2);
        assert_eq!(read(&mut reader, &piece), None);
        piece.append(Bytes::from_static(&PIECE[..4]));
        piece.append(Bytes::from_static(&PIECE[4..]));
        let mut came = Vec::new();
        while let Some(Ok(Some(bytes))) = read(&mut reader, &piece) {
            came.extend_from_slice(&bytes);
        }
        assert_eq!(came, b"2345678");
        piece.complete(Verified::name(piece.joined()));
        assert_eq!(read(&mut reader, &piece), Some(Ok(Some(Bytes::from_static(b"9")))));
        assert_eq!(read(&mut reader, &piece), Some(Ok(None)));
        let whole = piece.whole(Instant::now()).await.unwrap().unwrap();
        assert_eq!(whole.bytes(), PIECE);
    }

    #[tokio::test]
    async fn readers_of_wrong_bytes_are_cut_off() {
        let piece = Arriving::new(10, Upstream::Registry);
        piece.append(Bytes::from_static(b"wrong"));
        let mut reader = piece.reader(0);
        assert!(matches!(read(&mut reader, &piece), Some(Ok(Some(_)))));
        piece.begin_anew();
        assert_eq!(read(&mut reader, &piece), Some(Err(CutOff)));
        let mut late = piece.reader(0);
        assert_eq!(read(&mut late, &piece), None);
        piece.append(Bytes::from_static(PIECE));
        assert_eq!(read(&mut late, &piece), Some(Ok(Some(Bytes::from_static(&PIECE[..9])))));
    }

    #[tokio::test]
    async fn regression_a_slow_reader_of_wrong_bytes_does_not_get_the_rest_of_the_right_ones() {
        let piece = Arriving::new(10, Upstream::Registry);
        piece.append(Bytes::from_static(b"wrong"));
        let mut reader = piece.reader(0);
        assert_eq!(read(&mut reader, &piece), Some(Ok(Some(Bytes::from_static(b"wrong")))));
        // All of this happens before it looks again.
        piece.begin_anew();
        piece.append(Bytes::from_static(PIECE));
        piece.complete(Verified::name(piece.joined()));
        assert_eq!(read(&mut reader, &piece), Some(Err(CutOff)));
        assert_eq!(read(&mut piece.reader(0), &piece), Some(Ok(Some(Bytes::from_static(PIECE)))));
    }

    #[tokio::test]
    async fn whoever_waits_learns_of_a_failure() {
        let piece = Arriving::new(10, Upstream::Registry);
        assert!(piece.begun().now_or_never().is_none());
        assert!(piece.whole(Instant::now()).await.is_none(), "the deadline is now");
        let origin = "r.example".to_owned();
        piece.fail(SourceError::Unavailable { origin, reason: "down".to_owned() });
        piece.begun().await;
        let soon = Instant::now() + Duration::from_secs(60);
        assert!(piece.whole(soon).await.unwrap().is_err());
        assert_eq!(piece.have(), None);
        assert_eq!(read(&mut piece.reader(0), &piece), Some(Err(CutOff)));
    }

    #[tokio::test]
    async fn an_empty_piece_has_an_end() {
        let piece = Arriving::new(0, Upstream::Registry);
        assert_eq!(read(&mut piece.reader(0), &piece), Some(Ok(None)));
    }
}
