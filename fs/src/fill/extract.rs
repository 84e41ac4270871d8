//! From a decoded stretch of a tar to objects in the store.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use zerocopy::little_endian::U32;

use super::unit::{Content, Unit};
use super::waiters::Waiters;
use super::write_behind::{Batch, WriteBehind};
use crate::digest::{Verified, WrongDigest};
use crate::index::{IndexError, LayerTree};
use crate::object::{CHUNK, Object, ObjectKey, Store, StoreError};

/// Why a stretch did not give what the index promises.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The index contradicts itself.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The compressed data ends or is damaged, though its digest is the index's.
    #[error("the span does not decode")]
    Decode(#[source] io::Error),
    /// The decoded bytes are not those of the object.
    #[error("the span decodes to other bytes than the index names")]
    Wrong(#[from] WrongDigest),
}

/// Walks over `range` of the tar, whose bytes come from `reader`, and keeps every unit that lies
/// whole in it, written `behind` the reads. The `waiters` are told how far it has come; the read among
/// them is given its units directly, so that it is answered even where the store cannot keep them.
///
/// # Errors
/// [`ExtractError`] where the bytes are not what the index says; nothing wrong is kept.
pub fn extract(
    tree: &LayerTree,
    behind: &WriteBehind,
    range: Range<u64>,
    reader: &mut dyn Read,
    waiters: &mut Waiters,
) -> Result<(), ExtractError> {
    let store = behind.store();
    let mut decoded = Decoded { reader, position: range.start };
    let mut batch = Batch::new(behind);
    for found in units_within(tree, &range)? {
        let (content, unit) = found?;
        let is_wanted = waiters.wants(&content, unit.number);
        if is_wanted || !content.is_here(store) {
            let bytes = decoded.read(&unit)?;
            if content.is_large() {
                keep_chunk(store, &content, unit.number, bytes.clone())?;
            } else {
                batch.push(verified(&content, bytes.clone())?);
            }
            // Whoever the answer wakes must find in the store what came with it.
            if is_wanted && waiters.found(unit.number, bytes) {
                batch.hold();
                waiters.answer();
            }
        }
        let end = unit.tar_range().map_or(range.start, |data| data.end);
        if waiters.is_awaited(end) {
            batch.hold();
            waiters.passed(end);
        }
        // Last, since it may have to write.
        batch.send_if_large();
    }
    Ok(())
}

/// Which units of a stretch of the tar count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Units {
    /// Those that lie whole in it. A span is hardly longer than a unit of a large file, of which it
    /// usually holds parts of two and none whole.
    Whole,
    /// Those that lie in it at least in part.
    InPart,
}

/// Whether `store` lacks any of the `units` in `range` of the tar.
pub(super) fn lacks_any(tree: &LayerTree, store: &Store, range: &Range<u64>, units: Units) -> bool {
    let is_missing = |found: Result<(Arc<Content>, Unit), IndexError>| {
        found.is_ok_and(|(content, unit)| !content.is_unit_stored(store, unit.number))
    };
    // Of a damaged index nothing is known that could be fetched.
    match units {
        Units::Whole => units_within(tree, range).is_ok_and(|mut found| found.any(is_missing)),
        Units::InPart => Reaching::new(tree, range).is_ok_and(|mut found| found.any(is_missing)),
    }
}

/// The units whose data lies in `range` of the tar, in the order of the tar.
fn units_within<'t>(
    tree: &'t LayerTree,
    range: &Range<u64>,
) -> Result<impl Iterator<Item = Result<(Arc<Content>, Unit), IndexError>> + use<'t>, IndexError> {
    let outer = range.clone();
    let is_within = move |data: Range<u64>| data.start >= outer.start && data.end <= outer.end;
    let units = Reaching::new(tree, range)?;
    Ok(units.filter(move |found| match found {
        Ok((_, unit)) => unit.tar_range().is_some_and(&is_within),
        Err(_) => true,
    }))
}

/// The units of whose data some lies in a range of the tar, in the order of the tar. They come one
/// by one: a range of some MiB may hold millions.
struct Reaching<'t> {
    tree: &'t LayerTree,
    range: Range<u64>,
    order: std::slice::Iter<'t, U32>,
    /// The present content and its units that are still to come.
    present: Option<(Arc<Content>, std::vec::IntoIter<usize>)>,
}

impl<'t> Reaching<'t> {
    fn new(tree: &'t LayerTree, range: &Range<u64>) -> Result<Self, IndexError> {
        // The file before the first one may reach into the range.
        let first = first_at(tree, range.start)?.saturating_sub(1);
        let order = tree.order()[first..].iter();
        Ok(Self { tree, range: range.clone(), order, present: None })
    }

