//! The store as a file system: the kernel's questions, answered from the node table and the
//! shelf.
//!
//! Names and attributes of directories are answered at once, and those of the root are
//! remembered by the kernel for good: podman looks at the root whenever it starts, and must not
//! find it waiting for anybody. What a layer holds is asked of the shelf in a task, so that the
//! loop threads never wait. Nothing else is remembered by the kernel: a layer that podman had to
//! download yesterday may be offered today.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use undermount_fs::session::worker::InheritedMount;
use undermount_fs::session::{Inflight, Pulse, Ticket, Turn};

use super::key::{LayerKey, parse_store_name, store_name};
use super::nodes::{Node, NodeTable, Part, part_id};
use super::{Occasion, Offer, Shelf};

/// The kernel asks again each time.
const AT_ONCE: Duration = Duration::ZERO;
/// 68 years, which every kernel can count in jiffies.
const FOR_GOOD: Duration = Duration::from_secs(1 << 31);
/// `st_blksize`.
const BLOCK: u32 = 4096;
/// Files are known by their nodeid.
const NO_HANDLE: FileHandle = FileHandle(0);
/// The name whose creation counts a user.
const USE: &[u8] = b"use";

/// Serves a [`Shelf`] to podman.
pub struct Store {
    shelf: Arc<dyn Shelf>,
    nodes: Mutex<NodeTable>,
    inflight: Inflight,
    pulse: Arc<Pulse>,
    runtime: Handle,
}

/// A question in hand: its entry in the record of the session, which goes along where the question
/// moves to a task, and the turn of the thread, which ends before.
struct Question<'a> {
    ticket: Ticket,
    _turn: Turn<'a>,
}

impl Store {
    /// A store of what is on `shelf` for `mount`, which asks in tasks of `runtime`.
    pub fn new(
        shelf: Arc<dyn Shelf>,
        nodes: NodeTable,
        mount: &InheritedMount,
        runtime: Handle,
    ) -> Self {
        let (inflight, pulse) = (mount.inflight(), mount.pulse());
        Self { shelf, nodes: Mutex::new(nodes), inflight, pulse, runtime }
    }

    /// To be called before anything else; `None` where the question must be refused.
    fn take(&self, request: &Request) -> Option<Question<'_>> {
        let ticket = self
            .inflight
            .enter(request.unique().0)
            .inspect_err(|error| tracing::error!(%error, "request refused"))
            .ok()?;
        Some(Question { ticket, _turn: self.pulse.turn() })
    }

    fn node(&self, id: INodeNo) -> Option<Node> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).node(id.0)
    }

    /// The directory `name` of a directory, which comes into being by being looked up.
    fn directory(&self, parent: &Node, name: &[u8]) -> Result<u64, Errno> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let numbered = match parent {
            Node::Root => nodes.of_reference(parse_store_name(name).ok_or(Errno::ENOENT)?),
            Node::Reference(reference) => {
                let digest = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                let digest = digest.ok_or(Errno::ENOENT)?;
                nodes.of_layer(LayerKey { reference: reference.clone(), digest })
            }
            Node::Layer(_) => return Err(Errno::ENOENT),
            Node::Part(..) => return Err(Errno::ENOTDIR),
        };
        numbered.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot number a directory");
            Errno::EIO
        })
    }

    /// What `parent` holds, as far as it was looked up: name, nodeid, type.
    fn entries(&self, parent: &Node, id: u64) -> Vec<(String, u64, FileType)> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = |name, id| (name, id, FileType::Directory);
        match parent {
            Node::Root => nodes
                .references()
                .into_iter()
                .map(|(reference, id)| directory(store_name(&reference), id))
                .collect(),
            Node::Reference(reference) => nodes
                .layers(reference)
                .into_iter()
                .map(|(digest, id)| directory(digest.to_string(), id))
                .collect(),
            Node::Layer(_) => Part::ALL
                .into_iter()
                .map(|(name, part)| (name.to_owned(), part_id(id, part), part_type(part)))
                .collect(),
            Node::Part(..) => Vec::new(),
        }
    }

    /// Asks the shelf in a task, which then answers.
    fn ask(
        &self,
        ticket: Ticket,
        key: &LayerKey,
        occasion: Occasion,
        answer: impl FnOnce(Option<Arc<Offer>>) + Send + 'static,
    ) {
        let offer = self.shelf.layer(key, occasion);
        self.runtime.spawn(async move {
            answer(offer.await.ok());
            drop(ticket);
        });
    }
}

/// The occasion at which podman looks for a part: a start follows nothing but the link.
fn occasion(part: Part) -> Occasion {
    match part {
        Part::Diff => Occasion::Path,
        Part::Info | Part::Blob => Occasion::Pull,
    }
}

fn part_type(part: Part) -> FileType {
    if part == Part::Diff { FileType::Symlink } else { FileType::RegularFile }
}

/// Nobody but root has any business here.
fn directory_attr(id: u64) -> FileAttr {
    attr(id, FileType::Directory, 0o700, 0)
}

