//! Which spans to fetch for which bytes of the tar: pure decisions.

use std::ops::Range;

use bytes::Bytes;

use crate::digest::Verified;
use crate::index::SpanTable;

/// A window is at most this long when it is decompressed, in bytes (RFC 1951).
pub const WINDOW_MAX: usize = 32 * 1024;

/// A run of spans with more compressed bytes than this is not fetched into memory.
const RUN_MAX: u64 = 32 * 1024 * 1024;
/// A run of more spans than this is not fetched as such: each of them is a piece to ask for.
const SPANS_MAX: usize = 4096;

/// A run of spans: neighbours that are decoded in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanRun {
    /// Their numbers.
    pub spans: Range<usize>,
}

impl SpanRun {
    /// What the run decodes to, in bytes of the tar.
    pub fn output(&self, table: &SpanTable) -> Range<u64> {
        table.output(self.spans.start).start..table.output(self.spans.end - 1).end
    }

    /// Whether its pieces are too large for memory, as those of a layer that is one zstd frame, or
    /// too many.
    pub fn is_oversized(&self, table: &SpanTable) -> bool {
        table.compressed(self.spans.clone()) > RUN_MAX || self.spans.len() > SPANS_MAX
    }
}

/// The runs of spans that hold `ranges` of the tar.
pub fn plan(table: &SpanTable, ranges: impl Iterator<Item = Range<u64>>) -> Vec<SpanRun> {
    let mut runs: Vec<SpanRun> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        let (first, last) = (table.at(range.start), table.at(range.end - 1));
        match runs.last_mut() {
            Some(run) if first >= run.spans.start && first <= run.spans.end => {
                run.spans.end = run.spans.end.max(last + 1);
            }
            _ => runs.push(SpanRun { spans: first..last + 1 }),
        }
    }
    runs
}

/// The compressed bytes of a run without the bytes that neighbouring pieces share.
pub fn join(table: &SpanTable, run: &SpanRun, pieces: Vec<Verified>) -> Vec<Bytes> {
    let mut end = table.piece(run.spans.start).range.start;
    run.spans
        .clone()
        .zip(pieces)
        .map(|(span, piece)| {
            let range = table.piece(span).range;
            let shared = usize::try_from(end.saturating_sub(range.start)).unwrap_or_default();
            end = range.end;
            let bytes = piece.into_bytes();
            bytes.slice(shared.min(bytes.len())..)
        })
        .collect()
}
