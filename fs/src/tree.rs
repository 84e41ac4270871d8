//! Layers merged to the tree of an image.
//!
//! Overlayfs does this at every look-up; here it is done once, when an image is mounted. What a
//! merged directory needs is small: where its metadata comes from and a sorted run of entries,
//! each a name in some layer and a target. Files stay in their layers, so that images that share
//! a layer share its inodes.
//!
//! The order is breadth first and depends only on the layers: numbers are the same after every
//! restart.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::digest::Digest;
use crate::index::{DirectoryEntry, EntryKind, IndexError, InodeFlags, InodeRecord, LayerTree};
use crate::path::clean;

/// overlayfs takes 500 layers, and so do we.
const LAYERS_MAX: usize = 500;

/// Symbolic links followed on the way to the target of one hard link, as in path_resolution(7).
const LINKS_MAX: usize = 40;

/// Names that all such links of an image may add to the ways to the targets: what a hostile image
/// could make of more would take minutes.
const DETOUR_MAX: usize = 1 << 24;

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
    layers: Vec<Arc<LayerTree>>,
    directories: Vec<MergedDirectory>,
    entries: Vec<MergedEntry>,
    /// Names that upper layers give to files of lower ones, by layer and inode.
    extra_links: HashMap<(u16, u32), u32>,
}

/// A directory of one layer.
#[derive(Debug, Clone, Copy)]
struct Part {
    layer: u16,
    inode: u32,
}

impl ImageTree {
    /// Merges `layers`, the lowest first.
    ///
    /// # Errors
    /// [`TreeError`] where an index is damaged or a hard link leads nowhere.
    pub fn merge(layers: Vec<Arc<LayerTree>>) -> Result<Self, TreeError> {
        if layers.is_empty() || layers.len() > LAYERS_MAX {
            return Err(TreeError::TooLarge { what: "layers, or none" });
        }
        let visited = layers.iter().map(|layer| vec![false; layer.inodes().len()]).collect();
        let tree = Self {
            layers,
            directories: Vec::new(),
            entries: Vec::new(),
            extra_links: HashMap::new(),
        };
        let merged = vec![0; tree.layers.len()];
        let (queue, detour) = Default::default();
        Merge { tree, visited, merged, queue, detour }.run()
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Arc<LayerTree>] {
        &self.layers
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
        let layer = self.layers.get(usize::from(directory.layer))?;
        Some((layer, layer.inode(directory.inode).ok()?))
    }

    /// 2 and the subdirectories of a directory.
    pub fn links(&self, directory: u32) -> Option<u32> {
        self.directory(directory).map(|directory| 2 + directory.subdirectories)
    }

    /// How many names the inodes of `layer` have in upper layers: inode and number.
    pub fn extra_links(&self, layer: u16) -> impl Iterator<Item = (u32, u32)> + use<'_> {
        let of_layer = move |(&(of, inode), &links): (&(u16, u32), &u32)| {
            (of == layer).then_some((inode, links))
        };
        self.extra_links.iter().filter_map(of_layer)
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
        self.layers[usize::from(entry.name_layer)]
            .name(&record)
            .expect("the name was read when the tree was merged")
    }
}

fn target(entry: &MergedEntry) -> Target {
    match entry.layer {
        DIRECTORY => Target::Directory(entry.number),
        layer => Target::Leaf { layer, inode: entry.number },
    }
}

/// The merge in progress.
struct Merge {
    tree: ImageTree,
    /// Directories that were reached, by layer and inode: a second time means a damaged index,
    /// and would never end.
    visited: Vec<Vec<bool>>,
    /// Entries that were merged, by layer: more than there are means that directories share them,
    /// and could stand for a tree that no memory holds.
    merged: Vec<usize>,
    /// Directories whose entries are still to be merged, with their parts, the topmost first.
    queue: VecDeque<(u32, Vec<Part>)>,
    /// Names that symbolic links have added to the ways to the targets of hard links.
    detour: Cell<usize>,
}

/// An entry of one of the parts that make a directory.
struct Candidate<'a> {
    name: &'a [u8],
    layer: u16,
    entry: DirectoryEntry,
}