fn part_attr(id: u64, part: Part, offer: &Offer) -> FileAttr {
    let (permissions, size) = match part {
        Part::Diff => (0o777, offer.directory.as_os_str().len() as u64),
        Part::Info => (0o400, offer.info.len() as u64),
        Part::Blob => (0o400, offer.blob_size),
    };
    attr(id, part_type(part), permissions, size)
}

fn attr(id: u64, kind: FileType, perm: u16, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// The bytes of `info` from `offset` on, at most `size`.
fn slice(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let end = start.saturating_add(size as usize).min(bytes.len());
    &bytes[start..end]
}

impl Filesystem for Store {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(Question { ticket, _turn }) = self.take(request) else {
            return reply.error(Errno::EIO);
        };
        let Some(node) = self.node(parent) else { return reply.error(Errno::ESTALE) };
        let name = name.as_bytes();
        let part = Part::ALL.into_iter().find(|(part, _)| part.as_bytes() == name);
        if let (Node::Layer(key), Some((_, part))) = (&node, part) {
            let id = part_id(parent.0, part);
            return self.ask(ticket, key, occasion(part), move |offer| match offer {
                Some(offer) => reply.entry(&AT_ONCE, &part_attr(id, part, &offer), Generation(0)),
                None => reply.error(Errno::ENOENT),
            });
        }
        match self.directory(&node, name) {
            Ok(id) => reply.entry(&AT_ONCE, &directory_attr(id), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    /// Nodes are numbers, not memory: there is nothing to forget.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let Some(Question { ticket, _turn }) = self.take(request) else {
            return reply.error(Errno::EIO);
        };
        let id = node.0;
        match self.node(node) {
            None => reply.error(Errno::ESTALE),
            Some(Node::Root) => reply.attr(&FOR_GOOD, &directory_attr(id)),
            Some(Node::Reference(_) | Node::Layer(_)) => {
                reply.attr(&AT_ONCE, &directory_attr(id));
            }
            Some(Node::Part(key, part)) => {
                self.ask(ticket, &key, Occasion::Path, move |offer| match offer {
                    Some(offer) => reply.attr(&AT_ONCE, &part_attr(id, part, &offer)),
                    None => reply.error(Errno::ENOENT),
                });
            }
        }
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let Some(Question { ticket, _turn }) = self.take(request) else {
            return reply.error(Errno::EIO);
        };
        let Some(Node::Part(key, Part::Diff)) = self.node(node) else {
            return reply.error(Errno::EINVAL);
        };
        self.ask(ticket, &key, Occasion::Path, move |offer| match offer {
            Some(offer) => reply.data(offer.directory.as_os_str().as_bytes()),
            None => reply.error(Errno::ENOENT),
        });
    }

    /// The page cache of the kernel would be of no use: everything is read once.
    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _question = self.take(request);
        reply.opened(NO_HANDLE, FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Question { ticket, _turn }) = self.take(request) else {
            return reply.error(Errno::EIO);
        };
        match self.node(node) {
            Some(Node::Part(key, Part::Info)) => {
                self.ask(ticket, &key, Occasion::Path, move |offer| match offer {
                    Some(offer) => reply.data(slice(&offer.info, offset, size)),
                    None => reply.error(Errno::EIO),
                });
            }
            Some(Node::Part(key, Part::Blob)) => {
                let bytes = self.shelf.blob(&key, offset, size);
                self.runtime.spawn(async move {
                    match bytes.await {
                        Ok(bytes) => reply.data(&bytes),
                        Err(_) => reply.error(Errno::EIO),
                    }
                    drop(ticket);
                });
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn flush(&self, request: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let _question = self.take(request);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _question = self.take(request);
        let Some(parent) = self.node(node) else { return reply.error(Errno::ESTALE) };
        let dots = [".", ".."].map(|dot| (dot.to_owned(), node.0, FileType::Directory));
        let entries = dots.into_iter().chain(self.entries(&parent, node.0)).zip(1_u64..);
        for ((name, id, kind), next) in entries.skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(INodeNo(id), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// `use` is counted and never there.
    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let _question = self.take(request);
        match self.node(parent) {
            Some(Node::Layer(key)) if name.as_bytes() == USE => {
                self.shelf.hold(&key);
                reply.error(Errno::ENOENT);
            }
            _ => reply.error(Errno::EPERM),
        }
    }

    /// The directory of a layer is counted off and stays.
    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _question = self.take(request);
        let digest = name.to_str().and_then(|name| name.parse().ok());
        match (self.node(parent), digest) {
            (Some(Node::Reference(reference)), Some(digest)) => {
                self.shelf.release(&LayerKey { reference, digest });
                reply.error(Errno::ENOENT);
            }
            _ => reply.error(Errno::EPERM),
        }
    }

    fn mkdir(&self, request: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let _question = self.take(request);
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, request: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        let _question = self.take(request);
        reply.error(Errno::EPERM);
    }

    fn getxattr(&self, request: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        let _question = self.take(request);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, request: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        let _question = self.take(request);
        reply.error(Errno::ENOSYS);
    }
}
