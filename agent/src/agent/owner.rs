//! The owner of a cache: what is mounted where, and what happens on request.
//!
//! What is mounted is written down before it shows (`mounts.json` in the runtime directory), so
//! that the next worker shows the same images under the same nodeids. The bind mounts themselves
//! outlive any worker: what one cannot show again stays written down for the next.

mod error;
mod kernel;
mod records;
mod restore;
mod status;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Pace, Progress};
use undermount_fs::session::DataMode;
use undermount_fs::source::Priority;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{NewImage, SlotTable, View};

pub use self::error::OwnerError;
use self::kernel::in_time;
use self::records::Record;
use super::binding::{self, BindError, MountTable};
use super::completion::{Completer, Completion};
use super::images::{Images, Ready, has_xattrs};
use super::upkeep::{Recorded, Shown, Upkeep};
use crate::blocking::blocking;
use crate::control::{MountRequest, PullRequest, Runtime, UnmountRequest};
use crate::image::Reference;
use crate::registry::client::Client;
use crate::supply::Ledger;

struct Mounted {
    record: Record,
    /// What the view calls it.
    name: Digest,
    ready: Arc<Ready>,
    completion: Completion,
}

/// A mount of the worker before that this one cannot show.
struct Lost {
    record: Record,
    /// Why not.
    reason: String,
}

/// The mounts by directory.
#[derive(Default)]
struct Mounts {
    shown: BTreeMap<PathBuf, Mounted>,
    /// Those that answer with errors: the kernel has them, and so may the next worker.
    lost: BTreeMap<PathBuf, Lost>,
}

impl Mounts {
    fn has(&self, dir: &Path) -> bool {
        self.shown.contains_key(dir) || self.lost.contains_key(dir)
    }

    fn len(&self) -> usize {
        self.shown.len() + self.lost.len()
    }

    /// All of them as they are written down.
    fn records(&self) -> impl Iterator<Item = &Record> {
        let lost = self.lost.values().map(|lost| &lost.record);
        self.shown.values().map(|mounted| &mounted.record).chain(lost)
    }

    /// What is said to be mounted at `dir`.
    fn reference(&self, dir: &Path) -> Option<String> {
        self.records().find(|record| record.dir == dir).map(|record| record.reference.clone())
    }
}

/// What an owner works with.
pub struct Parts {
    /// The images of the cache.
    pub images: Arc<Images>,
    /// Completes what is mounted.
    pub completer: Completer,
    /// Shows what is mounted.
    pub view: Arc<View>,
    /// The nodeids of [`Self::view`].
    pub slots: Arc<std::sync::Mutex<SlotTable>>,
    /// Speaks to registries.
    pub client: Client,
    /// Knows what was fetched from where.
    pub ledger: Arc<Ledger>,
    /// The runtime directory.
    pub runtime: Runtime,
    /// How the kernel gets the bytes of files, in all mounts of this owner.
    pub data_mode: DataMode,
}

/// The owner of a cache.
pub struct Owner {
    parts: Parts,
    mounts: Mutex<Mounts>,
}

