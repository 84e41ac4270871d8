//! What a mount shows: directories, attributes and bytes by nodeid.
//!
//! ```text
//! LOOKUP, GETATTR, READDIR, ... -> slot of the nodeid -> tree of the image or layer -> answer
//! READ -> begin_read: from the store, at once -> answer
//!           ` missing -> finish_read: fetch (may take long) -> answer
//! ```
//!
//! A view holds any number of images and layers below one root, and answers the kernel's requests
//! from their trees and the store. Only [`View::finish_read`] waits for the network;
//! [`View::finish_open`] may hash a large file. All other calls are fast enough for a thread that
//! takes requests.
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
//! A nodeid is a slot (upper 32 bits) and a number (lower 32 bits, counted from 1). A directory has
//! the slot of its image or layer view, since overlays need one path for each; a file has the slot
//! of its layer, so that everything which shows the layer shares the kernel's page cache for it.
//! All whiteouts are one node, 4. Slots are written down before use (see [`SlotTable`]) and never
//! reused while the mount lives.
//!
//! # What the kernel knows
//!
//! The kernel may use a nodeid until it says that it has forgotten it, so each look-up is counted
//! before it is answered ([`Lookups`]). A layer that is no longer wanted is hidden first: its name
//! is gone, and everything below it is answered as before. It is [dropped](View::drop_layer) once
//! the kernel knows none of its nodes.

mod contents;
mod image;
mod layer;
mod node;
mod read;
mod recorder;
mod slots;

pub use image::{NewImage, image_name};
pub use layer::{LayerView, Opaque, has_lower_links, has_opaque};
pub use node::{Attr, NodeId};
pub use read::{Miss, Open, Read};
pub use recorder::{Recorder, Recording};
pub use slots::{SlotName, SlotTable};

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use self::contents::{
    Contents, Directories, Shown, Slot, failed, inode_attr, synthetic, whiteout_attr,
};
use crate::digest::Digest;
use crate::fill::{FillError, Filler, Layer};
use crate::index::{IndexError, InodeRecord, Xattr};
use crate::session::Lookups;

/// The entries of the root.
const TOP: [(&[u8], NodeId); 2] = [(b"images", NodeId::IMAGES), (b"layers", NodeId::LAYERS)];

