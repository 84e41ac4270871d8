//! Recordings that somebody asked for: what is read of a mounted image becomes a profile.
//!
//! ```text
//! `undermount profile record` -- control socket --> begin: reads of the image's layers are noted
//!                                                   status: how many, and since when none is new
//!                                                   end -> profile
//! ```
//!
//! Starts that nobody asked to record are noticed in [`starts`](super::starts).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use undermount_fs::pack::Profile;
use undermount_fs::view::{Recording, View};

use super::images::Ready;
use crate::control::RecordingStatus;

/// The recordings that were asked for, by mount point.
#[derive(Clone)]
pub struct Recordings {
    view: Arc<View>,
    running: Arc<Mutex<BTreeMap<PathBuf, Arc<Recording>>>>,
}

impl Recordings {
    /// No recordings yet of reads through `view`.
    pub fn new(view: Arc<View>) -> Self {
        Self { view, running: Arc::default() }
    }

    /// Begins to record the reads of the image `ready`, mounted at `dir`. A recording of that mount
    /// which is under way is thrown away.
    pub fn begin(&self, dir: &Path, ready: &Ready) {
        let layers = ready.layers.iter().map(|layer| layer.digest());
        let recording = self.view.recorder().begin(layers);
        self.running().insert(dir.to_owned(), recording);
    }

    /// How far the recording of the mount at `dir` has come; `None` where there is none.
    pub fn status(&self, dir: &Path) -> Option<RecordingStatus> {
        let recording = self.running().get(dir)?.clone();
        let quiet = recording.last_news().map(|last| last.elapsed().as_millis() as u64);
        Some(RecordingStatus { units: recording.profile().units().len(), quiet_ms: quiet })
    }

    /// Ends the recording of the mount at `dir`; what was read, in the order of the first reads.
    pub fn end(&self, dir: &Path) -> Option<Profile> {
        self.running().remove(dir).map(|recording| recording.profile())
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Recording>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
