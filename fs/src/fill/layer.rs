//! A layer whose contents can be fetched, and what is known of how it is read.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::OnceCell;

use super::FillError;
use super::ahead::Misses;
use super::follow::Follower;
use super::scopes::Scopes;
use super::waiters::Turns;
use crate::digest::Digest;
use crate::index::{LayerTree, SpanTable};
use crate::source::Scope;

/// A layer whose contents can be fetched.
pub struct Layer {
    /// Its index.
    pub tree: Arc<LayerTree>,
    pub(super) scopes: Scopes,
    tree_digest: OnceLock<Digest>,
    pub(super) table: OnceCell<Arc<SpanTable>>,
    /// Whether its index was held against its bytes.
    pub(super) checked: AtomicBool,
    /// One fetch at a time for each span.
    running: Mutex<HashMap<usize, Arc<tokio::sync::Mutex<()>>>>,
    misses: Mutex<Misses>,
    /// Spans that were fetched and decoded.
    fetched: Mutex<BTreeSet<usize>>,
    /// Where in the tar the latest read was.
    reader: AtomicU64,
    pub(super) follower: Mutex<Option<Follower>>,
    /// When a window was last found not to be had.
    pub(super) windowless: Mutex<Option<Instant>>,
}

impl Layer {
    /// The layer that `tree` describes, fetched in the name of `scope`.
    pub fn new(tree: Arc<LayerTree>, scope: Scope) -> Self {
        Self {
            tree,
            scopes: Scopes::new(scope),
            tree_digest: OnceLock::new(),
            table: OnceCell::default(),
            checked: AtomicBool::default(),
            running: Mutex::default(),
            misses: Mutex::default(),
            fetched: Mutex::default(),
            reader: AtomicU64::default(),
            follower: Mutex::default(),
            windowless: Mutex::default(),
        }
    }

    /// In whose name its bytes are fetched.
    pub fn scope(&self) -> Scope {
        self.scopes.first()
    }

    /// Has its bytes fetched in the name of `scope`, an image that has the layer, too, and in
    /// names that it had before where that is in vain.
    pub fn prefer(&self, scope: &Scope) {
        self.scopes.prefer(scope);
    }

    /// The digest of the layer blob.
    pub fn digest(&self) -> Digest {
        self.tree.header().layer
    }

    /// The digest of the tree file, which names the index.
    pub fn tree_digest(&self) -> Digest {
        *self.tree_digest.get_or_init(|| Digest::of(self.tree.bytes()))
    }

    /// Notes that somebody reads what lies at byte `position` of the tar.
    pub fn note_reader(&self, position: u64) {
        self.reader.store(position, Ordering::Relaxed);
    }

    /// Where in the tar the latest read was.
    pub(super) fn reader(&self) -> u64 {
        self.reader.load(Ordering::Relaxed)
    }

    /// What was missed so far.
    pub(super) fn misses(&self) -> MutexGuard<'_, Misses> {
        self.misses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `spans` were decoded.
    pub(super) fn note_fetched(&self, spans: Range<usize>) {
        self.fetched().extend(spans);
    }

    /// Whether `span` was decoded once.
    pub(super) fn was_fetched(&self, span: usize) -> bool {
        self.fetched().contains(&span)
    }

    fn fetched(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn damaged(&self, reason: impl ToString) -> FillError {
        FillError::Index { layer: self.digest(), reason: reason.to_string() }
    }

    /// Waits until nobody else fetches any of `spans`, and keeps others from them. All take them in
    /// this order, so nobody waits for ever.
    pub(super) async fn turns(&self, spans: impl IntoIterator<Item = usize>) -> Turns {
        let waiting: Vec<_> = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.retain(|_, turn| Arc::strong_count(turn) > 1);
            let turn = |span| (span, running.entry(span).or_default().clone());
            spans.into_iter().map(turn).collect()
        };
        let mut turns = Turns::default();
        for (span, turn) in waiting {
            turns.0.push_back((span, turn.lock_owned().await));
        }
        turns
    }
}
