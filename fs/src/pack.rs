//! Start-up packs: what a container reads first, in the order in which it reads it.
//!
//! A *profile* lists the units of files that a start reads. A *pack* holds their contents in
//! that order, compressed together, so that a start becomes one stream instead of thousands of
//! reads. The same format is an *update pack* where it holds what an image has and its
//! predecessor lacks.
//!
//! ```text
//! reads of a start -> Profile -> Builder -> a blob beside the index
//!                                            -> head -> Table -> frames as pieces -> units
//! ```
//!
//! A unit is named by its place (layer, inode, number), which only a layer's index turns into an
//! object. Whoever unpacks therefore takes nothing but contents that the index names, each of
//! which is hashed on its way in: a pack needs no trust, and a wrong one costs its transfer only.

mod builder;
mod format;
mod profile;
mod table;

pub use builder::{Builder, Packed};
pub use format::{HEAD_MAX, UNITS_MAX};
pub use profile::{Profile, common};
pub use table::{Frame, PackError, PackedUnit, Table};

use crate::digest::Digest;

/// The place of a unit: a file of up to 1 MiB, or a 1 MiB chunk of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitName {
    /// The layer blob.
    pub layer: Digest,
    /// The inode in the layer's tree.
    pub inode: u32,
    /// Which unit of the file.
    pub number: u32,
}
