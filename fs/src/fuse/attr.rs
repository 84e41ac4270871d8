//! Attributes of nodes in the form that `fuser` sends (`struct fuse_attr`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::view::{Attr, NodeId};

/// `st_blksize`, in bytes.
const BLOCK: u32 = 4096;
/// The unit of `st_blocks`, in bytes (stat(3type)).
const SECTOR: u64 = 512;

/// The attributes of a node. All of its times are the modification time, since layer archives know
/// no other.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let time = time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.size.div_ceil(SECTOR),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK,
        flags: 0,
    }
}

/// The attributes for a name that does not exist: nodeid 0 makes it a negative entry, which the
/// kernel caches.
pub(super) fn absent() -> FileAttr {
    let nothing = Attr {
        node: NodeId(0),
        mode: 0,
        uid: 0,
        gid: 0,
        nlink: 0,
        size: 0,
        mtime: (0, 0),
        rdev: 0,
    };
    file_attr(&nothing)
}

/// The type bits of a mode. What is none of the other types is shown as a file.
pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// The time at `seconds` since 1970, which may be negative, and `nanos` forward from there. A time
/// that cannot be represented becomes 1970.
fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let second = match seconds {
        0.. => UNIX_EPOCH.checked_add(distance),
        _ => UNIX_EPOCH.checked_sub(distance),
    };
    second
        .and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_on_either_side_of_1970() {
        assert_eq!(time((1, 5)), UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(time((-1, 999_999_999)), UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(time((-2, 0)), UNIX_EPOCH - Duration::from_secs(2));
        for far in [i64::MIN, -1 << 40, 1 << 40, i64::MAX] {
            assert_ne!(time((far, 0)), UNIX_EPOCH, "{far}");
        }
    }

    #[test]
    fn every_type_is_known_by_its_mode() {
        for (mode, kind) in [
            (libc::S_IFREG, FileType::RegularFile),
            (libc::S_IFDIR, FileType::Directory),
            (libc::S_IFLNK, FileType::Symlink),
            (libc::S_IFIFO, FileType::NamedPipe),
            (libc::S_IFCHR, FileType::CharDevice),
            (libc::S_IFBLK, FileType::BlockDevice),
            (libc::S_IFSOCK, FileType::Socket),
        ] {
            assert_eq!(file_type(mode | 0o7777), kind);
        }
    }

    #[test]
    fn setuid_and_sticky_bits_are_permissions() {
        let attr = Attr { mode: libc::S_IFREG | 0o6755, size: 513, ..sample() };
        assert_eq!((file_attr(&attr).perm, file_attr(&attr).blocks), (0o6755, 2));
        assert_eq!(absent().ino, INodeNo(0));
    }

    fn sample() -> Attr {
        Attr { node: NodeId(9), mode: 0, uid: 0, gid: 0, nlink: 1, size: 0, mtime: (0, 0), rdev: 0 }
    }
}
