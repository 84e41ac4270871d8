//! What a member may be, and what the members of one layer may cost.
//!
//! An archive of a few MB can claim millions of names and petabytes of holes. What Linux could
//! not hold is refused, and so is what would take memory out of all proportion.

use super::archive::{Content, Member, MemberKind};

/// The longest name, path and link target of Linux, in bytes.
pub const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
const TARGET_MAX: usize = 4095;

/// Limits of xattr(7).
const XATTR_NAME_MAX: usize = 255;
const XATTR_VALUE_MAX: usize = 64 * 1024;

/// What the names, attributes and inodes of one layer may take, in bytes of memory: some four
/// million files.
const METADATA_MAX: usize = 1 << 30;
/// What an inode takes, its place in its directory included.
const NODE_SIZE: usize = 256;

/// The holes of all sparse files of a layer, in bytes; every MiB of them takes a digest. The login
/// record of the highest user id makes a hole of 1.25 TB.
const HOLES_MAX: u64 = 2 << 40;

/// What a layer has cost so far.
#[derive(Default)]
pub struct Budget {
    metadata: usize,
    holes: u64,
}

impl Budget {
    /// Counts a member.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_member(&mut self, member: &Member) -> Result<(), &'static str> {
        let attributes: usize =
            member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let target = match &member.kind {
            MemberKind::Symlink(target) | MemberKind::HardLink(target) => target.len(),
            _ => 0,
        };
        self.take(NODE_SIZE + member.path.len() + target + attributes)
    }

    /// Counts a directory that no member lists.
    ///
    /// # Errors
    /// What is too much, in words.
    pub fn take_directory(&mut self, name: &[u8]) -> Result<(), &'static str> {
        self.take(NODE_SIZE + name.len())
    }

    fn take(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.metadata = self.metadata.saturating_add(bytes);
        if self.metadata > METADATA_MAX {
            return Err("the names and attributes up to here exceed 1 GiB");
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
        Ok(())
    }
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
}
