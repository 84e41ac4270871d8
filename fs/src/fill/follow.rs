//! Fetches ahead of whoever reads a layer in order, and the rest of a layer of which much is wanted.
//!
//! ```text
//! miss -> Misses (ahead): Follow or Rest -> Follower: group after group of spans, two on their way
//!                                              ^ as long as the reader comes after it
//! ```
//!
//! A group holds the turns of its spans, so that a read which misses one of them waits until the group
//! has come so far. What to fetch is decided in [`ahead`](super::ahead), by pure functions.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt as _, unfold};
use tokio_util::task::AbortOnDropHandle;

use super::ahead::{Beyond, UNASKED_MAX, along, distance, group, is_far};
use super::extract::{Units, lacks_any};
use super::plan::SpanRun;
use super::run::TakenRun;
use super::windowless::remote_window;
use super::{FillError, Filler, Layer, blocking};
use crate::index::SpanTable;
use crate::object::Store;
use crate::source::Priority;

/// Groups that are on their way at the same time: one arrives while one is decoded.
const GROUPS: usize = 2;
/// How often it is looked where the reader is.
const LOOK: Duration = Duration::from_millis(10);
/// A reader that does not come closer for this long has stopped.
const IDLE: Duration = Duration::from_secs(1);

/// Fetches ahead as long as it is kept.
pub struct Follower {
    /// Whether all of the layer is wanted, wherever the reader is.
    rest: Arc<AtomicBool>,
    task: AbortOnDropHandle<()>,
}

impl Filler {
    /// `run` with the spans after it that take no longer to come along than a round trip.
    pub(super) async fn widened(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: SpanRun,
    ) -> Result<SpanRun, FillError> {
        let link = self.gauge.link();
        let far = is_far(layer.tree.header().layer_size.get(), table.count(), link);
        let (most, units) = (along(link), units_ahead(far));
        let (layer, table, store) = (layer.clone(), table.clone(), self.store.clone());
        let work = move || widened(&layer, &table, &store, run, most, units);
        blocking(work).await
    }

    /// Fetches beyond a miss where that is worth it.
    pub(super) fn look_beyond(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: &SpanRun,
    ) {
        let (size, link) = (layer.tree.header().layer_size.get(), self.gauge.link());
        let beyond = layer.misses().note(run.spans.clone(), table.count(), size, link);
        if beyond == Beyond::Nothing {
            return;
        }
        let mut follower = layer.follower.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = follower.as_ref().filter(|running| !running.task.is_finished()) {
            running.rest.fetch_or(beyond == Beyond::Rest, Ordering::Relaxed);
            return;
        }
        let rest = Arc::new(AtomicBool::new(beyond == Beyond::Rest));
        let path = Path {
            layer: Arc::downgrade(layer),
            table: table.clone(),
            rest: rest.clone(),
            next: run.spans.end,
            begin: None,
            is_second_round: false,
        };
        let task = tokio::spawn(self.clone().follow(path));
        *follower = Some(Follower { rest, task: AbortOnDropHandle::new(task) });
    }

    /// Whether a span's bytes came a moment ago.
    fn has_recent(&self, table: &SpanTable, span: usize) -> bool {
        self.recent.get(&table.piece(span).digest).is_some()
    }

    async fn follow(self: Arc<Self>, path: Path) {
        let (layer, table) = (path.layer.clone(), path.table.clone());
        let groups = unfold((self.clone(), path), |(filler, mut path)| async move {
            let spans = path.next_group(&filler).await?;
            Some((spans, (filler, path)))
        });
        let fetches = groups.map(|spans| self.fetch_group(&layer, &table, spans));
        let mut fetches = std::pin::pin!(fetches.buffered(GROUPS));
        while let Some(fetched) = fetches.next().await {
            if let Err(error) = fetched {
                // Whoever misses what it would have brought gets the error.
                return tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "fetching ahead ends early"
                );
            }
        }
    }

    async fn fetch_group(
        &self,
        layer: &Weak<Layer>,
        table: &Arc<SpanTable>,
        spans: Range<usize>,
    ) -> Result<(), FillError> {
        let Some(layer) = layer.upgrade() else { return Ok(()) };
        let run = SpanRun { spans: spans.clone() };
        if run.is_oversized(table) {
            return Ok(());
        }
        let turns = layer.turns(spans.clone()).await;
        let before = spans.start.saturating_sub(1);
        let pieces = spans.clone().map(|span| table.piece(span));
        let pieces = pieces.chain(remote_window(&layer, table, before)).collect();
        self.request(&layer, pieces, Priority::Pack).await?;
        // Files reach across borders: the span before is decoded once more. It has come just now,
        // with the group before, whose turn is not waited for: that one may still be decoding.
        let start = if self.has_recent(table, before) { before } else { spans.start };
        let run = TakenRun { run: SpanRun { spans: start..spans.end }, turns };
        self.fetch_run(&layer, table, run, Priority::Pack, None).await.map(drop)
    }
}

