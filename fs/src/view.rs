//! What a mount shows: directories, attributes and bytes by nodeid.
//!
//! A view holds any number of images and layers below one root and answers the kernel's
//! questions from their trees and the store. Only [`View::finish_read`] can take long; nothing
//! else touches the network.
//!
//! ```text
//! /                         nodeid 1
//! /images                   nodeid 2
//! /images/<64 hex digits>   the merged tree of an image (see [`image_name`])
//! /layers                   nodeid 3
//! /layers/<64 hex digits>   one layer as a lower directory of overlayfs (see [`LayerView`])
//! ```
//!
//! # Nodeids
//!
//! A nodeid is a slot (upper 32 bits) and a number (lower 32 bits, counted from 1). A directory
//! has the slot of its image or layer view, since overlays need one path for each; a file has the
//! slot of its layer, so that everything which shows the layer shares the kernel's page cache for
//! it. All whiteouts are one node, 4. Slots are written down before use (see [`SlotTable`]) and
//! never reused while the mount lives: the kernel may know a nodeid for as long as that.

mod contents;
mod image;
mod layer;
mod missed;
mod recorder;
mod slots;

pub use image::{NewImage, image_name};
pub use layer::{LayerView, Opaque, has_lower_links, has_opaque};
pub use missed::Miss;
pub use recorder::{Recorder, Recording};
pub use slots::{SlotName, SlotTable};

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use self::contents::{
    Contents, Directories, Shown, Slot, failed, inode_attr, synthetic, whiteout_attr,
};
use crate::digest::Digest;
use crate::fill::{Content, FillError, Filler, Layer};
use crate::index::{IndexError, InodeRecord};

/// A node as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: Self = Self(1);
    /// The directory that holds the images.
    pub const IMAGES: Self = Self(2);
    /// The directory that holds the layers.
    pub const LAYERS: Self = Self(3);
    /// Every whiteout.
    pub const WHITEOUT: Self = Self(4);

    /// Whether it is a directory to which images or layers are added.
    pub fn is_listing(self) -> bool {
        matches!(self, Self::IMAGES | Self::LAYERS)
    }

    fn new(slot: u32, number: u32) -> Self {
        Self(u64::from(slot) << 32 | (u64::from(number) + 1))
    }

    fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn number(self) -> Option<u32> {
        (self.0 as u32).checked_sub(1)
    }
}

/// What the root holds.
const TOP: [(&[u8], NodeId); 2] = [(b"images", NodeId::IMAGES), (b"layers", NodeId::LAYERS)];

/// Whether `name` may become the name of an image or layer: the digits of a digest.
fn is_hex(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    /// Device number as the kernel encodes it in 32 bits.
    pub rdev: u32,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// A node.
    Found(Attr),
    /// Nothing, and there never will be.
    Absent,
    /// Nothing yet: an image or layer may appear under this name.
    AbsentYet,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes.
    pub attr: Attr,
    /// Where to go on after it.
    pub next_offset: u64,
}

/// Why a question has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ViewError {
    /// No such node: the kernel remembers something that is gone.
    #[error("no node {0:?}")]
    Stale(NodeId),
    /// The node is not a directory.
    #[error("node {0:?} is not a directory")]
    NotDirectory(NodeId),
    /// The node is a directory.
    #[error("node {0:?} is a directory")]
    IsDirectory(NodeId),
    /// The node is neither a file nor a symbolic link, as the question needs.
    #[error("node {0:?} cannot be read")]
    Invalid(NodeId),
    /// The index is damaged.
    #[error("index of layer {layer}")]
    Index {
        /// The layer blob.
        layer: Digest,
        /// What is wrong.
        source: IndexError,
    },
    /// The bytes could not be had.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// What a mount shows.
pub struct View {
    filler: Arc<Filler>,
    contents: RwLock<Contents>,
    recorder: Recorder,
}

/// What an inode of a layer needs to be read.
struct Leaf {
    layer: Arc<Layer>,
    inode: InodeRecord,
    extra_links: u32,
}

impl View {
    /// An empty view, whose files are read through `filler`.
    pub fn new(filler: Arc<Filler>) -> Self {
        Self { filler, contents: RwLock::default(), recorder: Recorder::default() }
    }

