//! Pieces that were fetched a moment ago.
//!
//! Files straddle spans, so whoever reads a layer in order needs most pieces twice: with the file
//! before the border and with the one across it. What was just fetched is therefore kept for a
//! while, up to a fixed number of bytes.

use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::digest::{Digest, Verified};

/// Bytes that are kept.
const LIMIT: usize = 16 * 1024 * 1024;

/// Recently fetched pieces by digest.
pub struct Recent {
    state: Mutex<State>,
}

struct State {
    pieces: LruCache<Digest, Verified>,
    bytes: usize,
}

impl Recent {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { state: Mutex::new(State { pieces: LruCache::unbounded(), bytes: 0 }) }
    }

    /// The piece with this digest, if it was fetched recently.
    pub fn get(&self, digest: &Digest) -> Option<Verified> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pieces.get(digest).cloned()
    }

    /// Remembers a piece, and forgets the oldest ones beyond the limit.
    pub fn put(&self, piece: &Verified) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pieces.put(*piece.digest(), piece.clone()).is_none() {
            state.bytes += piece.bytes().len();
        }
        while state.bytes > LIMIT {
            let Some((_, oldest)) = state.pieces.pop_lru() else { break };
            state.bytes -= oldest.bytes().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pieces_are_forgotten_beyond_the_limit() {
        let recent = Recent::new();
        let piece = |i: usize| Verified::name(vec![i as u8; LIMIT / 4].into());
        for i in 0..6 {
            recent.put(&piece(i));
            recent.put(&piece(i));
            assert!(recent.get(piece(0).digest()).is_some() == (i < 5), "{i}");
            // Used just now, piece 0 stays longer than piece 1, but not for ever.
            if i == 4 {
                assert!(recent.get(piece(1).digest()).is_none());
                for later in 2..5 {
                    recent.get(piece(later).digest());
                }
            }
        }
    }
}
