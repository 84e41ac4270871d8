//! File contents by name.

mod key;

pub use key::{CHUNK, ObjectKey};
