//! Layers merged to the tree of an image.
//!
//! Overlayfs does this at every look-up; here it is done once, when an image is mounted. What a
//! merged directory needs is small: where its metadata comes from and a sorted run of entries,
//! each a name in some layer and a target. Files stay in their layers, so that images that share
//! a layer share its inodes.
//!
//! The order is breadth first and depends only on the layers: numbers are the same after every
//! restart.

mod heads;
mod links;
mod merge;
mod stack;

use std::collections::HashMap;
use std::sync::Arc;

use self::merge::Merge;
use self::stack::Stack;
use crate::digest::Digest;
use crate::index::{DirectoryEntry, IndexError, InodeRecord, LayerTree};

/// overlayfs takes 500 layers, and so do we.
const LAYERS_MAX: usize = 500;

/// Entries that the layers of an image may have together. A layer that is there hundreds of times
/// costs its registry nothing, and merging it minutes.
const NAMES_MAX: usize = 1 << 26;

/// Marks a [`MergedEntry`] that is a directory.
const DIRECTORY: u16 = u16::MAX;

/// Layers that do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The index of a layer is damaged.
    #[error("index of layer {layer}")]
    Index {
        /// The layer blob.
        layer: Digest,
        /// What is wrong.
        source: IndexError,
    },
    /// A hard link names a file that no lower layer has.
    #[error(
        "layer {layer}: hard link to `{}`, which neither it nor a layer below has",
        .target.escape_ascii()
    )]
    LowerLink {
        /// The layer blob.
        layer: Digest,
        /// What the link names.
        target: Vec<u8>,
    },
    /// There is nothing to be a root.
    #[error("the image has no layers")]
    Empty,
    /// More layers, directories or entries than the tree can count.
    #[error("the image has too many {what}")]
    TooLarge {
        /// What there are too many of.
        what: &'static str,
    },
}

/// Something in a merged tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The merged directory with this number.
    Directory(u32),
    /// An inode of a layer that is not a directory.
    Leaf {
        /// Which layer, 0 the lowest.
        layer: u16,
        /// The inode in it.
        inode: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct MergedDirectory {
    /// Where the metadata comes from.
    layer: u16,
    inode: u32,
    parent: u32,
    first: u32,
    count: u32,
    subdirectories: u32,
}

/// 16 bytes an entry.
#[derive(Debug, Clone, Copy)]
struct MergedEntry {
    name: u32,
    number: u32,
    name_length: u16,
    name_layer: u16,
    /// The layer of a leaf, [`DIRECTORY`] for a directory.
    layer: u16,
}

/// The tree of an image. Directory 0 is the root.
pub struct ImageTree {
    layers: Stack,
    directories: Vec<MergedDirectory>,
    entries: Vec<MergedEntry>,
    /// How many names upper layers give to the files of each layer, by inode.
    extra_links: Vec<HashMap<u32, u32>>,
}

impl ImageTree {
    /// Merges `layers`, the lowest first.
    ///
    /// # Errors
    /// [`TreeError`] where an index is damaged or a hard link leads nowhere.
    pub fn merge(layers: Vec<Arc<LayerTree>>) -> Result<Self, TreeError> {
        match layers.iter().map(|layer| layer.entry_count()).sum::<usize>() {
            _ if layers.is_empty() => return Err(TreeError::Empty),
            _ if layers.len() > LAYERS_MAX => return Err(TreeError::TooLarge { what: "layers" }),
            0..=NAMES_MAX => {}
            _ => return Err(TreeError::TooLarge { what: "names in its layers" }),
        }
        Merge::new(Stack::new(layers)).run()
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Arc<LayerTree>] {
        self.layers.trees()
    }

    /// Whether there is a directory with this number.
    pub fn has_directory(&self, number: u32) -> bool {
        (number as usize) < self.directories.len()
    }

    fn directory(&self, number: u32) -> Option<&MergedDirectory> {
        self.directories.get(number as usize)
    }

    /// The inode that a directory takes its metadata from, and its layer.
    pub fn metadata(&self, directory: u32) -> Option<(&Arc<LayerTree>, &InodeRecord)> {
        let directory = self.directory(directory)?;
        let layer = self.layers().get(usize::from(directory.layer))?;
        Some((layer, layer.inode(directory.inode).ok()?))
    }

    /// 2 and the subdirectories of a directory.
    pub fn links(&self, directory: u32) -> Option<u32> {
        self.directory(directory).map(|directory| 2 + directory.subdirectories)
    }

    /// How many names the inodes of `layer` have in upper layers, for those that have any.
    pub fn extra_links(&self, layer: u16) -> HashMap<u32, u32> {
        self.extra_links.get(usize::from(layer)).cloned().unwrap_or_default()
    }

    /// The directory that holds a directory; the root holds itself.
    pub fn parent(&self, directory: u32) -> Option<u32> {
        self.directory(directory).map(|directory| directory.parent)
    }

    fn entries(&self, directory: u32) -> &[MergedEntry] {
        let run = self.directory(directory).and_then(|directory| {
            self.entries.get(directory.first as usize..)?.get(..directory.count as usize)
        });
        run.unwrap_or_default()
    }

    /// The entries of a directory from the `skip`th on, by name.
    pub fn list(
        &self,
        directory: u32,
        skip: usize,
    ) -> impl Iterator<Item = (&[u8], Target)> + use<'_> {
        self.entries(directory)
            .get(skip..)
            .unwrap_or_default()
            .iter()
            .map(|entry| (self.name(entry), target(entry)))
    }

    /// What a directory holds under `name`.
    pub fn find(&self, directory: u32, name: &[u8]) -> Option<Target> {
        let entries = self.entries(directory);
        let index = entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        Some(target(&entries[index]))
    }

    fn name(&self, entry: &MergedEntry) -> &[u8] {
        let record = DirectoryEntry {
            inode: 0.into(),
            name: entry.name.into(),
            name_length: entry.name_length.into(),
            kind: 0,
            reserved: 0,
        };
        let layer = self.layers.tree(entry.name_layer);
        layer.name(&record).expect("the name was read when the tree was merged")
    }
}

fn target(entry: &MergedEntry) -> Target {
    match entry.layer {
        DIRECTORY => Target::Directory(entry.number),
        layer => Target::Leaf { layer, inode: entry.number },
    }
}
