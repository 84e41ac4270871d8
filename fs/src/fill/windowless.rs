//! Windows, and what to do where one cannot be had.
//!
//! A run of spans that begins in the middle of a gzip member takes the 32 KiB before it, its
//! window, which is a piece of another blob than the layer. Among nodes that share, spans are
//! wanted by everybody, but a window by those only who begin at the same place: with the registry
//! away the spans may be there, and the window not. Then the run begins earlier, where none is
//! needed, or the layer comes whole.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::plan::SpanRun;
use super::request::no_answer;
use super::run::TakenRun;
use super::waiters::WantedUnits;
use super::{Content, FillError, Filler, Layer};
use crate::digest::Verified;
use crate::index::SpanTable;
use crate::source::{Piece, Priority};
use crate::trail::{self, Wait};

/// A window was not to be had: others of the layer are not asked for during this time.
const WITHOUT: Duration = Duration::from_secs(30);

/// The turn of who decodes a layer from an earlier place: one at a time, since each keeps most of
/// what the next one wants.
const TURN: usize = usize::MAX - 1;

/// The window that `span` is decoded with, where it has to be fetched.
pub(super) fn remote_window(layer: &Layer, table: &SpanTable, span: usize) -> Option<Piece> {
    let window = table.window(span).filter(|window| table.local_window(window).is_none())?;
    let blob = layer.tree.header().spans;
    Some(Piece { blob, range: window.range, digest: window.digest })
}

/// `run` with what lies before it, from the last place on where no window has to be fetched.
fn from_earlier(layer: &Layer, table: &SpanTable, run: &SpanRun) -> SpanRun {
    let is_free = |span: &usize| remote_window(layer, table, *span).is_none();
    let start = (0..=run.spans.start).rev().find(is_free).unwrap_or_default();
    SpanRun { spans: start..run.spans.end }
}

impl Filler {
    /// The window that `span` is decoded with, if it takes one.
    pub(super) async fn window(
        &self,
        layer: &Layer,
        table: &SpanTable,
        span: usize,
        priority: Priority,
    ) -> Result<Option<Verified>, FillError> {
        let Some(remote) = remote_window(layer, table, span) else {
            return Ok(table.window(span).and_then(|window| table.local_window(&window)));
        };
        // Where there is another way, there has to be time for it.
        let timeout = self.patience.timeout;
        let patience = if self.source.shares() { timeout / 2 } else { timeout };
        match self.request_within(layer, vec![remote], priority, patience).await {
            Ok(mut window) => window.pop().map(Some).ok_or_else(|| no_answer(layer)),
            Err(FillError::Source(source)) => {
                Err(FillError::Window { layer: layer.digest(), source })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether `span` takes a window, and none could be had a moment ago.
    pub(super) fn knows_no_window(&self, layer: &Layer, table: &SpanTable, span: usize) -> bool {
        let windowless = *layer.windowless.lock().unwrap_or_else(PoisonError::into_inner);
        windowless.is_some_and(|since| since.elapsed() < WITHOUT)
            && remote_window(layer, table, span)
                .is_some_and(|window| self.recent.get(&window.digest).is_none())
    }

    pub(super) fn note_no_window(&self, layer: &Layer, error: &FillError) {
        let error = error as &dyn std::error::Error;
        tracing::info!(layer = %layer.digest(), error, "cannot fetch a window: decoding from an earlier place");
        *layer.windowless.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Those of the content's `units` that `run` holds, without the window that it begins with.
    pub(super) async fn fetch_windowless(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: SpanRun,
        content: &Arc<Content>,
        units: Vec<usize>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let run = from_earlier(layer, table, &run);
        if run.is_oversized(table) {
            return self.units_of_whole(layer, content, units).await;
        }
        let turns = trail::waiting(Wait::Turn, layer.turns([TURN])).await;
        // Whoever had the turn before may have brought them.
        let stored = self.stored(content, units.clone()).await?;
        if stored.len() == units.len() {
            return Ok(stored);
        }
        let (run, wanted) = (TakenRun { run, turns }, WantedUnits { key: content.key, units });
        self.fetch_run(layer, table, run, Priority::Demand, Some(wanted)).await
    }
}
