//! Records of an index, used where they lie.

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Backing, Extent};

/// Some records of an index, which stays in memory as long as they do. A file of 10 GB has 10,000
/// digests: nothing is copied for who reads a few bytes of it.
pub struct Records<T> {
    bytes: Arc<Backing>,
    place: Range<usize>,
    kind: PhantomData<T>,
}

impl<T> Records<T> {
    /// Those at `place` in `bytes`: in them, and as long as a number of whole records.
    pub(super) fn new(bytes: Arc<Backing>, place: Range<usize>) -> Self {
        Self { bytes, place, kind: PhantomData }
    }
}

impl<T: FromBytes + Immutable + KnownLayout + Unaligned> Deref for Records<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        <[T]>::ref_from_bytes(&self.bytes[self.place.clone()])
            .expect("they lie in the bytes and are whole")
    }
}

#[cfg(test)]
impl<T: zerocopy::IntoBytes + Immutable> From<Vec<T>> for Records<T> {
    fn from(records: Vec<T>) -> Self {
        let bytes = zerocopy::IntoBytes::as_bytes(records.as_slice()).to_vec();
        let place = 0..bytes.len();
        Self::new(Arc::new(bytes.into()), place)
    }
}

/// Where the content of a file is in the tar stream, in order of the file.
pub enum Extents {
    /// In one place, or nowhere where it is empty.
    Whole(Option<Extent>),
    /// Wherever a sparse file has data.
    Sparse(Records<Extent>),
}

impl Deref for Extents {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        match self {
            Self::Whole(extent) => extent.as_slice(),
            Self::Sparse(extents) => extents,
        }
    }
}
