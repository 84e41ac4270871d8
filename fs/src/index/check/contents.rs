//! What the files of a tree contain: where it lies in the tar, and what it is called.
//!
//! A read looks for what lies in a stretch of the tar by the tree's order, and keeps all of it. So
//! every file must have bytes of its own there, or a few bytes would stand for any number of files.
//! And every large object must have the key of its own chunks.

use std::collections::HashMap;

use crate::index::tree::damaged;
use crate::index::{Extent, HOLES_MAX, IndexError, InodeRecord, LayerTree};
use crate::object::{CHUNK, LargeName};

/// The header of a member, which comes before its content.
const HEADER: u64 = 512;

/// What was found so far.
pub struct Contents<'t> {
    tree: &'t LayerTree,
    /// Files with content.
    files: usize,
    /// Sizes of objects by the place of their keys among the digests.
    objects: HashMap<u32, u64>,
    /// Digests of all objects.
    digests: usize,
    /// Bytes of all objects.
    bytes: u64,
}

impl<'t> Contents<'t> {
    /// Nothing so far.
    pub fn new(tree: &'t LayerTree) -> Self {
        Self { tree, files: 0, objects: HashMap::new(), digests: 0, bytes: 0 }
    }

    /// Adds an inode; one without content counts nothing.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where its object is not one, or shares digests with another.
    pub fn add(&mut self, inode: &InodeRecord) -> Result<(), IndexError> {
        let Some(key) = (if inode.is_file() { self.tree.key(inode)? } else { None }) else {
            return Ok(());
        };
        self.files += 1;
        let size = inode.size.get();
        match self.objects.insert(inode.key.get(), size) {
            Some(before) if before == size => return Ok(()),
            Some(_) => return Err(damaged("two files of one object have different sizes")),
            None => self.bytes = self.bytes.saturating_add(size),
        }
        let chunks = self.tree.chunks(inode)?;
        self.digests += 1 + chunks.len();
        if self.digests > self.tree.digest_count() {
            return Err(damaged("two objects share digests"));
        }
        let name = LargeName { key: &key, size, chunks: &chunks };
        if size > CHUNK && !name.is_right() {
            return Err(damaged("a key is not the one of its chunks"));
        }
        Ok(())
    }

    /// Looks at the order, once all inodes were added.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where it does not name each file with content once, by its place in
    /// the tar, or where files have more bytes than the layer.
    pub fn finish(self) -> Result<(), IndexError> {
        let header = self.tree.header();
        let (size, content) = (header.tar_size.get(), header.content_size.get());
        if self.bytes > content || content > size.saturating_add(HOLES_MAX) {
            return Err(damaged("its files have more bytes than it says or can have"));
        }
        if self.tree.order().len() != self.files {
            return Err(damaged("its order does not name each file with content once"));
        }
        let mut place = Place::default();
        for number in self.tree.order() {
            let inode = self.tree.inode(number.get())?;
            if !inode.is_file() || inode.size == 0 {
                return Err(damaged("its order names what has no content"));
            }
            place.take(number.get(), &self.tree.extents(inode)?)?;
        }
        if place.end > size {
            return Err(damaged("a content lies outside the layer"));
        }
        Ok(())
    }
}

/// How far the order has come.
#[derive(Default)]
struct Place {
    /// The first inode that a file without data may have: those come first, by their numbers.
    next: u32,
    /// Where the data of the files so far ends in the tar.
    end: u64,
}

impl Place {
    /// The next file, whose data is in `extents`.
    fn take(&mut self, number: u32, extents: &[Extent]) -> Result<(), IndexError> {
        let unordered = || damaged("contents are out of order or overlap in the tar");
        let Some(first) = extents.first() else {
            let is_next = self.end == 0 && number >= self.next;
            self.next = number.saturating_add(1);
            return if is_next { Ok(()) } else { Err(unordered()) };
        };
        if first.data.get().checked_sub(HEADER).is_none_or(|header| header < self.end) {
            return Err(unordered());
        }
        for extent in extents {
            if extent.data.get() < self.end {
                return Err(unordered());
            }
            self.end = extent.data.get().checked_add(extent.length.get()).ok_or_else(unordered)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
