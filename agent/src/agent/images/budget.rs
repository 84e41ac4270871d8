//! Bounds the memory for attached indexes, which others have made: a few KiB of one may unpack to a
//! GiB of names, and an image has several of them.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::image::artifact::LayerEntry;

const MIB: u64 = 1 << 20;
/// The memory that all trees may take which are being looked through, in MiB.
const ALL: u32 = 512;

/// The memory that is left.
pub struct Budget(Semaphore);

impl Default for Budget {
    fn default() -> Self {
        Self(Semaphore::new(ALL as usize))
    }
}

impl Budget {
    /// Waits for the memory that the tree of `entry` takes: its blob, and the tree twice, since it is
    /// copied to where it stays. A tree that takes more than there is waits until it is alone. The
    /// memory is given back when the answer is dropped.
    pub async fn turn(&self, entry: &LayerEntry) -> Option<SemaphorePermit<'_>> {
        let bytes = entry.tree_size.saturating_mul(2).saturating_add(entry.tree_blob.size);
        let share = u32::try_from(bytes.div_ceil(MIB)).unwrap_or(ALL).min(ALL);
        self.0.acquire_many(share).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use undermount_fs::digest::Digest;

    use super::*;
    use crate::image::artifact::LayerBlobs;

    fn tree_of(mib: u64) -> LayerEntry {
        let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
        LayerEntry { tree_size: mib * MIB, ..layer.pack().unwrap().entry }
    }

    #[test]
    fn trees_wait_for_each_other_and_the_largest_is_alone() {
        let budget = Budget::default();
        let small = budget.turn(&tree_of(1)).now_or_never().flatten().unwrap();
        let large = budget.turn(&tree_of(200)).now_or_never().flatten().unwrap();
        assert!(budget.turn(&tree_of(100)).now_or_never().is_none());
        drop(large);
        assert!(budget.turn(&tree_of(100)).now_or_never().is_some());
        assert!(budget.turn(&tree_of(1000)).now_or_never().is_none());
        drop(small);
        assert!(budget.turn(&tree_of(1000)).now_or_never().is_some());
    }
}
