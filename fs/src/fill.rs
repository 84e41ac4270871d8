//! What happens on a miss: plan, fetch, decode, keep.
//!
//! ```text
//! read of a file that is not here
//!   -> units of the file that hold the range          (unit)
//!   -> spans of the layer that decode these units      (plan)
//!   -> their pieces and the first one's window         (Source: one request for each blob)
//!   -> decode, and keep every unit inside              (extract, on a blocking thread)
//!   -> the bytes that were asked for
//! ```
//!
//! A miss brings in everything that its spans hold whole, since neighbours in a tar are read
//! together, and neighbouring spans where that takes no longer. Two readers that miss the same
//! spans share one fetch. A small layer comes in whole; one that is read in order, or of which
//! much is read, is fetched ahead of its readers ([`ahead`]).

mod ahead;
mod awaited;
mod catch;
mod extract;
mod follow;
mod gauge;
mod ingest;
mod layer;
mod meter;
mod outage;
mod pack;
mod plan;
mod recent;
mod table;
mod unit;
mod unpack;
mod unread;
mod whole;
mod windowless;

pub use ingest::{Blob, IngestError, Pace, Progress};
pub use layer::Layer;
pub use meter::{
    Meter, PackReadings, Readings, Reads, SlowRead, WAIT_BOUNDS_MICROS, Waiting, Wanted,
};
pub use outage::{OnOutage, Outage, Outages, Patience};
pub use pack::PackingError;
pub use unit::Content;
pub use unpack::{Opening, PackBlob, Told, UnpackError, Unpacked};

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::awaited::Awaited;
use self::extract::{ExtractError, extract};
use self::gauge::Gauge;
use self::outage::Aftermath;
use self::plan::{Run, plan};
use self::recent::Recent;
use crate::blob::Blobs;
use crate::codec::decode::Entry;
use crate::codec::{CodecError, decode};
use crate::digest::{Digest, Verified};
use crate::index::SpanTable;
use crate::object::{CHUNK, ObjectKey, Store};
use crate::source::{Piece, PieceRequest, Priority, Source, SourceError};
use crate::trail::{self, Wait};

/// Why a read cannot be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FillError {
    /// The bytes could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What it takes to begin in the middle of the layer could not be fetched; the bytes
    /// themselves may be there.
    #[error("cannot begin in the middle of layer {layer}")]
    Window {
        /// The layer blob.
        layer: Digest,
        /// Why.
        source: SourceError,
    },
    /// The index of the layer is damaged or lies.
    #[error("index of layer {layer}: {reason}")]
    Index {
        /// The layer blob.
        layer: Digest,
        /// What is wrong, in words.
        reason: String,
    },
    /// The layer can only be decoded from its beginning, and that failed.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The process is shutting down.
    #[error("reading was interrupted by a shutdown")]
    Interrupted,
}

/// Fetches what is missing into a store.
pub struct Filler {
    store: Arc<Store>,
    blobs: Arc<Blobs>,
    source: Arc<dyn Source>,
    recent: Recent,
    awaited: Awaited,
    meter: Meter,
    gauge: Gauge,
    patience: Patience,
    outages: Outages,
    aftermath: Aftermath,
}

impl Filler {
    /// A filler for `store`; span tables go to `blobs`; one fetch may take as long as a read waits.
    pub fn new(
        store: Arc<Store>,
        blobs: Arc<Blobs>,
        source: Arc<dyn Source>,
        patience: impl Into<Patience>,
    ) -> Self {
        let (patience, recent, gauge) = (patience.into(), Recent::new(), Gauge::new());
        let (awaited, meter, outages, aftermath) = Default::default();
        Self { store, blobs, source, recent, awaited, meter, gauge, patience, outages, aftermath }
    }

    /// What reads cost.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The small blobs.
    pub fn blobs(&self) -> &Arc<Blobs> {
        &self.blobs
    }

    /// The source of what is missing.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Reads `range` of a file of `layer` whose content is not here, or not all of it. The range
    /// must lie within the file.
    ///
    /// # Errors
    /// [`FillError`] where the bytes cannot be had in time or are not what the index says.
    pub async fn read(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        range: Range<u64>,
    ) -> Result<Bytes, FillError> {
        let units = content.units(range.clone());
        let start = units.start as u64 * CHUNK;
        let bytes = match self.units(layer, content, units).await?.as_slice() {
            [only] => only.clone(),
            several => several.concat().into(),
        };
        let slice = (range.start - start) as usize..(range.end - start) as usize;
        if slice.end > bytes.len() {
            return Err(layer.damaged("a file is shorter than its size"));
        }
        Ok(bytes.slice(slice))
    }

    /// The bytes of each of `units`.
    async fn units(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        units: Range<usize>,
    ) -> Result<Vec<Bytes>, FillError> {
        let awaited: Vec<_> = units.clone().map(|unit| (content.key, unit)).collect();
        trail::waiting(Wait::Pack, self.awaited.wait(&awaited)).await;
        let mut found = self.stored(content, units.clone().collect()).await?;
        if found.len() < units.len() {
            self.fetch_missing(layer, content, units.clone(), &mut found).await?;
        }
        units
            .map(|unit| found.remove(&unit).map_or_else(|| zeros(layer, content, unit), Ok))
            .collect()
    }

    /// Fetches those of `units` that are not among the `found`: their spans, or, where no source
    /// has the layer's spans (it was indexed for another registry), the whole layer.
    async fn fetch_missing(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        units: Range<usize>,
        found: &mut HashMap<usize, Bytes>,
    ) -> Result<(), FillError> {
        let outcome = self.fetch_spans(layer, content, units.clone(), found).await;
        match outcome.as_ref().err().and_then(FillError::outage) {
            Some(SourceError::NotFound { blob, .. }) if *blob == layer.tree.header().spans => {
                found.extend(self.units_of_whole(layer, content, units.collect()).await?);
                Ok(())
            }
            _ => outcome,
        }
    }

