//! The bytes of a pack, version 1. All numbers are little-endian; nothing is aligned.
//!
//! ```text
//! +----------------------------------------------+ 0
//! | PackHeader, 64 bytes                         |
//! +----------------------------------------------+ 64
//! | table, one zstd frame of                     |
//! |   layers   32 B each   digests of layer blobs|
//! |   frames   48 B each                         |
//! |   units    16 B each   frame by frame        |
//! +----------------------------------------------+ 64 + table_length: "the head"
//! | frames, zstd, each the contents of its units |
//! | one behind the other                         |
//! +----------------------------------------------+
//! ```

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::digest::Digest;
use crate::object::CHUNK;

/// First bytes of a pack.
pub const MAGIC: [u8; 8] = *b"UMNTPACK";
/// Version of the format.
pub const VERSION: u32 = 1;

/// Contents are added to a frame until it has this many bytes, uncompressed: large enough to
/// compress well, small enough to be decoded while the next one arrives.
pub const FRAME_TARGET: usize = 1024 * 1024;
/// No frame is larger, uncompressed, in bytes.
pub const FRAME_MAX: u64 = FRAME_TARGET as u64 + CHUNK;
/// No frame is larger, compressed, in bytes: what zstd adds to noise is far less.
pub const FRAME_LENGTH_MAX: u64 = FRAME_MAX + FRAME_MAX / 64;
/// More units than a start reads: a pack that names more is refused.
pub const UNITS_MAX: usize = 1 << 17;
/// More layers than images have.
pub const LAYERS_MAX: usize = 1 << 12;
/// No head is larger, in bytes.
pub const HEAD_MAX: u64 = 8 * 1024 * 1024;

/// The head of the head.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PackHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// How many layers the table names.
    pub layers: U32,
    /// How many frames.
    pub frames: U32,
    /// How many units.
    pub units: U32,
    /// Bytes of the table, compressed.
    pub table_length: U32,
    /// Zeros.
    pub reserved: [u8; 36],
}

/// A frame.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameRecord {
    /// Of the compressed bytes.
    pub digest: Digest,
    /// Bytes, compressed.
    pub length: U32,
    /// Bytes, uncompressed.
    pub size: U32,
    /// How many units it holds.
    pub units: U32,
    /// Zero.
    pub reserved: U32,
}

/// A unit in a frame.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnitRecord {
    /// Which of the layers.
    pub layer: U16,
    /// Zero.
    pub reserved: U16,
    /// Inode in the layer's tree.
    pub inode: U32,
    /// Which unit of the file.
    pub number: U32,
    /// Bytes.
    pub length: U32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_of_the_drawing() {
        assert_eq!(size_of::<PackHeader>(), 64);
        assert_eq!(size_of::<FrameRecord>(), 48);
        assert_eq!(size_of::<UnitRecord>(), 16);
    }
}
