//! What is told of the images that are mounted.

use std::sync::Arc;

use super::records::Record;
use super::{Lost, Mounted, Owner};
use crate::agent::images::Ready;
use crate::control::{Fetched, MountStatus};

impl Owner {
    /// What is mounted, and how much of it is here.
    pub async fn mounts(&self) -> Vec<MountStatus> {
        let (mounted, mut status): (Vec<_>, Vec<_>) = {
            let mounts = self.mounts.lock().await;
            let clone =
                |it: &Mounted| (it.record.clone(), it.ready.clone(), it.completion.trouble());
            let lost = mounts.lost.values().map(lost_status);
            (mounts.shown.values().map(clone).collect(), lost.collect())
        };
        for (record, ready, trouble) in mounted {
            status.push(self.mount_status(record, &ready, trouble).await);
        }
        status
    }

    async fn mount_status(
        &self,
        record: Record,
        ready: &Arc<Ready>,
        trouble: Option<String>,
    ) -> MountStatus {
        let extent = self.parts.images.extent(ready).await;
        let scope = ready.image.reference.repository().scope();
        let outage = self.parts.images.filler().outages().of(&scope);
        let trouble = outage.map(|outage| outage.to_string()).or(trouble);
        let fetched = self
            .parts
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| entry.scope == scope && entry.bytes > 0)
            .map(|entry| Fetched { origin: entry.origin, bytes: entry.bytes })
            .collect();
        MountStatus {
            dir: record.dir,
            reference: record.reference,
            manifest: record.manifest,
            image_bytes: extent.compressed,
            content_bytes: extent.content,
            local_bytes: extent.local,
            fetched,
            trouble,
        }
    }
}

/// Of an image that is not shown nobody knows how much there is.
fn lost_status(Lost { record, reason }: &Lost) -> MountStatus {
    MountStatus {
        dir: record.dir.clone(),
        reference: record.reference.clone(),
        manifest: record.manifest,
        image_bytes: 0,
        content_bytes: 0,
        local_bytes: 0,
        fetched: Vec::new(),
        trouble: Some(format!("all reads of it fail since the last restart: {reason}")),
    }
}