/// Whether `name` may become the name of an image or layer: the hex digits of a SHA-256 digest.
fn is_hex(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    /// The offset at which a listing goes on after it.
    pub next_offset: u64,
}

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ViewError {
    /// No such node: the kernel has cached something that is gone.
    #[error("no node {0:?}")]
    Stale(NodeId),
    /// The node is not a directory.
    #[error("node {0:?} is not a directory")]
    NotDirectory(NodeId),
    /// The node is a directory.
    #[error("node {0:?} is a directory")]
    IsDirectory(NodeId),
    /// The node is not of the type that the request needs: a file or a symbolic link.
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
    /// The bytes cannot be fetched.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// What a mount shows: images and layers, and the filler that reads their files.
pub struct View {
    filler: Arc<Filler>,
    contents: RwLock<Contents>,
    recorder: Recorder,
    /// What the kernel knows; `None` where that is not counted.
    lookups: Option<Lookups>,
}

/// An inode of a layer that is not a directory, with what it takes to read it.
struct Leaf {
    layer: Arc<Layer>,
    inode: InodeRecord,
    extra_links: u32,
}

impl View {
    /// An empty view, whose files are read through `filler`.
    pub fn new(filler: Arc<Filler>) -> Self {
        let (contents, recorder) = (RwLock::default(), Recorder::default());
        Self { filler, contents, recorder, lookups: None }
    }

    /// Makes the view count in `lookups` what the kernel is told. They have to hold all of it, also
    /// what previous workers have told.
    #[must_use]
    pub fn with_lookups(self, lookups: Lookups) -> Self {
        Self { lookups: Some(lookups), ..self }
    }

    /// The recorder of which files are read first.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// All layers whose files are shown.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let layer = |slot: &Slot| match slot {
            Slot::Layer(shown) => Some(shown.layer.clone()),
            _ => None,
        };
        contents.slots.iter().filter_map(layer).collect()
    }

    /// The layers that belong to an image, once for each image. A layer may have views of its own,
    /// too.
    pub fn layers_of_images(&self) -> Vec<Arc<Layer>> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let slot = |slot: &u32| contents.slots.get(*slot as usize);
        let trees = contents.images.values().filter_map(slot);
        let layers = trees.filter_map(|slot| match slot {
            Slot::Tree(tree) => Some(tree.layers()),
            _ => None,
        });
        let layer = |number: u32| match contents.slots.get(number as usize) {
            Some(Slot::Layer(shown)) => Some(shown.layer.clone()),
            _ => None,
        };
        layers.flatten().filter_map(layer).collect()
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

    /// Counts a look-up of `node`, before the kernel is answered with it. Nodes of slot 0 never go.
    fn tell(&self, node: NodeId) {
        if let Some(lookups) = self.lookups.as_ref().filter(|_| node.slot() != 0) {
            lookups.add(node.slot());
        }
    }

    /// Takes back `count` look-ups of `node`: the kernel has forgotten them.
    pub fn forget(&self, node: NodeId, count: u64) {
        if let Some(lookups) = self.lookups.as_ref().filter(|_| node.slot() != 0) {
            lookups.take(node.slot(), count);
        }
    }

    /// Whether the kernel knows no node in `slot`, for certain.
    fn is_forgotten(&self, slot: u32) -> bool {
        self.lookups.as_ref().is_some_and(|lookups| lookups.is_forgotten(slot))
    }

    /// Looks up `name` in `parent`. What is found counts as known to the kernel until it is
    /// [forgotten](Self::forget).
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
        if let Some(attr) = &found {
            self.tell(attr.node);
        }
        Ok(found.map_or(Lookup::Absent, Lookup::Found))
    }

    fn lookup_listed(&self, listing: NodeId, name: &[u8]) -> Result<Lookup, ViewError> {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_hex(name)) else {
            return Ok(Lookup::Absent);
        };
        let node = {
            let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
            let Some(&slot) = contents.listing(listing).get(name) else {
                return Ok(Lookup::AbsentYet);
            };
            // Counted under the lock: nobody can hide and drop the layer in between.
            let node = NodeId::new(slot, 0);
            self.tell(node);
            node
        };
        let found = self.getattr(node).map(Lookup::Found);
        found.inspect_err(|_| self.forget(node, 1))
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

    /// The target of the symbolic link `node`.
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

    /// Passes the entries of `directory` from `offset` on to `emit`, until it returns true because
    /// its buffer is full. `.` and `..` are the first two, at offsets 0 and 1.
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
            let attr = match self.getattr(node) {
                Err(ViewError::Stale(_)) => continue,
                attr => attr?,
            };
            if emit(name.as_bytes(), attr) {
                break;
            }
        }
        Ok(())
    }

    /// Like [`Self::readdir`], for READDIRPLUS: the kernel takes all entries for looked up, except
    /// `.` and `..`.
    ///
    /// # Errors
    /// Those of [`Self::readdir`].
    pub fn readdirplus(
        &self,
        directory: NodeId,
        offset: u64,
        mut emit: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), ViewError> {
        self.readdir(directory, offset, |entry| {
            let node = entry.attr.node;
            if matches!(entry.name, b"." | b"..") {
                return emit(entry);
            }
            self.tell(node);
            // Listed a moment ago, a layer may have been dropped before it was counted.
            if directory.is_listing() && self.getattr(node).is_err() {
                self.forget(node, 1);
                return false;
            }
            let is_full = emit(entry);
            if is_full {
                self.forget(node, 1);
            }
            is_full
        })
    }

    /// The entries of a directory that belongs to no image or layer.
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
        answer: impl FnOnce(&[Xattr<'_>]) -> T,
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
}