/// What to fetch unasked, over a link that is far or not. A start reads little of large files, and
/// over a near link it needs the processor more than it would gain by having them.
fn units_ahead(is_far: bool) -> Units {
    if is_far { Units::InPart } else { Units::Whole }
}

/// `run` with the wanted spans after it, up to `most` more compressed bytes.
fn widened(
    layer: &Layer,
    table: &SpanTable,
    store: &Store,
    run: SpanRun,
    most: u64,
    units: Units,
) -> SpanRun {
    let end = table.piece(run.spans.end - 1).range.end;
    let comes_along = |span: &usize| {
        let fits = table.piece(*span).range.end - end <= most;
        fits && is_wanted(layer, table, store, *span, units)
    };
    let next = (run.spans.end..table.count()).take(UNASKED_MAX);
    let neighbours = next.take_while(comes_along).count();
    SpanRun { spans: run.spans.start..run.spans.end + neighbours }
}

/// Whether `span` holds something that is not here: of a rebuilt layer most is.
fn is_wanted(layer: &Layer, table: &SpanTable, store: &Store, span: usize, units: Units) -> bool {
    !layer.was_fetched(span) && lacks_any(&layer.tree, store, &table.output(span), units)
}

/// The first wanted spans from `next` on, up to `bytes` compressed bytes and one at least.
fn wanted_group(
    layer: &Layer,
    table: &SpanTable,
    store: &Store,
    next: usize,
    bytes: u64,
    units: Units,
) -> Option<Range<usize>> {
    let wanted = |span: &usize| is_wanted(layer, table, store, *span, units);
    let start = (next..table.count()).find(wanted)?;
    let limit = table.piece(start).range.start + bytes;
    let fits = |span: &usize| table.piece(*span).range.end <= limit && wanted(span);
    let more = (start + 1..table.count()).take(UNASKED_MAX - 1).take_while(fits).count();
    Some(start..start + 1 + more)
}

/// Where a follower is.
struct Path {
    layer: Weak<Layer>,
    table: Arc<SpanTable>,
    rest: Arc<AtomicBool>,
    /// The first span that was not asked for.
    next: usize,
    /// The first byte of the layer that was asked for; none before the first group.
    begin: Option<u64>,
    /// Whether it has come to the end of the layer and has begun again at its beginning.
    is_second_round: bool,
}

impl Path {
    /// The next spans to fetch, once it is time; `None` at the end of the reader, of the layer, or,
    /// where all of it is wanted over a far link, of what lies before the place where this began.
    async fn next_group(&mut self, filler: &Filler) -> Option<Range<usize>> {
        self.wait_for_reader(filler).await?;
        let mut spans = self.wanted_group(filler).await;
        if spans.is_none() && self.is_rest() && self.is_far(filler)? && !self.is_second_round {
            (self.is_second_round, self.next) = (true, 0);
            spans = self.wanted_group(filler).await;
        }
        let spans = spans?;
        self.next = spans.end;
        self.begin.get_or_insert(self.table.piece(spans.start).range.start);
        Some(spans)
    }

    async fn wanted_group(&self, filler: &Filler) -> Option<Range<usize>> {
        let layer = self.layer.upgrade()?;
        let (table, store, next) = (self.table.clone(), filler.store.clone(), self.next);
        let bytes = group(filler.gauge.link());
        let units = units_ahead(self.is_far(filler)?);
        let work = move || wanted_group(&layer, &table, &store, next, bytes, units);
        blocking(work).await.ok()?
    }

    fn is_rest(&self) -> bool {
        self.rest.load(Ordering::Relaxed)
    }

    fn is_far(&self, filler: &Filler) -> Option<bool> {
        let size = self.layer.upgrade()?.tree.header().layer_size.get();
        Some(is_far(size, self.table.count(), filler.gauge.link()))
    }

    /// Waits until the reader is near enough; `None` where he has stopped or gone elsewhere.
    async fn wait_for_reader(&self, filler: &Filler) -> Option<()> {
        let mut position = None;
        let mut since = Instant::now();
        while !self.is_rest() && self.next < self.table.count() {
            let reader = self.layer.upgrade()?.reader();
            let ahead = self.table.piece(self.next).range.start;
            let behind = self.table.piece(self.table.at(reader)).range.start;
            let moved = behind.saturating_sub(self.begin.unwrap_or(ahead));
            if ahead.saturating_sub(behind) <= distance(filler.gauge.link(), moved) {
                break;
            }
            if position.replace(reader) != Some(reader) {
                since = Instant::now();
            }
            if since.elapsed() > IDLE {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
        Some(())
    }
}
