//! What is used while a sweep removes what nobody uses.
//!
//! A sweep looks at all repositories, one after the other, and then removes the blobs that none
//! of them has. Meanwhile pushes go on. Whoever is about to give a repository a blob says so
//! here first and looks for the blob after that; the sweep asks here, and removes the blob
//! before anyone else can say anything. So either the sweep leaves the blob, or the other one
//! finds that it is gone and has it pushed again. No clock is involved.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::digest::ContentDigest;

/// The blobs that were used since a sweep began; nothing is kept while there is no sweep.
#[derive(Debug, Default)]
pub struct Usage(Mutex<Option<HashSet<ContentDigest>>>);

impl Usage {
    /// Says that `digest` is about to be used.
    pub fn note(&self, digest: &ContentDigest) {
        if let Some(used) = &mut *self.used() {
            used.insert(digest.clone());
        }
    }

    /// Begins to keep what is used; false where a sweep is under way already.
    pub fn begin(&self) -> bool {
        let mut used = self.used();
        let idle = used.is_none();
        if idle {
            *used = Some(HashSet::new());
        }
        idle
    }

    /// Ends what [`begin`](Self::begin) began.
    pub fn end(&self) {
        *self.used() = None;
    }

    /// Does `work`, unless `digest` is used; nobody can begin to use it meanwhile.
    pub fn unless_used<T>(&self, digest: &ContentDigest, work: impl FnOnce() -> T) -> Option<T> {
        let used = self.used();
        let is_used = used.as_ref().is_none_or(|used| used.contains(digest));
        (!is_used).then(work)
    }

    fn used(&self) -> MutexGuard<'_, Option<HashSet<ContentDigest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::digest::Algorithm;
    use super::*;

    fn digest(text: &str) -> ContentDigest {
        ContentDigest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn what_is_used_during_a_sweep_is_left_alone() {
        let usage = Usage::default();
        usage.note(&digest("before"));
        assert!(usage.begin());
        usage.note(&digest("during"));
        assert_eq!(usage.unless_used(&digest("during"), || ()), None);
        assert_eq!(usage.unless_used(&digest("before"), || ()), Some(()));
    }

    #[test]
    fn one_sweep_is_under_way_at_a_time_and_without_one_nothing_is_removed() {
        let usage = Usage::default();
        assert_eq!(usage.unless_used(&digest("a"), || ()), None);
        assert!(usage.begin() && !usage.begin());
        usage.end();
        assert!(usage.begin());
    }
}
