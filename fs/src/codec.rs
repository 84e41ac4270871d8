//! Compressed streams that can be entered in the middle.
//!
//! [`scan()`] reads a layer blob once from its beginning, hands out the uncompressed bytes and
//! notes [`Checkpoint`]s; [`decode()`] starts again at any of them. What lies between two
//! checkpoints is a *span*, and the compressed bytes that decode it are its *piece*:
//!
//! ```text
//! compressed   |--------------|-----x--------|------     x: a byte that two pieces share,
//! piece          piece 0        piece 1        ...          since deflate blocks end inside bytes
//! uncompressed |---------------------|------------------|-----
//! span           span 0                span 1             ...
//! ```
//!
//! gzip members, zstd frames and plain tar differ only in where checkpoints can be: at deflate
//! blocks (with a window of preceding output) and member starts, at frame starts, anywhere.
//! Tables of contents that other formats put into skippable frames or extra members (eStargz,
//! zstd:chunked) are never read: their data is just members and frames.

pub mod decode;
mod inflate;
mod input;
pub mod scan;
mod window;

pub use decode::decode;
pub use input::Input;
pub use scan::{SPAN_MIN, Scan, scan};

/// How a layer blob is compressed, found from its first bytes: media types lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not compressed.
    Plain,
    /// gzip members (RFC 1952).
    Gzip,
    /// zstd frames (RFC 8878), skippable ones included.
    Zstd,
}

impl Codec {
    /// The codec of a blob that begins with `prefix` (4 bytes suffice).
    pub fn detect(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// The number that stands for the codec in index files.
    pub fn number(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
        }
    }

    /// The codec with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Plain, Self::Gzip, Self::Zstd].into_iter().find(|codec| codec.number() == number)
    }
}

/// What a span needs behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing: a gzip member, a zstd frame or plain bytes begin here.
    Fresh,
    /// A deflate block begins here, inside a member.
    Block,
}

/// A place where decoding can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Position in the compressed stream, in bits from its start.
    pub bit: u64,
    /// Position in the uncompressed stream, in bytes from its start.
    pub out: u64,
    /// What begins here.
    pub start: Start,
    /// The sparse window of a [`Start::Block`]: up to 32 KiB of preceding output.
    pub window: Vec<u8>,
}

/// A stream that is not what its codec promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The stream ends too early.
    #[error("the {codec:?} stream is truncated after {read} bytes")]
    Truncated {
        /// The codec in use.
        codec: Codec,
        /// Compressed bytes read.
        read: u64,
    },
    /// The stream holds impossible data or a wrong checksum.
    #[error("the {codec:?} stream is corrupt near byte {read}")]
    Corrupt {
        /// The codec in use.
        codec: Codec,
        /// Compressed bytes read.
        read: u64,
    },
    /// A zstd frame wants more memory than a decoder grants.
    #[error("a zstd frame near byte {read} needs a window above {limit} MiB, which is refused")]
    Window {
        /// Compressed bytes read.
        read: u64,
        /// The limit in MiB.
        limit: u64,
    },
    /// A zstd frame was made with a dictionary, which image layers have no place for.
    #[error("a zstd frame near byte {read} needs a dictionary, which no layer comes with")]
    Dictionary {
        /// Compressed bytes read.
        read: u64,
    },
    /// The reader of the uncompressed bytes went away.
    #[error("the reader of the uncompressed bytes stopped")]
    Closed,
}

/// zstd windows up to 128 MiB are decoded (the default of the zstd command line; RFC 8878
/// recommends 8 MiB), so that a hostile frame header cannot ask for 2 GiB.
const ZSTD_WINDOW_LOG: u32 = 27;
