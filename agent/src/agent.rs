//! The owner of a cache directory: images made ready, mounted, completed.

pub mod cache;
pub mod images;
