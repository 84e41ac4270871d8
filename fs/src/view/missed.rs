//! Reads that find bytes missing: waited for, measured, and told of.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::Instrument as _;

use super::{View, ViewError};
use crate::fill::{Content, Layer, SlowRead, Wanted};
use crate::trail::{self, Origin, Wait};

/// A read that takes longer is worth a line in an ordinary log.
const SLOW: Duration = Duration::from_secs(5);

/// A read that needs bytes which are not here.
pub struct Miss {
    pub(super) layer: Arc<Layer>,
    pub(super) inode: u32,
    pub(super) content: Content,
    pub(super) range: Range<u64>,
}

impl View {
    /// Fetches what [`Self::begin_read`] found missing.
    ///
    /// # Errors
    /// [`ViewError::Fill`] where the bytes cannot be had in time.
    pub async fn finish_read(&self, miss: Miss) -> Result<Bytes, ViewError> {
        let Miss { layer, inode, content, range } = miss;
        let (offset, length) = (range.start, range.end - range.start);
        let wanted = Wanted { layer: layer.digest(), inode, offset, length };
        let span = tracing::debug_span!("read", layer = %wanted.layer, inode, offset, length);
        let content = Arc::new(content);
        let waiting = self.filler.meter().wait(wanted);
        let reading = trail::follow(self.filler.read_patiently(&layer, &content, range));
        let (outcome, trail) = reading.instrument(span.clone()).await;
        let read = waiting.answered(&content, outcome.as_ref().err(), trail);
        span.in_scope(|| tell(&read));
        Ok(outcome?)
    }
}

/// Logs a read that had to wait, with what it waited for (in seconds).
fn tell(read: &SlowRead) {
    let [pack, turn, fetch, decode] = Wait::ALL.map(|what| read.trail.waited(what).as_secs_f64());
    let (seconds, fetched) = (read.took.as_secs_f64(), read.trail.fetched());
    let origin = read.origin.map_or("none", Origin::name);
    let supplier = read.trail.supplier.as_deref().unwrap_or_default();
    macro_rules! told {
        ($level:ident, $words:literal) => {
            tracing::$level!(seconds, origin, supplier, fetched, pack, turn, fetch, decode, $words)
        };
    }
    match read.took >= SLOW {
        true => told!(info, "a slow read"),
        false => told!(debug, "a read has waited"),
    }
}
