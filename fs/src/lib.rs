//! The file system of Undermount: layer indexes, a content-addressed cache and a FUSE view.
//!
//! This crate knows no network, command line or environment. Bytes that it does not hold come
//! in through one trait, [`source::Source`].
//!
//! ```text
//! fuse -> view -> fill -> { layer, tree } -> { index, pack } -> { codec, object, source } -> digest
//! ```

pub mod blob;
pub mod codec;
pub mod digest;
pub mod disk;
pub mod fill;
pub mod fuse;
pub mod index;
pub mod layer;
pub mod line_log;
pub mod memory;
pub mod object;
pub mod pack;
mod path;
pub mod session;
pub mod share;
pub mod source;
pub mod trail;
pub mod tree;
pub mod view;
