//! A tree whose every byte is a function of its place, and a file system that serves it slowly.
//!
//! Suites about sessions need a mount whose content both sides know without sharing anything.
//!
//! ```text
//! /            inode 1
//! /d00 .. d19  inode 1000 * (d + 1)
//! /d00/f00 ..  inode 1000 * (d + 1) + f + 1, sizes from 0 bytes to about 400 KiB
//! /poison      inode 999: reading it makes the process abort
//! /panic       inode 998: reading it makes the thread panic
//! ```

use std::ffi::OsStr;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, Request,
};
use undermount_fs::session::{Inflight, Ticket};

/// Directories below the root.
pub const DIRECTORIES: u64 = 20;
/// Files in each of them.
pub const FILES: u64 = 30;
/// The file that kills its reader's server.
pub const POISON: &str = "poison";

/// The file at which its reader's server panics.
pub const PANIC: &str = "panic";

const ROOT: u64 = 1;
const POISON_INODE: u64 = 999;
const PANIC_INODE: u64 = 998;
const STRIDE: u64 = 1000;

/// The inode of file `f` in directory `d`.
pub fn inode(d: u64, f: u64) -> u64 {
    STRIDE * (d + 1) + f + 1
}

/// The path of file `f` in directory `d`, below the mount.
pub fn path(d: u64, f: u64) -> String {
    format!("d{d:02}/f{f:02}")
}

/// Bytes in a file.
pub fn size(inode: u64) -> u64 {
    match inode {
        POISON_INODE | PANIC_INODE => 4096,
        _ if inode.is_multiple_of(7) => 0,
        _ => inode.wrapping_mul(7919) % 400_000,
    }
}

/// The bytes `offset..offset + len` of a file, as far as it goes.
pub fn content(inode: u64, offset: u64, len: usize) -> Vec<u8> {
    let end = size(inode).min(offset + len as u64);
    (offset..end).map(|at| (at / 251 + at % 251 + inode * 13) as u8).collect()
}

/// Serves the tree. Nothing is cached by the kernel, so that every access is a request; every
/// eighth read is answered late and from another thread, as a fetch would be.
pub struct Grove {
    inflight: Inflight,
}

impl Grove {
    /// A file system that records what it has in hand.
    pub fn new(inflight: Inflight) -> Self {
        Self { inflight }
    }

    fn enter(&self, request: &Request) -> Ticket {
        self.inflight.enter(request.unique().0).unwrap()
    }
}

fn kind(inode: u64) -> FileType {
    let is_directory = inode == ROOT || inode.is_multiple_of(STRIDE);
    if !is_directory { FileType::RegularFile } else { FileType::Directory }
}

fn attributes(inode: u64) -> FileAttr {
    let time = UNIX_EPOCH + Duration::from_secs(inode);
    let kind = kind(inode);
    let is_file = kind == FileType::RegularFile;
    let size = if is_file { size(inode) } else { 0 };
    FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: if is_file { 0o444 } else { 0o555 },
        nlink: if is_file { 1 } else { 2 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn find(parent: u64, name: &str) -> Option<u64> {
    match (parent, name) {
        (ROOT, POISON) => return Some(POISON_INODE),
        (ROOT, PANIC) => return Some(PANIC_INODE),
        _ => {}
    }
    let number = |letter| name.strip_prefix(letter)?.parse::<u64>().ok();
    match parent {
        ROOT => number('d').filter(|d| *d < DIRECTORIES).map(|d| STRIDE * (d + 1)),
        _ => number('f').filter(|f| *f < FILES).map(|f| parent + f + 1),
    }
}

/// The entries of a directory from `offset` on: number, inode, name.
fn children(directory: u64, offset: u64) -> impl Iterator<Item = (u64, u64, String)> {
    let count = if directory == ROOT { DIRECTORIES } else { FILES };
    (offset..count).map(move |n| match directory {
        ROOT => (n, STRIDE * (n + 1), format!("d{n:02}")),
        _ => (n, directory + n + 1, format!("f{n:02}")),
    })
}

impl Filesystem for Grove {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _ticket = self.enter(request);
        match name.to_str().and_then(|name| find(parent.0, name)) {
            Some(inode) => reply.entry(&Duration::ZERO, &attributes(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _ticket = self.enter(request);
        reply.attr(&Duration::ZERO, &attributes(inode.0));
    }

    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _ticket = self.enter(request);
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn release(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _ticket = self.enter(request);
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ticket = self.enter(request);
        match inode.0 {
            POISON_INODE => std::process::abort(),
            PANIC_INODE => panic!("asked to"),
            _ => {}
        }
        let bytes = content(inode.0, offset, len as usize);
        // Ids are even.
        if !request.unique().0.is_multiple_of(16) {
            return reply.data(&bytes);
        }
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(inode.0 % 20));
            reply.data(&bytes);
            drop(ticket);
        });
    }

    fn readdir(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _ticket = self.enter(request);
        for (n, child, name) in children(inode.0, offset) {
            if reply.add(INodeNo(child), n + 1, kind(child), name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _ticket = self.enter(request);
        let ttl = Duration::ZERO;
        for (n, child, name) in children(inode.0, offset) {
            let attributes = attributes(child);
            if reply.add(INodeNo(child), n + 1, name, &ttl, &attributes, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn flush(&self, request: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let _ticket = self.enter(request);
        reply.error(Errno::ENOSYS);
    }
}
