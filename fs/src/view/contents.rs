//! What a view holds at the moment: which image, layer or layer view is in which slot.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Attr, NodeId, ViewError};
use crate::fill::Layer;
use crate::index::{IndexError, InodeRecord, Xattr};

/// The directories of an image or of a layer view: one slot. Nodes that are passed in are
/// directories of that slot, though their number may be anything.
pub trait Directories: Send + Sync {
    /// The attributes of a directory.
    fn attr(&self, directory: NodeId) -> Result<Attr, ViewError>;

    /// The attributes of what a directory holds under `name`; `None` where it has no such entry.
    fn find(&self, directory: NodeId, name: &[u8]) -> Result<Option<Attr>, ViewError>;

    /// Passes the entries of a directory to `emit`, except for the first `skip`, until it returns
    /// true.
    fn list(
        &self,
        directory: NodeId,
        skip: usize,
        emit: &mut dyn FnMut(&[u8], Attr) -> bool,
    ) -> Result<(), ViewError>;

    /// The directory that holds a directory.
    fn parent(&self, directory: NodeId) -> Result<NodeId, ViewError>;

    /// The extended attributes of a directory.
    fn xattrs(&self, directory: NodeId) -> Result<Vec<Xattr<'_>>, ViewError>;

    /// The slots of the layers whose files these directories show.
    fn layers(&self) -> Vec<u32>;
}

/// The content of a slot.
pub enum Slot {
    /// Nothing: never used in this process, or taken away since.
    Empty,
    /// The files of a layer.
    Layer(Shown),
    /// The directories of an image or of a layer view.
    Tree(Arc<dyn Directories>),
}

/// A layer whose files are shown.
#[derive(Clone)]
pub struct Shown {
    pub layer: Arc<Layer>,
    /// How many names each of its files has in upper layers of some image, by inode: they count as
    /// links.
    pub extra_links: Arc<HashMap<u32, u32>>,
}

impl Shown {
    /// The attributes of an inode of the layer in `slot`.
    pub fn attr(&self, slot: u32, inode: u32) -> Result<Attr, ViewError> {
        let record = self.layer.tree.inode(inode).map_err(failed(&self.layer))?;
        let extra_links = self.extra_links.get(&inode).copied().unwrap_or(0);
        Ok(inode_attr(NodeId::new(slot, inode), record, extra_links))
    }
}

/// The slots of a view.
#[derive(Default)]
pub struct Contents {
    pub slots: Vec<Slot>,
    /// Slot of each image by its name.
    pub images: BTreeMap<String, u32>,
    /// Slot of each layer view by its name.
    pub layers: BTreeMap<String, u32>,
}

impl Contents {
    /// The entries of `/images` or `/layers`, the directories of [`NodeId::is_listing`].
    pub fn listing(&self, directory: NodeId) -> &BTreeMap<String, u32> {
        if directory == NodeId::LAYERS { &self.layers } else { &self.images }
    }

    /// Whether anything is in a slot.
    pub fn is_taken(&self, slot: u32) -> bool {
        !matches!(self.slots.get(slot as usize), None | Some(Slot::Empty))
    }

    /// How many images and views show the files of the layer in `slot`.
    pub fn users(&self, slot: u32) -> usize {
        let shows =
            |other: &&Slot| matches!(other, Slot::Tree(tree) if tree.layers().contains(&slot));
        self.slots.iter().filter(shows).count()
    }

    /// Puts `content` into a slot.
    pub fn put(&mut self, slot: u32, content: Slot) {
        let index = slot as usize;
        while self.slots.len() <= index {
            self.slots.push(Slot::Empty);
        }
        self.slots[index] = content;
    }

    /// Shows the files of a layer in a slot, and returns what is shown. If a layer is shown there
    /// already it stays, and its bytes can then be fetched in the name of the new one, too.
    pub fn share_layer(&mut self, slot: u32, new: Shown) -> Shown {
        if let Some(Slot::Layer(shown)) = self.slots.get(slot as usize) {
            shown.layer.prefer(&new.layer.scope());
            return shown.clone();
        }
        self.put(slot, Slot::Layer(new.clone()));
        new
    }

    /// Empties the slots of layers that nothing shows.
    pub fn drop_unused_layers(&mut self) {
        let used: Vec<u32> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Tree(tree) => Some(tree.layers()),
                _ => None,
            })
            .flatten()
            .collect();
        for (number, slot) in (0..).zip(&mut self.slots) {
            if matches!(slot, Slot::Layer(_)) && !used.contains(&number) {
                *slot = Slot::Empty;
            }
        }
    }
}

/// The size of every directory, in bytes, as most file systems show it.
const DIRECTORY_SIZE: u64 = 4096;

/// The attributes of an inode with `extra_links` names in upper layers.
pub fn inode_attr(node: NodeId, inode: &InodeRecord, extra_links: u32) -> Attr {
    Attr {
        node,
        mode: inode.mode.get(),
        uid: inode.uid.get(),
        gid: inode.gid.get(),
        nlink: inode.nlink.get().saturating_add(extra_links),
        size: inode.size.get(),
        mtime: (inode.mtime.get(), inode.mtime_nanos.get()),
        rdev: inode.rdev.get(),
    }
}

/// The attributes of a directory with `nlink` links whose metadata is that of `inode`.
pub fn directory_attr(node: NodeId, inode: &InodeRecord, nlink: u32) -> Attr {
    Attr { nlink, size: DIRECTORY_SIZE, ..inode_attr(node, inode, 0) }
}

/// The attributes of a directory that belongs to no image or layer.
pub fn synthetic(node: NodeId, nlink: u32) -> Attr {
    let mode = libc::S_IFDIR | 0o755;
    Attr { node, mode, uid: 0, gid: 0, nlink, size: DIRECTORY_SIZE, mtime: (0, 0), rdev: 0 }
}

/// The attributes of a whiteout of overlayfs: a character device 0:0.
pub fn whiteout_attr() -> Attr {
    Attr { mode: libc::S_IFCHR, size: 0, ..synthetic(NodeId::WHITEOUT, 1) }
}

/// An error about the index of `layer`.
pub fn failed(layer: &Arc<Layer>) -> impl Fn(IndexError) -> ViewError + use<> {
    let layer = layer.digest();
    move |source| ViewError::Index { layer, source }
}
