//! Which blob is where at the destinations: each distinct blob moves once for a whole run.
//!
//! Whoever needs a blob in a repository asks the ledger what to do. The first to ask for a blob
//! at a registry moves it; those who come meanwhile wait; those who come later share it. A store is a registry, or files below one directory.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::watch;
use undermount_fs::digest::Digest;

use crate::image::Repository;

/// What this run knows of blobs at the destinations.
#[derive(Debug, Default)]
pub struct Ledger {
    blobs: Mutex<HashMap<(String, Digest), State>>,
}

#[derive(Debug)]
enum State {
    /// Somebody moves it; the channel closes when that is over.
    Moving(watch::Receiver<()>),
    /// These repositories have it; there is at least one.
    In(Vec<Repository>),
}

/// What to do about a blob.
#[derive(Debug)]
pub enum Step<'a> {
    /// The repository has it.
    Here,
    /// This repository of the same store has it.
    ShareFrom(Repository),
    /// Nobody has it: move it, then say so.
    Move(Claim<'a>),
}

/// The right to move a blob. Dropped without a word, it passes to the next who asks.
#[derive(Debug)]
pub struct Claim<'a> {
    ledger: &'a Ledger,
    key: (String, Digest),
    _moving: watch::Sender<()>,
}

impl Ledger {
    /// What to do so that `repository` of `store` has the blob; waits while somebody else moves it.
    pub async fn next(&self, store: &str, repository: &Repository, blob: &Digest) -> Step<'_> {
        let key = (store.to_owned(), *blob);
        loop {
            let mut moved = match self.look(repository, &key) {
                Ok(step) => return step,
                Err(moving) => moving,
            };
            // An error says that the sender is gone, which is what is waited for.
            let _ = moved.changed().await;
        }
    }

    fn look(
        &self,
        repository: &Repository,
        key: &(String, Digest),
    ) -> Result<Step<'_>, watch::Receiver<()>> {
        let mut blobs = self.blobs.lock().expect("no panic while it is held");
        match blobs.get(key) {
            Some(State::Moving(moving)) => Err(moving.clone()),
            Some(State::In(repositories)) if repositories.contains(repository) => Ok(Step::Here),
            Some(State::In(repositories)) => Ok(Step::ShareFrom(repositories[0].clone())),
            None => {
                let (sender, moving) = watch::channel(());
                blobs.insert(key.clone(), State::Moving(moving));
                Ok(Step::Move(Claim { ledger: self, key: key.clone(), _moving: sender }))
            }
        }
    }

    /// Notes that `repository` of `store` has the blob.
    pub fn add(&self, store: &str, repository: &Repository, blob: &Digest) {
        self.insert((store.to_owned(), *blob), repository);
    }

    fn insert(&self, key: (String, Digest), repository: &Repository) {
        let mut blobs = self.blobs.lock().expect("no panic while it is held");
        match blobs.get_mut(&key) {
            Some(State::In(repositories)) if repositories.contains(repository) => {}
            Some(State::In(repositories)) => repositories.push(repository.clone()),
            _ => {
                blobs.insert(key, State::In(vec![repository.clone()]));
            }
        }
    }
}

impl Claim<'_> {
    /// Says that `repository` has the blob now.
    pub fn done(self, repository: &Repository) {
        self.ledger.insert(self.key.clone(), repository);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut blobs = self.ledger.blobs.lock().expect("no panic while it is held");
        if matches!(blobs.get(&self.key), Some(State::Moving(_))) {
            blobs.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    fn moves(step: Step<'_>) -> Claim<'_> {
        match step {
            Step::Move(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_moves_and_later_ones_mount() {
        let ledger = Ledger::default();
        let (a, b, blob) = (repository("d:1/a"), repository("d:1/b"), Digest::of(b"layer"));
        moves(ledger.next("d:1", &a, &blob).await).done(&a);
        assert!(matches!(ledger.next("d:1", &a, &blob).await, Step::Here));
        assert!(matches!(ledger.next("d:1", &b, &blob).await, Step::ShareFrom(from) if from == a));
        ledger.add("d:1", &b, &blob);
        assert!(matches!(ledger.next("d:1", &b, &blob).await, Step::Here));
        moves(ledger.next("other:1", &repository("other:1/a"), &blob).await);
    }

    #[tokio::test]
    async fn those_who_come_meanwhile_wait_and_take_over_after_a_failure() {
        let ledger = Arc::new(Ledger::default());
        let (a, b, blob) = (repository("d:1/a"), repository("d:1/b"), Digest::of(b"layer"));
        let claim = moves(ledger.next("d:1", &a, &blob).await);
        let waiting = {
            let (ledger, b) = (Arc::clone(&ledger), b.clone());
            tokio::spawn(async move { moves(ledger.next("d:1", &b, &blob).await).done(&b) })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(claim);
        waiting.await.unwrap();
        assert!(matches!(ledger.next("d:1", &a, &blob).await, Step::ShareFrom(from) if from == b));
    }
}
