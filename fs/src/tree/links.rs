//! Hard links to files of lower layers: which file a path names there.

use std::cell::Cell;
use std::collections::VecDeque;

use super::stack::{Part, Stack};
use super::{Target, TreeError};
use crate::index::EntryKind;
use crate::path::clean;

/// Symbolic links followed on the way to the target of one hard link, as in path_resolution(7).
const LINKS_MAX: usize = 40;

/// Names that the symbolic links of an image may add to the ways to the targets of all its hard
/// links. A hostile image could otherwise keep a node busy for minutes.
const DETOUR_MAX: usize = 1 << 24;

/// Look-ups in directories of single layers that the targets of hard links may take together: so
/// many for each link, and so many more. Links by the thousand to what lies very deep in hundreds of
/// layers would take hours.
const LOOKUPS_PER_LINK: usize = 1 << 10;
const LOOKUPS_MAX: usize = 1 << 23;

/// Finds the targets of hard links.
pub(super) struct LowerLinks {
    layers: Stack,
    /// Names that symbolic links have added so far.
    detour: Cell<usize>,
    /// Look-ups so far, less those that each link may take.
    lookups: Cell<usize>,
}

/// Something that is not a directory.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    part: Part,
    kind: EntryKind,
}

/// What several directories, one above the other, hold under a name.
enum Step {
    /// Directories, one above the other.
    Directories(Vec<Part>),
    Leaf(Leaf),
    Nothing,
}

impl LowerLinks {
    pub fn new(layers: Stack) -> Self {
        Self { layers, detour: Cell::new(0), lookups: Cell::new(0) }
    }

    /// The file that the hard link `link` names in the layers below its own.
    pub fn target(&self, link: Part) -> Result<Target, TreeError> {
        let layer = self.layers.tree(link.layer);
        let record = self.layers.record(link)?;
        let path = layer.target(&record).map_err(self.layers.failed(link.layer))?;
        self.lookups.set(self.lookups.get().saturating_sub(LOOKUPS_PER_LINK));
        match self.walk(link.layer, path)? {
            Some(Leaf { part, kind: EntryKind::Inode }) => {
                Ok(Target::Leaf { layer: part.layer, inode: part.inode })
            }
            // It names a file of a layer below its own in turn.
            Some(Leaf { part, kind: EntryKind::LowerLink }) => self.target(part),
            Some(Leaf { kind: EntryKind::Whiteout, .. }) | None => {
                Err(TreeError::LowerLink { layer: layer.header().layer, target: path.to_vec() })
            }
        }
    }

    /// What is not a directory at `path` in the layers below `top`. Symbolic links on the way are
    /// followed inside the root, one at the end is not.
    fn walk(&self, top: u16, path: &[u8]) -> Result<Option<Leaf>, TreeError> {
        // The directories that were entered, each made of those of several layers.
        let mut trail = vec![self.layers.roots(top)];
        let mut left: VecDeque<Vec<u8>> = clean(path).into();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    trail.truncate((trail.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let here = trail.last().expect("the root stays");
            match self.step(here, &name)? {
                Step::Leaf(leaf) if left.is_empty() => return Ok(Some(leaf)),
                Step::Leaf(Leaf { part, kind: EntryKind::Inode }) if links < LINKS_MAX => {
                    let Some(target) = self.symlink(part)? else { return Ok(None) };
                    links += 1;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    self.prepend(target, &mut left)?;
                }
                Step::Directories(parts) => trail.push(parts),
                Step::Leaf(_) | Step::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Puts the names in the target of a symbolic link before those that are `left` of a path.
    fn prepend(&self, target: &[u8], left: &mut VecDeque<Vec<u8>>) -> Result<(), TreeError> {
        let before = left.len();
        for name in target.split(|&byte| byte == b'/').rev() {
            left.push_front(name.to_vec());
        }
        self.detour.set(self.detour.get() + left.len() - before);
        if self.detour.get() > DETOUR_MAX {
            let what = "names in the symbolic links that its hard links lead through";
            return Err(TreeError::TooLarge { what });
        }
        Ok(())
    }

    fn count_lookups(&self, layers: usize) -> Result<(), TreeError> {
        self.lookups.set(self.lookups.get() + layers);
        if self.lookups.get() > LOOKUPS_MAX {
            let what = "names in too many layers on the ways to the targets of its hard links";
            return Err(TreeError::TooLarge { what });
        }
        Ok(())
    }

    /// The target of a symbolic link; `None` for everything else.
    fn symlink(&self, part: Part) -> Result<Option<&[u8]>, TreeError> {
        let record = self.layers.record(part)?;
        if record.mode.get() & libc::S_IFMT != libc::S_IFLNK {
            return Ok(None);
        }
        let target = self.layers.tree(part.layer).target(&record);
        target.map(Some).map_err(self.layers.failed(part.layer))
    }

    /// What the directories `parts`, the topmost first, together hold under `name`.
    fn step(&self, parts: &[Part], name: &[u8]) -> Result<Step, TreeError> {
        let mut directories = Vec::new();
        self.count_lookups(parts.len())?;
        for &part in parts {
            let layer = self.layers.tree(part.layer);
            let failed = self.layers.failed(part.layer);
            let record = self.layers.record(part)?;
            let Some(entry) = layer.find(&record, name).map_err(&failed)? else { continue };
            let kind = layer.kind(entry).map_err(&failed)?;
            let child = Part { layer: part.layer, inode: entry.inode.get() };
            if kind != EntryKind::Inode || !self.layers.is_directory(child)? {
                if directories.is_empty() {
                    return Ok(Step::Leaf(Leaf { part: child, kind }));
                }
                break;
            }
            directories.push(child);
            if self.layers.is_opaque(child)? {
                break;
            }
        }
        match directories.is_empty() {
            true => Ok(Step::Nothing),
            false => Ok(Step::Directories(directories)),
        }
    }
}
