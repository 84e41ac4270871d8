//! Layers that are fetched whole: small ones, since one request for all of it is faster than one
//! for its span table and others for its spans, and those that can only be decoded from their
//! beginning.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::catch::{Catch, Caught};
use super::{Content, FillError, Filler, IngestError, Layer, Pace, Progress};
use crate::layer::ObjectSink;
use crate::source::Priority;
use crate::trail::{self, Wait};

/// Layers below this size are small, in compressed bytes. More of them than not hold a single
/// file or two; at 1 Gb/s this much takes 8 ms.
const SMALL: u64 = 1024 * 1024;

impl Layer {
    /// Whether it is fetched whole at the first miss.
    pub fn is_small(&self) -> bool {
        self.tree.header().layer_size < SMALL
    }

    /// Whether this process has held the layer's index against its bytes.
    pub fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Acquire)
    }
}

impl Filler {
    /// Brings in all of `layer` once, however many ask for it at the same time.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub async fn fetch_whole(&self, layer: &Layer, priority: Priority) -> Result<(), IngestError> {
        let _turn = layer.turns([usize::MAX]).await;
        if layer.is_checked() {
            return Ok(());
        }
        self.complete(layer, Pace::unlimited(priority), &Progress::default()).await.map(drop)
    }

    /// The content's `units` out of the whole layer, which is fetched where they are not here.
    pub(super) async fn units_of_whole(
        &self,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        units: Vec<usize>,
    ) -> Result<HashMap<usize, Bytes>, FillError> {
        let _turn = trail::waiting(Wait::Turn, layer.turns([usize::MAX])).await;
        let stored = self.stored(content, units.clone()).await?;
        if stored.len() == units.len() {
            return Ok(stored);
        }
        let (pace, progress) = (Pace::unlimited(Priority::Demand), Progress::default());
        let caught = Caught::default();
        let sink = || -> Box<dyn ObjectSink> {
            let (content, units) = (content.clone(), units.clone());
            Box::new(Catch::new(self.store_sink(), content, units, caught.clone()))
        };
        let coming = self.complete_into(layer, pace, &progress, sink);
        trail::waiting(Wait::Fetch, coming).await?;
        Ok(caught.take().collect())
    }
}
