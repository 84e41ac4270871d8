//! What a member may be, and what the members of one layer may cost.
//!
//! An archive of a few MB can claim millions of names and petabytes of holes. What Linux could
//! not hold is refused, and so is what would take memory out of all proportion.

use super::archive::{Content, Member, MemberKind};
use crate::index::HOLES_MAX;
use crate::object::CHUNK;

/// The longest name, path and link target of Linux, in bytes.
pub const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
const TARGET_MAX: usize = 4095;

/// Limits of xattr(7).
const XATTR_NAME_MAX: usize = 255;
const XATTR_VALUE_MAX: usize = 64 * 1024;

/// What the names and inodes of one layer may take, in bytes of memory: some two million files.
const METADATA_MAX: usize = 1 << 30;
/// What an inode takes while a layer is read, its place in its directory included.
const NODE_SIZE: usize = 512;

/// The extended attributes of all members of a layer, in bytes; a member has a few dozen at most.
const XATTRS_MAX: usize = 64 << 20;

/// Directories that are named on the way to other members and never listed: so many for each
/// member, and so many more. A path of 4 KB, which compresses to nothing, could name 2,000.
const IMPLIED_PER_MEMBER: usize = 8;
const IMPLIED_MAX: usize = 1 << 16;

/// The zeros that have to be hashed, in bytes, because they share a MiB with data or end a file: so
/// many for each byte that the layer stores, and so many more. A map of a few MB, which compresses
/// to nothing, could put one byte into each of 500,000 MiB, and take minutes.
const ZEROS_PER_BYTE: u64 = 16;
const ZEROS_MAX: u64 = 16 << 30;

/// Names that are walked because a symbolic link on the way to a member says so: so many for each
/// member, and so many more. Forty links of 4 KB each, which compress to nothing, could name 80,000
/// for every member, and take minutes.
const DETOUR_PER_MEMBER: usize = 64;
const DETOUR_MAX: usize = 1 << 22;

/// What a layer has cost so far.
#[derive(Default)]
pub struct Budget {
    metadata: usize,
    xattrs: usize,
    members: usize,
    implied: usize,
    detour: usize,
    holes: u64,
    stored: u64,
    zeros: u64,
}

impl Budget {
    /// Counts a member.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_member(&mut self, member: &Member) -> Result<(), &'static str> {
        self.members += 1;
        self.xattrs +=
            member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if self.xattrs > XATTRS_MAX {
            return Err("the extended attributes up to here exceed 64 MiB");
        }
        let target = match &member.kind {
            MemberKind::Symlink(target) | MemberKind::HardLink(target) => target.len(),
            _ => 0,
        };
        self.take(NODE_SIZE + member.path.len() + target)
    }

    /// Counts a directory that no member has listed so far.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_directory(&mut self, name: &[u8]) -> Result<(), &'static str> {
        self.implied += 1;
        if self.implied > IMPLIED_MAX + IMPLIED_PER_MEMBER * self.members {
            return Err("it and those before it name far more directories than are listed");
        }
        self.take(NODE_SIZE + name.len())
    }

    /// Counts the names that a symbolic link on the way to a member adds to it.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_detour(&mut self, names: usize) -> Result<(), &'static str> {
        self.detour += names;
        if self.detour > DETOUR_MAX + DETOUR_PER_MEMBER * self.members {
            return Err("it and those before it lead through far too many symbolic links");
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.metadata = self.metadata.saturating_add(bytes);
        if self.metadata > METADATA_MAX {
            return Err("the names and inodes up to here exceed 1 GiB");
        }
        Ok(())
    }

    /// Counts the holes of a file.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_holes(&mut self, content: &Content) -> Result<(), &'static str> {
        self.holes = self.holes.saturating_add(content.size.saturating_sub(content.stored));
        if self.holes > HOLES_MAX {
            return Err("the holes of the layer's sparse files exceed 2 TiB");
        }
        self.stored = self.stored.saturating_add(content.stored);
        self.zeros = self.zeros.saturating_add(hashed_zeros(content));
        if self.zeros > self.stored.saturating_mul(ZEROS_PER_BYTE).saturating_add(ZEROS_MAX) {
            return Err("the data of the layer's sparse files is scattered over far too many MiB");
        }
        Ok(())
    }
}

/// The bytes of the holes of a file but for those that make a whole chunk, whose digest is known.
fn hashed_zeros(content: &Content) -> u64 {
    let Some(runs) = &content.data else { return 0 };
    let starts = runs.iter().map(|run| run.offset).chain([content.size]);
    let ends = [0].into_iter().chain(runs.iter().map(|run| run.offset + run.length));
    let holes = ends.zip(starts).filter(|(from, to)| from < to);
    let hashed = holes.map(|(from, to)| {
        let chunks = (to / CHUNK).saturating_sub(from.div_ceil(CHUNK));
        to - from - chunks * CHUNK
    });
    hashed.sum()
}