impl Merge {
    fn run(mut self) -> Result<ImageTree, TreeError> {
        let mut roots = Vec::new();
        for layer in (0..self.tree.layers.len() as u16).rev() {
            let part = Part { layer, inode: 0 };
            roots.push(part);
            if self.flags(part)? & InodeFlags::OPAQUE != 0 {
                break;
            }
        }
        self.push_directory(roots, 0)?;
        while let Some((number, parts)) = self.queue.pop_front() {
            self.merge_directory(number, &parts)?;
        }
        Ok(self.tree)
    }

    fn failed(&self, layer: u16) -> impl Fn(IndexError) -> TreeError + use<> {
        let layer = self.tree.layers[usize::from(layer)].header().layer;
        move |source| TreeError::Index { layer, source }
    }

    fn record(&self, part: Part) -> Result<InodeRecord, TreeError> {
        let layer = &self.tree.layers[usize::from(part.layer)];
        layer.inode(part.inode).copied().map_err(self.failed(part.layer))
    }

    fn flags(&self, part: Part) -> Result<u32, TreeError> {
        Ok(self.record(part)?.flags.get())
    }

    /// Adds a directory made of `parts`, whose entries are merged later.
    fn push_directory(&mut self, parts: Vec<Part>, parent: u32) -> Result<u32, TreeError> {
        let mut metadata = parts[0];
        for &part in &parts {
            let seen = self.visited[usize::from(part.layer)].get_mut(part.inode as usize);
            if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
                let what = "a directory is reached twice";
                return Err(self.failed(part.layer)(IndexError::Damaged { kind: "tree", what }));
            }
        }
        for &part in &parts {
            if self.flags(part)? & InodeFlags::IMPLICIT == 0 {
                metadata = part;
                break;
            }
        }
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

    fn merge_directory(&mut self, number: u32, parts: &[Part]) -> Result<(), TreeError> {
        let layers = self.tree.layers.clone();
        let mut candidates = Vec::new();
        for &part in parts {
            let layer = &layers[usize::from(part.layer)];
            let failed = self.failed(part.layer);
            let directory = layer.inode(part.inode).map_err(&failed)?;
            let entries = layer.entries(directory).map_err(&failed)?;
            let merged = &mut self.merged[usize::from(part.layer)];
            *merged += entries.len();
            if *merged > layer.entry_count() {
                let what = "directories share entries";
                return Err(failed(IndexError::Damaged { kind: "tree", what }));
            }
            for entry in entries {
                let name = layer.name(entry).map_err(&failed)?;
                candidates.push(Candidate { name, layer: part.layer, entry: *entry });
            }
        }
        // Stable: within a name the topmost layer stays first.
        candidates.sort_by(|a, b| a.name.cmp(b.name));
        let first = count(self.tree.entries.len(), "directory entries")?;
        let mut subdirectories = 0;
        for same_name in candidates.chunk_by(|a, b| a.name == b.name) {
            let Some(target) = self.resolve(same_name, number)? else { continue };
            subdirectories += u32::from(matches!(target, Target::Directory(_)));
            self.push_entry(&same_name[0], target);
        }
        let merged = &mut self.tree.directories[number as usize];
        merged.first = first;
        merged.count = count(self.tree.entries.len(), "directory entries")? - first;
        merged.subdirectories = subdirectories;
        Ok(())
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
        let mut parts = Vec::new();
        for candidate in candidates {
            let part = Part { layer: candidate.layer, inode: candidate.entry.inode.get() };
            let layer = &self.tree.layers[usize::from(part.layer)];
            let kind = layer.kind(&candidate.entry).map_err(self.failed(part.layer))?;
            if kind == EntryKind::Inode && self.is_directory(part)? {
                parts.push(part);
                if self.flags(part)? & InodeFlags::OPAQUE != 0 {
                    break;
                }
                continue;
            }
            if !parts.is_empty() || kind == EntryKind::Whiteout {
                break;
            }
            return match kind {
                EntryKind::LowerLink => {
                    let target = self.lower_link(part)?;
                    if let Target::Leaf { layer, inode } = target {
                        *self.tree.extra_links.entry((layer, inode)).or_default() += 1;
                    }
                    Ok(Some(target))
                }
                _ => Ok(Some(Target::Leaf { layer: part.layer, inode: part.inode })),
            };
        }
        if parts.is_empty() {
            return Ok(None);
        }
        self.push_directory(parts, parent).map(|number| Some(Target::Directory(number)))
    }

