//! How a keeper goes on with the mounts of the one before it.

use std::sync::Arc;

use undermount_fs::session::keeper::{DescriptorStore, Estate, Keeper, WorkerConfig};

/// How the mounts of an agent outlive its processes.
#[derive(Debug)]
pub struct Continuity {
    /// Keeps descriptors for the next keeper.
    pub store: Arc<dyn DescriptorStore>,
    /// What the keeper before has left, where this one is to go on with it.
    pub estate: Option<Estate>,
    /// What the next one is to find.
    pub note: String,
}

impl Continuity {
    /// A keeper that goes on with what the one before has left, if that is possible.
    pub(super) fn take_over(&mut self, worker: &WorkerConfig) -> Option<Keeper> {
        let keeper = Keeper::inherit(self.estate.take()?, worker.clone(), self.store.clone());
        let lost = "mounts are made anew; running containers of the layer store are lost";
        keeper.inspect_err(|error| tracing::error!(%error, "{lost}")).ok()
    }

    /// Lets the mounts of `keeper` outlive it.
    pub(super) fn entrust(self, keeper: &mut Keeper) {
        if let Err(error) = keeper.entrust(self.store, self.note) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the mounts end with this process");
        }
    }
}
