//! The entries of one directory in several layers, name by name.
//!
//! Each layer has its entries in order, so that only the next one of each has to be looked at: a
//! directory of a million names in hundreds of layers takes no more memory than a small one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::index::{DirectoryEntry, IndexError, LayerTree};

/// An entry of one of the layers.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its layer, 0 the lowest.
    pub layer: u16,
    /// What the name stands for there.
    pub entry: &'a DirectoryEntry,
}

/// What one layer has left.
struct Part<'a> {
    tree: &'a LayerTree,
    layer: u16,
    left: &'a [DirectoryEntry],
}

impl<'a> Part<'a> {
    /// The next entry. Names that do not ascend are damage: no look-up would find them.
    fn next(&mut self, before: &[u8]) -> Result<Option<Candidate<'a>>, IndexError> {
        let Some((entry, left)) = self.left.split_first() else { return Ok(None) };
        self.left = left;
        let name = self.tree.name(entry)?;
        if name <= before {
            let what = "the names of a directory are out of order";
            return Err(IndexError::Damaged { kind: "tree", what });
        }
        Ok(Some(Candidate { name, layer: self.layer, entry }))
    }
}

/// The entries of all layers.
#[derive(Default)]
pub struct Heads<'a> {
    parts: Vec<Part<'a>>,
    /// The next entry of each part.
    heads: Vec<Option<Candidate<'a>>>,
    /// Its name and the number of the part, the smallest first.
    order: BinaryHeap<Reverse<(&'a [u8], usize)>>,
}

/// A damaged index, and its layer.
pub type Damage = (u16, IndexError);

impl<'a> Heads<'a> {
    /// Adds the entries that `layer`, below all that were added, has.
    ///
    /// # Errors
    /// Damage in the index of the layer.
    pub fn add(
        &mut self,
        tree: &'a LayerTree,
        layer: u16,
        left: &'a [DirectoryEntry],
    ) -> Result<(), Damage> {
        self.parts.push(Part { tree, layer, left });
        self.heads.push(None);
        self.advance(self.parts.len() - 1, b"")
    }

    /// Takes the entries with the next name, the topmost first, in place of what `same_name`
    /// holds; `false` at the end.
    ///
    /// # Errors
    /// Damage in the index of one of the layers.
    pub fn next(&mut self, same_name: &mut Vec<Candidate<'a>>) -> Result<bool, Damage> {
        same_name.clear();
        while let Some(&Reverse((name, part))) = self.order.peek() {
            if same_name.first().is_some_and(|first| first.name != name) {
                break;
            }
            self.order.pop();
            same_name.extend(self.heads[part].take());
            self.advance(part, name)?;
        }
        Ok(!same_name.is_empty())
    }

    fn advance(&mut self, part: usize, before: &[u8]) -> Result<(), Damage> {
        let layer = self.parts[part].layer;
        self.heads[part] = self.parts[part].next(before).map_err(|source| (layer, source))?;
        self.order.extend(self.heads[part].map(|head| Reverse((head.name, part))));
        Ok(())
    }
}
