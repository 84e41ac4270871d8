//! What is kept of a name over restarts: read before the name is first used, and written whenever
//! something new is learnt.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::Inner;
use super::super::record::NameRecord;
use super::{Known, Name, State};
use crate::blocking::blocking;

/// Counts of users are written down together, this long after the first of them changed.
const SAVE_AFTER: Duration = Duration::from_millis(300);

impl Name {
    /// Reads the record, until that has succeeded once. No network is needed: a layer whose index
    /// is not here has none until somebody asks for that layer.
    pub(super) async fn load(&self, shelf: &Inner, state: &mut State) {
        if state.loaded {
            return;
        }
        let (records, reference) = (shelf.records.clone(), self.reference.clone());
        let mut record = match blocking(move || records.get(&reference)).await {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(reference = %self.reference,
                    error = &error as &dyn std::error::Error, "cannot read what a name has meant");
                return;
            }
        };
        record.add_all(&state.record);
        let mut images = self.images_of(shelf, &mut record).await;
        // In one step, after the last await: the caller may be dropped at any await before.
        for known in std::mem::take(&mut state.images) {
            let digest = known.digest();
            if let Some(same) = images.iter_mut().find(|it| it.digest() == digest) {
                *same = known;
            }
        }
        let learnt = std::mem::replace(&mut state.record, record) != NameRecord::default();
        (state.images, state.loaded) = (images, true);
        if learnt {
            self.save(shelf, state).await;
        }
    }

    /// The images of the record. If the manifest of one is not here any more, the name counts as
    /// one with [`NameRecord::others`].
    async fn images_of(&self, shelf: &Inner, record: &mut NameRecord) -> Vec<Known> {
        let mut images = Vec::new();
        for manifest in record.manifests.clone() {
            match shelf.images.kept(&self.reference, &manifest) {
                Some(image) => images.push(Known::new(shelf.images.indexed_here(image).await)),
                None => {
                    tracing::warn!(reference = %self.reference, %manifest,
                        "a manifest is no longer in the cache");
                    record.others = true;
                }
            }
        }
        images
    }

    /// Writes the record down. The lock on the state keeps an older one from following it.
    pub(super) async fn save(&self, shelf: &Inner, state: &State) {
        if !state.loaded {
            return;
        }
        let (records, record) = (shelf.records.clone(), state.record.clone());
        if let Err(error) = blocking(move || records.put(&record)).await {
            tracing::error!(reference = %self.reference, error = &error as &dyn std::error::Error,
                "cannot keep what a name means");
        }
    }

    /// Writes the record down after [`SAVE_AFTER`], with what else changes until then.
    pub(super) fn save_soon(self: &Arc<Self>, shelf: &Arc<Inner>) {
        if self.saving.swap(true, Ordering::SeqCst) {
            return;
        }
        let (name, shelf) = (self.clone(), shelf.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SAVE_AFTER).await;
            name.saving.store(false, Ordering::SeqCst);
            let state = name.state.lock().await;
            name.save(&shelf, &state).await;
        });
    }
}
