//! Garbage of a registry, as its server and its client speak of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What counts as garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GarbageRules {
    /// What is younger stays.
    pub grace: Duration,
    /// Whether manifests go that no tag leads to.
    pub untagged: bool,
    /// Whether garbage is only counted.
    pub dry_run: bool,
}

impl Default for GarbageRules {
    /// Unreferenced blobs that nobody relied on for an hour.
    fn default() -> Self {
        Self { grace: Duration::from_secs(60 * 60), untagged: false, dry_run: false }
    }
}

/// What was removed, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Manifests.
    pub manifests: u64,
    /// Blobs that were taken from one of their repositories.
    pub links: u64,
    /// Blobs that no repository had any more.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}
