//! The bytes of index files, version 2. All numbers are little-endian; nothing is aligned.
//!
//! ```text
//! tree   +--------------------------------------+ 0
//!        | TreeHeader, 320 bytes                |
//!        +--------------------------------------+ 320
//!        | inodes      64 B each, breadth first |  inode 0 is the root
//!        | entries     12 B each                |  a directory's entries lie together, by name
//!        | order        4 B each                |  inodes with content by position in the tar
//!        | extents     24 B each                |  where sparse files have data
//!        | digests     32 B each                |  object keys; behind the key of a file above
//!        |                                      |  1 MiB the digests of its chunks
//!        | names       bytes                    |  names, link targets
//!        | xattrs      bytes                    |  sets: u16 count, then per attribute u16 and
//!        +--------------------------------------+  u32 lengths, name, value
//!
//! spans  +--------------------------------------+ 0
//!        | SpansHeader, 64 bytes                |
//!        | records     96 B each, one more than |  the last one is the end of the stream
//!        |             there are spans          |
//!        +--------------------------------------+ 64 + 96 * (spans + 1): "the table"
//!        | windows     zstd, by range           |
//!        +--------------------------------------+
//! ```

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::IndexError;
use crate::codec::Codec;
use crate::digest::Digest;

/// First bytes of a tree file.
pub const TREE_MAGIC: [u8; 8] = *b"UMNTTREE";
/// First bytes of a spans file.
pub const SPANS_MAGIC: [u8; 8] = *b"UMNTSPAN";
/// Version of both formats. It counts up with every change of the bytes that the same layer
/// gives, be it by a new layout, another choice of checkpoints or another zstd.
pub const VERSION: u32 = 2;

/// Stands for "no xattr set" and "no object".
pub const NONE: u32 = u32::MAX;

/// The holes of all sparse files of a layer have no more bytes; every MiB of them takes a digest.
/// The login record of the highest user id makes a hole of 1.25 TB.
pub const HOLES_MAX: u64 = 2 << 40;

/// Checks how a file of `kind` begins; its codec.
pub fn check_head(
    kind: &'static str,
    magic: ([u8; 8], [u8; 8]),
    version: u32,
    codec: u32,
) -> Result<Codec, IndexError> {
    if magic.0 != magic.1 {
        return Err(IndexError::Magic { kind });
    }
    if version != VERSION {
        return Err(IndexError::Version { kind, found: version, expected: VERSION });
    }
    Codec::from_number(codec).ok_or(IndexError::Damaged { kind, what: "unknown codec" })
}

/// Start and length of a section in bytes from the start of the file.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Section {
    /// First byte.
    pub offset: U64,
    /// Bytes.
    pub length: U64,
}

/// The section table of a tree file.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TreeSections {
    /// [`InodeRecord`]s.
    pub inodes: Section,
    /// [`DirectoryEntry`]s.
    pub entries: Section,
    /// Inode numbers (u32) of files with content, by position of their data in the tar stream.
    pub order: Section,
    /// [`Extent`]s.
    pub extents: Section,
    /// Object keys and chunk digests.
    pub digests: Section,
    /// Names and link targets.
    pub names: Section,
    /// Extended attribute sets.
    pub xattrs: Section,
}

/// The head of a tree file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TreeHeader {
    /// [`TREE_MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// [`crate::codec::Codec::number`].
    pub codec: U32,
    /// Digest of the layer blob as the registry knows it.
    pub layer: Digest,
    /// Digest of the uncompressed tar (OCI image-spec, DiffID).
    pub diff_id: Digest,
    /// Digest of the whole spans file.
    pub spans: Digest,
    /// Digest of the spans file's table.
    pub span_table: Digest,
    /// Size of the layer blob.
    pub layer_size: U64,
    /// Size of the uncompressed tar.
    pub tar_size: U64,
    /// Size of the spans file.
    pub spans_size: U64,
    /// Size of the spans file's table.
    pub span_table_size: U64,
    /// Sum of the sizes of all distinct objects.
    pub content_size: U64,
    /// Where the arrays are.
    pub sections: TreeSections,
    /// Zeros.
    pub reserved: [u8; 24],
}

