//! Pieces asked of the source, and how long that takes; of a layer only those that did not come a
//! moment ago.

use std::time::{Duration, Instant};

use super::{FillError, Filler, Layer};
use crate::digest::Verified;
use crate::source::{Piece, PieceRequest, Priority, SourceError};
use crate::trail::{self, Wait};

impl Filler {
    /// Asks the source, and tells the gauge how long it took.
    pub(super) async fn fetch_measured(
        &self,
        request: PieceRequest,
    ) -> Result<Vec<Verified>, SourceError> {
        let asked = Instant::now();
        let fetched = self.source.fetch(request).await?;
        let bytes = fetched.iter().map(|piece| piece.bytes().len() as u64).sum();
        self.gauge.note(bytes, asked.elapsed());
        Ok(fetched)
    }

    /// Fetches those of `pieces` that were not fetched a moment ago.
    pub(super) async fn request(
        &self,
        layer: &Layer,
        pieces: Vec<Piece>,
        priority: Priority,
    ) -> Result<Vec<Verified>, FillError> {
        let fetch = self.request_within(layer, pieces, priority, self.patience.timeout);
        trail::waiting(Wait::Fetch, fetch).await
    }

    /// The same, for as long as `patience`; the waiting is the caller's to account for.
    pub(super) async fn request_within(
        &self,
        layer: &Layer,
        pieces: Vec<Piece>,
        priority: Priority,
        patience: Duration,
    ) -> Result<Vec<Verified>, FillError> {
        let known: Vec<Option<Verified>> =
            pieces.iter().map(|piece| self.recent.get(&piece.digest)).collect();
        let missing: Vec<Piece> = pieces
            .into_iter()
            .zip(&known)
            .filter_map(|(piece, known)| known.is_none().then_some(piece))
            .collect();
        let mut fetched = Vec::new();
        if !missing.is_empty() {
            fetched = self.ask(layer, missing, priority, patience).await?;
        }
        fetched.iter().for_each(|piece| self.recent.put(piece));
        let mut fetched = fetched.into_iter();
        known
            .into_iter()
            .map(|known| known.or_else(|| fetched.next()).ok_or_else(|| no_answer(layer)))
            .collect()
    }
}

/// The error of an answer with too few pieces.
pub(super) fn no_answer(layer: &Layer) -> FillError {
    layer.damaged("the source answered with fewer pieces than were asked for")
}