    /// Records which files are read first.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The layers whose files are shown.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let layer = |slot: &Slot| match slot {
            Slot::Layer(shown) => Some(shown.layer.clone()),
            _ => None,
        };
        contents.slots.iter().filter_map(layer).collect()
    }

    /// The filler that reads missing bytes.
    pub fn filler(&self) -> &Arc<Filler> {
        &self.filler
    }

    fn directories(&self, node: NodeId) -> Result<Arc<dyn Directories>, ViewError> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        match contents.slots.get(node.slot() as usize) {
            Some(Slot::Tree(tree)) => Ok(tree.clone()),
            Some(Slot::Layer(_)) => Err(ViewError::NotDirectory(node)),
            _ if node == NodeId::WHITEOUT => Err(ViewError::NotDirectory(node)),
            _ => Err(ViewError::Stale(node)),
        }
    }

    fn leaf(&self, node: NodeId) -> Result<Leaf, ViewError> {
        let Shown { layer, extra_links } = {
            let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
            match contents.slots.get(node.slot() as usize) {
                Some(Slot::Layer(shown)) => shown.clone(),
                Some(Slot::Tree(_)) => return Err(ViewError::IsDirectory(node)),
                _ if node == NodeId::ROOT || node.is_listing() => {
                    return Err(ViewError::IsDirectory(node));
                }
                _ if node == NodeId::WHITEOUT => return Err(ViewError::Invalid(node)),
                _ => return Err(ViewError::Stale(node)),
            }
        };
        let number = node.number().ok_or(ViewError::Stale(node))?;
        let inode = *layer.tree.inode(number).map_err(failed(&layer))?;
        let extra_links = extra_links.get(&number).copied().unwrap_or(0);
        Ok(Leaf { layer, inode, extra_links })
    }

    /// What `parent` holds under `name`.
    ///
    /// # Errors
    /// [`ViewError`] where `parent` is gone or not a directory, or an index is damaged.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Lookup, ViewError> {
        if parent == NodeId::ROOT {
            let found = TOP.into_iter().find(|(top, _)| *top == name);
            return match found {
                Some((_, node)) => self.getattr(node).map(Lookup::Found),
                None => Ok(Lookup::Absent),
            };
        }
        if parent.is_listing() {
            return self.lookup_listed(parent, name);
        }
        let found = self.directories(parent)?.find(parent, name)?;
        Ok(found.map_or(Lookup::Absent, Lookup::Found))
    }

    fn lookup_listed(&self, listing: NodeId, name: &[u8]) -> Result<Lookup, ViewError> {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_hex(name)) else {
            return Ok(Lookup::Absent);
        };
        let slot = {
            let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
            contents.listing(listing).get(name).copied()
        };
        let Some(slot) = slot else { return Ok(Lookup::AbsentYet) };
        self.getattr(NodeId::new(slot, 0)).map(Lookup::Found)
    }

    /// The attributes of `node`.
    ///
    /// # Errors
    /// [`ViewError`] where it is gone or its index is damaged.
    pub fn getattr(&self, node: NodeId) -> Result<Attr, ViewError> {
        if node == NodeId::ROOT {
            return Ok(synthetic(node, 2 + TOP.len() as u32));
        }
        if node == NodeId::WHITEOUT {
            return Ok(whiteout_attr());
        }
        if node.is_listing() {
            let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
            return Ok(synthetic(node, 2 + contents.listing(node).len() as u32));
        }
        match self.directories(node) {
            Ok(tree) => tree.attr(node),
            Err(ViewError::NotDirectory(_)) => {
                let leaf = self.leaf(node)?;
                Ok(inode_attr(node, &leaf.inode, leaf.extra_links))
            }
            Err(error) => Err(error),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone or not a link, or its index is damaged.
    pub fn readlink(&self, node: NodeId) -> Result<Bytes, ViewError> {
        let leaf = self.leaf(node)?;
        if leaf.inode.mode.get() & libc::S_IFMT != libc::S_IFLNK {
            return Err(ViewError::Invalid(node));
        }
        let target = leaf.layer.tree.target(&leaf.inode).map_err(failed(&leaf.layer))?;
        Ok(Bytes::copy_from_slice(target))
    }

    /// Hands the entries of `directory` from `offset` on to `emit`, until it returns true: its
    /// buffer is full. `.` and `..` come first, at offsets 0 and 1.
    ///
    /// # Errors
    /// [`ViewError`] where `directory` is gone or not one, or an index is damaged.
    pub fn readdir(
        &self,
        directory: NodeId,
        offset: u64,
        mut emit: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), ViewError> {
        let dots = [(&b"."[..], directory), (b"..", self.parent(directory)?)];
        for (i, (name, node)) in (0..).zip(dots).skip(usize::try_from(offset).unwrap_or(2)) {
            if emit(Entry { name, attr: self.getattr(node)?, next_offset: i + 1 }) {
                return Ok(());
            }
        }
        let skip = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        let mut next_offset = skip as u64 + 2;
        let mut emit = |name: &[u8], attr: Attr| {
            next_offset += 1;
            emit(Entry { name, attr, next_offset })
        };
        if directory != NodeId::ROOT && !directory.is_listing() {
            return self.directories(directory)?.list(directory, skip, &mut emit);
        }
        for (name, node) in self.listed(directory).into_iter().skip(skip) {
            if emit(name.as_bytes(), self.getattr(node)?) {
                break;
            }
        }
        Ok(())
    }

    /// The entries of a directory that no image or layer has.
    fn listed(&self, directory: NodeId) -> Vec<(String, NodeId)> {
        if directory == NodeId::ROOT {
            let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            return TOP.into_iter().map(|(top, node)| (name(top), node)).collect();
        }
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let entry = |(name, &slot): (&String, &u32)| (name.clone(), NodeId::new(slot, 0));
        contents.listing(directory).iter().map(entry).collect()
    }

    fn parent(&self, directory: NodeId) -> Result<NodeId, ViewError> {
        if directory == NodeId::ROOT || directory.is_listing() {
            return Ok(NodeId::ROOT);
        }
        self.directories(directory)?.parent(directory)
    }

    /// The value of an extended attribute, `None` where `node` does not have it.
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone or its index is damaged.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.with_xattrs(node, |xattrs| {
            let found = xattrs.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| Bytes::copy_from_slice(value))
        })
    }

    /// The names of all extended attributes of `node`, each ended by a NUL byte as in
    /// listxattr(2).
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone or its index is damaged.
    pub fn xattr_names(&self, node: NodeId) -> Result<Vec<u8>, ViewError> {
        self.with_xattrs(node, |xattrs| {
            xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect()
        })
    }

    fn with_xattrs<T>(
        &self,
        node: NodeId,
        answer: impl FnOnce(&[crate::index::Xattr<'_>]) -> T,
    ) -> Result<T, ViewError> {
        if node == NodeId::ROOT || node == NodeId::WHITEOUT || node.is_listing() {
            return Ok(answer(&[]));
        }
        match self.directories(node) {
            Ok(tree) => Ok(answer(&tree.xattrs(node)?)),
            Err(ViewError::NotDirectory(_)) => {
                let leaf = self.leaf(node)?;
                let tree = &leaf.layer.tree;
                Ok(answer(&tree.xattrs(&leaf.inode).map_err(failed(&leaf.layer))?))
            }
            Err(error) => Err(error),
        }
    }

    /// The file that holds all of `node`'s bytes, from which the kernel may read them by itself.
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone, not a file, or its index is damaged.
    pub fn begin_open(&self, node: NodeId) -> Result<Open, ViewError> {
        let Some((layer, content)) = self.content(node)? else { return Ok(Open::Done(None)) };
        // What the kernel will read of it nobody tells.
        self.record(node, &layer, &content, 0..1);
        if content.is_large() {
            return Ok(Open::Unchecked(Box::new(content)));
        }
        Ok(Open::Done(content.whole_file(self.filler.store())))
    }

    /// Checks what [`Self::begin_open`] found unchecked. Takes as long as hashing it may.
    pub fn finish_open(&self, content: &Content) -> Option<Arc<File>> {
        content.whole_file(self.filler.store())
    }

    /// Notes which part of a file is used.
    fn record(&self, node: NodeId, layer: &Layer, content: &Content, range: Range<u64>) {
        if let Some(inode) = node.number() {
            self.recorder.note(layer.digest(), inode, content.units(range));
        }
    }

    /// The content of a file, and the layer that has it; `None` for an empty one.
    fn content(&self, node: NodeId) -> Result<Option<(Arc<Layer>, Content)>, ViewError> {
        let leaf = self.leaf(node)?;
        if !leaf.inode.is_file() {
            return Err(ViewError::Invalid(node));
        }
        if leaf.inode.size.get() == 0 {
            return Ok(None);
        }
        let content = Content::of(&leaf.layer.tree, &leaf.inode).map_err(failed(&leaf.layer))?;
        match content {
            Some(content) => Ok(Some((leaf.layer, content))),
            None => {
                let source = IndexError::Damaged { kind: "tree", what: "a file has no object" };
                Err(ViewError::Index { layer: leaf.layer.digest(), source })
            }
        }
    }

    /// Starts a read of `length` bytes at `offset`: answered at once where the store has them.
    ///
    /// # Errors
    /// [`ViewError`] where `node` is gone, not a file, or its index is damaged.
    pub fn begin_read(
        &self,
        node: NodeId,
        offset: u64,
        length: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Read, ViewError> {
        buffer.clear();
        let Some((layer, content)) = self.content(node)? else { return Ok(Read::Done) };
        let end = offset.saturating_add(length.into()).min(content.size);
        if offset >= end {
            return Ok(Read::Done);
        }
        self.record(node, &layer, &content, offset..end);
        if let Some(position) = content.position() {
            layer.note_reader(position.saturating_add(offset));
        }
        buffer.resize((end - offset) as usize, 0);
        if content.read_stored(self.filler.store(), offset, buffer) {
            self.filler.meter().hit(&content, offset, end - offset);
            return Ok(Read::Done);
        }
        buffer.clear();
        let inode = node.number().unwrap_or_default();
        Ok(Read::Missing(Miss { layer, inode, content, range: offset..end }))
    }
}

/// How an open began.
pub enum Open {
    /// The whole content, checked; `None` where not all of it is here.
    Done(Option<Arc<File>>),
    /// A content that is too large to be checked while the kernel waits, to be checked by
    /// [`View::finish_open`].
    Unchecked(Box<Content>),
}

/// How a read began.
pub enum Read {
    /// The buffer holds the answer.
    Done,
    /// The bytes must be fetched, by [`View::finish_read`].
    Missing(Miss),
}
