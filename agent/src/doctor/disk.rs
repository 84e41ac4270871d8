//! The file system of the cache: its type and its room.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::host::mounts::{self, Mount};

const GIB: u64 = 1 << 30;
/// Less room than this fills up during one deployment.
const LITTLE: u64 = 5 * GIB;
const FEW_INODES: u64 = 100_000;

/// Room on a file system.
#[derive(Debug, Clone, Copy)]
struct Room {
    free: u64,
    total: u64,
    /// `None` where inodes are made as they are needed.
    inodes: Option<u64>,
}

pub(super) fn examine(cache: &Path) -> Vec<Finding> {
    // The cache is made later: what counts is where.
    let existing = cache.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let place = existing.canonicalize().unwrap_or_else(|_| existing.to_owned());
    let kind = kind_of(&mounts::table(), &place);
    let room = statvfs(&place).map(|found| Room {
        free: found.blocks_available() * found.fragment_size(),
        total: found.blocks() * found.fragment_size(),
        inodes: (found.files() > 0).then(|| found.files_available()),
    });
    match room {
        Ok(room) => vec![judge_kind(cache, &kind), judge_room(cache, room)],
        Err(errno) => vec![Finding::broken(
            "disk",
            format!("{} cannot be looked at: {errno}", place.display()),
            "name another directory as [cache] directory",
        )],
    }
}

/// The type of the file system that `path` lies on.
fn kind_of(table: &[Mount], path: &Path) -> String {
    let around = table.iter().filter(|mount| path.starts_with(&mount.point));
    let nearest = around.max_by_key(|mount| mount.point.as_os_str().len());
    nearest.map(|mount| mount.kind.clone()).unwrap_or_default()
}

fn judge_kind(cache: &Path, kind: &str) -> Finding {
    const CHECK: &str = "file system";
    let found = format!("{} is on {kind}", cache.display());
    let advice = match kind {
        "tmpfs" | "ramfs" => "the cache is in memory and gone after a reboot: put it on a disk",
        "nfs" | "nfs4" | "cifs" | "ceph" | "fuse" => {
            "the cache should lie on a local disk: nodes then start without the network"
        }
        "overlay" => "in a container, put the cache on a volume: it is gone with the container",
        _ => return Finding::ok(CHECK, found),
    };
    Finding::warning(CHECK, found, advice)
}

fn judge_room(cache: &Path, room: Room) -> Finding {
    const CHECK: &str = "disk";
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let found =
        format!("{:.1} of {:.1} GiB free for {}", gib(room.free), gib(room.total), cache.display());
    if let Some(inodes) = room.inodes.filter(|inodes| *inodes < FEW_INODES) {
        let advice = "make room or name another directory: each cached file takes an inode";
        return Finding::warning(CHECK, format!("{inodes} inodes are left; {found}"), advice);
    }
    if room.free < LITTLE {
        let advice = "make room, set [cache] quota, or name another directory";
        return Finding::warning(CHECK, found, advice);
    }
    Finding::ok(CHECK, found)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn mount(point: &str, kind: &str) -> Mount {
        let (device, source) = (String::new(), String::new());
        Mount { device, point: point.into(), kind: kind.to_owned(), source }
    }

    #[test]
    fn the_nearest_mount_counts() {
        let table = [mount("/", "ext4"), mount("/var", "xfs"), mount("/var/lib/x", "tmpfs")];
        assert_eq!(kind_of(&table, Path::new("/var/lib/undermount")), "xfs");
        assert_eq!(kind_of(&table, Path::new("/var/lib/x/y")), "tmpfs");
    }

    #[test]
    fn little_room_few_inodes_and_odd_file_systems_are_warned_of() {
        let cache = Path::new("/var/lib/undermount");
        let room = |free, inodes| judge_room(cache, Room { free, total: 100 * GIB, inodes });
        assert_eq!(room(50 * GIB, None).state, State::Ok);
        assert!(room(GIB, Some(1 << 20)).found.starts_with("1.0 of 100.0 GiB free"));
        assert_eq!(room(GIB, Some(1 << 20)).state, State::Warning);
        assert!(room(50 * GIB, Some(7)).found.starts_with("7 inodes are left"));
        for (kind, state) in
            [("ext4", State::Ok), ("nfs4", State::Warning), ("tmpfs", State::Warning)]
        {
            assert_eq!(judge_kind(cache, kind).state, state, "{kind}");
        }
    }
}
