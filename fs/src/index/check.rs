//! Looking through a whole tree file that a stranger made.
//!
//! Every access checks its bounds anyway; this also finds what no single access can see:
//! directories that share entries (so that a small file stands for a huge tree), names that no
//! directory holds, files that share bytes of the layer ([`contents`]), and damage that would only
//! show when somebody reads the file.

mod contents;

use std::collections::HashSet;

use self::contents::Contents;
use super::format::{DirectoryEntry, EntryKind, InodeFlags, InodeRecord};
use super::tree::{LayerTree, Xattr, damaged};
use super::{IndexError, NONE};

/// The longest name and the longest link target of Linux, in bytes.
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;

impl LayerTree {
    /// Counts up with every rule that [`Self::check`] learns: what was looked through before may
    /// break it.
    pub const RULES: u32 = 1;

    /// Reads everything once. What files contain is another question: it is hashed when it arrives.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] at the first thing that no indexer writes.
    pub fn check(&self) -> Result<(), IndexError> {
        if !self.inode(0)?.is_directory() {
            return Err(damaged("its root is not a directory"));
        }
        let (mut entries, mut extents) = (0, 0);
        let (mut sets, mut set_bytes) = (HashSet::new(), 0);
        let mut contents = Contents::new(self);
        for inode in self.inodes() {
            entries += self.check_entries(inode)?;
            extents += self.check_inode(inode)?;
            contents.add(inode)?;
            if inode.xattrs != NONE && sets.insert(inode.xattrs.get()) {
                set_bytes += self.check_xattrs(inode)?;
            }
            if set_bytes > self.xattrs_length() {
                return Err(damaged("two sets of extended attributes share bytes"));
            }
            if entries > self.entry_count() || extents > self.extent_count() {
                return Err(damaged("two inodes share entries or extents"));
            }
        }
        contents.finish()
    }

    /// The number of entries of a directory, all of which are right.
    fn check_entries(&self, directory: &InodeRecord) -> Result<usize, IndexError> {
        let entries = self.entries(directory)?;
        let mut before: &[u8] = b"";
        for entry in entries {
            let name = self.name(entry)?;
            if !is_name(name) || name <= before {
                return Err(damaged("the names of a directory are wrong or out of order"));
            }
            before = name;
            self.check_entry(entry)?;
        }
        Ok(entries.len())
    }

    fn check_entry(&self, entry: &DirectoryEntry) -> Result<(), IndexError> {
        let kind = self.kind(entry)?;
        if kind == EntryKind::Whiteout {
            return Ok(());
        }
        let inode = self.inode(entry.inode.get())?;
        let typed = inode.mode.get() & libc::S_IFMT != 0;
        if typed == (kind == EntryKind::LowerLink) {
            return Err(damaged("an entry and its inode are of different kinds"));
        }
        Ok(())
    }

    /// The bytes of the set of extended attributes of an inode, all of which are there.
    fn check_xattrs(&self, inode: &InodeRecord) -> Result<usize, IndexError> {
        let bytes = |(name, value): &Xattr<'_>| 6 + name.len() + value.len();
        Ok(2 + self.xattrs(inode)?.iter().map(bytes).sum::<usize>())
    }

    /// The number of extents of an inode that is right but for what it contains.
    fn check_inode(&self, inode: &InodeRecord) -> Result<usize, IndexError> {
        if inode.mtime_nanos.get() >= 1_000_000_000 {
            return Err(damaged("a time has more than a second of nanoseconds"));
        }
        match inode.mode.get() & libc::S_IFMT {
            libc::S_IFREG => self.check_file(inode),
            libc::S_IFLNK | 0 => {
                let target = self.target(inode)?;
                let fits = (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0);
                if fits { Ok(0) } else { Err(damaged("a link target is not one")) }
            }
            libc::S_IFDIR | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO => Ok(0),
            _ => Err(damaged("an inode has an unknown type")),
        }
    }

    fn check_file(&self, inode: &InodeRecord) -> Result<usize, IndexError> {
        if (inode.key == NONE) != (inode.size == 0) || inode.size.get() > i64::MAX as u64 {
            return Err(damaged("a file has a size but no content, or the reverse"));
        }
        self.key(inode)?;
        self.chunks(inode)?;
        let extents = self.extents(inode)?;
        let sparse = inode.flags.get() & InodeFlags::SPARSE != 0;
        Ok(if sparse { extents.len() } else { 0 })
    }
}

fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::super::{Sections, TreeHeader, encode_tree};
    use super::*;
    use crate::codec::Codec;

    /// A tree of a root and pipes, whose sets of extended attributes begin at these places in
    /// `xattrs`.
    fn with_sets(places: &[u32], xattrs: Vec<u8>) -> LayerTree {
        let record = |mode: u32, xattrs: u32| InodeRecord {
            mode: mode.into(),
            key: NONE.into(),
            xattrs: xattrs.into(),
            ..InodeRecord::new_zeroed()
        };
        let pipes = places.iter().map(|&place| record(libc::S_IFIFO, place));
        let inodes = [record(libc::S_IFDIR, NONE)].into_iter().chain(pipes).collect();
        let sections = Sections { inodes, xattrs, ..Sections::default() };
        let header = TreeHeader { codec: Codec::Plain.number().into(), ..TreeHeader::new_zeroed() };
        LayerTree::new(encode_tree(header, &sections).into()).unwrap()
    }

    /// Every pipe could have a set of its own that begins a little later and is as long as the rest
    /// of the file: to read them all would take minutes.
    #[test]
    fn regression_sets_of_extended_attributes_are_shared_whole_or_not_at_all() {
        let set = |name: &[u8], value: &[u8]| {
            let lengths =
                [&(name.len() as u16).to_le_bytes()[..], &(value.len() as u32).to_le_bytes()];
            [&1_u16.to_le_bytes()[..], &lengths.concat(), name, value].concat()
        };
        let (inner, other) = (set(b"user.b", b"value"), set(b"user.c", b""));
        let outer = set(b"user.a", &inner);
        let [inside, after] = [outer.len() - inner.len(), outer.len()].map(|at| at as u32);
        let xattrs = [outer, other].concat();
        with_sets(&[0, after, 0, NONE, after, 0], xattrs.clone()).check().unwrap();
        let error = with_sets(&[0, after, inside], xattrs.clone()).check().unwrap_err();
        assert!(error.to_string().contains("share bytes"), "{error}");
        assert!(with_sets(&[xattrs.len() as u32], xattrs).check().is_err(), "there is none");
    }
}
