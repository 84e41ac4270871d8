//! Runs of spans: fetched, decoded, and kept.
//!
//! ```text
//! fetch       a run that a read waits for: whole layer, or an earlier start, where it must be
//!  `-> fetch_run      pieces and the first one's window, at the same time -> a permit to decode
//!       `-> decode_run   on a blocking thread: inflate -> extract -> waiters
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::extract::{ExtractError, extract};
use super::plan::{self, SpanRun};
use super::waiters::{Turns, Waiters, WantedUnits};
use super::write_behind::WriteBehind;
use super::{Content, FillError, Filler, Layer, chain};
use crate::codec::decode::Entry;
use crate::codec::{CodecError, decode};
use crate::digest::Verified;
use crate::index::SpanTable;
use crate::source::Priority;
use crate::trail::{self, Wait};

/// A run of spans that nobody else fetches meanwhile.
pub(super) struct TakenRun {
    pub run: SpanRun,
    pub turns: Turns,
}

impl Filler {
    /// Fetches and decodes a run of spans, or, where it is too large or lacks its window, whatever it
    /// takes in its place. Returns those of the content's `units` that it held.
    pub(super) async fn fetch(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        taken: TakenRun,
        content: &Arc<Content>,
        units: Vec<usize>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let run = taken.run.clone();
        if run.is_oversized(table) {
            return self.units_of_whole(layer, content, units).await;
        }
        if self.knows_no_window(layer, table, run.spans.start) {
            return self.fetch_windowless(layer, table, run, content, units).await;
        }
        let wanted = WantedUnits { key: content.key, units: units.clone() };
        match self.fetch_run(layer, table, taken, Priority::Demand, Some(wanted)).await {
            Err(error @ FillError::Window { .. }) if self.source.shares() => {
                self.note_no_window(layer, &error);
                self.fetch_windowless(layer, table, run, content, units).await
            }
            outcome => outcome,
        }
    }

    /// Fetches and decodes a run of spans and keeps whatever they hold. Returns the `wanted` units as
    /// soon as all of them are here, or those that there are at the end of the run.
    pub(super) async fn fetch_run(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        TakenRun { run, turns }: TakenRun,
        priority: Priority,
        wanted: Option<WantedUnits>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let pieces = run.spans.clone().map(|span| table.piece(span)).collect();
        let window = self.window(layer, table, run.spans.start, priority);
        let pieces = self.request_within(layer, pieces, priority, self.patience.timeout);
        let both = async { tokio::try_join!(window, pieces) };
        let (window, pieces) = trail::waiting(Wait::Fetch, both).await?;
        let (mut waiters, answer) = Waiters::new(table, wanted, turns);
        let decoder = trail::waiting(Wait::Decode, self.behind.decoder()).await;
        let (layer, table, behind) = (layer.clone(), table.clone(), self.behind.clone());
        tokio::task::spawn_blocking(move || {
            let spans = run.spans.clone();
            let fetched = FetchedRun { run, window, pieces };
            let decoded = decode_run(&layer, &table, &behind, fetched, &mut waiters);
            if decoded.is_ok() {
                layer.note_fetched(spans);
            }
            let outcome = decoded.map_err(|error| layer.damaged(chain(&error)));
            if let Err(error) = waiters.finish(outcome) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "a run of spans turned out wrong after its read was answered"
                );
            }
            drop(decoder);
        });
        trail::waiting(Wait::Decode, answer).await.map_err(|_| FillError::Interrupted)?
    }
}

/// What was fetched to decode a run of spans.
struct FetchedRun {
    run: SpanRun,
    window: Option<Verified>,
    pieces: Vec<Verified>,
}

fn decode_run(
    layer: &Layer,
    table: &SpanTable,
    behind: &WriteBehind,
    fetched: FetchedRun,
    waiters: &mut Waiters,
) -> Result<(), ExtractError> {
    let FetchedRun { run, window, pieces } = fetched;
    let first = run.spans.start;
    let window = match window {
        Some(window) => zstd::bulk::decompress(window.bytes(), plan::WINDOW_MAX)
            .map_err(ExtractError::Decode)?,
        None => Vec::new(),
    };
    let entry = Entry {
        codec: table.codec(),
        start: table.start(first),
        bit: table.first_bit(first),
        window: &window,
    };
    let broken = |error: CodecError| ExtractError::Decode(std::io::Error::other(error));
    let mut reader = decode(entry, plan::join(table, &run, pieces)).map_err(broken)?;
    extract(&layer.tree, behind, run.output(table), &mut reader, waiters)
}
