//! Showing again what the worker before showed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use undermount_fs::fill::Progress;

use super::records::{self, Record};
use super::{Lost, Mounted, Owner, OwnerError};
use crate::agent::images::Ready;
use crate::blocking::blocking;
use crate::control::Failure;
use crate::image::Reference;

/// All mounts that wait for the network to be shown again have so long: a keeper kills a worker
/// that takes a minute.
const WITHIN: Duration = Duration::from_secs(20);

impl Owner {
    /// Shows again what the worker before showed: first what is all here, then, side by side, what
    /// has to be fetched. An image that cannot be had is logged: its mount answers with errors,
    /// until it is unmounted or the next worker has more luck.
    pub async fn restore(&self) {
        let mut absent = Vec::new();
        for record in self.recorded() {
            match self.restore_local(&record).await {
                Ok(true) => {}
                Ok(false) => absent.push(record),
                Err(error) => self.lose(record, &error).await,
            }
        }
        let end = Instant::now() + WITHIN;
        let restoring = absent.into_iter().map(|record| async move {
            let restored = timeout_at(end, self.restore_from_afar(&record)).await;
            if let Err(error) = restored.unwrap_or(Err(OwnerError::Late)) {
                self.lose(record, &error).await;
            }
        });
        join_all(restoring).await;
    }

    /// Counts a mount as one that answers with errors.
    async fn lose(&self, record: Record, error: &OwnerError) {
        let reason = Failure::of(error).in_words();
        tracing::error!(dir = %record.dir.display(), reason, "cannot restore a mount");
        let lost = Lost { record, reason };
        self.mounts.lock().await.lost.insert(lost.record.dir.clone(), lost);
    }

    /// What was written down; where that cannot be read, it is kept under another name, and what
    /// the kernel shows of our images counts.
    fn recorded(&self) -> Vec<Record> {
        let path = self.parts.runtime.mounts();
        let error = match records::read(&path) {
            Ok(records) => return records,
            Err(error) => error,
        };
        let aside = self.parts.runtime.damaged_mounts();
        let moved = std::fs::rename(&path, &aside).err();
        tracing::error!(path = %path.display(), %error, aside = %aside.display(), ?moved,
            "cannot read what is mounted: unmount and mount it again");
        let found = records::still_mounted(&self.parts.runtime).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the mount table");
            Vec::new()
        });
        if let Err(error) = records::write(&self.parts.runtime, found.iter()) {
            tracing::error!(path = %path.display(), %error, "cannot write what is mounted");
        }
        found
    }

    /// Shows an image again without the network; whether all that it takes is here.
    async fn restore_local(&self, record: &Record) -> Result<bool, OwnerError> {
        let pinned = self.pinned(record)?;
        let (images, manifest) = (self.parts.images.clone(), record.manifest);
        let trees = record.trees.clone();
        let ready = blocking(move || images.ready_again(&pinned, &manifest, &trees)).await;
        let Some(ready) = ready else { return Ok(false) };
        self.show_again(record, Arc::new(ready)).await.map(|()| true)
    }

    async fn restore_from_afar(&self, record: &Record) -> Result<(), OwnerError> {
        let pinned = self.pinned(record)?;
        let ready = self.prepare(&pinned, record.plain_http, false, &Progress::default()).await?;
        self.show_again(record, ready).await
    }

    /// The very image that is mounted, whatever its name means by now.
    fn pinned(&self, record: &Record) -> Result<Reference, OwnerError> {
        if record.reference == records::NAMELESS {
            return Err(OwnerError::Nameless);
        }
        let pinned = record.reference.parse::<Reference>()?.pinned(record.manifest);
        self.allow(&pinned, record.plain_http);
        Ok(pinned)
    }

    async fn show_again(&self, record: &Record, ready: Arc<Ready>) -> Result<(), OwnerError> {
        let tree = self.merge(&ready).await?;
        let mut mounts = self.mounts.lock().await;
        let name = self.show(&mut mounts, &ready, tree)?;
        let completion = self.parts.completer.begin(ready.clone(), true, Vec::new());
        let mounted = Mounted { record: record.clone(), name, ready, completion };
        mounts.shown.insert(record.dir.clone(), mounted);
        Ok(())
    }
}
