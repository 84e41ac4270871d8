//! Room in the cache: for an image, and for the small blobs without which it does not mount.

use std::io;

use bytes::Bytes;
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::disk::is_full;
use undermount_fs::object::Store;

use super::{ImageError, ImageFault, Images, Ready};
use crate::agent::cache::Cache;
use crate::agent::upkeep::{Needs, Shown, needs};

/// How much room is made for a small blob beside its own size, in bytes: others follow it.
const ROOM: u64 = 1 << 20;

impl Images {
    /// Keeps a small blob; file contents make room for it. Where there is no room all the same, the
    /// image mounts only as long as its registry can be reached.
    pub(super) async fn keep(
        &self,
        what: &'static str,
        bytes: Bytes,
    ) -> Result<Digest, ImageFault> {
        self.on_disk(move |cache| keep(cache, what, &Verified::name(bytes))).await
    }

    /// Refuses an image that the quota has no room for beside what else must stay.
    ///
    /// # Errors
    /// [`ImageFault::Quota`].
    pub fn check_room(&self, ready: &Ready, shown: &Shown) -> Result<(), ImageError> {
        let limits = self.cache.store.limits();
        let Some(quota) = limits.quota.filter(|_| !limits.evict_complete) else { return Ok(()) };
        let image = Needs::of(self, &[], &ready.layers.clone().into()).object_bytes();
        let mut all = Needs::of(self, &needs::complete(self), shown);
        let pinned = all.object_bytes();
        ready.layers.iter().for_each(|layer| all.add_tree(&layer.tree));
        let needed = all.object_bytes();
        if needed <= quota {
            return Ok(());
        }
        Err(ImageFault::Quota { image, pinned, needed, quota }.of(&ready.image.reference))
    }
}

/// Keeps a small blob among the `blobs`; on a full disk file contents of the `store` make room for it.
///
/// # Errors
/// Those of writing.
pub fn put_blob(blobs: &Blobs, store: &Store, blob: &Verified) -> io::Result<()> {
    match blobs.put(blob) {
        Err(error) if is_full(&error) => {
            // The room that is made counts, however it is made.
            let _ = store.make_room(ROOM + blob.bytes().len() as u64);
            blobs.put(blob)
        }
        kept => kept,
    }
}

fn keep(cache: &Cache, what: &'static str, blob: &Verified) -> Result<Digest, ImageFault> {
    match put_blob(&cache.blobs, &cache.store, blob) {
        Err(error) if is_full(&error) => {
            tracing::warn!(%error, digest = %blob.digest(), "no room for {what}");
            Ok(*blob.digest())
        }
        kept => kept.map(|()| *blob.digest()).map_err(|source| ImageFault::Keep { what, source }),
    }
}
