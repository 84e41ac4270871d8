//! Large objects: what is here of them, and their way from incomplete to complete and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::{fs, io};

use super::chunks::{Chunks, LargeName};
use super::error::StoreError;
use super::partial::Place;
use super::store::{Store, Verify, lock};
use super::{ObjectKey, Partial};
use crate::digest::Verified;
use crate::disk::{Draft, is_regular};

impl Store {
    /// A draft for a large object of `size` bytes that is written as it comes in.
    ///
    /// # Errors
    /// [`StoreError`] where there is no room for it, or it cannot be made.
    pub(crate) fn large_draft(&self, size: u64) -> Result<Draft, StoreError> {
        self.keep(size, || self.draft())
    }

    /// Gives a large object that was hashed as it came in its place, and drops what was here of it.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be renamed.
    pub(crate) fn publish(&self, draft: Draft, key: &ObjectKey) -> Result<(), StoreError> {
        if self.verify == Verify::Insert {
            draft.sync().map_err(StoreError::io("sync", &self.layout.temporary))?;
        }
        self.place(draft, key)?;
        let incomplete = self.layout.incomplete(key);
        if is_regular(&incomplete) {
            self.remove(Some(key), &incomplete);
        }
        Ok(())
    }

    /// What is here of a large object: all of it, some chunks, or nothing. Nothing is here of what
    /// has a name that is not right.
    pub fn large(&self, name: LargeName<'_>) -> Option<Arc<Partial>> {
        let LargeName { key, size, .. } = name;
        if let Some(partial) = self.known_large(key) {
            return (partial.size() == size).then_some(partial);
        }
        let (complete, incomplete) = (self.layout.object(key), self.layout.incomplete(key));
        // To look whether anything is here costs less than to look whether the name is right.
        if fs::symlink_metadata(&complete).is_ok() {
            match self.open_large(Place::Complete(&complete), Chunks::prove(name)?) {
                Ok(partial) => return Some(partial),
                Err(error) => self.note_unreadable(key, &complete, &error),
            }
        }
        if !is_regular(&incomplete) {
            return None;
        }
        self.open_large(Place::Incomplete(&incomplete), Chunks::prove(name)?).ok()
    }

    /// As [`Self::large`], for writing: made where nothing is here.
    ///
    /// # Errors
    /// [`StoreError`] where the name is not right, or its file cannot be opened.
    pub fn large_or_new(&self, name: LargeName<'_>) -> Result<Arc<Partial>, StoreError> {
        if let Some(partial) = self.large(name) {
            return Ok(partial);
        }
        let path = self.layout.incomplete(name.key);
        let chunks = Chunks::prove(name).ok_or(StoreError::Name { key: *name.key })?;
        self.open_large(Place::Incomplete(&path), chunks).map_err(StoreError::io("open", &path))
    }

    fn known_large(&self, key: &ObjectKey) -> Option<Arc<Partial>> {
        lock(&self.partials).get(key).filter(|partial| !partial.is_touched()).cloned()
    }

    fn open_large(&self, place: Place<'_>, chunks: Chunks) -> io::Result<Arc<Partial>> {
        let (mut partials, key) = (lock(&self.partials), *chunks.key());
        if let Some(partial) = partials.get(&key).filter(|partial| !partial.is_touched()) {
            return Ok(partial.clone());
        }
        let partial = Partial::open(&self.disk, place, chunks)?;
        if self.verify == Verify::Insert && partial.is_placed() {
            partial.trust();
        }
        let partial = Arc::new(partial);
        partials.put(key, partial.clone());
        Ok(partial)
    }

    /// Whether a large object's chunk with this number is here. A complete object that turns out
    /// not to have it is incomplete from then on.
    pub fn has_chunk(&self, partial: &Partial, chunk: usize) -> bool {
        if partial.has(chunk) {
            return true;
        }
        if !partial.is_placed() {
            return false;
        }
        self.demote(partial.key(), |step| partial.withdraw(chunk, step));
        // Whoever brought it meanwhile has also given the object its place.
        partial.has(chunk)
    }

    /// A complete large object turns out to be damaged, whichever of its chunks: it is incomplete,
    /// and whoever reads it finds out what of it is right.
    pub(super) fn doubt_large(&self, key: &ObjectKey) {
        if let Some(partial) = self.known_large(key) {
            // The disk has changed what it gives without anybody's touching the file.
            partial.doubt();
            return self.demote(key, |step| partial.transfer(false, step).map(|()| true));
        }
        // Nobody opens it meanwhile.
        let mut partials = lock(&self.partials);
        partials.pop(key);
        self.demote(key, |step| step().map(|()| true));
    }

    /// Moves a damaged object to the incomplete ones by `transfer`, which says whether it did.
    fn demote(
        &self,
        key: &ObjectKey,
        transfer: impl FnOnce(&dyn Fn() -> io::Result<()>) -> io::Result<bool>,
    ) {
        let (from, to) = (self.layout.object(key), self.layout.incomplete(key));
        let moved = transfer(&|| self.disk.rename(&from, &to));
        if matches!(moved, Ok(false)) {
            return;
        }
        tracing::warn!(object = %key, "damaged chunk in a complete object");
        self.damaged.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = moved {
            tracing::warn!(path = %from.display(), %error, "cannot move a damaged object");
        }
    }

    /// Writes a chunk of a large object, and moves the object to its place when it was the last
    /// one missing.
    ///
    /// # Errors
    /// [`StoreError`] where `bytes` are not those of the chunk, or cannot be written or renamed.
    pub fn fill_chunk(
        &self,
        partial: &Partial,
        chunk: usize,
        bytes: &Verified,
    ) -> Result<(), StoreError> {
        let key = partial.key();
        if !partial.is_chunk(chunk, bytes) {
            return Err(StoreError::Name { key: *key });
        }
        let from = self.layout.incomplete(key);
        let size = bytes.bytes().len() as u64;
        let write = || partial.fill(chunk, bytes).map_err(StoreError::io("write", &from));
        if self.keep(size, write)? {
            self.used.fetch_add(size, Ordering::Relaxed);
        }
        if partial.is_placed() || !partial.is_complete() {
            return Ok(());
        }
        if self.verify == Verify::Insert {
            // It is believed from now on: after a power cut its holes must not be taken for zeros.
            self.disk.sync(partial.file()).map_err(StoreError::io("sync", &from))?;
        }
        let to = self.layout.object(key);
        match partial.transfer(true, || self.disk.rename(&from, &to)) {
            // It was evicted meanwhile, or somebody took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(StoreError::io("rename to", &to)),
        }
    }
}
