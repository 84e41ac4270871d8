//! Which slot of nodeids belongs to which layer or image, for as long as a mount lives.
//!
//! A file in the runtime directory, one line a slot, appended before the slot is used:
//!
//! ```text
//! layer sha256:<digest of the tree file>      slot 1
//! image sha256:<name of the image view>       slot 2
//! gone 2                                      slots 3 and 4, which were given up
//! view sha256:<name of the layer view>        slot 5
//! ...
//! ```
//!
//! A worker that takes over a mount reads the file and gives everything the slot that the kernel
//! knows. Slot 0 is that of the root, the two lists and the whiteout.
//!
//! A slot that was given up is never used again, even though the kernel has forgotten it: there are
//! four billion of them. If the kernel had not forgotten it after all, it is told that the node is
//! gone, rather than shown the files of another layer.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use crate::digest::Digest;
use crate::fill::Layer;
use crate::line_log::LineLog;

/// The owner of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotName {
    /// The files of a layer, by the digest of its tree file, which numbers their inodes.
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
    /// Those of reading, and `InvalidData` where a line is not a slot.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (log, lines) = LineLog::open(path)?;
        let mut table = Self { log, slots: HashMap::new(), next: 1 };
        for line in lines.lines() {
            table.read(line).ok_or_else(|| {
                let message = format!("{}: `{line}` is not a slot", path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
        }
        Ok(table)
    }

    fn read(&mut self, line: &str) -> Option<()> {
        let slots = match line.strip_prefix("gone ") {
            Some(slots) => slots.parse().ok()?,
            None => {
                self.slots.insert(parse(line)?, self.next);
                1
            }
        };
        self.next = self.next.checked_add(slots)?;
        Some(())
    }

    /// The slot of `name`: the one that it has, or else the next free one, which is written down
    /// when this returns.
    ///
    /// # Errors
    /// Those of writing, and one where no slot is left.
    pub fn slot(&mut self, name: SlotName) -> io::Result<u32> {
        if let Some(&slot) = self.slots.get(&name) {
            return Ok(slot);
        }
        let next = self.next.checked_add(1).ok_or_else(|| io::Error::other("no slot is left"))?;
        self.log.append(&line(name))?;
        let slot = std::mem::replace(&mut self.next, next);
        self.slots.insert(name, slot);
        Ok(slot)
    }

    /// The slot of `name`, if it has one.
    pub fn known(&self, name: &SlotName) -> Option<u32> {
        self.slots.get(name).copied()
    }

    /// Gives up the slots of `names`, in which the kernel knows no node any more.
    ///
    /// # Errors
    /// Those of writing; the names keep their slots then.
    pub fn give_up(&mut self, names: &[SlotName]) -> io::Result<()> {
        let mut left = self.slots.clone();
        left.retain(|name, _| !names.contains(name));
        self.log.replace(&lines(&left, self.next))?;
        self.slots = left;
        Ok(())
    }
}

/// The log of a table whose next slot is `next`.
fn lines(slots: &HashMap<SlotName, u32>, next: u32) -> Vec<String> {
    let by_slot: BTreeMap<u32, SlotName> =
        slots.iter().map(|(name, slot)| (*slot, *name)).collect();
    let mut lines = Vec::new();
    let mut expected = 1;
    for (slot, text) in
        by_slot.into_iter().map(|(slot, name)| (slot, Some(line(name)))).chain([(next, None)])
    {
        if slot > expected {
            lines.push(format!("gone {}", slot - expected));
        }
        lines.extend(text);
        expected = slot.saturating_add(1);
    }
    lines
}

fn line(name: SlotName) -> String {
    match name {
        SlotName::Layer { tree } => format!("layer {tree}"),
        SlotName::Image { name } => format!("image {name}"),
        SlotName::View { name } => format!("view {name}"),
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
    fn a_slot_that_was_given_up_is_never_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let name = |n: u32| SlotName::View { name: Digest::of(&n.to_le_bytes()) };
        let mut table = SlotTable::open(&path).unwrap();
        for n in 1..=5 {
            assert_eq!(table.slot(name(n)).unwrap(), n);
        }
        table.give_up(&[name(2), name(3), name(5)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let kinds = text.lines().map(|line| line.split(' ').next().unwrap());
        assert!(kinds.eq(["view", "gone", "view", "gone"]), "{text}");
        assert_eq!(table.slot(name(5)).unwrap(), 6);
        drop(table);
        let mut table = SlotTable::open(&path).unwrap();
        let slots = [4, 5, 1, 2].map(|n| table.slot(name(n)).unwrap());
        assert_eq!(slots, [4, 6, 1, 7]);
        table.give_up(&[1, 2, 4, 5].map(name)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "gone 7\n");
        assert_eq!(SlotTable::open(&path).unwrap().slot(name(1)).unwrap(), 8);
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        for line in ["layer sha256:12", "gone", "gone -1", "gone 4294967295"] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            let error = SlotTable::open(&path).err().unwrap();
            assert!(error.to_string().contains("is not a slot"), "{error}");
        }
    }
}
