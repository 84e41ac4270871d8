//! Registries that do not answer.
//!
//! A node that has just found a registry out of reach does not try it again for another node. That
//! node would wait for it, then for the next owner, and find the same.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use undermount_fs::source::{Scope, SourceError};

use crate::peer::standing::Moment;

/// How long a registry that failed is not asked for other nodes.
const FRESH: Duration = Duration::from_secs(3);

/// When registries failed, by `host[:port]`.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<HashMap<String, Moment>>);

impl Outages {
    /// Notes that the registry of `scope` failed, if `error` says that it is the registry that did.
    pub fn note(&self, scope: &Scope, error: &SourceError, now: Moment) {
        if matches!(error, SourceError::Unavailable { .. } | SourceError::Deadline { .. }) {
            self.lock().insert(scope.host().to_owned(), now);
        }
    }

    /// Notes that the registry of `scope` delivers.
    pub fn end(&self, scope: &Scope) {
        self.lock().remove(scope.host());
    }

    /// The error to give instead of asking the registry of `scope`; `None` unless it failed within
    /// [`FRESH`].
    pub fn present(&self, scope: &Scope, now: Moment) -> Option<SourceError> {
        let at = self.lock().get(scope.host()).copied()?;
        let (origin, reason) = (scope.host().to_owned(), "it failed a moment ago".to_owned());
        (now.saturating_sub(at) < FRESH).then_some(SourceError::Unavailable { origin, reason })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Moment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undermount_fs::digest::Digest;

    #[test]
    fn a_failure_counts_for_a_moment_and_for_its_registry_alone() {
        let outages = Outages::default();
        let (one, other) = (Scope::new("r.example:1/a"), Scope::new("r.example:2/a"));
        let (origin, second) = (String::new(), Duration::from_secs(1));
        let missing = SourceError::NotFound { origin: origin.clone(), blob: Digest::of(b"") };
        outages.note(&one, &missing, second);
        assert!(outages.present(&one, second).is_none(), "it answered");
        let down = SourceError::Unavailable { origin, reason: String::new() };
        outages.note(&one, &down, second);
        assert!(outages.present(&Scope::new("r.example:1/b"), second * 2).is_some());
        assert!(outages.present(&other, second * 2).is_none());
        assert!(outages.present(&one, second + FRESH).is_none());
        outages.end(&one);
        assert!(outages.present(&one, second).is_none());
    }
}
