//! The kernel's requests, passed on to a [`View`]: one span, one call, one reply each.
//!
//! ```text
//! request -> take: span, ticket, turn -> View -> reply
//!                                          ` bytes missing: task -> finish_read -> reply
//! ```
//!
//! Nothing is decided here but how long the kernel may cache an answer. That is for good, since an
//! image never changes: the kernel asks once for attributes, for names that exist and for names
//! that do not, and for the pages of a file. Only the lists of images and layers, and the names of
//! layers, are asked for each time. OPEN is answered with ENOSYS, once for all files, except in
//! passthrough mode, where the answer names the file that the kernel is to read.
//!
//! The loop threads never wait for the network. A read that finds bytes missing moves, with its
//! reply, into a task, and so does an open that has to check a large file; everything else is
//! answered where it was asked.
//!
//! Answers are copied to memory of this process before they are given (see [`worker`]).
//!
//! [`worker`]: crate::session::worker

mod attr;
mod errno;
mod passthrough;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use tokio::runtime::Handle;
use tracing::Instrument;
use tracing::span::EnteredSpan;

use self::attr::{absent, file_attr, file_type};
use self::passthrough::PendingOpen;
use crate::session::worker::InheritedMount;
use crate::session::{Inflight, Opens, Pulse, Ticket, Turn};
use crate::view::{Entry, Lookup, Miss, NodeId, Read, View, ViewError};

/// 68 years, which every kernel can count in jiffies: cached for good.
const FOR_GOOD: Duration = Duration::from_secs(1 << 31);
/// Never cached: the lists of images and layers, which change, and the names of layers.
const AT_ONCE: Duration = Duration::ZERO;

/// Handles carry nothing: a file or directory is known by its nodeid.
const NO_HANDLE: FileHandle = FileHandle(0);

thread_local! {
    /// Where a loop thread collects the bytes of a read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whether a mount answers GETXATTR. LISTXATTR is answered in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xattrs {
    /// The first GETXATTR is answered with ENOSYS, and the kernel never asks again. For a mount
    /// whose files need none: overlayfs asks several times for every file.
    Refused,
    /// Each is answered.
    Answered,
}

/// Serves a view to the kernel.
pub struct Adapter {
    view: Arc<View>,
    xattrs: Xattrs,
    inflight: Inflight,
    /// The open files, in passthrough mode.
    opens: Option<Arc<Opens>>,
    pulse: Arc<Pulse>,
    runtime: Handle,
    /// The flags that were agreed with the kernel.
    agreed: InitFlags,
}

/// A request in hand: its span in the log, its ticket, and the turn of the thread. Where the
/// request moves to a task the ticket goes along, and the turn ends here.
struct Question<'a> {
    _span: EnteredSpan,
    _turn: Turn<'a>,
    ticket: Ticket,
}

impl Adapter {
    /// An adapter for `mount` that fetches in tasks of `runtime`.
    pub fn new(view: Arc<View>, xattrs: Xattrs, mount: &InheritedMount, runtime: Handle) -> Self {
        Self {
            view,
            xattrs,
            inflight: mount.inflight(),
            opens: mount.opens(),
            pulse: mount.pulse(),
            runtime,
            agreed: InitFlags::empty(),
        }
    }

    /// Begins with a request, before anything else is done for it; `None` where it must be refused.
    fn take(&self, what: &'static str, request: &Request, node: INodeNo) -> Option<Question<'_>> {
        let span = tracing::trace_span!("fuse", what, node = node.0).entered();
        match self.inflight.enter(request.unique().0) {
            Ok(ticket) => Some(Question { _span: span, _turn: self.pulse.turn(), ticket }),
            Err(error) => {
                tracing::error!(%error, "request refused");
                None
            }
        }
    }

    /// Answers OPEN or OPENDIR: with ENOSYS, after which the kernel asks no more, where the flag
    /// `can_do_without` is agreed.
    fn opened(&self, can_do_without: InitFlags, flags: FopenFlags, reply: ReplyOpen) {
        if self.agreed.contains(can_do_without) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(NO_HANDLE, flags | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    /// Spawns a task that fetches what a read found missing and answers the read.
    fn fetch(&self, miss: Miss, question: Question<'_>, reply: ReplyData) {
        let span = tracing::Span::current();
        let view = self.view.clone();
        let ticket = question.ticket;
        let task = async move {
            match view.finish_read(miss).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(refuse(&error)),
            }
            drop(ticket);
        };
        self.runtime.spawn(task.instrument(span));
    }
}

/// How long the kernel may cache a node's attributes.
fn ttl(node: NodeId) -> &'static Duration {
    if node.is_listing() { &AT_ONCE } else { &FOR_GOOD }
}

/// How long the kernel may cache that `parent` has `node`. Names of layers may be taken away, so
/// the kernel asks for them whenever somebody walks through, and drops what it has cached below
/// when the answer changes. overlayfs walks there while it is mounted, and not after.
fn name_ttl(parent: NodeId, node: NodeId) -> &'static Duration {
    if parent == NodeId::LAYERS { &AT_ONCE } else { ttl(node) }
}

