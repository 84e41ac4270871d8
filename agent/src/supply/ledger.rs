//! The account of what was fetched: how many bytes, in whose name, from where.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use undermount_fs::source::Scope;

use crate::registry::client::Meter;

/// What stands for the repositories that only others have asked for; no repository has this name.
const OTHERS: &str = "*";

/// Counts bytes by scope and origin (a registry's `host[:port]`, a peer). Bytes that were
/// fetched in vain, because they were wrong or came twice, count as well.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<BTreeMap<(Scope, String), Meter>>,
}

/// One line of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In whose name.
    pub scope: Scope,
    /// From where.
    pub origin: String,
    /// How many bytes.
    pub bytes: u64,
}

impl Ledger {
    /// The counter for what `origin` delivers for `scope`.
    pub fn meter(&self, scope: &Scope, origin: &str) -> Meter {
        let mut accounts = self.accounts();
        let key = (scope.clone(), origin.to_owned());
        Arc::clone(accounts.entry(key).or_insert_with(|| Arc::new(AtomicU64::new(0))))
    }

    /// The same for what is read for other nodes as well: one account for all repositories of a
    /// registry that this node has not used itself, since others may name as many as they like.
    pub fn known_meter(&self, scope: &Scope, origin: &str) -> Meter {
        let is_known = self.accounts().keys().any(|(known, _)| known == scope);
        if is_known {
            return self.meter(scope, origin);
        }
        self.meter(&Scope::new(&format!("{}/{OTHERS}", scope.host())), origin)
    }

    /// All lines so far.
    pub fn entries(&self) -> Vec<Entry> {
        let accounts = self.accounts();
        let line = |((scope, origin), bytes): (&(Scope, String), &Meter)| Entry {
            scope: scope.clone(),
            origin: origin.clone(),
            bytes: bytes.load(Ordering::Relaxed),
        };
        accounts.iter().map(line).collect()
    }

    /// The bytes fetched from registries and from peers.
    pub fn by_source(&self) -> [(&'static str, u64); 2] {
        let registries =
            |entry: &Entry| entry.scope.as_str().starts_with(&format!("{}/", entry.origin));
        let (registry, peer): (Vec<Entry>, _) = self.entries().into_iter().partition(registries);
        let sum = |entries: Vec<Entry>| entries.iter().map(|entry| entry.bytes).sum();
        [("registry", sum(registry)), ("peer", sum(peer))]
    }

    /// The bytes fetched for `scope` from everywhere.
    pub fn bytes_for(&self, scope: &Scope) -> u64 {
        let entries = self.entries();
        entries.iter().filter(|entry| entry.scope == *scope).map(|entry| entry.bytes).sum()
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<(Scope, String), Meter>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_scope_and_origin() {
        let ledger = Ledger::default();
        let (one, two) = (Scope::new("h/one"), Scope::new("h/two"));
        ledger.meter(&one, "h").fetch_add(5, Ordering::Relaxed);
        ledger.meter(&one, "peer").fetch_add(6, Ordering::Relaxed);
        ledger.meter(&one, "h").fetch_add(7, Ordering::Relaxed);
        ledger.meter(&two, "h").fetch_add(8, Ordering::Relaxed);
        let lines: Vec<_> = ledger.entries().into_iter().map(|e| (e.origin, e.bytes)).collect();
        assert_eq!(lines, [("h".into(), 12), ("peer".into(), 6), ("h".into(), 8)]);
        assert_eq!(ledger.bytes_for(&one), 18);
        assert_eq!(ledger.by_source(), [("registry", 20), ("peer", 6)]);
    }

    #[test]
    fn regression_others_open_no_accounts_of_repositories_that_they_invent() {
        let ledger = Ledger::default();
        ledger.meter(&Scope::new("h/own"), "h");
        for number in 0..1000 {
            for scope in [format!("h/invented-{number}"), "h/own".to_owned()] {
                ledger.known_meter(&Scope::new(&scope), "h").fetch_add(1, Ordering::Relaxed);
            }
        }
        assert_eq!(ledger.entries().len(), 2);
        assert_eq!(ledger.bytes_for(&Scope::new("h/own")), 1000);
        assert_eq!(ledger.by_source(), [("registry", 2000), ("peer", 0)]);
    }
}
