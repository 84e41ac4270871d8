//! Files as units of verification.
//!
//! A file of up to 1 MiB is one unit, verified by its key; a larger one has a unit for each 1 MiB
//! chunk, verified by the chunk's digest. A unit knows which bytes of the tar make it; the rest
//! of it is zeros.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::extract::note_unkept;
use crate::digest::Digest;
use crate::index::{Extent, Extents, IndexError, InodeRecord, LayerTree, Records};
use crate::object::{CHUNK, LargeName, Object, ObjectKey, Store};
use crate::pack::UnitName;

/// A file with content.
pub struct Content {
    /// The object that holds it.
    pub key: ObjectKey,
    /// Size in bytes.
    pub size: u64,
    /// Digests of the chunks of a large file, empty for a small one.
    pub chunks: Records<Digest>,
    pub(super) extents: Extents,
}

/// A run of bytes that the tar holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRun {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Where in the tar.
    pub position: u64,
    /// How many.
    pub length: u64,
}

impl DataRun {
    fn of(extent: &Extent) -> Self {
        let Extent { offset, data, length } = extent;
        Self { offset: offset.get(), position: data.get(), length: length.get() }
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A part of a file that is verified at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Number in the file.
    pub number: usize,
    /// Bytes of the unit, at most 1 MiB.
    pub length: u64,
    /// What the tar holds of it, offsets counted from the start of the unit.
    pub runs: Vec<DataRun>,
}

impl Content {
    /// The content of a regular file; `None` for an empty one and for everything else.
    ///
    /// # Errors
    /// [`IndexError`] where the index is damaged.
    pub fn of(tree: &LayerTree, inode: &InodeRecord) -> Result<Option<Self>, IndexError> {
        let Some(key) = tree.key(inode)?.filter(|_| inode.is_file() && inode.size != 0) else {
            return Ok(None);
        };
        let (chunks, extents) = (tree.chunks(inode)?, tree.extents(inode)?);
        Ok(Some(Self { key, size: inode.size.get(), chunks, extents }))
    }

    /// The content of which `name` is a unit; `None` where the layer of `tree` has no such unit.
    ///
    /// # Errors
    /// [`IndexError`] where the index is damaged.
    pub fn named(tree: &LayerTree, name: &UnitName) -> Result<Option<Self>, IndexError> {
        if name.inode as usize >= tree.inodes().len() {
            return Ok(None);
        }
        let content = Self::of(tree, tree.inode(name.inode)?)?;
        Ok(content.filter(|content| content.all_units().contains(&(name.number as usize))))
    }

    /// The contents of all files of a layer, each with its inode, in the order of the tar. A content
    /// that several files share comes once for each of them.
    pub fn all(tree: &LayerTree) -> impl Iterator<Item = Result<(u32, Self), IndexError>> + '_ {
        tree.order().iter().filter_map(|number| {
            let number = number.get();
            let content = tree.inode(number).and_then(|inode| Self::of(tree, inode));
            content.map(|content| Some((number, content?))).transpose()
        })
    }

    /// What the index says of it as a large object.
    pub fn large_name(&self) -> LargeName<'_> {
        LargeName { key: &self.key, size: self.size, chunks: &self.chunks }
    }

    /// Whether it is verified chunk by chunk.
    pub fn is_large(&self) -> bool {
        self.size > CHUNK
    }

    /// The units that hold `range` of the file.
    pub fn units(&self, range: Range<u64>) -> Range<usize> {
        let end = range.end.min(self.size);
        if range.start >= end {
            return 0..0;
        }
        (range.start / CHUNK) as usize..end.div_ceil(CHUNK) as usize
    }

    /// All units of the file.
    pub fn all_units(&self) -> Range<usize> {
        self.units(0..self.size)
    }

    /// The units that have data in `range` of the tar.
    pub fn units_in(&self, range: &Range<u64>) -> Vec<usize> {
        let runs = self.extents.iter().map(DataRun::of);
        let first = self.extents.partition_point(|extent| {
            let run = DataRun::of(extent);
            run.position.saturating_add(run.length) <= range.start
        });
        let within = runs.skip(first).take_while(|run| run.position < range.end);
        let mut units: Vec<usize> = within
            .flat_map(|run| {
                let from = range.start.saturating_sub(run.position);
                let to = (range.end - run.position).min(run.length);
                self.units(run.offset.saturating_add(from)..run.offset.saturating_add(to))
            })
            .collect();
        units.dedup();
        units
    }

    /// Unit `number`.
    pub fn unit(&self, number: usize) -> Unit {
        let start = number as u64 * CHUNK;
        let end = (start + CHUNK).min(self.size);
        let first = self.extents.partition_point(|extent| DataRun::of(extent).end() <= start);
        let runs = self.extents[first..]
            .iter()
            .map(DataRun::of)
            .take_while(|run| run.offset < end)
            .map(|run| {
                let from = run.offset.max(start);
                let to = run.end().min(end);
                DataRun {
                    offset: from - start,
                    position: run.position.saturating_add(from - run.offset),
                    length: to - from,
                }
            })
            .collect();
        Unit { number, length: end.saturating_sub(start), runs }
    }

    /// The bytes of a unit, where the store has them.
    pub fn stored_unit(&self, store: &Store, unit: usize) -> Option<Bytes> {
        let start = unit as u64 * CHUNK;
        let mut bytes = vec![0; (self.size - start.min(self.size)).min(CHUNK) as usize];
        self.read_stored(store, start, &mut bytes).then(|| bytes.into())
    }

    /// Reads from `offset` on, where the store has all of it; the range must lie in the file.
    pub fn read_stored(&self, store: &Store, offset: u64, bytes: &mut [u8]) -> bool {
        if !self.is_large() {
            if let Some(held) = store.held(&self.key) {
                return copy_from(&held, offset, bytes);
            }
            let file = store.get(&self.key, self.size);
            return file.is_some_and(|file| file.read_exact_at(bytes, offset).is_ok());
        }
        let Some(partial) = store.large(self.large_name()) else { return false };
        let end = offset.saturating_add(bytes.len() as u64);
        self.units(offset..end).all(|unit| store.has_chunk(&partial, unit))
            && partial.file().read_exact_at(bytes, offset).is_ok()
    }

    /// Whether the store has a unit, on the disk or in memory. Chunks of an incomplete object may be
    /// hashed for it; a complete object is believed.
    pub fn is_unit_stored(&self, store: &Store, unit: usize) -> bool {
        if self.is_here(store) {
            return true;
        }
        self.is_large()
            && store.large(self.large_name()).is_some_and(|partial| store.has_chunk(&partial, unit))
    }

    /// The file that holds the whole content and nothing else; `None` where some of it is missing or
    /// wrong. Whatever was not hashed before is hashed now: of a large content that may be all of it,
    /// which takes a second for 2 GB.
    pub fn whole_file(&self, store: &Store) -> Option<Arc<File>> {
        if !self.is_large() {
            if !self.is_stored(store)
                && let Some(held) = store.held(&self.key)
                && let Err(error) = store.insert(&Object::name(held))
            {
                note_unkept(&self.key, &error);
            }
            return store.get(&self.key, self.size);
        }
        let partial = store.large(self.large_name())?;
        let whole = partial.is_complete();
        whole.then(|| partial.file().try_clone().ok().map(Arc::new)).flatten()
    }

    /// Whether it is in memory and not on the disk yet.
    pub fn is_unwritten(&self, store: &Store) -> bool {
        !self.is_stored(store) && store.holds(&self.key)
    }

    /// Whether the store has the whole content, on the disk or in memory.
    pub fn is_here(&self, store: &Store) -> bool {
        store.holds(&self.key) || self.is_stored(store)
    }

    /// Whether the disk has the whole content.
    pub fn is_stored(&self, store: &Store) -> bool {
        store.contains(&self.key)
    }

    /// Where the first byte of the file's data lies in the tar.
    pub fn position(&self) -> Option<u64> {
        self.extents.first().map(|extent| extent.data.get())
    }
}