impl Owner {
    /// An owner that has mounted nothing yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts, mounts: Mutex::default() }
    }

    /// Detaches and forgets what an owner that is gone, or about to go, has mounted.
    pub fn clear(runtime: &Runtime) {
        let records = records::read(&runtime.mounts()).or_else(|error| {
            tracing::error!(%error, "cannot read what the owner before has mounted");
            records::still_mounted(runtime)
        });
        for record in records.unwrap_or_default() {
            tracing::warn!(dir = %record.dir.display(), "detaching a mount that lost its server");
            if let Err(error) = binding::unbind(&record.dir, true) {
                tracing::error!(%error, "cannot detach a dead mount");
            }
        }
        let tables = [runtime.slots(), runtime.layers(), runtime.store_nodes(), runtime.starts()];
        for path in tables.into_iter().chain([runtime.mounts(), runtime.damaged_mounts()]) {
            // What is not there need not go; what cannot go fails to open, loudly.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Sees to it that an image can be mounted; its packs are opened where it `starts` soon.
    async fn prepare(
        &self,
        reference: &Reference,
        plain_http: bool,
        starts: bool,
        progress: &Progress,
    ) -> Result<Arc<Ready>, OwnerError> {
        self.allow(reference, plain_http);
        let image = self.parts.images.resolve(reference).await?;
        if starts {
            self.parts.images.expect_start(&image);
        }
        Ok(Arc::new(self.parts.images.make_ready(image, progress).await?))
    }

    /// Speaks plain HTTP with the registry of `reference`, where that was asked for.
    fn allow(&self, reference: &Reference, plain_http: bool) {
        if plain_http {
            self.parts.client.allow_plain_http(reference.repository().host());
        }
    }

    /// The merged tree of an image.
    async fn merge(&self, ready: &Arc<Ready>) -> Result<ImageTree, OwnerError> {
        let (images, ready) = (self.parts.images.clone(), ready.clone());
        Ok(blocking(move || images.merge(&ready)).await?)
    }

    /// Refuses an image that the quota has no room for beside what is shown and pinned.
    async fn check_room(&self, ready: &Arc<Ready>) -> Result<(), OwnerError> {
        let (images, ready, shown) =
            (self.parts.images.clone(), ready.clone(), self.shown_layers().await);
        Ok(blocking(move || images.check_room(&ready, &shown)).await?)
    }

    /// Puts an image with its merged `tree` into the view; its name there. Not while another is
    /// put there or taken away, which is what the lock on the mounts is for.
    fn show(
        &self,
        _mounts: &mut Mounts,
        ready: &Ready,
        tree: ImageTree,
    ) -> Result<Digest, OwnerError> {
        let image = NewImage { manifest: ready.image.digest, tree, layers: ready.layers.clone() };
        let path = self.parts.runtime.slots();
        let mut slots = self.parts.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.parts.view.add_image(image, &mut slots);
        added.map_err(|source| OwnerError::Record { path, source })
    }

    /// Mounts an image; the digest of its manifest.
    ///
    /// # Errors
    /// [`OwnerError`]; nothing is left behind.
    pub async fn mount(
        &self,
        request: &MountRequest,
        progress: &Progress,
    ) -> Result<Digest, OwnerError> {
        let PullRequest { reference, plain_http } = &request.image;
        let dir = &request.dir;
        if let Some(wanted) = request.data_mode.filter(|wanted| *wanted != self.parts.data_mode) {
            return Err(OwnerError::DataMode { wanted, present: self.parts.data_mode });
        }
        let mounted = self.mounts.lock().await.reference(dir);
        check_free(mounted, dir).await?;
        let parsed: Reference = reference.parse()?;
        let ready = self.prepare(&parsed, *plain_http, !request.no_packs, progress).await?;
        self.check_room(&ready).await?;
        let tree = self.merge(&ready).await?;
        let manifest = ready.image.digest;

        let mut mounts = self.mounts.lock().await;
        // Preparing takes time: somebody else may have mounted there meanwhile.
        check_free(mounts.reference(dir), dir).await?;
        let name = self.show(&mut mounts, &ready, tree)?;
        let record = Record {
            dir: dir.clone(),
            reference: parsed.to_string(),
            manifest,
            plain_http: *plain_http,
            trees: ready.layers.iter().map(|layer| layer.tree_digest()).collect(),
        };
        let content = self.parts.runtime.content(has_xattrs(&ready));
        let shown = content.join("images").join(name.hex());
        let (packs, place) = (!request.no_packs, vec![shown.clone()]);
        let completion = self.parts.completer.begin(ready.clone(), packs, place);
        self.attach(&mut mounts, Mounted { record, name, ready, completion }, shown).await?;
        Ok(manifest)
    }

    /// Writes down where an image that the view shows at `shown` is mounted, and mounts it there.
    async fn attach(
        &self,
        mounts: &mut Mounts,
        mounted: Mounted,
        shown: PathBuf,
    ) -> Result<(), OwnerError> {
        let dir = mounted.record.dir.clone();
        mounts.lost.remove(&dir);
        if let Some(stale) = mounts.shown.insert(dir.clone(), mounted) {
            // Somebody took its mount away with umount(8), and nobody has noticed yet.
            self.hide(mounts, &stale.name);
        }
        let bound = match self.write_records(mounts) {
            Ok(()) => bind(shown, &dir).await,
            Err(error) => Err(error),
        };
        if bound.is_err()
            && let Err(error) = self.forget(mounts, &dir)
        {
            let error = &error as &dyn std::error::Error;
            tracing::error!(dir = %dir.display(), error, "cannot forget a mount that failed");
        }
        bound
    }

    /// Unmounts an image.
    ///
    /// # Errors
    /// [`OwnerError`] where none is mounted there, or it is in use.
    pub async fn unmount(&self, request: &UnmountRequest) -> Result<(), OwnerError> {
        let UnmountRequest { dir, lazy } = request.clone();
        let mut mounts = self.mounts.lock().await;
        if !mounts.has(&dir) {
            return Err(OwnerError::NotMounted { dir });
        }
        let unbound = dir.clone();
        let unmounted = in_time(move || binding::unbind(&unbound, lazy), drop).await;
        unmounted.map_err(|unanswered| unanswered.at(&dir))??;
        self.forget(&mut mounts, &dir)
    }

    /// No longer counts `dir` as mounted, and drops its image where no other mount shows it.
    fn forget(&self, mounts: &mut Mounts, dir: &Path) -> Result<(), OwnerError> {
        if let Some(gone) = mounts.shown.remove(dir) {
            self.hide(mounts, &gone.name);
        }
        mounts.lost.remove(dir);
        self.write_records(mounts)
    }

    /// Takes the image with this name in the view out of it, where none of the `mounts` shows it.
    fn hide(&self, mounts: &Mounts, name: &Digest) {
        if mounts.shown.values().all(|mounted| mounted.name != *name) {
            self.parts.view.remove_image(name);
        }
    }

    /// Forgets the mounts that somebody took away with umount(8); how many are left.
    ///
    /// # Errors
    /// [`OwnerError::MountTable`] where it cannot be told which are there, and
    /// [`OwnerError::Record`] where what is left cannot be written down.
    pub async fn notice_unmounts(&self) -> Result<usize, OwnerError> {
        let mut mounts = self.mounts.lock().await;
        if mounts.len() == 0 {
            return Ok(0);
        }
        let table = MountTable::read().map_err(|source| OwnerError::MountTable { source })?;
        let dirs = mounts.records().map(|record| &record.dir);
        let gone: Vec<PathBuf> = dirs.filter(|dir| !table.has(dir)).cloned().collect();
        for dir in gone {
            self.forget(&mut mounts, &dir)?;
        }
        Ok(mounts.len())
    }

    fn write_records(&self, mounts: &Mounts) -> Result<(), OwnerError> {
        let runtime = &self.parts.runtime;
        records::write(runtime, mounts.records())
            .map_err(|source| OwnerError::Record { path: runtime.mounts(), source })
    }

    /// Fetches all of an image; the digest of its manifest.
    ///
    /// # Errors
    /// [`OwnerError`] where a part of it cannot be had; what has arrived stays.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<Digest, OwnerError> {
        let reference: Reference = request.reference.parse()?;
        let ready = self.prepare(&reference, request.plain_http, false, progress).await?;
        self.check_room(&ready).await?;
        self.parts.images.complete(&ready, Pace::unlimited(Priority::Pack), progress).await?;
        Ok(ready.image.digest)
    }

    /// The image that is mounted at `dir`.
    pub async fn mounted(&self, dir: &Path) -> Option<Arc<Ready>> {
        self.mounts.lock().await.shown.get(dir).map(|mounted| mounted.ready.clone())
    }

    /// How many images are mounted.
    pub async fn count(&self) -> usize {
        self.mounts.lock().await.len()
    }

    /// The name of a mounted image that has `layer`.
    pub async fn image_with(&self, layer: &Digest) -> Option<String> {
        let mounts = self.mounts.lock().await;
        let has = |mounted: &&Mounted| mounted.ready.layers.iter().any(|it| it.digest() == *layer);
        mounts.shown.values().find(has).map(|mounted| mounted.record.reference.clone())
    }

    /// How the kernel gets the bytes of files.
    pub fn data_mode(&self) -> DataMode {
        self.parts.data_mode
    }

    /// Looks after the cache, as of now.
    pub async fn upkeep(&self) -> Upkeep {
        let recorded = |record: &Record| {
            let (reference, manifest) = (record.reference.parse().ok()?, record.manifest);
            Some(Recorded { reference, manifest, complete: false })
        };
        // Nobody who mounts waits for what follows, which reads the disk.
        let mounted = self.mounts.lock().await.records().filter_map(recorded).collect();
        let shown = self.shown_layers().await;
        Upkeep::new(self.parts.images.clone(), mounted).with_shown(shown)
    }

    async fn shown_layers(&self) -> Shown {
        let (view, images) = (self.parts.view.clone(), self.parts.images.clone());
        blocking(move || Shown::of(&view, images.cache().root())).await
    }

    /// Bytes of file contents in the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.parts.images.filler().store().usage().bytes
    }
}

