//! The tree of a layer while its archive is read.
//!
//! Rules that the OCI image-spec leaves open follow what GNU tar, containers/storage and umoci
//! agree on: paths are cleaned lexically and never leave the root, the last of several members
//! with one path wins, a symbolic link of the same layer is followed inside the root when
//! something is put below it, markers never hide what the same layer adds, a character device 0:0
//! is a whiteout under its own name.

use std::collections::{HashMap, VecDeque};

use super::LayerError;
use super::archive::{Content, Member, MemberKind};
use super::content::{ContentHasher, ObjectSink};
use super::layout::{Layout, count};
use super::limits::{Budget, NAME_MAX, check_limits};
use super::node::{Directory, FileContent, Node, NodeId, NodeKind, Place, ROOT};
use super::stream::TarStream;
use crate::digest::Digest;
use crate::index::{Extent, NONE, Sections};
use crate::object::ObjectKey;
use crate::path::clean;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Symbolic links followed on the way to one member, as in path_resolution(7).
const LINKS_MAX: usize = 40;

const NOT_A_DIRECTORY: &str = "a parent of it is not a directory";

/// The arrays of a tree and what was summed up on the way.
pub struct TreeParts {
    /// The arrays.
    pub sections: Sections,
    /// Bytes of all distinct objects.
    pub content_size: u64,
}

/// How far a path leads within the layer.
struct Walk {
    /// The last directory that is there.
    directory: NodeId,
    /// The names that lead to it, without symbolic links.
    names: Vec<Vec<u8>>,
    /// What the path says behind it; empty where all of it is there.
    missing: Vec<Vec<u8>>,
}

/// Collects members.
pub struct Builder {
    pub(super) nodes: Vec<Node>,
    pub(super) digests: Vec<Digest>,
    keys: HashMap<ObjectKey, u32>,
    content_size: u64,
    budget: Budget,
}

