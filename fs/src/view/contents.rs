//! What a view holds at the moment: slots, and who is in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Attr, NodeId, ViewError};
use crate::fill::Layer;
use crate::index::{IndexError, InodeRecord};
use crate::tree::{ImageTree, Target};

/// An image in a view.
pub struct Image {
    pub tree: ImageTree,
    pub layers: Vec<(u32, Shown)>,
}

/// Who has a slot.
pub enum Slot {
    /// Nothing, or an image that was taken away.
    Empty,
    /// A layer.
    Layer(Shown),
    /// An image.
    Image(Arc<Image>),
}

/// A layer that images show.
#[derive(Clone)]
pub struct Shown {
    pub layer: Arc<Layer>,
    /// Names of its files in upper layers of some image, by inode: they count as links.
    pub extra_links: Arc<HashMap<u32, u32>>,
}

/// The slots of a view.
#[derive(Default)]
pub struct Contents {
    pub slots: Vec<Slot>,
    /// Slot of each image by the digest of its manifest.
    pub images: BTreeMap<String, u32>,
}

impl Contents {
    /// Puts `content` into a slot.
    pub fn put(&mut self, slot: u32, content: Slot) {
        let index = slot as usize;
        while self.slots.len() <= index {
            self.slots.push(Slot::Empty);
        }
        self.slots[index] = content;
    }

    /// Shows a layer in a slot, or what is shown there already.
    pub fn share_layer(&mut self, slot: u32, new: Shown) -> Shown {
        if let Some(Slot::Layer(shown)) = self.slots.get(slot as usize) {
            return shown.clone();
        }
        self.put(slot, Slot::Layer(new.clone()));
        new
    }

    /// Empties the slots of layers that no image shows.
    pub fn drop_unused_layers(&mut self) {
        let used: Vec<u32> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Image(image) => Some(image.layers.iter().map(|(slot, _)| *slot)),
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

impl Image {
    /// The attributes of what an entry of `directory` stands for.
    pub fn attr(&self, directory: NodeId, target: Target) -> Result<Attr, ViewError> {
        match target {
            Target::Directory(number) => {
                self.directory_attr(NodeId::new(directory.slot(), number), number)
            }
            Target::Leaf { layer, inode } => {
                let (slot, shown) =
                    self.layers.get(usize::from(layer)).ok_or(ViewError::Stale(directory))?;
                let record = shown.layer.tree.inode(inode).map_err(failed(&shown.layer))?;
                let extra_links = shown.extra_links.get(&inode).copied().unwrap_or(0);
                Ok(inode_attr(NodeId::new(*slot, inode), record, extra_links))
            }
        }
    }

    /// The attributes of a directory.
    pub fn directory_attr(&self, node: NodeId, number: u32) -> Result<Attr, ViewError> {
        let (_, inode) = self.tree.metadata(number).ok_or(ViewError::Stale(node))?;
        let nlink = self.tree.links(number).ok_or(ViewError::Stale(node))?;
        Ok(Attr { nlink, size: DIRECTORY_SIZE, ..inode_attr(node, inode, 0) })
    }
}

/// Directories have the size that most file systems give them.
const DIRECTORY_SIZE: u64 = 4096;

/// The number of a directory of `image`.
pub fn directory_number(image: &Image, node: NodeId) -> Result<u32, ViewError> {
    node.number().filter(|&number| image.tree.has_directory(number)).ok_or(ViewError::Stale(node))
}

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

/// The attributes of a directory that no image has.
pub fn synthetic(node: NodeId, nlink: u32) -> Attr {
    Attr {
        node,
        mode: libc::S_IFDIR | 0o755,
        uid: 0,
        gid: 0,
        nlink,
        size: DIRECTORY_SIZE,
        mtime: (0, 0),
        rdev: 0,
    }
}

/// An error about the index of `layer`.
pub fn failed(layer: &Arc<Layer>) -> impl Fn(IndexError) -> ViewError + use<> {
    let layer = layer.digest();
    move |source| ViewError::Index { layer, source }
}
