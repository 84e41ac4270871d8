//! From the collected tree to the arrays of a tree file, breadth first.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::builder::Builder;
use super::node::{Node, NodeId, NodeKind, Place, ROOT};
use crate::index::{
    DirectoryEntry, EntryKind, IndexError, InodeFlags, InodeRecord, NONE, Sections,
};

/// Lays a tree out breadth first.
pub struct Layout {
    builder: Builder,
    sections: Sections,
    names: HashMap<Vec<u8>, u32>,
    xattrs: HashMap<Vec<u8>, u32>,
    /// The inode number of each node that has one.
    numbers: HashMap<NodeId, u32>,
    /// Position of the content and inode, for `order`.
    contents: Vec<(u64, u32)>,
    /// Which nodes are only there because of what they hide.
    marker_only: Vec<bool>,
}

/// Which nodes are only there because markers lie below them, or are whiteouts themselves. Some
/// tools write the deletion of a directory and, apart from it, of what was in it.
fn marker_only(nodes: &[Node]) -> Vec<bool> {
    let mut only: Vec<bool> =
        nodes.iter().map(|node| matches!(node.kind, NodeKind::Whiteout)).collect();
    // A directory is made before the directories in it.
    for (id, node) in nodes.iter().enumerate().rev() {
        if let NodeKind::Directory(directory) = &node.kind {
            only[id] = directory.implicit && directory.children.values().all(|&it| only[it]);
        }
    }
    only
}

impl Layout {
    /// A layout of what `builder` collected.
    pub fn new(builder: Builder) -> Self {
        Self {
            marker_only: marker_only(&builder.nodes),
            builder,
            sections: Sections::default(),
            names: HashMap::new(),
            xattrs: HashMap::new(),
            numbers: HashMap::new(),
            contents: Vec::new(),
        }
    }

    /// The arrays.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`] where something does not fit 32-bit counts.
    pub fn run(mut self) -> Result<Sections, IndexError> {
        self.sections.digests = std::mem::take(&mut self.builder.digests);
        self.inode(ROOT, 0)?;
        let mut queue = VecDeque::from([(ROOT, 0)]);
        while let Some((node, number)) = queue.pop_front() {
            self.directory(node, number, &mut queue)?;
        }
        self.contents.sort_unstable();
        self.sections.order = self.contents.iter().map(|&(_, inode)| inode.into()).collect();
        Ok(self.sections)
    }

    fn directory(
        &mut self,
        node: NodeId,
        number: u32,
        queue: &mut VecDeque<(NodeId, u32)>,
    ) -> Result<(), IndexError> {
        let NodeKind::Directory(directory) = &mut self.builder.nodes[node].kind else {
            return Ok(());
        };
        let (own, whiteouts) =
            (std::mem::take(&mut directory.children), std::mem::take(&mut directory.whiteouts));
        let is_whiteout = |id: NodeId| matches!(self.builder.nodes[id].kind, NodeKind::Whiteout);
        let mut children: BTreeMap<Vec<u8>, Option<NodeId>> = own
            .into_iter()
            .map(|(name, child)| (name, Some(child).filter(|&child| !is_whiteout(child))))
            .collect();
        for hidden in whiteouts {
            match children.get(&hidden) {
                Some(Some(child)) if !self.marker_only[*child] => self.hide_below(*child),
                Some(None) => {}
                _ => drop(children.insert(hidden, None)),
            }
        }
        let first = count(self.sections.entries.len(), "directory entries")?;
        let length = count(children.len(), "directory entries")?;
        let mut subdirectories = 0;
        for (name, child) in children {
            let entry = self.entry(&name, child, number, queue)?;
            subdirectories +=
                u32::from(child.is_some_and(|c| self.builder.nodes[c].is_directory()));
            self.sections.entries.push(entry);
        }
        let inode = &mut self.sections.inodes[number as usize];
        inode.data = pack(first, length).into();
        inode.nlink = (2 + subdirectories).into();
        Ok(())
    }

    /// A whiteout of something that the same layer adds hides only what lies below it.
    fn hide_below(&mut self, child: NodeId) {
        if let NodeKind::Directory(directory) = &mut self.builder.nodes[child].kind {
            directory.opaque = true;
        }
    }