/// The error number for `error`, which is logged where it is not the caller's own fault. An outage
/// of a source is logged once, where it is noticed, and not again here.
fn refuse(error: &ViewError) -> Errno {
    let errno = errno::of(error);
    if matches!(error, ViewError::Fill(error) if error.outage().is_some()) {
        tracing::debug!(error = error as &dyn std::error::Error, "refused with EIO");
    } else if errno::is_fault(errno) {
        tracing::warn!(error = error as &dyn std::error::Error, "refused with EIO");
    }
    errno
}

/// Answers with `value`, or with its length where `size`, the caller's buffer in bytes, is 0;
/// ERANGE where the buffer is too small (getxattr(2)).
fn reply_sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.agreed = config.capabilities();
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(_question) = self.take("lookup", request, parent) else {
            return reply.error(Errno::EIO);
        };
        match self.view.lookup(NodeId(parent.0), name.as_bytes()) {
            Ok(Lookup::Found(attr)) => {
                let (name, attr_ttl) = (name_ttl(NodeId(parent.0), attr.node), ttl(attr.node));
                reply.entry_with_ttls(attr_ttl, name, &file_attr(&attr), Generation(0));
            }
            Ok(Lookup::Absent) => reply.entry(&FOR_GOOD, &absent(), Generation(0)),
            Ok(Lookup::AbsentYet) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.view.forget(NodeId(node.0), lookups);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let Some(_question) = self.take("getattr", request, node) else {
            return reply.error(Errno::EIO);
        };
        match self.view.getattr(NodeId(node.0)) {
            Ok(attr) => reply.attr(ttl(attr.node), &file_attr(&attr)),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let Some(_question) = self.take("readlink", request, node) else {
            return reply.error(Errno::EIO);
        };
        match self.view.readlink(NodeId(node.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn open(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(question) = self.take("open", request, node) else {
            return reply.error(Errno::EIO);
        };
        match &self.opens {
            None => self.opened(InitFlags::FUSE_NO_OPEN_SUPPORT, FopenFlags::empty(), reply),
            Some(opens) => {
                let open = PendingOpen::new(opens.clone(), request.unique().0, node, reply);
                self.open_through(open, question);
            }
        }
    }

    fn release(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _question = self.take("release", request, node);
        if let Some(opens) = &self.opens {
            opens.release(handle.0);
        }
        reply.ok();
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
        let Some(question) = self.take("read", request, node) else {
            return reply.error(Errno::EIO);
        };
        BUFFER.with_borrow_mut(|buffer| {
            match self.view.begin_read(NodeId(node.0), offset, size, buffer) {
                Ok(Read::Done) => reply.data(buffer),
                Ok(Read::Missing(miss)) => self.fetch(miss, question, reply),
                Err(error) => reply.error(refuse(&error)),
            }
        });
    }

    fn flush(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _question = self.take("flush", request, node);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(_question) = self.take("opendir", request, node) else {
            return reply.error(Errno::EIO);
        };
        self.opened(InitFlags::FUSE_NO_OPENDIR_SUPPORT, FopenFlags::FOPEN_CACHE_DIR, reply);
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(_question) = self.take("readdir", request, node) else {
            return reply.error(Errno::EIO);
        };
        let emit = |entry: Entry<'_>| {
            let name = OsStr::from_bytes(entry.name);
            let kind = file_type(entry.attr.mode);
            reply.add(INodeNo(entry.attr.node.0), entry.next_offset, kind, name)
        };
        match self.view.readdir(NodeId(node.0), offset, emit) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(_question) = self.take("readdirplus", request, node) else {
            return reply.error(Errno::EIO);
        };
        let emit = |entry: Entry<'_>| {
            let name = OsStr::from_bytes(entry.name);
            let (attr, parent) = (file_attr(&entry.attr), NodeId(node.0));
            let ttl = name_ttl(parent, entry.attr.node);
            reply.add(attr.ino, entry.next_offset, name, ttl, &attr, Generation(0))
        };
        match self.view.readdirplus(NodeId(node.0), offset, emit) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn getxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let Some(_question) = self.take("getxattr", request, node) else {
            return reply.error(Errno::EIO);
        };
        if self.xattrs == Xattrs::Refused {
            return reply.error(Errno::ENOSYS);
        }
        match self.view.xattr(NodeId(node.0), name.as_bytes()) {
            Ok(Some(value)) => reply_sized(&value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let Some(_question) = self.take("listxattr", request, node) else {
            return reply.error(Errno::EIO);
        };
        match self.view.xattr_names(NodeId(node.0)) {
            Ok(names) => reply_sized(&names, size, reply),
            Err(error) => reply.error(refuse(&error)),
        }
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        let Some(_question) = self.take("statfs", request, node) else {
            return reply.error(Errno::EIO);
        };
        const BLOCK: u32 = 4096;
        const NAME_MAX: u32 = 255;
        // Nothing is free in a read-only tree, and its size is nobody's disk.
        reply.statfs(0, 0, 0, 0, 0, BLOCK, NAME_MAX, BLOCK);
    }

    fn access(&self, request: &Request, node: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        let _question = self.take("access", request, node);
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let _question = self.take("ioctl", request, node);
        reply.error(Errno::ENOTTY);
    }
}
