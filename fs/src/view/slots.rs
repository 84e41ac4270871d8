//! Which nodeids belong to which layer or image, for as long as a mount lives.
//!
//! A file in the runtime directory, one line a slot, appended before the slot is used:
//!
//! ```text
//! layer sha256:<digest of the tree file>      slot 1
//! image sha256:<name of the image view>       slot 2
//! view sha256:<name of the layer view>        slot 3
//! ...
//! ```
//!
//! A worker that takes over a mount reads it back and gives everything the slot that the kernel
//! knows. Slot 0 is the root's.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use crate::digest::Digest;
use crate::fill::Layer;
use crate::line_log::LineLog;

/// Who has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotName {
    /// A layer, by the digest of its tree file: the numbers of inodes are that file's.
    Layer {
        /// The digest.
        tree: Digest,
    },
    /// The directories of an image, whose numbers depend on the trees of all of its layers.
    Image {
        /// Its name in the view.
        name: Digest,
    },
    /// The directories of a layer as overlayfs sees it.
    View {
        /// Its name.
        name: Digest,
    },
}

impl SlotName {
    /// The slot of the files of `layer`.
    pub fn layer(layer: &Layer) -> Self {
        Self::Layer { tree: layer.tree_digest() }
    }
}

/// The slots of a mount.
pub struct SlotTable {
    log: LineLog,
    slots: HashMap<SlotName, u32>,
    next: u32,
}

impl SlotTable {
    /// Opens the table at `path`, or makes an empty one.
    ///
    /// # Errors
    /// Those of reading, and `InvalidData` for lines that are none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (log, lines) = LineLog::open(path)?;
        let mut table = Self { log, slots: HashMap::new(), next: 1 };
        for line in lines.lines() {
            let name = parse(line).ok_or_else(|| {
                let message = format!("{}: `{line}` is not a slot", path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            table.slots.insert(name, table.next);
            table.next += 1;
        }
        Ok(table)
    }

    /// The slot of `name`, the next free one where it has none yet.
    ///
    /// # Errors
    /// Those of writing.
    pub fn slot(&mut self, name: SlotName) -> io::Result<u32> {
        if let Some(&slot) = self.slots.get(&name) {
            return Ok(slot);
        }
        let line = match name {
            SlotName::Layer { tree } => format!("layer {tree}"),
            SlotName::Image { name } => format!("image {name}"),
            SlotName::View { name } => format!("view {name}"),
        };
        self.log.append(&line)?;
        let slot = self.next;
        self.slots.insert(name, slot);
        self.next += 1;
        Ok(slot)
    }
}

fn parse(line: &str) -> Option<SlotName> {
    match line.split_once(' ')? {
        ("layer", digest) => Some(SlotName::Layer { tree: digest.parse().ok()? }),
        ("image", name) => Some(SlotName::Image { name: name.parse().ok()? }),
        ("view", name) => Some(SlotName::View { name: name.parse().ok()? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let layer = SlotName::Layer { tree: Digest::of(b"tree") };
        let image = SlotName::Image { name: Digest::of(b"image") };
        let mut table = SlotTable::open(&path).unwrap();
        assert_eq!((table.slot(layer).unwrap(), table.slot(image).unwrap()), (1, 2));
        assert_eq!(table.slot(layer).unwrap(), 1);
        drop(table);
        let mut table = SlotTable::open(&path).unwrap();
        assert_eq!((table.slot(image).unwrap(), table.slot(layer).unwrap()), (2, 1));
        let view = SlotName::View { name: Digest::of(b"view") };
        assert_eq!(table.slot(view).unwrap(), 3);
        drop(table);
        assert_eq!(SlotTable::open(&path).unwrap().slot(view).unwrap(), 3);
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        std::fs::write(&path, "layer sha256:12\n").unwrap();
        let error = SlotTable::open(&path).err().unwrap();
        assert!(error.to_string().contains("is not a slot"), "{error}");
    }
}
