//! One pass over the layers, directory by directory: what the image shows of them.

use std::collections::{HashMap, VecDeque};

use super::heads::{Candidate, Heads};
use super::links::LowerLinks;
use super::stack::{Part, Stack};
use super::{DIRECTORY, ImageTree, MergedDirectory, MergedEntry, Target, TreeError};
use crate::index::{DirectoryEntry, EntryKind, IndexError};

/// The merge in progress.
pub(super) struct Merge {
    layers: Stack,
    tree: ImageTree,
    /// Directories that were reached, by layer and inode: a second time means a damaged index,
    /// and would never end.
    visited: Vec<Vec<bool>>,
    /// Entries that were merged, by layer: more than there are means that directories share them,
    /// and could stand for a tree that no memory holds.
    merged: Vec<usize>,
    /// Directories whose entries are still to be merged, with their parts, the topmost first.
    queue: VecDeque<(u32, Vec<Part>)>,
    links: LowerLinks,
}

impl Merge {
    pub fn new(layers: Stack) -> Self {
        let trees = layers.trees();
        let tree = ImageTree {
            layers: layers.clone(),
            directories: Vec::new(),
            entries: Vec::new(),
            extra_links: vec![HashMap::new(); trees.len()],
        };
        Self {
            tree,
            visited: trees.iter().map(|layer| vec![false; layer.inodes().len()]).collect(),
            merged: vec![0; trees.len()],
            queue: VecDeque::new(),
            links: LowerLinks::new(layers.clone()),
            layers,
        }
    }

    pub fn run(mut self) -> Result<ImageTree, TreeError> {
        let roots = self.layers.roots(self.layers.trees().len() as u16);
        self.push_directory(roots, 0)?;
        while let Some((number, parts)) = self.queue.pop_front() {
            self.merge_directory(number, &parts)?;
        }
        Ok(self.tree)
    }

    /// Adds a directory made of `parts`, at least one, whose entries are merged later.
    fn push_directory(&mut self, parts: Vec<Part>, parent: u32) -> Result<u32, TreeError> {
        for &part in &parts {
            let seen = self.visited[usize::from(part.layer)].get_mut(part.inode as usize);
            if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
                return Err(self.damaged(part.layer, "a directory is reached twice"));
            }
        }
        let metadata = self.metadata(&parts)?;
        let number = count(self.tree.directories.len(), "directories")?;
        self.tree.directories.push(MergedDirectory {
            layer: metadata.layer,
            inode: metadata.inode,
            parent,
            first: 0,
            count: 0,
            subdirectories: 0,
        });
        self.queue.push_back((number, parts));
        Ok(number)
    }

    /// Which of the `parts` of a directory it has its metadata from: the topmost that is listed.
    fn metadata(&self, parts: &[Part]) -> Result<Part, TreeError> {
        for &part in parts {
            if !self.layers.is_implicit(part)? {
                return Ok(part);
            }
        }
        Ok(parts[0])
    }

    fn damaged(&self, layer: u16, what: &'static str) -> TreeError {
        self.layers.failed(layer)(IndexError::Damaged { kind: "tree", what })
    }

    fn merge_directory(&mut self, number: u32, parts: &[Part]) -> Result<(), TreeError> {
        let layers = self.layers.clone();
        let mut heads = Heads::default();
        for &part in parts {
            let entries = self.entries(&layers, part)?;
            let added = heads.add(layers.tree(part.layer), part.layer, entries);
            added.map_err(|(layer, source)| layers.failed(layer)(source))?;
        }
        let first = count(self.tree.entries.len(), "directory entries")?;
        let mut subdirectories = 0;
        let mut same_name = Vec::new();
        while heads.next(&mut same_name).map_err(|(layer, source)| layers.failed(layer)(source))? {
            let Some(target) = self.resolve(&same_name, number)? else { continue };
            subdirectories += u32::from(matches!(target, Target::Directory(_)));
            self.push_entry(&same_name[0], target);
        }
        let merged = &mut self.tree.directories[number as usize];
        merged.first = first;
        merged.count = count(self.tree.entries.len(), "directory entries")? - first;
        merged.subdirectories = subdirectories;
        Ok(())
    }

    /// The entries of `part`, which must not be those of another directory as well.
    fn entries<'a>(
        &mut self,
        layers: &'a Stack,
        part: Part,
    ) -> Result<&'a [DirectoryEntry], TreeError> {
        let (layer, failed) = (layers.tree(part.layer), layers.failed(part.layer));
        let directory = layer.inode(part.inode).map_err(&failed)?;
        let entries = layer.entries(directory).map_err(&failed)?;
        let merged = &mut self.merged[usize::from(part.layer)];
        *merged += entries.len();
        if *merged > layer.entry_count() {
            return Err(self.damaged(part.layer, "directories share entries"));
        }
        Ok(entries)
    }

    fn push_entry(&mut self, named: &Candidate<'_>, target: Target) {
        let (layer, number) = match target {
            Target::Directory(number) => (DIRECTORY, number),
            Target::Leaf { layer, inode } => (layer, inode),
        };
        self.tree.entries.push(MergedEntry {
            name: named.entry.name.get(),
            name_length: named.entry.name_length.get(),
            name_layer: named.layer,
            layer,
            number,
        });
    }

    /// What is visible of entries with one name, the topmost first.
    fn resolve(
        &mut self,
        candidates: &[Candidate<'_>],
        parent: u32,
    ) -> Result<Option<Target>, TreeError> {
        let mut directories = Vec::new();
        for candidate in candidates {
            let part = Part { layer: candidate.layer, inode: candidate.entry.inode.get() };
            let kind = self.layers.tree(part.layer).kind(candidate.entry);
            let kind = kind.map_err(self.layers.failed(part.layer))?;
            if kind == EntryKind::Inode && self.layers.is_directory(part)? {
                directories.push(part);
                if self.layers.is_opaque(part)? {
                    break;
                }
            } else if directories.is_empty() {
                return self.leaf(part, kind);
            } else {
                break;
            }
        }
        self.push_directory(directories, parent).map(|number| Some(Target::Directory(number)))
    }

    /// What is visible of an entry that is no directory.
    fn leaf(&mut self, part: Part, kind: EntryKind) -> Result<Option<Target>, TreeError> {
        match kind {
            EntryKind::Whiteout => Ok(None),
            EntryKind::Inode => Ok(Some(Target::Leaf { layer: part.layer, inode: part.inode })),
            EntryKind::LowerLink => {
                let target = self.links.target(part)?;
                if let Target::Leaf { layer, inode } = target {
                    *self.tree.extra_links[usize::from(layer)].entry(inode).or_default() += 1;
                }
                Ok(Some(target))
            }
        }
    }
}

fn count(number: usize, what: &'static str) -> Result<u32, TreeError> {
    u32::try_from(number).map_err(|_| TreeError::TooLarge { what })
}
