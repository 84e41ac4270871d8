//! Catching what somebody waits for out of a blob that goes by.
//!
//! A layer that can only be decoded from its beginning goes into the store as a whole, and is read
//! from there. Where the store has no room, the reader is answered with what is caught here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Content;
use crate::layer::ObjectSink;
use crate::object::{CHUNK, ObjectKey};

/// Units by their numbers.
type Units = BTreeMap<usize, Vec<u8>>;

/// Passes contents on, and keeps a copy of some units of one of them.
pub struct Catch<S> {
    inner: S,
    wanted: Arc<Content>,
    /// The units, zeros where nothing has come yet; none of a content that has another size.
    coming: Units,
    /// Bytes of the present content that have gone by.
    position: u64,
    numbers: Vec<usize>,
    caught: Caught,
}

/// What was caught. A content is known by its key, which is hashed as it goes by.
#[derive(Clone, Default)]
pub struct Caught(Arc<Mutex<Units>>);

impl Caught {
    /// The units, by number.
    pub fn take(&self) -> impl Iterator<Item = (usize, Bytes)> + use<> {
        let units = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        units.into_iter().map(|(number, bytes)| (number, bytes.into()))
    }
}

impl<S> Catch<S> {
    /// Puts the units `numbers` of `wanted` into `caught` while everything goes to `inner`.
    pub fn new(inner: S, wanted: Arc<Content>, numbers: Vec<usize>, caught: Caught) -> Self {
        let (coming, position) = Default::default();
        Self { inner, wanted, coming, position, numbers, caught }
    }

    /// Copies what of `bytes`, which come next, belongs to a unit.
    fn copy(&mut self, bytes: &[u8]) {
        let (begin, end) = (self.position, self.position + bytes.len() as u64);
        for (&number, unit) in &mut self.coming {
            let start = number as u64 * CHUNK;
            let (from, to) = (begin.max(start), end.min(start + unit.len() as u64));
            if from < to {
                let target = (from - start) as usize..(to - start) as usize;
                let source = (from - begin) as usize..(to - begin) as usize;
                unit[target].copy_from_slice(&bytes[source]);
            }
        }
    }
}

impl<S: ObjectSink> ObjectSink for Catch<S> {
    fn begin(&mut self, size: u64) {
        self.position = 0;
        self.coming.clear();
        if size == self.wanted.size {
            let length = |number| self.wanted.unit(number).length as usize;
            self.coming = self.numbers.iter().map(|&n| (n, vec![0; length(n)])).collect();
        }
        self.inner.begin(size);
    }

    fn data(&mut self, bytes: &[u8]) {
        self.copy(bytes);
        self.position += bytes.len() as u64;
        self.inner.data(bytes);
    }

    fn zeros(&mut self, count: u64) {
        self.position += count;
        self.inner.zeros(count);
    }

    fn end(&mut self, key: ObjectKey) {
        if key == self.wanted.key && !self.coming.is_empty() {
            let units = std::mem::take(&mut self.coming);
            *self.caught.0.lock().unwrap_or_else(PoisonError::into_inner) = units;
        }
        self.inner.end(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::index::Extents;
    use crate::layer::NoSink;

    const SIZE: u64 = 2 * CHUNK + 10;

    fn wanted() -> Arc<Content> {
        let chunks: Vec<Digest> = vec![Digest::of(b"chunk"); 3];
        let (chunks, extents) = (chunks.into(), Extents::Whole(None));
        Arc::new(Content { key: ObjectKey::small(b"key"), size: SIZE, chunks, extents })
    }

    #[test]
    fn units_of_the_content_that_turns_out_to_be_the_one_are_caught() {
        let caught = Caught::default();
        let mut catch = Catch::new(NoSink, wanted(), vec![1, 2], caught.clone());
        for (key, byte) in [(&b"other"[..], 1), (b"key", 2), (b"another", 3)] {
            catch.begin(SIZE);
            catch.data(&vec![byte; CHUNK as usize - 3]);
            catch.zeros(5);
            catch.data(&vec![byte; CHUNK as usize]);
            catch.data(&[byte; 8]);
            catch.end(ObjectKey::small(key));
        }
        let units: Vec<(usize, Bytes)> = caught.take().collect();
        let first = [vec![0; 2], vec![2; CHUNK as usize - 2]].concat();
        assert_eq!(units, [(1, first.into()), (2, vec![2; 10].into())]);
    }

    #[test]
    fn a_content_of_another_size_is_not_copied() {
        let caught = Caught::default();
        let mut catch = Catch::new(NoSink, wanted(), vec![0], caught.clone());
        catch.begin(7);
        catch.data(b"content");
        catch.end(ObjectKey::small(b"key"));
        assert_eq!(caught.take().count(), 0);
    }
}
