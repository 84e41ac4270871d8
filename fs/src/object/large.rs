//! Large objects: what is here of them, and their way from incomplete to complete and back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::partial::Place;
use super::store::{Store, StoreError, Verify, lock};
use super::{ObjectKey, Partial};
use crate::digest::{Digest, Verified};
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
        self.place(draft, key)?;
        let incomplete = self.layout.incomplete(key);
        if is_regular(&incomplete) {
            self.remove(Some(key), &incomplete);
        }
        Ok(())
    }

    /// What is here of the large object of `size` bytes: all of it, some chunks, or nothing.
    pub fn large(&self, key: &ObjectKey, size: u64) -> Option<Arc<Partial>> {
        if let Some(partial) = self.known_large(key) {
            return (partial.size() == size).then_some(partial);
        }
        let complete = self.layout.object(key);
        match self.open_large(key, Place::Complete(&complete), size) {
            Ok(partial) => return Some(partial),
            Err(error) => self.note_unreadable(key, &complete, &error),
        }
        let incomplete = self.layout.incomplete(key);
        let is_here = is_regular(&incomplete);
        is_here.then(|| self.open_large(key, Place::Incomplete(&incomplete), size).ok()).flatten()
    }

    /// As [`Self::large`], for writing: made where nothing is here.
    ///
    /// # Errors
    /// [`StoreError`] where its file cannot be opened.
    pub fn large_or_new(&self, key: &ObjectKey, size: u64) -> Result<Arc<Partial>, StoreError> {
        if let Some(partial) = self.large(key, size) {
            return Ok(partial);
        }
        let path = self.layout.incomplete(key);
        self.open_large(key, Place::Incomplete(&path), size).map_err(StoreError::io("open", &path))
    }

    fn known_large(&self, key: &ObjectKey) -> Option<Arc<Partial>> {
        lock(&self.partials).get(key).filter(|partial| !partial.is_touched()).cloned()
    }

    fn open_large(&self, key: &ObjectKey, place: Place<'_>, size: u64) -> io::Result<Arc<Partial>> {
        let mut partials = lock(&self.partials);
        if let Some(partial) = partials.get(key).filter(|partial| !partial.is_touched()) {
            return Ok(partial.clone());
        }
        let partial = Partial::open(&self.disk, place, size)?;
        if self.verify == Verify::Insert && partial.is_placed() {
            partial.trust();
        }
        let partial = Arc::new(partial);
        partials.put(*key, partial.clone());
        Ok(partial)
    }

    /// Whether a large object's chunk with this number and digest is here. A complete object that
    /// turns out not to have it is incomplete from then on.
    pub fn has_chunk(
        &self,
        key: &ObjectKey,
        partial: &Partial,
        chunk: usize,
        digest: &Digest,
    ) -> bool {
        if partial.has(chunk, digest) {
            return true;
        }
        if partial.is_placed() {
            self.demote(key, partial);
        }
        false
    }

    /// A complete large object with a damaged chunk is incomplete.
    pub(super) fn demote(&self, key: &ObjectKey, partial: &Partial) {
        tracing::warn!(object = %key, "damaged chunk in a complete object");
        self.damaged.fetch_add(1, Ordering::Relaxed);
        let (from, to) = (self.layout.object(key), self.layout.incomplete(key));
        if let Err(error) = partial.transfer(false, || self.disk.rename(&from, &to)) {
            tracing::warn!(path = %from.display(), %error, "cannot move a damaged object");
        }
    }

    /// Writes a chunk of a large object, and moves the object to its place when it was the last
    /// one missing; `chunks` are the digests of all of them.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written or renamed.
    pub fn fill_chunk(
        &self,
        key: &ObjectKey,
        partial: &Partial,
        chunk: usize,
        bytes: &Verified,
        chunks: &[Digest],
    ) -> Result<(), StoreError> {
        let from = self.layout.incomplete(key);
        let size = bytes.bytes().len() as u64;
        let write = || partial.fill(chunk, bytes).map_err(StoreError::io("write", &from));
        if self.keep(size, write)? {
            self.used.fetch_add(size, Ordering::Relaxed);
        }
        if partial.is_placed() || !partial.is_complete(chunks) {
            return Ok(());
        }
        let to = self.layout.object(key);
        match partial.transfer(true, || self.disk.rename(&from, &to)) {
            // It was evicted meanwhile, or somebody took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(StoreError::io("rename to", &to)),
        }
    }
}
