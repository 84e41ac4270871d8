//! The file system of Undermount: layer indexes, a content-addressed cache and a FUSE view.
//!
//! This crate knows no network, command line or environment. Bytes that it does not hold come
//! in through one trait, [`source::Source`].
//!
//! ```text
//! fuse -> view -> { tree, object, source } -> { index, codec } -> digest
//! ```

pub mod digest;
pub mod source;
