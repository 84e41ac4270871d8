//! The index of a layer: two files, built once, the same bytes for the same layer.
//!
//! * The **tree** ([`LayerTree`]) is needed to mount: inodes, directory entries, names, extended
//!   attributes and object keys. Its digest names the index, and it holds the digest of
//! * the **spans** ([`SpanTable`]), needed at the first fetch: where in the compressed blob
//!   decoding can start, with a digest for each piece. The windows behind the table are fetched
//!   by range, one by one, when a read needs them.
//!
//! Both are flat little-endian arrays that are used where they lie, in a mapping; nothing is
//! parsed. Every access checks its bounds, so a file that lies gives errors, not panics. Whether
//! an index may be believed at all is another question: see [`Trust`].

mod backing;
mod check;
mod format;
mod path;
mod records;
mod spans;
mod tree;

pub use backing::Backing;
pub use format::{
    DirectoryEntry, EntryKind, Extent, HOLES_MAX, InodeFlags, InodeRecord, NONE, SPANS_MAGIC,
    SpanRecord, TREE_MAGIC, TreeHeader, TreeSections, VERSION,
};
pub use records::{Extents, Records};
pub use spans::{SpanTable, WindowRef, encode_spans};
pub use tree::{LayerTree, Sections, Xattr, encode_tree};

use crate::digest::Digest;

/// Why an index is believed, from weak to strong.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Attached to the image in its own repository: as trustworthy as the registry and the way
    /// to it.
    Registry,
    /// Built on this machine from a blob whose digest was right.
    #[serde(rename = "self")]
    Own,
}

/// An index file that is damaged, lies or is of another version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The file does not begin as one of this kind does.
    #[error("not a {kind} file")]
    Magic {
        /// `tree` or `spans`.
        kind: &'static str,
    },
    /// The file was written by another version of the format.
    #[error("{kind} format version {found} is not supported (this is version {expected})")]
    Version {
        /// `tree` or `spans`.
        kind: &'static str,
        /// The version of the file.
        found: u32,
        /// The version that is understood.
        expected: u32,
    },
    /// A field points outside its section or contradicts another one.
    #[error("damaged {kind} file: {what}")]
    Damaged {
        /// `tree` or `spans`.
        kind: &'static str,
        /// Which rule is broken.
        what: &'static str,
    },
    /// The layer is too large for the format's 32-bit counts.
    #[error("too many {what} for an index")]
    TooLarge {
        /// What there are too many of.
        what: &'static str,
    },
    /// The bytes do not have the digest by which the index is known.
    #[error("index bytes hash to {actual}, expected {expected}")]
    Digest {
        /// The digest by which it is known.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
}
