//! What happens on a miss: plan, fetch, decode, keep.
//!
//! ```text
//! read of a file that is not here
//!   -> units of the file that hold the range          (unit)
//!   -> spans of the layer that decode these units      (plan)
//!   -> their pieces and the first one's window         (Source: one request for each blob)
//!   -> decode, and hold every unit inside in memory    (run, extract: on a blocking thread)
//!   -> the bytes that were asked for                   (waiters)
//!   -> the units go to the disk                        (write_behind)
//! ```
//!
//! A miss brings in every unit that lies whole in its spans, since neighbours in a tar are read
//! together, and neighbouring spans where that takes no longer. Two readers that miss the same
//! spans share one fetch: each span has a *turn*, which whoever fetches it holds.
//!
//! Four things are fetched before anybody misses them: a small layer, which comes whole (`whole`);
//! a layer that is read in order, or of which much is read (`ahead`, `follow`); what a start-up
//! pack holds (`unpack`); and, without a pack, what earlier starts have read (`foreseen`).

mod ahead;
mod awaited;
mod catch;
mod extract;
mod follow;
mod foreseen;
mod gauge;
mod ingest;
mod layer;
mod meter;
mod outage;
mod pack;
mod plan;
mod recent;
mod request;
mod run;
mod scopes;
mod table;
mod unit;
mod unpack;
mod unread;
mod waiters;
mod whole;
mod windowless;
mod write_behind;

pub use foreseen::Foreseen;
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

use bytes::Bytes;

use self::awaited::Awaited;
use self::gauge::Gauge;
use self::outage::Aftermath;
use self::plan::plan;
use self::recent::Recent;
use self::run::TakenRun;
use self::write_behind::WriteBehind;
use crate::blob::Blobs;
use crate::digest::{Digest, Verified};
use crate::object::{CHUNK, Store};
use crate::source::{Source, SourceError};
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
    behind: Arc<WriteBehind>,
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
    /// A filler for `store`, which keeps span tables in `blobs`. One fetch may take as long as a read
    /// waits by `patience`.
    pub fn new(
        store: Arc<Store>,
        blobs: Arc<Blobs>,
        source: Arc<dyn Source>,
        patience: impl Into<Patience>,
    ) -> Self {
        Self {
            behind: Arc::new(WriteBehind::new(store.clone())),
            store,
            blobs,
            source,
            recent: Recent::new(),
            awaited: Awaited::default(),
            meter: Meter::default(),
            gauge: Gauge::new(),
            patience: patience.into(),
            outages: Outages::default(),
            aftermath: Aftermath::default(),
        }
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

    /// Waits until whatever was fetched so far is on the disk, or has failed to get there.
    pub async fn written(&self) {
        self.behind.all_decoded().await;
        self.behind.all_written().await;
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
            let turns = trail::waiting(Wait::Turn, layer.turns(run.spans.clone())).await;
            // Whoever had the turn before may have brought what is missing.
            found.extend(self.stored(content, missing(found)).await?);
            let missing = missing(found);
            if !missing.is_empty() {
                let run = TakenRun { run, turns };
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
        blocking(move || {
            units
                .into_iter()
                .filter_map(|unit| Some((unit, content.stored_unit(&store, unit)?)))
                .collect()
        })
        .await
    }
}

/// Runs `work` where it may block: reads, syncs, hashing of much. Tasks run on two threads, which
/// also tell the keeper that this process is alive.
///
/// # Errors
/// [`FillError::Interrupted`] where it panicked or the runtime ends.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FillError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FillError::Interrupted)
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
