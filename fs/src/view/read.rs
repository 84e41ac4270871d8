//! Reading files: answered at once from the store, or begun here and finished in a task.
//!
//! ```text
//! begin_read -> recorder, store -> all bytes there: Done
//!                 `-> some missing: Miss -> finish_read: fetch, measure, log -> bytes
//! begin_open -> whole file in the store, or none: Done
//!                 `-> takes long to check: Unchecked -> finish_open
//! ```

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::Instrument as _;

use super::contents::failed;
use super::{NodeId, View, ViewError};
use crate::fill::{Content, Layer, SlowRead, Wanted};
use crate::index::IndexError;
use crate::trail::{self, Origin, Wait};

/// A read that takes at least this long is logged at level info.
const SLOW: Duration = Duration::from_secs(5);

/// How an open began.
pub enum Open {
    /// The file of the store with the whole content, checked; `None` where the store does not have
    /// all of it.
    Done(Option<Arc<File>>),
    /// For [`View::finish_open`]: the content is large and has to be checked, or has yet to be
    /// written, which takes too long for a thread that takes requests.
    Unchecked(Box<Content>),
}

/// How a read began.
pub enum Read {
    /// The buffer holds the answer.
    Done,
    /// The bytes must be fetched, by [`View::finish_read`].
    Missing(Miss),
}

/// A read of bytes that the store does not have.
pub struct Miss {
    layer: Arc<Layer>,
    inode: u32,
    content: Content,
    range: Range<u64>,
}

impl View {
    /// Looks for the file of the store that holds all of `node`'s bytes, from which the kernel may
    /// read them by itself. Quick: what takes long is left to [`Self::finish_open`].
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone, not a file, or its index is damaged.
    pub fn begin_open(&self, node: NodeId) -> Result<Open, ViewError> {
        let Some((layer, content)) = self.content(node)? else { return Ok(Open::Done(None)) };
        // The kernel does not say which parts it will read: the first one stands for them.
        self.record(node, &layer, &content, 0..1);
        let store = self.filler.store();
        if content.is_large() || content.is_unwritten(store) {
            return Ok(Open::Unchecked(Box::new(content)));
        }
        Ok(Open::Done(content.whole_file(store)))
    }

    /// Checks what [`Self::begin_open`] found unchecked; `None` where the store does not have all
    /// of it. Blocks for as long as it takes to hash the content.
    pub fn finish_open(&self, content: &Content) -> Option<Arc<File>> {
        content.whole_file(self.filler.store())
    }

    /// Records that `range` of a file, in bytes, is read.
    fn record(&self, node: NodeId, layer: &Layer, content: &Content, range: Range<u64>) {
        if let Some(inode) = node.number() {
            self.recorder.note(layer.digest(), inode, content.units(range));
        }
    }

    /// The content of a file, and the layer that has it; `None` for an empty one.
    fn content(&self, node: NodeId) -> Result<Option<(Arc<Layer>, Content)>, ViewError> {
        let leaf = self.leaf(node)?;
        if !leaf.inode.is_file() {
            return Err(ViewError::Invalid(node));
        }
        if leaf.inode.size.get() == 0 {
            return Ok(None);
        }
        let content = Content::of(&leaf.layer.tree, &leaf.inode).map_err(failed(&leaf.layer))?;
        match content {
            Some(content) => Ok(Some((leaf.layer, content))),
            None => {
                let source = IndexError::Damaged { kind: "tree", what: "a file has no object" };
                Err(ViewError::Index { layer: leaf.layer.digest(), source })
            }
        }
    }

    /// Starts a read of `length` bytes at byte `offset`. Where the store has them, they are in
    /// `buffer` afterwards: fewer at the end of the file, none behind it.
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone, not a file, or its index is damaged.
    pub fn begin_read(
        &self,
        node: NodeId,
        offset: u64,
        length: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Read, ViewError> {
        buffer.clear();
        let Some((layer, content)) = self.content(node)? else { return Ok(Read::Done) };
        let end = offset.saturating_add(length.into()).min(content.size);
        if offset >= end {
            return Ok(Read::Done);
        }
        self.record(node, &layer, &content, offset..end);
        if let Some(position) = content.position() {
            layer.note_reader(position.saturating_add(offset));
        }
        buffer.resize((end - offset) as usize, 0);
        if content.read_stored(self.filler.store(), offset, buffer) {
            self.filler.meter().hit(&content, offset, end - offset);
            return Ok(Read::Done);
        }
        buffer.clear();
        let inode = node.number().unwrap_or_default();
        Ok(Read::Missing(Miss { layer, inode, content, range: offset..end }))
    }

    /// Fetches what [`Self::begin_read`] found missing.
    ///
    /// # Errors
    /// [`ViewError::Fill`] where the bytes cannot be fetched in time.
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

/// Logs a read that had to wait, with how long it waited for what, in seconds.
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
