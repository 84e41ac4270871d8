//! What is said about a cache as a whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How many of a kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one of `bytes`.
    pub fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What is in a cache. Bytes of objects are bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Its directory.
    pub cache: PathBuf,
    /// Names of images that mean something.
    pub images: u64,
    /// File contents that are here whole.
    pub objects: Tally,
    /// Large file contents of which chunks are missing.
    pub partials: Tally,
    /// Trees and spans of layers.
    pub index_blobs: Tally,
    /// Manifests and configs.
    pub small_blobs: Tally,
    /// Bytes of objects that may be kept; `None` for no limit.
    pub quota: Option<u64>,
    /// Bytes of the file system that stay free.
    pub reserve: u64,
    /// Bytes of the file system that are free.
    pub free: u64,
    /// Bytes of objects of mounted or complete images.
    pub pinned_bytes: u64,
    /// Bytes of objects that may go when room is needed.
    pub evictable_bytes: u64,
    /// Objects that went to make room since the cache was opened.
    pub evicted: u64,
    /// Contents that there was no room for since then.
    pub unkept: u64,
    /// Objects that were found damaged since then.
    pub damaged: u64,
}

/// What a verification found. What is damaged is gone, and was fetched again where an image's
/// record says from where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// What was hashed.
    pub checked: Tally,
    /// Incomplete contents that belong to no known image, so that nobody can tell whether they
    /// are right.
    pub unknown: u64,
    /// What was damaged.
    pub damaged: u64,
    /// What of that is here again.
    pub repaired: u64,
    /// What of that is gone, and no image needs it.
    pub dropped: u64,
    /// What of that an image needs and could not be fetched, and why, in words; of very many the
    /// first, and how many more there are.
    pub lost: Vec<String>,
}

/// What to drop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Drop also what images need, the least recently used first, until no more than so many
    /// bytes of objects are left. What is pinned stays.
    #[serde(default)]
    pub to: Option<u64>,
}

/// What was dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectReport {
    /// File contents, whole or in part.
    pub objects: Tally,
    /// Manifests, configs and indexes.
    pub blobs: Tally,
    /// Records of layers.
    pub records: u64,
    /// Files that a crash or an older version left.
    pub leftovers: u64,
    /// Why objects were left alone, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