/// Fills `target` with what `content` has from `offset` on, where it has so much.
fn copy_from(content: &[u8], offset: u64, target: &mut [u8]) -> bool {
    let rest = usize::try_from(offset).ok().and_then(|offset| content.get(offset..));
    let Some(wanted) = rest.and_then(|rest| rest.get(..target.len())) else { return false };
    target.copy_from_slice(wanted);
    true
}

impl Unit {
    /// The bytes of the tar from the first to the last that the unit needs; `None` where it is
    /// zeros only.
    pub fn tar_range(&self) -> Option<Range<u64>> {
        let first = self.runs.iter().map(|run| run.position).min()?;
        let last = self.runs.iter().map(|run| run.position.saturating_add(run.length)).max()?;
        Some(first..last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(&(offset, data, length): &(u64, u64, u64)) -> Extent {
        Extent { offset: offset.into(), data: data.into(), length: length.into() }
    }

    fn content(size: u64, runs: &[(u64, u64, u64)]) -> Content {
        Content {
            key: ObjectKey::small(b""),
            size,
            chunks: Vec::new().into(),
            extents: Extents::Sparse(runs.iter().map(extent).collect::<Vec<_>>().into()),
        }
    }

    #[test]
    fn a_range_names_the_units_that_hold_it() {
        let content = content(2 * CHUNK + 10, &[]);
        for (range, units) in [
            (0..1, 0..1),
            (CHUNK - 1..CHUNK + 1, 0..2),
            (CHUNK..CHUNK, 0..0),
            (2 * CHUNK + 9..u64::MAX, 2..3),
            (2 * CHUNK + 10..2 * CHUNK + 11, 0..0),
        ] {
            assert_eq!(content.units(range.clone()), units, "{range:?}");
        }
    }

    #[test]
    fn a_range_of_the_tar_names_the_units_that_it_reaches_into() {
        let content =
            content(4 * CHUNK, &[(10, 5000, 20), (40, 5020, CHUNK), (3 * CHUNK, u64::MAX, 1)]);
        let second = 5020 + CHUNK - 40;
        for (range, units) in [
            (0..5000, &[][..]),
            (0..5001, &[0]),
            (5019..second, &[0]),
            (5019..second + 1, &[0, 1]),
            (second..u64::MAX, &[1]),
            (5020 + CHUNK..u64::MAX, &[]),
        ] {
            assert_eq!(content.units_in(&range), units, "{range:?}");
        }
    }

    #[test]
    fn runs_are_cut_at_unit_borders() {
        let content = content(2 * CHUNK, &[(10, 5000, CHUNK), (CHUNK + 100, 9_000_000, 50)]);
        let run = |offset, position, length| DataRun { offset, position, length };
        assert_eq!(content.unit(0).runs, [run(10, 5000, CHUNK - 10)]);
        assert_eq!(content.unit(1).runs, [run(0, 5000 + CHUNK - 10, 10), run(100, 9_000_000, 50)]);
        assert_eq!(content.unit(1).tar_range(), Some(5000 + CHUNK - 10..9_000_050));
        assert_eq!(content.unit(1).length, CHUNK);
    }
}