    fn entry(
        &mut self,
        name: &[u8],
        child: Option<NodeId>,
        parent: u32,
        queue: &mut VecDeque<(NodeId, u32)>,
    ) -> Result<DirectoryEntry, IndexError> {
        let (kind, inode) = match child {
            None => (EntryKind::Whiteout, 0),
            Some(node) => {
                let number = match self.numbers.get(&node) {
                    Some(&number) => number,
                    None => {
                        let number = self.inode(node, parent)?;
                        if self.builder.nodes[node].is_directory() {
                            queue.push_back((node, number));
                        }
                        number
                    }
                };
                let record = &mut self.sections.inodes[number as usize];
                record.nlink = (record.nlink.get() + 1).into();
                match self.builder.nodes[node].kind {
                    NodeKind::LowerLink(_) => (EntryKind::LowerLink, number),
                    _ => (EntryKind::Inode, number),
                }
            }
        };
        Ok(DirectoryEntry {
            inode: inode.into(),
            name: self.intern_name(name)?.into(),
            name_length: (name.len() as u16).into(),
            kind: kind.number(),
            reserved: 0,
        })
    }

    /// Numbers a node. Its entries, if it is a directory, follow later.
    fn inode(&mut self, id: NodeId, parent: u32) -> Result<u32, IndexError> {
        let number = count(self.sections.inodes.len(), "inodes")?;
        self.numbers.insert(id, number);
        let xattrs = std::mem::take(&mut self.builder.nodes[id].xattrs);
        let xattrs = self.intern_xattrs(&xattrs)?;
        let kind = std::mem::replace(&mut self.builder.nodes[id].kind, NodeKind::Special);
        let (size, data, key, flags) = self.describe(&kind, number)?;
        self.builder.nodes[id].kind = kind;
        let node = &self.builder.nodes[id];
        self.sections.inodes.push(InodeRecord {
            mode: node.mode.into(),
            uid: node.uid.into(),
            gid: node.gid.into(),
            nlink: 0.into(),
            size: size.into(),
            mtime: node.mtime.0.into(),
            mtime_nanos: node.mtime.1.into(),
            rdev: node.rdev.into(),
            data: data.into(),
            key: key.into(),
            xattrs: xattrs.into(),
            parent: parent.into(),
            flags: flags.into(),
        });
        Ok(number)
    }

    /// Size, data, key and flags of an inode.
    fn describe(
        &mut self,
        kind: &NodeKind,
        number: u32,
    ) -> Result<(u64, u64, u32, u32), IndexError> {
        Ok(match kind {
            NodeKind::Directory(directory) => {
                let opaque = if directory.opaque { InodeFlags::OPAQUE } else { 0 };
                let implicit = if directory.implicit { InodeFlags::IMPLICIT } else { 0 };
                (0, 0, NONE, opaque | implicit)
            }
            NodeKind::File(content) => match &content.place {
                Place::Whole(position) => {
                    if content.size > 0 {
                        self.contents.push((*position, number));
                    }
                    (content.size, *position, content.key, 0)
                }
                Place::Sparse(extents) => {
                    let first = count(self.sections.extents.len(), "extents")?;
                    let position = extents.first().map_or(0, |extent| extent.data.get());
                    if content.size > 0 {
                        self.contents.push((position, number));
                    }
                    self.sections.extents.extend_from_slice(extents);
                    let data = pack(first, count(extents.len(), "extents")?);
                    (content.size, data, content.key, InodeFlags::SPARSE)
                }
            },
            NodeKind::Symlink(target) | NodeKind::LowerLink(target) => {
                let start = self.intern_name(target)?;
                let length = count(target.len(), "bytes in a link target")?;
                (target.len() as u64, pack(start, length), NONE, 0)
            }
            NodeKind::Whiteout | NodeKind::Special => (0, 0, NONE, 0),
        })
    }

    fn intern_name(&mut self, name: &[u8]) -> Result<u32, IndexError> {
        if let Some(&start) = self.names.get(name) {
            return Ok(start);
        }
        let start = count(self.sections.names.len(), "bytes of names")?;
        self.sections.names.extend_from_slice(name);
        self.names.insert(name.to_vec(), start);
        Ok(start)
    }

    fn intern_xattrs(&mut self, set: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<u32, IndexError> {
        if set.is_empty() {
            return Ok(NONE);
        }
        let mut bytes = (set.len() as u16).to_le_bytes().to_vec();
        for (name, value) in set {
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend((value.len() as u32).to_le_bytes());
            bytes.extend(name);
            bytes.extend(value);
        }
        if let Some(&start) = self.xattrs.get(&bytes) {
            return Ok(start);
        }
        let start = count(self.sections.xattrs.len(), "bytes of extended attributes")?;
        self.sections.xattrs.extend_from_slice(&bytes);
        self.xattrs.insert(bytes, start);
        Ok(start)
    }
}

/// Two numbers in one field: the first in the low half.
fn pack(first: u32, count: u32) -> u64 {
    u64::from(first) | u64::from(count) << 32
}

/// `number` as the 32 bits that the format has for it.
pub fn count(number: usize, what: &'static str) -> Result<u32, IndexError> {
    u32::try_from(number).ok().filter(|&n| n != NONE).ok_or(IndexError::TooLarge { what })
}
