//! `FUSE_INIT`: what keeper and kernel agree on, once in the life of a mount.
//!
//! ```text
//! kernel's offer (fuse_init_in) -> Agreement::reach -> reply (fuse_init_out), by the keeper
//!                                      `-> as_offer -> fuser, in every worker
//! ```
//!
//! The keeper answers `FUSE_INIT` itself, right after mount(2), so that no worker can die in the
//! middle of it. All workers, the first as well as the hundredth, begin in the same way: each gets
//! the [`Agreement`] and hands it to `fuser` as if the kernel had just offered it. A newer binary
//! is therefore limited to what was agreed when the mount was made. Flags and structs:
//! `include/uapi/linux/fuse.h`.

use std::fmt;

use fuser::InitFlags;
use serde::{Deserialize, Serialize};

use super::wire::{self, InitIn, InitOut};

/// The flags that content mounts use where the kernel offers them.
///
/// The tree never changes under the kernel, so everything may be cached for good: symbolic links
/// (`CACHE_SYMLINKS`) and pages, whatever the attributes say (`EXPLICIT_INVAL_DATA`). Files and
/// directories are opened without asking (`NO_OPEN_SUPPORT`, `NO_OPENDIR_SUPPORT`). Directories are
/// always listed with attributes: with `READDIRPLUS_AUTO` the kernel asks for them in the first
/// part of a listing only, and then for each name of the rest.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_INIT_EXT)
    .union(InitFlags::FUSE_HAS_RESEND);

/// The flags that passthrough needs beside those. `NO_OPEN_SUPPORT` is dropped, since the answer to
/// OPEN names the backing file. An answer must not be lost with its worker, or nobody would know by
/// which backing id the file is open; hence `HAS_RESEND`.
const FOR_PASSTHROUGH: InitFlags = InitFlags::FUSE_PASSTHROUGH.union(InitFlags::FUSE_HAS_RESEND);

/// How deep the file system of the store may be stacked, plus one (`max_stack_depth`): at 1 the
/// store lies on a plain file system, and one overlay fits above the mount.
const STACK_DEPTH: u32 = 1;

/// How the kernel gets the bytes of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataMode {
    /// The kernel asks the worker and keeps what it got in its page cache. Works on every kernel.
    #[default]
    Cached,
    /// The kernel reads complete objects from the store by itself, through the page cache of the
    /// store's file system. Needs Linux 6.9, CAP_SYS_ADMIN and a store on a file system that is not
    /// stacked on another one.
    Passthrough,
}

impl fmt::Display for DataMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cached => "cached",
            Self::Passthrough => "passthrough",
        })
    }
}

/// Bytes that the kernel may read ahead, once the mount's setting is raised to it: the kernel
/// begins with 128 KiB.
pub(super) const MAX_READAHEAD: u32 = 1 << 20;
/// The most pages of one read: 1 MiB where the kernel has `MAX_PAGES`, 128 KiB elsewhere.
const MAX_PAGES: u16 = 256;
/// The most background requests (read-ahead) that the kernel has under way at a time.
const MAX_BACKGROUND: u16 = 64;
/// The largest write, in bytes. Nobody writes, and with the smallest value that the kernel takes,
/// requests fit into small buffers.
const MAX_WRITE: u32 = 4096;

/// What keeper and kernel agreed on when the mount was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Minor number of the kernel's FUSE protocol (7.x).
    pub minor: u32,
    /// Bytes that the kernel offered to read ahead (`max_readahead` of its offer).
    pub max_readahead: u32,
    /// The flags in force, as in [`fuser::InitFlags`].
    pub flags: u64,
}

impl Agreement {
    /// Takes the wanted flags from the offer, but none outside `mask`. A mask makes a new kernel
    /// look like an old one.
    pub(super) fn reach(offer: &InitIn, data: DataMode, mask: u64) -> Self {
        let low = InitFlags::from_bits_retain(u64::from(offer.flags));
        let offered = if low.contains(InitFlags::FUSE_INIT_EXT) {
            low | InitFlags::from_bits_retain(u64::from(offer.flags2) << 32)
        } else {
            low
        };
        let wanted = match data {
            DataMode::Cached => WANTED,
            DataMode::Passthrough => {
                WANTED.difference(InitFlags::FUSE_NO_OPEN_SUPPORT).union(FOR_PASSTHROUGH)
            }
        };
        let agreed = offered & wanted & InitFlags::from_bits_retain(mask);
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

    /// Whether the kernel may read files of the store by itself: all of [`DataMode::Passthrough`]
    /// is agreed.
    pub fn passes_through(&self) -> bool {
        self.flags().contains(FOR_PASSTHROUGH)
    }

    /// The body of the answer to `FUSE_INIT`.
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
            max_stack_depth: if self.passes_through() { STACK_DEPTH } else { 0 },
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
        let agreement = Agreement::reach(&offer(offered.bits()), DataMode::Cached, u64::MAX);
        assert_eq!(agreement.flags(), InitFlags::FUSE_ASYNC_READ);
        assert!(!agreement.resends());
    }

    #[test]
    fn the_upper_half_counts_only_where_the_kernel_says_it_is_valid() {
        let resend = InitFlags::FUSE_HAS_RESEND;
        assert!(!Agreement::reach(&offer(resend.bits()), DataMode::Cached, u64::MAX).resends());
        let extended = resend | InitFlags::FUSE_INIT_EXT;
        assert!(Agreement::reach(&offer(extended.bits()), DataMode::Cached, u64::MAX).resends());
    }

    #[test]
    fn a_mask_hides_what_an_older_kernel_lacks() {
        let linux_5_14 = (1 << 30) - 1;
        let agreement = Agreement::reach(&offer(u64::MAX), DataMode::Cached, linux_5_14);
        assert!(!agreement.resends());
        assert_eq!(agreement.reply().flags2, 0);
        assert!(agreement.flags().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
    }

    #[test]
    fn a_worker_is_offered_exactly_what_was_agreed() {
        let agreement = Agreement::reach(&offer(u64::MAX), DataMode::Cached, u64::MAX);
        let offer = agreement.as_offer();
        assert_eq!(Agreement::reach(&offer, DataMode::Cached, u64::MAX), agreement);
    }

    #[test]
    fn passthrough_opens_by_asking_and_tells_the_kernel_its_depth() {
        let agreement = Agreement::reach(&offer(u64::MAX), DataMode::Passthrough, u64::MAX);
        assert!(agreement.passes_through());
        assert!(!agreement.flags().contains(InitFlags::FUSE_NO_OPEN_SUPPORT));
        assert_eq!(agreement.reply().max_stack_depth, 1);
        let cached = Agreement::reach(&offer(u64::MAX), DataMode::Cached, u64::MAX);
        assert!(!cached.passes_through());
        assert_eq!(cached.reply().max_stack_depth, 0);
        for lacking in [InitFlags::FUSE_PASSTHROUGH, InitFlags::FUSE_HAS_RESEND] {
            let offer = offer(!lacking.bits());
            assert!(!Agreement::reach(&offer, DataMode::Passthrough, u64::MAX).passes_through());
        }
    }
}
