//! Nodeids and attributes, as the kernel is given them.

/// A node as the kernel knows it: its slot and its number, see [`View`](super::View).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: Self = Self(1);
    /// The directory that holds the images.
    pub const IMAGES: Self = Self(2);
    /// The directory that holds the layers.
    pub const LAYERS: Self = Self(3);
    /// All whiteouts.
    pub const WHITEOUT: Self = Self(4);

    /// Whether it is one of the directories to which images and layers are added.
    pub fn is_listing(self) -> bool {
        matches!(self, Self::IMAGES | Self::LAYERS)
    }

    /// Node `number` of `slot`, counted from 0.
    pub(super) fn new(slot: u32, number: u32) -> Self {
        Self(u64::from(slot) << 32 | (u64::from(number) + 1))
    }

    /// The slot of the node, which an image, a layer or a layer view has.
    pub(super) fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which node of its slot it is, counted from 0; `None` where it cannot be any.
    pub(super) fn number(self) -> Option<u32> {
        (self.0 as u32).checked_sub(1)
    }
}

/// The attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The node.
    pub node: NodeId,
    /// Type and permission bits as in stat(2).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Modification time: seconds since 1970, also negative, and nanoseconds counted forward.
    pub mtime: (i64, u32),
    /// Device number as the kernel encodes it in 32 bits (`new_encode_dev`).
    pub rdev: u32,
}