    fn is_directory(&self, part: Part) -> Result<bool, TreeError> {
        Ok(self.record(part)?.is_directory())
    }

    /// The file that a hard link of layer `link.layer` names in the layers below it.
    fn lower_link(&self, link: Part) -> Result<Target, TreeError> {
        let layer = &self.tree.layers[usize::from(link.layer)];
        let failed = self.failed(link.layer);
        let target = layer.target(&self.record(link)?).map_err(&failed)?.to_vec();
        let found = self.walk(link.layer, &target)?;
        let missing = || TreeError::LowerLink { layer: layer.header().layer, target };
        found.and_then(|leaf| self.lower_leaf(leaf)).ok_or_else(missing)?
    }

    /// What is not a directory at `path` in the layers below `top`. Symbolic links on the way are
    /// followed inside the root, one at the end is not.
    fn walk(&self, top: u16, path: &[u8]) -> Result<Option<(Part, EntryKind)>, TreeError> {
        let root: Vec<Part> = (0..top).rev().map(|layer| Part { layer, inode: 0 }).collect();
        let mut trail = vec![root];
        let mut left: VecDeque<Vec<u8>> = clean(path).into();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    trail.truncate(trail.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let here = trail.last().expect("the root stays");
            match self.step(here, &name)? {
                (_, Some(leaf)) if left.is_empty() => return Ok(Some(leaf)),
                (_, Some((part, EntryKind::Inode))) if links < LINKS_MAX => {
                    let Some(target) = self.symlink(part)? else { return Ok(None) };
                    links += 1;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let before = left.len();
                    for name in target.split(|&byte| byte == b'/').rev() {
                        left.push_front(name.to_vec());
                    }
                    self.take_detour(left.len() - before)?;
                }
                (directories, None) if !directories.is_empty() => trail.push(directories),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn take_detour(&self, names: usize) -> Result<(), TreeError> {
        self.detour.set(self.detour.get() + names);
        if self.detour.get() > DETOUR_MAX {
            let what = "names in the symbolic links that its hard links lead through";
            return Err(TreeError::TooLarge { what });
        }
        Ok(())
    }

    /// The target of a symbolic link; `None` for everything else.
    fn symlink(&self, part: Part) -> Result<Option<Vec<u8>>, TreeError> {
        let record = self.record(part)?;
        if record.mode.get() & libc::S_IFMT != libc::S_IFLNK {
            return Ok(None);
        }
        let layer = &self.tree.layers[usize::from(part.layer)];
        layer.target(&record).map(|target| Some(target.to_vec())).map_err(self.failed(part.layer))
    }

    /// The leaf itself, or what it in turn names in a layer below its own.
    fn lower_leaf(&self, leaf: (Part, EntryKind)) -> Option<Result<Target, TreeError>> {
        match leaf {
            (part, EntryKind::Inode) => {
                Some(Ok(Target::Leaf { layer: part.layer, inode: part.inode }))
            }
            (part, EntryKind::LowerLink) => Some(self.lower_link(part)),
            (_, EntryKind::Whiteout) => None,
        }
    }

    /// What `parts` together hold under `name`: directories, or one leaf.
    #[allow(clippy::type_complexity)]
    fn step(
        &self,
        parts: &[Part],
        name: &[u8],
    ) -> Result<(Vec<Part>, Option<(Part, EntryKind)>), TreeError> {
        let mut directories = Vec::new();
        for &part in parts {
            let layer = &self.tree.layers[usize::from(part.layer)];
            let failed = self.failed(part.layer);
            let record = self.record(part)?;
            if let Some(entry) = layer.find(&record, name).map_err(&failed)? {
                let kind = layer.kind(entry).map_err(&failed)?;
                let child = Part { layer: part.layer, inode: entry.inode.get() };
                if kind == EntryKind::Inode && self.is_directory(child)? {
                    directories.push(child);
                    if self.flags(child)? & InodeFlags::OPAQUE != 0 {
                        break;
                    }
                } else {
                    let leaf = directories.is_empty().then_some((child, kind));
                    return Ok((directories, leaf));
                }
            }
            if record.flags.get() & InodeFlags::OPAQUE != 0 {
                break;
            }
        }
        Ok((directories, None))
    }
}

fn count(number: usize, what: &'static str) -> Result<u32, TreeError> {
    u32::try_from(number).map_err(|_| TreeError::TooLarge { what })
}
