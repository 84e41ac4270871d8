//! How much the store may hold: pure decisions.

use crate::disk::Space;

/// Of what must go, so much more goes with it, in per cent of the quota or of what is used: the
/// next eviction shall not come at the next object.
const SLACK_PERCENT: u64 = 10;

/// What the store may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of objects to keep; `None` for as many as there is room for.
    pub quota: Option<u64>,
    /// Bytes of the file system that stay free.
    pub reserve: u64,
    /// Whether also objects that are pinned may go.
    pub evict_complete: bool,
}

impl StoreLimits {
    /// How many bytes must go before `size` more may come, where `used` are used and `space` is
    /// what the file system says; zero where they fit.
    pub fn excess(&self, used: u64, size: u64, space: Option<Space>) -> u64 {
        let over_quota =
            self.quota.map_or(0, |quota| used.saturating_add(size).saturating_sub(quota));
        let into_reserve =
            space.map_or(0, |space| self.reserve.saturating_add(size).saturating_sub(space.free));
        over_quota.max(into_reserve)
    }

    /// How many bytes to drop when `excess` must go.
    pub fn goal(&self, excess: u64, used: u64) -> u64 {
        excess.saturating_add(self.quota.unwrap_or(used).min(used) / 100 * SLACK_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_go_follows_from_quota_and_reserve() {
        let space = |free| Some(Space { free, total: 1000 });
        let limits = |quota, reserve| StoreLimits { quota, reserve, evict_complete: false };
        for (limits, used, size, space, excess) in [
            (limits(None, 0), 900, 100, space(0), 100),
            (limits(None, 0), 900, 100, space(100), 0),
            (limits(Some(1000), 0), 900, 100, None, 0),
            (limits(Some(1000), 0), 900, 101, None, 1),
            (limits(Some(1000), 50), 0, 10, space(59), 1),
            (limits(Some(1000), 50), 1000, 10, space(59), 10),
            (limits(Some(1), u64::MAX), u64::MAX, u64::MAX, space(0), u64::MAX),
        ] {
            assert_eq!(limits.excess(used, size, space), excess, "{limits:?} {used} {size}");
        }
        assert_eq!(limits(Some(1000), 0).goal(1, 1000), 101);
        assert_eq!(limits(None, 10).goal(5, 200), 25);
    }
}
