//! Runs of spans: fetched, decoded, and kept.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::extract::{ExtractError, extract};
use super::plan::{self, SpanRun};
use super::{Content, FillError, Filler, Layer, chain};
use crate::codec::decode::Entry;
use crate::codec::{CodecError, decode};
use crate::digest::Verified;
use crate::index::SpanTable;
use crate::object::{ObjectKey, Store};
use crate::source::Priority;
use crate::trail::{self, Wait};

impl Filler {
    /// Fetches and decodes a run of spans; returns those of the content's `units` that it held.
    pub(super) async fn fetch(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: SpanRun,
        content: &Arc<Content>,
        units: Vec<usize>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        if run.is_oversized(table) {
            return self.units_of_whole(layer, content, units).await;
        }
        if self.knows_no_window(layer, table, run.spans.start) {
            return self.fetch_windowless(layer, table, run, content, units).await;
        }
        let wanted = Some((content.key, units.clone()));
        match self.fetch_run(layer, table, run.clone(), Priority::Demand, wanted).await {
            Err(error @ FillError::Window { .. }) if self.source.shares() => {
                self.note_no_window(layer, &error);
                self.fetch_windowless(layer, table, run, content, units).await
            }
            outcome => outcome,
        }
    }

    /// Fetches and decodes a run of spans and keeps what they hold; returns the `wanted` units of
    /// a content.
    pub(super) async fn fetch_run(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: SpanRun,
        priority: Priority,
        wanted: Option<(ObjectKey, Vec<usize>)>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let pieces = run.spans.clone().map(|span| table.piece(span)).collect();
        let window = self.window(layer, table, run.spans.start, priority);
        let pieces = self.request_within(layer, pieces, priority, self.patience.timeout);
        let both = async { tokio::try_join!(window, pieces) };
        let (window, pieces) = trail::waiting(Wait::Fetch, both).await?;
        let spans = run.spans.clone();
        let (decoded, table, store) = (layer.clone(), table.clone(), self.store.clone());
        let decoding = tokio::task::spawn_blocking(move || {
            let fetched = FetchedRun { run, window, pieces };
            decode_run(&decoded, &table, &store, fetched, wanted.as_ref())
                .map_err(|error| decoded.damaged(chain(&error)))
        });
        let held = trail::waiting(Wait::Decode, decoding).await;
        let held = held.map_err(|_| FillError::Interrupted)??;
        layer.note_fetched(spans);
        Ok(held)
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
    store: &Store,
    fetched: FetchedRun,
    wanted: Option<&(ObjectKey, Vec<usize>)>,
) -> Result<HashMap<usize, Bytes>, ExtractError> {
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
    extract(&layer.tree, store, run.output(table), &mut reader, wanted)
}
