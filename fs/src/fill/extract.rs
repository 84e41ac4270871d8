//! From a decoded stretch of a tar to objects in the store.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::unit::{Content, Unit};
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

/// Walks over `range` of the tar, which `reader` gives, and keeps every unit in `store` that lies
/// within it whole. The `wanted` units of a content are also returned, so that a reader is served
/// even where the store cannot keep them.
///
/// # Errors
/// [`ExtractError`] where the bytes are not what the index says; nothing wrong is kept.
pub fn extract(
    tree: &LayerTree,
    store: &Store,
    range: Range<u64>,
    reader: &mut dyn Read,
    wanted: Option<&(ObjectKey, Vec<usize>)>,
) -> Result<HashMap<usize, Bytes>, ExtractError> {
    let mut decoded = Decoded { reader, position: range.start };
    let mut answers = HashMap::new();
    for (content, unit) in units_within(tree, &range)? {
        let is_wanted =
            wanted.is_some_and(|(key, units)| content.key == *key && units.contains(&unit.number));
        if !is_wanted && store.contains(&content.key) {
            continue;
        }
        let bytes = decoded.read(&unit)?;
        let bytes = keep(store, &content, unit.number, bytes)?;
        if is_wanted {
            answers.insert(unit.number, bytes);
        }
    }
    Ok(answers)
}

/// Whether `store` lacks any unit that lies within `range` of the tar whole.
pub(super) fn lacks_any(tree: &LayerTree, store: &Store, range: &Range<u64>) -> bool {
    // Of a damaged index nothing is known that could be fetched.
    let units = units_within(tree, range).unwrap_or_default();
    units.iter().any(|(content, unit)| !content.is_unit_stored(store, unit.number))
}

/// The units whose data lies in `range` of the tar, in the order of the tar.
fn units_within(
    tree: &LayerTree,
    range: &Range<u64>,
) -> Result<Vec<(Arc<Content>, Unit)>, IndexError> {
    let order = tree.order();
    let first = first_at(tree, range.start)?;
    let mut found = Vec::new();
    // The file before the first one may reach into the range.
    for number in &order[first.saturating_sub(1)..] {
        let Some(content) = Content::of(tree, tree.inode(number.get())?)? else { continue };
        if content.position().is_some_and(|position| position >= range.end) {
            break;
        }
        let content = Arc::new(content);
        for unit in content.all_units().map(|number| content.unit(number)) {
            let Some(data) = unit.tar_range() else { continue };
            if data.start >= range.end {
                break;
            }
            if data.start >= range.start && data.end <= range.end {
                found.push((content.clone(), unit));
            }
        }
    }
    Ok(found)
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

/// Verifies a unit and puts it into the store.
pub(super) fn keep(
    store: &Store,
    content: &Content,
    unit: usize,
    bytes: Bytes,
) -> Result<Bytes, ExtractError> {
    let kept = if content.is_large() {
        let no_chunk = IndexError::Damaged { kind: "tree", what: "a chunk has no digest" };
        let digest = content.chunks.get(unit).ok_or(no_chunk)?;
        keep_chunk(store, content, unit, &Verified::check(bytes.clone(), digest)?)
    } else {
        store.insert(&verified(content, bytes.clone())?)
    };
    if let Err(error) = kept {
        note_unkept(&content.key, &error);
    }
    Ok(bytes)
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

/// Tells that the store did not take a content; the store itself tells that it is full.
pub(super) fn note_unkept(object: &ObjectKey, error: &StoreError) {
    if !error.is_full() {
        let error = error as &dyn std::error::Error;
        tracing::warn!(%object, error, "cannot keep an object");
    }
}

fn keep_chunk(
    store: &Store,
    content: &Content,
    unit: usize,
    chunk: &Verified,
) -> Result<(), StoreError> {
    let partial = store.large_or_new(&content.key, content.size)?;
    if store.has_chunk(&content.key, &partial, unit, chunk.digest()) {
        return Ok(());
    }
    store.fill_chunk(&content.key, &partial, unit, chunk, &content.chunks)
}