    /// Fetches the spans that hold those of `units` that are not among the `found`.
    async fn fetch_spans(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        units: Range<usize>,
        found: &mut HashMap<usize, Bytes>,
    ) -> Result<(), FillError> {
        let missing = |found: &HashMap<usize, Bytes>| -> Vec<usize> {
            units.clone().filter(|unit| !found.contains_key(unit)).collect()
        };
        if layer.is_small() && !layer.is_checked() {
            found.extend(self.units_of_whole(layer, content, missing(found)).await?);
        }
        if missing(found).is_empty() {
            return Ok(());
        }
        let table = self.table(layer).await?;
        let ranges = missing(found).into_iter().filter_map(|unit| content.unit(unit).tar_range());
        for run in plan(&table, ranges) {
            let run = self.widened(layer, &table, run).await?;
            self.look_beyond(layer, &table, &run);
            let _turns = trail::waiting(Wait::Turn, layer.turns(run.spans.clone())).await;
            // Whoever had the turn before may have brought what is missing.
            found.extend(self.stored(content, missing(found)).await?);
            let missing = missing(found);
            if !missing.is_empty() {
                found.extend(self.fetch(layer, &table, run, content, missing).await?);
            }
        }
        Ok(())
    }

    /// Those of `units` that the store holds.
    async fn stored(
        &self,
        content: &Arc<Content>,
        units: Vec<usize>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let (store, content) = (self.store.clone(), content.clone());
        tokio::task::spawn_blocking(move || {
            units
                .into_iter()
                .filter_map(|unit| Some((unit, content.stored_unit(&store, unit)?)))
                .collect()
        })
        .await
        .map_err(|_| FillError::Interrupted)
    }

    /// Fetches those of `pieces` that were not fetched a moment ago.
    async fn request(
        &self,
        layer: &Layer,
        pieces: Vec<Piece>,
        priority: Priority,
    ) -> Result<Vec<Verified>, FillError> {
        let fetch = self.request_within(layer, pieces, priority, self.patience.timeout);
        trail::waiting(Wait::Fetch, fetch).await
    }

    /// The same, for as long as `patience`; the waiting is the caller's to account for.
    async fn request_within(
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
            let (scope, asked) = (layer.scope.clone(), Instant::now());
            let deadline = asked + patience;
            let request = PieceRequest { scope, pieces: missing, priority, deadline };
            fetched = self.source.fetch(request).await?;
            let bytes = fetched.iter().map(|piece| piece.bytes().len() as u64).sum();
            self.gauge.note(bytes, asked.elapsed());
        }
        fetched.iter().for_each(|piece| self.recent.put(piece));
        let mut fetched = fetched.into_iter();
        known
            .into_iter()
            .map(|known| known.or_else(|| fetched.next()).ok_or_else(|| no_answer(layer)))
            .collect()
    }

    /// Fetches and decodes a run of spans; returns those of the content's `units` that it held.
    async fn fetch(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: Run,
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
    async fn fetch_run(
        &self,
        layer: &Arc<Layer>,
        table: &Arc<SpanTable>,
        run: Run,
        priority: Priority,
        wanted: Option<(ObjectKey, Vec<usize>)>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let pieces = run.spans.clone().map(|span| table.piece(span)).collect();
        let window = self.window(layer, table, run.spans.start, priority);
        let pieces = self.request_within(layer, pieces, priority, self.patience.timeout);
        let both = async { tokio::try_join!(window, pieces) };
        let (window, fetched) = trail::waiting(Wait::Fetch, both).await?;
        let spans = run.spans.clone();
        let (decoded, table, store) = (layer.clone(), table.clone(), self.store.clone());
        let decoding = tokio::task::spawn_blocking(move || {
            let stretch = Stretch { run, window, pieces: fetched };
            decode_run(&decoded, &table, &store, stretch, wanted.as_ref())
                .map_err(|error| decoded.damaged(chain(&error)))
        });
        let held = trail::waiting(Wait::Decode, decoding).await;
        let held = held.map_err(|_| FillError::Interrupted)??;
        layer.note_fetched(spans);
        Ok(held)
    }
}

fn no_answer(layer: &Layer) -> FillError {
    layer.damaged("the source answered with fewer pieces than were asked for")
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// A unit that the tar holds nothing of is zeros, if its digest says so too.
fn zeros(layer: &Layer, content: &Content, number: usize) -> Result<Bytes, FillError> {
    let unit = content.unit(number);
    let bytes = Bytes::from(vec![0; unit.length as usize]);
    let digest = if content.is_large() {
        content.chunks.get(number).copied()
    } else {
        Some(*content.key.digest())
    };
    let expected = digest.ok_or_else(|| layer.damaged("a chunk has no digest"))?;
    Verified::check(bytes, &expected)
        .map(Verified::into_bytes)
        .map_err(|_| layer.damaged("no span holds a part of a file"))
}

/// What was fetched to decode a run of spans.
struct Stretch {
    run: Run,
    window: Option<Verified>,
    pieces: Vec<Verified>,
}

fn decode_run(
    layer: &Layer,
    table: &SpanTable,
    store: &Store,
    stretch: Stretch,
    wanted: Option<&(ObjectKey, Vec<usize>)>,
) -> Result<HashMap<usize, Bytes>, ExtractError> {
    let Stretch { run, window, pieces } = stretch;
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
