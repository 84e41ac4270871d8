//! What a layer holds while its archive is read: directories, files and all the rest.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::{Member, MemberKind};
use crate::index::Extent;

/// The place of a node among all of them.
pub type NodeId = usize;
/// The root of the layer.
pub const ROOT: NodeId = 0;

/// The content of a file: where it lies and what it is called.
#[derive(Clone)]
pub struct FileContent {
    /// In bytes.
    pub size: u64,
    /// Its place among the digests; [`NONE`](crate::index::NONE) where it is empty.
    pub key: u32,
    /// Where it lies.
    pub place: Place,
}

/// Where in the tar a content is.
#[derive(Clone)]
pub enum Place {
    /// In one run at this position of the tar stream.
    Whole(u64),
    /// In these runs.
    Sparse(Vec<Extent>),
}

/// A thing in the tree, under one name or several.
pub struct Node {
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub rdev: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a node is.
pub enum NodeKind {
    Directory(Directory),
    File(FileContent),
    Symlink(Vec<u8>),
    LowerLink(Vec<u8>),
    /// A character device 0:0. Unlike a marker it has the name that it hides, and is replaced and
    /// linked like any other member: overlayfs gives all its whiteouts one inode.
    Whiteout,
    Special,
}

/// What a directory holds and hides.
#[derive(Default)]
pub struct Directory {
    pub children: BTreeMap<Vec<u8>, NodeId>,
    pub whiteouts: BTreeSet<Vec<u8>>,
    pub opaque: bool,
    pub implicit: bool,
}

impl Node {
    /// What a member describes.
    pub fn new(kind: NodeKind, member: &Member) -> Self {
        let (kind_bits, rdev) = match member.kind {
            MemberKind::File(_) => (libc::S_IFREG, 0),
            MemberKind::Directory => (libc::S_IFDIR, 0),
            MemberKind::Symlink(_) => (libc::S_IFLNK, 0),
            MemberKind::Fifo => (libc::S_IFIFO, 0),
            MemberKind::Device(kind, major, minor) => (kind, device_number(major, minor)),
            MemberKind::HardLink(_) => (0, 0),
        };
        let permissions = if kind_bits == libc::S_IFLNK { 0o777 } else { member.mode };
        Self {
            kind,
            mode: kind_bits | permissions,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            rdev,
            xattrs: member.xattrs.clone(),
        }
    }

    /// A directory that the archive has not listed: owned by root, 0755, of 1970.
    pub fn implicit_directory() -> Self {
        let directory = Directory { implicit: true, ..Directory::default() };
        Self {
            kind: NodeKind::Directory(directory),
            mode: libc::S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            rdev: 0,
            xattrs: BTreeMap::new(),
        }
    }

    /// A hard link to the file at the path `target` of a lower layer.
    pub fn lower_link(target: Vec<u8>) -> Self {
        Self { kind: NodeKind::LowerLink(target), mode: 0, ..Self::implicit_directory() }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, NodeKind::Directory(_))
    }

    /// Gives a directory the metadata of its member.
    pub fn describe(&mut self, member: &Member) {
        if let NodeKind::Directory(directory) = &mut self.kind {
            directory.implicit = false;
        }
        self.mode = libc::S_IFDIR | member.mode;
        self.uid = member.uid;
        self.gid = member.gid;
        self.mtime = member.mtime;
        self.xattrs = member.xattrs.clone();
    }
}

/// The device number as the kernel hands it out in 32 bits: 12 bits of major, 20 of minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