    /// The next content that has data before the end of the range.
    fn content(&mut self) -> Result<Option<Content>, IndexError> {
        for number in &mut self.order {
            let content = Content::of(self.tree, self.tree.inode(number.get())?)?;
            let Some(content) = content else { continue };
            match content.position() {
                Some(position) if position >= self.range.end => break,
                Some(_) => return Ok(Some(content)),
                None => {}
            }
        }
        self.order = [].iter();
        Ok(None)
    }
}

impl Iterator for Reaching<'_> {
    type Item = Result<(Arc<Content>, Unit), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((content, units)) = &mut self.present
                && let Some(number) = units.next()
            {
                return Some(Ok((content.clone(), content.unit(number))));
            }
            match self.content().transpose()? {
                Ok(content) => {
                    let units = content.units_in(&self.range).into_iter();
                    self.present = Some((Arc::new(content), units));
                }
                Err(error) => {
                    (self.order, self.present) = ([].iter(), None);
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The first place in the tree's order whose content begins at `position` or later.
fn first_at(tree: &LayerTree, position: u64) -> Result<usize, IndexError> {
    let order = tree.order();
    let (mut low, mut high) = (0, order.len());
    while low < high {
        let middle = low.midpoint(high);
        let content = Content::of(tree, tree.inode(order[middle].get())?)?;
        let here = content.and_then(|content| content.position()).unwrap_or(0);
        if here < position {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The decoded bytes and where in the tar they are.
struct Decoded<'a> {
    reader: &'a mut dyn Read,
    position: u64,
}

impl Decoded<'_> {
    fn read(&mut self, unit: &Unit) -> Result<Bytes, ExtractError> {
        let damaged = |what| ExtractError::Index(IndexError::Damaged { kind: "tree", what });
        let length = usize::try_from(unit.length.min(CHUNK)).unwrap_or_default();
        let mut bytes = vec![0; length];
        for run in &unit.runs {
            let skip = run
                .position
                .checked_sub(self.position)
                .ok_or_else(|| damaged("contents overlap in the tar"))?;
            let skipped = io::copy(&mut self.reader.take(skip), &mut io::sink())
                .map_err(ExtractError::Decode)?;
            let target = (run.offset as usize)
                .checked_add(run.length as usize)
                .and_then(|end| bytes.get_mut(run.offset as usize..end))
                .ok_or_else(|| damaged("a run lies outside its file"))?;
            if skipped < skip {
                return Err(ExtractError::Decode(io::ErrorKind::UnexpectedEof.into()));
            }
            self.reader.read_exact(target).map_err(ExtractError::Decode)?;
            self.position = run.position + run.length;
        }
        Ok(bytes.into())
    }
}

/// Verifies a chunk of a large content and puts it into the store.
pub(super) fn keep_chunk(
    store: &Store,
    content: &Content,
    unit: usize,
    bytes: Bytes,
) -> Result<(), ExtractError> {
    let damaged = |what| IndexError::Damaged { kind: "tree", what };
    let digest = content.chunks.get(unit).ok_or_else(|| damaged("a chunk has no digest"))?;
    match fill_chunk(store, content, unit, &Verified::check(bytes, digest)?) {
        Err(StoreError::Name { .. }) => Err(damaged("a key is not the one of its chunks"))?,
        Err(error) => note_unkept(&content.key, &error),
        Ok(()) => {}
    }
    Ok(())
}

/// The object that is the small `content`, if `bytes` are it.
pub(super) fn verified(content: &Content, bytes: Bytes) -> Result<Object, ExtractError> {
    let object = Object::name(bytes);
    if *object.key() == content.key {
        return Ok(object);
    }
    let (expected, actual) = (*content.key.digest(), *object.key().digest());
    Err(WrongDigest { expected, actual }.into())
}

/// Logs that the store did not take a content, unless it is full, which the store logs by itself.
pub(super) fn note_unkept(object: &ObjectKey, error: &StoreError) {
    if !error.is_full() {
        let error = error as &dyn std::error::Error;
        tracing::warn!(%object, error, "cannot keep an object");
    }
}

fn fill_chunk(
    store: &Store,
    content: &Content,
    unit: usize,
    chunk: &Verified,
) -> Result<(), StoreError> {
    let partial = store.large_or_new(content.large_name())?;
    if store.has_chunk(&partial, unit) {
        return Ok(());
    }
    store.fill_chunk(&partial, unit, chunk)
}