impl Builder {
    /// An empty tree.
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::implicit_directory()],
            digests: Vec::new(),
            keys: HashMap::new(),
            content_size: 0,
            budget: Budget::default(),
        }
    }

    /// Reads the content of a file from `stream`.
    ///
    /// # Errors
    /// [`LayerError`] where the stream ends inside, or there are too many objects.
    pub fn content(
        &mut self,
        stream: &mut TarStream,
        content: &Content,
        sink: &mut dyn ObjectSink,
    ) -> Result<FileContent, LayerError> {
        let start = stream.position();
        let refuse = |what| LayerError::Header { position: start, what };
        self.budget.take_holes(content).map_err(refuse)?;
        let mut hasher = ContentHasher::new(content.size);
        let place = if content.size == 0 {
            Place::Whole(start)
        } else {
            sink.begin(content.size);
            match &content.data {
                None => {
                    read_data(stream, content.size, &mut hasher, sink)?;
                    Place::Whole(start)
                }
                Some(_) => Place::Sparse(read_sparse(stream, content, &mut hasher, sink)?),
            }
        };
        stream.skip_padding(content.stored);
        if content.size == 0 {
            return Ok(FileContent { size: 0, key: NONE, place });
        }
        let name = hasher.finish();
        sink.end(name.key);
        let key = self.intern_key(name.key, &name.chunks, content.size)?;
        Ok(FileContent { size: content.size, key, place })
    }

    fn intern_key(
        &mut self,
        key: ObjectKey,
        chunks: &[Digest],
        size: u64,
    ) -> Result<u32, LayerError> {
        if let Some(&index) = self.keys.get(&key) {
            return Ok(index);
        }
        let index = count(self.digests.len(), "objects")?;
        self.digests.push(*key.digest());
        self.digests.extend_from_slice(chunks);
        self.keys.insert(key, index);
        self.content_size += size;
        Ok(index)
    }

    /// Adds a member, with the content of a file.
    ///
    /// # Errors
    /// [`LayerError::Member`] where the member cannot be part of a file system.
    pub fn add(&mut self, member: Member, content: Option<FileContent>) -> Result<(), LayerError> {
        let refuse = |what| LayerError::Member { path: member.path.clone(), what };
        check_limits(&member).map_err(refuse)?;
        self.budget.take_member(&member).map_err(refuse)?;
        let mut path = clean(&member.path);
        let Some(name) = path.pop() else {
            if member.kind == MemberKind::Directory {
                self.nodes[ROOT].describe(&member);
                // As containers/storage does it: what is mounted belongs to root.
                (self.nodes[ROOT].uid, self.nodes[ROOT].gid) = (0, 0);
            }
            return Ok(());
        };
        let parent = match self.parent(&path) {
            // umoci also deletes, one by one, what a directory held that it turns into a file.
            Err(NOT_A_DIRECTORY) if name.starts_with(WHITEOUT) => return Ok(()),
            parent => parent.map_err(refuse)?,
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.add_whiteout(parent, &name, hidden);
            return Ok(());
        }
        if name.len() > NAME_MAX {
            return Err(refuse("its name is longer than 255 bytes"));
        }
        let kind = match &member.kind {
            MemberKind::Directory => return self.add_directory(parent, name, &member),
            MemberKind::HardLink(target) => {
                return self.add_link(parent, name, target).map_err(refuse);
            }
            MemberKind::Device(libc::S_IFCHR, 0, 0) => NodeKind::Whiteout,
            MemberKind::Symlink(target) => NodeKind::Symlink(target.clone()),
            MemberKind::File(_) => NodeKind::File(content.ok_or(LayerError::Stopped)?),
            MemberKind::Device(..) | MemberKind::Fifo => NodeKind::Special,
        };
        let node = self.push(Node::new(kind, &member));
        self.directory(parent).children.insert(name, node);
        Ok(())
    }

    /// Notes what a name with the whiteout prefix says about its directory.
    fn add_whiteout(&mut self, parent: NodeId, name: &[u8], hidden: &[u8]) {
        let directory = self.directory(parent);
        match hidden {
            // overlayfs, and with it containers/storage, merges the roots of layers always.
            _ if name == OPAQUE => directory.opaque = parent != ROOT,
            b"" | b"." | b".." => {}
            // Metadata of aufs (its pseudo-links and marks mean nothing elsewhere), or a name that
            // nothing can have.
            _ if hidden.starts_with(WHITEOUT) || hidden.len() > NAME_MAX => {}
            _ => drop(directory.whiteouts.insert(hidden.to_vec())),
        }
    }

    fn add_directory(
        &mut self,
        parent: NodeId,
        name: Vec<u8>,
        member: &Member,
    ) -> Result<(), LayerError> {
        let existing = self.directory(parent).children.get(&name).copied();
        let node = match existing {
            Some(node) if self.nodes[node].is_directory() => node,
            _ => {
                let node = self.push(Node::implicit_directory());
                self.directory(parent).children.insert(name, node);
                node
            }
        };
        self.nodes[node].describe(member);
        Ok(())
    }

    /// Adds a name for a node that is there; where there is none, it must be in a lower layer.
    fn add_link(
        &mut self,
        parent: NodeId,
        name: Vec<u8>,
        target: &[u8],
    ) -> Result<(), &'static str> {
        if target.contains(&0) {
            return Err("its link target holds a NUL byte");
        }
        let mut path = clean(target);
        let leaf = path.pop().ok_or("it is a hard link to the root")?;
        let Walk { directory, mut names, missing } = self.walk(&path, false).map_err(|what| {
            if what == NOT_A_DIRECTORY {
                "a parent of its link target is no directory"
            } else {
                what
            }
        })?;
        let found = match missing.is_empty() {
            true => self.directory(directory).children.get(&leaf).copied(),
            false => None,
        };
        let node = match found {
            Some(node) if self.nodes[node].is_directory() => {
                return Err("it is a hard link to a directory");
            }
            Some(node) => node,
            None => {
                names.extend(missing);
                names.push(leaf);
                if self.is_deleted(&names) {
                    return Err("it is a hard link to what the layer has deleted");
                }
                self.push(Node::lower_link(names.join(&b'/')))
            }
        };
        self.directory(parent).children.insert(name, node);
        Ok(())
    }

    /// Whether the layer, as far as it was read, hides what lower layers have at `path`.
    fn is_deleted(&mut self, path: &[Vec<u8>]) -> bool {
        let mut here = ROOT;
        for name in path {
            let directory = self.directory(here);
            if directory.opaque || directory.whiteouts.contains(name) {
                return true;
            }
            match directory.children.get(name).copied() {
                Some(child) if self.nodes[child].is_directory() => here = child,
                _ => return false,
            }
        }
        false
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn directory(&mut self, node: NodeId) -> &mut Directory {
        match &mut self.nodes[node].kind {
            NodeKind::Directory(directory) => directory,
            _ => unreachable!("only directories become parents"),
        }
    }

    /// The directory at `path`, made where it is missing.
    fn parent(&mut self, path: &[Vec<u8>]) -> Result<NodeId, &'static str> {
        self.walk(path, true).map(|walk| walk.directory)
    }

    /// Follows symbolic links of this layer as if the root were the layer's own.
    fn walk(&mut self, path: &[Vec<u8>], create: bool) -> Result<Walk, &'static str> {
        let mut left: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let mut trail = vec![ROOT];
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if names.pop().is_some() {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = *trail.last().expect("the root is never popped");
            let node = match self.directory(here).children.get(&name).copied() {
                Some(node) => node,
                None if create => self.imply(here, &name)?,
                None => {
                    left.push_front(name);
                    return Ok(Walk { directory: here, names, missing: left.into() });
                }
            };
            match &self.nodes[node].kind {
                NodeKind::Directory(_) => {
                    trail.push(node);
                    names.push(name);
                }
                NodeKind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err("its path holds too many symbolic links");
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                        names.clear();
                    }
                    let before = left.len();
                    for part in target.split(|&byte| byte == b'/').rev() {
                        left.push_front(part.to_vec());
                    }
                    self.budget.take_detour(left.len() - before)?;
                }
                _ => return Err(NOT_A_DIRECTORY),
            }
        }
        let directory = *trail.last().expect("the root is never popped");
        Ok(Walk { directory, names, missing: Vec::new() })
    }

    /// Makes a directory that a path names and no member has listed so far.
    fn imply(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, &'static str> {
        if name.len() > NAME_MAX {
            return Err("a name in its path is longer than 255 bytes");
        }
        self.budget.take_directory(name)?;
        let node = self.push(Node::implicit_directory());
        self.directory(parent).children.insert(name.to_vec(), node);
        Ok(node)
    }

    /// The finished arrays.
    ///
    /// # Errors
    /// [`LayerError::Index`] where something does not fit 32-bit counts.
    pub fn finish(self) -> Result<TreeParts, LayerError> {
        let content_size = self.content_size;
        Ok(TreeParts { sections: Layout::new(self).run()?, content_size })
    }
}

fn read_data(
    stream: &mut TarStream,
    size: u64,
    hasher: &mut ContentHasher,
    sink: &mut dyn ObjectSink,
) -> Result<(), LayerError> {
    stream.read(size, |bytes| {
        hasher.data(bytes);
        sink.data(bytes);
    })
}

fn read_sparse(
    stream: &mut TarStream,
    content: &Content,
    hasher: &mut ContentHasher,
    sink: &mut dyn ObjectSink,
) -> Result<Vec<Extent>, LayerError> {
    let mut extents = Vec::new();
    let mut position = 0;
    for run in content.data.iter().flatten() {
        hasher.zeros(run.offset - position);
        sink.zeros(run.offset - position);
        extents.push(Extent {
            offset: run.offset.into(),
            data: stream.position().into(),
            length: run.length.into(),
        });
        read_data(stream, run.length, hasher, sink)?;
        position = run.offset + run.length;
    }
    hasher.zeros(content.size - position);
    sink.zeros(content.size - position);
    Ok(extents)
}