/// An inode, 64 bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct InodeRecord {
    /// Type and permission bits as in stat(2); no type for a link into a lower layer.
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Names of a file; 2 and its subdirectories for a directory.
    pub nlink: U32,
    /// Bytes of content, or of a symbolic link's target.
    pub size: U64,
    /// Modification time in seconds since 1970.
    pub mtime: I64,
    /// Nanoseconds of the modification time (0..1e9, counted forward).
    pub mtime_nanos: U32,
    /// Device number of a device node, as the kernel encodes it for user space.
    pub rdev: U32,
    /// Regular file: position of its data in the tar stream. Sparse file: first extent (low half)
    /// and their number (high half). Directory: first entry and their number. Symbolic link, or
    /// link into a lower layer: target in `names`, its start and length.
    pub data: U64,
    /// Regular file: its object key in `digests`, or [`NONE`] where it is empty.
    pub key: U32,
    /// Start of its set in `xattrs`, or [`NONE`].
    pub xattrs: U32,
    /// Directory: the inode of its parent.
    pub parent: U32,
    /// [`InodeFlags`].
    pub flags: U32,
}

impl InodeRecord {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode.get() & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode.get() & libc::S_IFMT == libc::S_IFREG
    }
}

/// Bits of [`InodeRecord::flags`].
pub struct InodeFlags;

impl InodeFlags {
    /// A directory that hides what lower layers have at its path.
    pub const OPAQUE: u32 = 1;
    /// A directory that the archive never lists: its metadata is that of the layer below.
    pub const IMPLICIT: u32 = 2;
    /// A regular file whose content is described by extents.
    pub const SPARSE: u32 = 4;
}

/// What a directory entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// An inode of this layer.
    Inode,
    /// Nothing: what lower layers have under this name is hidden.
    Whiteout,
    /// A hard link to a file of a lower layer; its inode holds the target's path.
    LowerLink,
}

/// A name in a directory, 12 bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DirectoryEntry {
    /// The inode, 0 for a whiteout.
    pub inode: U32,
    /// Start of the name in `names`.
    pub name: U32,
    /// Its length.
    pub name_length: U16,
    /// 0 inode, 1 whiteout, 2 link into a lower layer.
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
}

impl DirectoryEntry {
    /// What the entry stands for; `None` where the file says something unknown.
    pub fn entry_kind(&self) -> Option<EntryKind> {
        match self.kind {
            0 => Some(EntryKind::Inode),
            1 => Some(EntryKind::Whiteout),
            2 => Some(EntryKind::LowerLink),
            _ => None,
        }
    }
}

impl EntryKind {
    /// The number in [`DirectoryEntry::kind`].
    pub fn number(self) -> u8 {
        match self {
            Self::Inode => 0,
            Self::Whiteout => 1,
            Self::LowerLink => 2,
        }
    }
}

/// A run of data in a sparse file; what no extent covers is zero.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Extent {
    /// Where in the file.
    pub offset: U64,
    /// Where in the tar stream.
    pub data: U64,
    /// Bytes.
    pub length: U64,
}

/// The head of a spans file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpansHeader {
    /// [`SPANS_MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// [`crate::codec::Codec::number`].
    pub codec: U32,
    /// Digest of the layer blob.
    pub layer: Digest,
    /// Number of spans; one more record follows.
    pub count: U64,
    /// Zeros.
    pub reserved: [u8; 8],
}

/// The start of a span, 96 bytes. The last record is the end of the stream.
#[derive(
    Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SpanRecord {
    /// Where it starts in the blob, in bits.
    pub bit: U64,
    /// Where it starts in the tar, in bytes.
    pub out: U64,
    /// SHA-256 of its piece of the blob.
    pub piece: Digest,
    /// SHA-256 of its compressed window.
    pub window_digest: Digest,
    /// Start of its compressed window in the spans file.
    pub window: U64,
    /// Bytes of it, 0 where there is none.
    pub window_length: U32,
    /// 0 a member, frame or plain bytes start here; 1 a deflate block.
    pub start: U32,
}

const _: () = assert!(size_of::<TreeHeader>() == 320);
const _: () = assert!(size_of::<InodeRecord>() == 64);
const _: () = assert!(size_of::<DirectoryEntry>() == 12);
const _: () = assert!(size_of::<Extent>() == 24);
const _: () = assert!(size_of::<SpansHeader>() == 64);
const _: () = assert!(size_of::<SpanRecord>() == 96);
