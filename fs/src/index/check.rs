//! Looking through a whole tree file that a stranger made.
//!
//! Every access checks its bounds anyway; this also finds what no single access can see:
//! directories that share entries (so that a small file stands for a huge tree), names that no
//! directory holds, and damage that would only show when somebody reads the file.

use super::format::{DirectoryEntry, EntryKind, InodeFlags, InodeRecord};
use super::tree::{LayerTree, damaged};
use super::{IndexError, NONE};

/// The longest name and the longest link target of Linux, in bytes.
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;

impl LayerTree {
    /// Reads everything once. Contents are another question: they are hashed when they arrive.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] at the first thing that no indexer writes.
    pub fn check(&self) -> Result<(), IndexError> {
        if !self.inode(0)?.is_directory() {
            return Err(damaged("its root is not a directory"));
        }
        let (mut entries, mut extents) = (0, 0);
        for inode in self.inodes() {
            entries += self.check_entries(inode)?;
            extents += self.check_inode(inode)?;
            if entries > self.entry_count() || extents > self.extent_count() {
                return Err(damaged("two inodes share entries or extents"));
            }
        }
        for number in self.order() {
            self.inode(number.get())?;
        }
        Ok(())
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

    /// The number of extents of an inode that is right but for what it contains.
    fn check_inode(&self, inode: &InodeRecord) -> Result<usize, IndexError> {
        self.xattrs(inode)?;
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