/// Checks what can be said of a member alone.
///
/// # Errors
/// Which limit of Linux it breaks.
pub fn check_limits(member: &Member) -> Result<(), &'static str> {
    if member.path.contains(&0) {
        return Err("its path holds a NUL byte");
    }
    if member.path.len() > PATH_MAX {
        return Err("its path is longer than 4095 bytes");
    }
    if let MemberKind::Symlink(target) = &member.kind
        && (target.is_empty() || target.len() > TARGET_MAX || target.contains(&0))
    {
        return Err("its link target is empty, longer than 4095 bytes or holds a NUL byte");
    }
    let too_long = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        name.is_empty() || name.len() > XATTR_NAME_MAX || value.len() > XATTR_VALUE_MAX
    };
    if member.xattrs.iter().any(too_long) {
        return Err("it has an extended attribute beyond the limits of Linux");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sparse::DataRun;
    use super::*;

    #[test]
    fn metadata_and_holes_are_counted_up_to_their_limits() {
        let mut budget = Budget::default();
        let content = |size| Content { size, stored: 1 << 40, data: Some(Vec::new()) };
        assert_eq!(budget.take_holes(&content(5)), Ok(()));
        assert_eq!(budget.take_holes(&content(3 << 40)), Ok(()));
        assert!(budget.take_holes(&content((1 << 40) + 1)).is_err());
        let name = vec![b'n'; METADATA_MAX / 2];
        assert_eq!(budget.take_directory(&name), Ok(()));
        assert!(budget.take_directory(&name).is_err());
    }

    #[test]
    fn zeros_are_hashed_where_they_do_not_make_a_chunk() {
        let sparse = |size, runs: &[(u64, u64)]| Content {
            size,
            stored: runs.iter().map(|(_, length)| length).sum(),
            data: Some(runs.iter().map(|&(offset, length)| DataRun { offset, length }).collect()),
        };
        for (content, hashed) in [
            (Content { size: 9, stored: 9, data: None }, 0),
            (sparse(5, &[]), 5),
            (sparse(3 * CHUNK + 5, &[]), 5),
            (sparse(CHUNK, &[(1, 2)]), CHUNK - 2),
            (sparse(4 * CHUNK, &[(2 * CHUNK - 1, 1)]), CHUNK - 1),
            (sparse(4 * CHUNK, &[(CHUNK + 7, 1), (3 * CHUNK - 1, 2)]), 3 * CHUNK - 3),
        ] {
            assert_eq!(hashed_zeros(&content), hashed, "{content:?}");
        }
    }

    #[test]
    fn regression_data_that_is_scattered_over_a_huge_file_is_refused() {
        let runs = |count, length| Content {
            size: count * CHUNK,
            stored: count * length,
            data: Some((0..count).map(|n| DataRun { offset: n * CHUNK, length }).collect()),
        };
        let scattered = "scattered over far too many MiB";
        let take = |content: &Content| Budget::default().take_holes(content);
        assert_eq!(take(&runs(500_000, CHUNK / 16)), Ok(()));
        assert_eq!(take(&runs(16_000, 1)), Ok(()));
        assert!(take(&runs(500_000, 1)).unwrap_err().contains(scattered));
        let mut budget = Budget::default();
        let almost = Content { size: CHUNK - 1, stored: 0, data: Some(Vec::new()) };
        let first = (0..500_000).find_map(|_| budget.take_holes(&almost).err());
        assert!(first.unwrap().contains(scattered), "many small files cost as much");
    }

    #[test]
    fn regression_paths_that_name_millions_of_directories_are_refused() {
        let mut budget = Budget::default();
        let most = IMPLIED_MAX;
        assert!((0..most).all(|_| budget.take_directory(b"d").is_ok()));
        assert!(budget.take_directory(b"d").unwrap_err().contains("directories"));
        let member = |size| Member {
            path: b"f".to_vec(),
            kind: MemberKind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: [(b"user.a".to_vec(), vec![b'v'; size])].into(),
        };
        assert_eq!(budget.take_member(&member(1)), Ok(()));
        assert_eq!(budget.take_directory(b"d"), Ok(()));
        assert!(budget.take_member(&member(XATTRS_MAX)).unwrap_err().contains("attributes"));
    }

    #[test]
    fn regression_links_that_lead_through_thousands_of_names_are_refused() {
        let mut budget = Budget::default();
        assert_eq!(budget.take_detour(DETOUR_MAX), Ok(()));
        assert!(budget.take_detour(1).unwrap_err().contains("symbolic links"));
    }
}
