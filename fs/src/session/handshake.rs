//! `FUSE_INIT`: what keeper and kernel agree on, once in the life of a mount.
//!
//! The keeper shakes hands itself, right after mount(2). No worker can die in the middle of it,
//! and all workers, the first as well as the hundredth, begin in the same way: they are told the
//! [`Agreement`] and hand it to `fuser` as if the kernel had just offered it. A newer binary is
//! therefore limited to what was agreed when the mount was made.

use fuser::InitFlags;
use serde::{Deserialize, Serialize};

use super::wire::{self, InitIn, InitOut};

/// What the content mounts want from the kernel, as far as it offers it.
///
/// The tree never changes under the kernel, so everything may be cached for good: symbolic links
/// (`CACHE_SYMLINKS`), pages whatever the attributes say (`EXPLICIT_INVAL_DATA`), and files and
/// directories are opened without asking (`NO_OPEN_SUPPORT`, `NO_OPENDIR_SUPPORT`).
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_INIT_EXT)
    .union(InitFlags::FUSE_HAS_RESEND);

/// Bytes that the kernel may read ahead. It starts with the smaller 128 KiB of every new mount.
pub(super) const MAX_READAHEAD: u32 = 1 << 20;
/// Pages of one read: 1 MiB where the kernel can, 128 KiB otherwise.
const MAX_PAGES: u16 = 256;
/// Read-ahead requests that may be waiting at a time.
const MAX_BACKGROUND: u16 = 64;
/// Nobody writes; the smallest value lets requests be read into small buffers.
const MAX_WRITE: u32 = 4096;

/// What keeper and kernel agreed on when the mount was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Minor number of the kernel's FUSE protocol (7.x).
    pub minor: u32,
    /// Bytes that the kernel offered to read ahead.
    pub max_readahead: u32,
    /// The flags in force, as in [`fuser::InitFlags`].
    pub flags: u64,
}

impl Agreement {
    /// Takes what we want from the offer, but no flag outside `mask`. A mask makes a new kernel
    /// look like an old one.
    pub(super) fn reach(offer: &InitIn, mask: u64) -> Self {
        let low = InitFlags::from_bits_retain(u64::from(offer.flags));
        let offered = if low.contains(InitFlags::FUSE_INIT_EXT) {
            low | InitFlags::from_bits_retain(u64::from(offer.flags2) << 32)
        } else {
            low
        };
        let agreed = offered & WANTED & InitFlags::from_bits_retain(mask);
        Self { minor: offer.minor, max_readahead: offer.max_readahead, flags: agreed.bits() }
    }

    /// The flags in force.
    pub fn flags(&self) -> InitFlags {
        InitFlags::from_bits_retain(self.flags)
    }

    /// Whether the kernel sends unanswered requests again on demand.
    pub fn resends(&self) -> bool {
        self.flags().contains(InitFlags::FUSE_HAS_RESEND)
    }

    /// The answer that seals the agreement.
    pub(super) fn reply(&self) -> InitOut {
        InitOut {
            major: wire::MAJOR,
            minor: wire::MINOR,
            max_readahead: MAX_READAHEAD,
            flags: self.flags as u32,
            flags2: (self.flags >> 32) as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND * 3 / 4,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: MAX_PAGES,
            ..InitOut::default()
        }
    }

    /// The agreement in the form of an offer, for a worker's `fuser`.
    pub(super) fn as_offer(&self) -> InitIn {
        let flags = self.flags | InitFlags::FUSE_INIT_EXT.bits();
        InitIn {
            major: wire::MAJOR,
            minor: self.minor,
            max_readahead: self.max_readahead,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(flags: u64) -> InitIn {
        InitIn {
            major: 7,
            minor: 45,
            max_readahead: 1 << 17,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        }
    }

    #[test]
    fn nothing_is_agreed_that_was_not_offered() {
        let offered = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_POSIX_LOCKS;
        let agreement = Agreement::reach(&offer(offered.bits()), u64::MAX);
        assert_eq!(agreement.flags(), InitFlags::FUSE_ASYNC_READ);
        assert!(!agreement.resends());
    }

    #[test]
    fn the_upper_half_counts_only_where_the_kernel_says_it_is_valid() {
        let resend = InitFlags::FUSE_HAS_RESEND;
        assert!(!Agreement::reach(&offer(resend.bits()), u64::MAX).resends());
        let extended = resend | InitFlags::FUSE_INIT_EXT;
        assert!(Agreement::reach(&offer(extended.bits()), u64::MAX).resends());
    }

    #[test]
    fn a_mask_hides_what_an_older_kernel_lacks() {
        let linux_5_14 = (1 << 30) - 1;
        let agreement = Agreement::reach(&offer(u64::MAX), linux_5_14);
        assert!(!agreement.resends());
        assert_eq!(agreement.reply().flags2, 0);
        assert!(agreement.flags().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
    }

    #[test]
    fn a_worker_is_offered_exactly_what_was_agreed() {
        let agreement = Agreement::reach(&offer(u64::MAX), u64::MAX);
        assert_eq!(Agreement::reach(&agreement.as_offer(), u64::MAX), agreement);
    }
}