/// Shows `image` at `dir`. What is done too late for anybody to wait for it is undone.
async fn bind(image: PathBuf, dir: &Path) -> Result<(), OwnerError> {
    let (target, undone) = (dir.to_owned(), dir.to_owned());
    let undo = move |bound: Result<(), BindError>| {
        if bound.is_ok()
            && let Err(error) = binding::unbind(&undone, true)
        {
            tracing::error!(error = &error as &dyn std::error::Error, "a late mount stays behind");
        }
    };
    let bound = in_time(move || binding::bind(&image, &target), undo).await;
    Ok(bound.map_err(|unanswered| unanswered.at(dir))??)
}

/// Checks that nothing is, and something can be, mounted at `dir`, where `reference` is said to be.
async fn check_free(reference: Option<String>, dir: &Path) -> Result<(), OwnerError> {
    let directory = dir.to_owned();
    let check = move || {
        if let Some(reference) = reference
            && binding::is_mounted(&directory)
                .map_err(|source| OwnerError::MountTable { source })?
        {
            return Err(OwnerError::Mounted { dir: directory, reference });
        }
        Ok(binding::check_mount_point(&directory)?)
    };
    in_time(check, drop).await.map_err(|unanswered| unanswered.at(dir))?
}

#[cfg(test)]
mod tests;
