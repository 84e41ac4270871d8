//! Index artifacts for the images that are pushed.
//!
//! When an image's manifest comes, its layers are indexed and the artifact is attached to it, if
//! the image can be mounted: its configuration tells of each layer.
//! The image can be pulled at once; who asks for its referrers waits until the artifact is
//! there, for a bounded time. Each layer is indexed once per registry, at most one at a time
//! per two processors. What a restart interrupted is taken up again at the next start.

mod attached;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use undermount_fs::digest::Digest;
use undermount_fs::layer::{Indexer, LayerError};

use super::digest::ContentDigest;
use super::manifest::{Content, Submitted};
use super::metrics::Metrics;
use super::name::Repository;
use super::packing::Packing;
use super::storage::{Storage, StorageError};
use super::target::Reference;
use crate::blocking::blocking;
use crate::image::artifact::{self, ArtifactError, LayerBlobs, LayerEntry};
use crate::image::manifest::{Descriptor, media_type};
use attached::{Attached, lacks_artifact, put_artifact};

pub use attached::artifacts;

/// How often an index is made that is removed as garbage before it belongs to its image.
const ATTEMPTS: usize = 3;
/// Bytes of a layer read at a time.
const READ: usize = 1 << 20;

/// Builds and attaches index artifacts.
pub struct Indexing {
    storage: Arc<Storage>,
    /// How long a push and a query of referrers wait; `None` if nothing is indexed.
    wait: Option<Duration>,
    /// Images that are being indexed.
    pending: Mutex<HashMap<Image, CancellationToken>>,
    layers: Mutex<HashMap<Digest, Arc<Layer>>>,
    builders: Semaphore,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Makes packs of images that have an index; `None` where nobody does.
    packing: Option<Arc<Packing>>,
}

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// Where it is.
    pub repository: Repository,
    /// Which it is.
    pub digest: ContentDigest,
}

/// A promise to index an image, made before its manifest can be seen. Kept or dropped, it ends
/// the waiting for it.
pub struct Promise {
    indexing: Arc<Indexing>,
    image: Image,
    subject: Descriptor,
    config: ContentDigest,
    layers: Vec<Digest>,
}

/// The work on one layer, shared by all who need it. An error that is in the layer itself is
/// remembered until the registry is started again.
type Layer = OnceCell<Result<LayerEntry, Arc<IndexingError>>>;

/// Why a layer or an image has no index.
#[derive(Debug, thiserror::Error)]
pub enum IndexingError {
    /// The layer is malformed.
    #[error("layer {layer} cannot be indexed")]
    Layer {
        /// Its digest.
        layer: Digest,
        /// What is wrong with it.
        source: LayerError,
    },
    /// The layer is not in the image's repository.
    #[error("layer {0} was not pushed to the repository of the image")]
    Missing(Digest),
    /// The stored bytes are not those that were pushed.
    #[error("layer {expected} is damaged on disk: it hashes to {actual}")]
    Damaged {
        /// Its digest.
        expected: Digest,
        /// The digest of what the disk holds.
        actual: Digest,
    },
    /// The layer cannot be read.
    #[error("cannot read layer {layer}")]
    Read {
        /// Its digest.
        layer: Digest,
        /// The refusal.
        source: io::Error,
    },
    /// The image's configuration cannot be read.
    #[error("cannot read the configuration of the image")]
    Config(#[source] io::Error),
    /// The index cannot be packed.
    #[error(transparent)]
    Pack(#[from] ArtifactError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What was made was removed as garbage each time before it was attached.
    #[error("the index was removed as garbage before it was attached")]
    Swept,
    /// The registry is shutting down.
    #[error("the registry is shutting down")]
    Stopped,
}

impl IndexingError {
    /// Whether the layer itself is to blame, so that it fails each time.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Layer { .. } | Self::Damaged { .. })
    }
}

impl Indexing {
    /// Indexes what is pushed to `storage` and lets clients wait for it as long as `wait`; with
    /// `None`, nothing is indexed. Work runs in `tasks` and ends early at `stop`.
    pub fn new(
        storage: Arc<Storage>,
        wait: Option<Duration>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            storage,
            wait,
            pending: Mutex::default(),
            layers: Mutex::default(),
            builders: Semaphore::new((processors / 2).max(1)),
            metrics,
            tasks,
            stop,
            packing: None,
        }
    }

    /// The same, which has packs made by `packing`.
    #[must_use]
    pub fn with_packing(self, packing: Option<Arc<Packing>>) -> Self {
        Self { packing, ..self }
    }

    /// Promises to index the image `submitted`, if it is one that can be and that nobody has
    /// promised to index yet. From now on, who asks for its referrers waits.
    pub fn promise(
        self: &Arc<Self>,
        image: &Image,
        submitted: &Submitted,
        size: u64,
    ) -> Option<Promise> {
        self.wait?;
        let (config, layers) = parts(submitted)?;
        let subject = Descriptor::new(&submitted.media_type, image.digest.sha256()?, size);
        match self.pending().entry(image.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                vacant.insert(CancellationToken::new());
                let indexing = Arc::clone(self);
                Some(Promise { indexing, image: image.clone(), subject, config, layers })
            }
        }
    }

    /// Has a pack made of the image that the manifest `pushed` to `repository` belongs to, where
    /// that is an index artifact: its maker may have left the pack to us, or taken one away.
    pub fn pack_subject(&self, repository: &Repository, pushed: &Submitted) {
        let is_index = pushed.artifact_type.as_deref() == Some(media_type::UNDERMOUNT_INDEX);
        let subject = pushed.subject.clone().filter(|_| is_index);
        if let (Some(packing), Some(digest)) = (&self.packing, subject) {
            packing.schedule(Image { repository: repository.clone(), digest });
        }
    }

    /// Waits, as long as a client should, for the index of `image` if it is being built.
    pub async fn settled(&self, image: &Image) {
        let done = self.pending().get(image).cloned();
        if let (Some(done), Some(wait)) = (done, self.wait) {
            // Whether it is there in time or not, the client goes on with what there is.
            let _ = tokio::time::timeout(wait, done.cancelled()).await;
        }
    }

    /// How many images are being indexed.
    pub fn len(&self) -> usize {
        self.pending().len()
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Image, CancellationToken>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Indexes, one by one, the images that have no index yet: those whose indexing the end of
    /// a former process cut off.
    pub async fn catch_up(self: Arc<Self>) {
        if self.wait.is_none() {
            return;
        }
        let storage = Arc::clone(&self.storage);
        let images = match blocking(move || images(&storage)).await {
            Ok(images) => images,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot list images");
                return;
            }
        };
        for image in images {
            if self.stop.is_cancelled() {
                return;
            }
            let (storage, wanted) = (Arc::clone(&self.storage), image.clone());
            let read = blocking(move || read_manifest(&storage, &wanted)).await;
            if let Some((submitted, size)) = read
                && let Some(promise) = self.promise(&image, &submitted, size)
            {
                promise.index().await;
            }
        }
    }

    /// The index of a layer: from the disk, from who is building it, or built now.
    async fn layer(&self, digest: Digest) -> Result<LayerEntry, Arc<IndexingError>> {
        let layer = Arc::clone(
            self.layers.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default(),
        );
        let entry = layer.get_or_init(|| async { self.build(digest).await.map_err(Arc::new) });
        let entry = entry.await.clone();
        // What was indexed is remembered by the disk; what failed in passing is tried again.
        if !entry.as_ref().is_err_and(|error| error.is_lasting()) {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            if layers.get(&digest).is_some_and(|known| Arc::ptr_eq(known, &layer)) {
                layers.remove(&digest);
            }
        }
        entry
    }

    async fn build(&self, digest: Digest) -> Result<LayerEntry, IndexingError> {
        let _turn = self.builders.acquire().await.map_err(|_| IndexingError::Stopped)?;
        let (storage, stop) = (Arc::clone(&self.storage), self.stop.clone());
        blocking(move || match storage.layer_index(&digest)? {
            Some(entry) => Ok(entry),
            None => build(&storage, digest, &stop),
        })
        .await
    }
}

impl Promise {
    /// Keeps the promise in a task of its own.
    pub fn keep(self) {
        let tasks = self.indexing.tasks.clone();
        tasks.spawn(self.index());
    }

    async fn index(self) {
        let Image { repository, digest } = &self.image;
        match self.attach().await {
            Ok(true) => {
                self.indexing.metrics.indexed.inc();
                tracing::info!(%repository, %digest, "image indexed");
                if let Some(packing) = &self.indexing.packing {
                    packing.schedule(self.image.clone());
                }
            }
            Ok(false) => {}
            Err(error) if matches!(*error, IndexingError::Stopped) => {}
            Err(error) => {
                self.indexing.metrics.not_indexed.inc();
                let error = &*error as &dyn std::error::Error;
                tracing::warn!(%repository, %digest, error, "image has no index");
            }
        }
    }

    /// Attaches the artifact; says whether there was none.
    async fn attach(&self) -> Result<bool, Arc<IndexingError>> {
        let (storage, image) = (Arc::clone(&self.indexing.storage), self.image.clone());
        let (config, layers) = (self.config.clone(), self.layers.clone());
        if !blocking(move || lacks_artifact(&storage, &image, &config, &layers)).await? {
            return Ok(false);
        }
        for _ in 0..ATTEMPTS {
            let mut entries = Vec::with_capacity(self.layers.len());
            for layer in &self.layers {
                entries.push(self.indexing.layer(*layer).await?);
            }
            let (storage, image) = (Arc::clone(&self.indexing.storage), self.image.clone());
            let (descriptor, manifest) = artifact::manifest(&self.subject, &entries);
            let stored =
                blocking(move || put_artifact(&storage, &image, &descriptor, &manifest, &entries));
            match stored.await.map_err(|error| Arc::new(error.into()))? {
                Attached::Done => return Ok(true),
                Attached::ImageGone => return Ok(false),
                Attached::BlobsGone => {}
            }
        }
        Err(Arc::new(IndexingError::Swept))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(done) = self.indexing.pending().remove(&self.image) {
            done.cancel();
        }
    }
}

/// The configuration and layers of an image that can be indexed: it is to be run, and the
/// registry holds all of it.
fn parts(submitted: &Submitted) -> Option<(ContentDigest, Vec<Digest>)> {
    let Content::Image { config, layers, runnable: true } = &submitted.content else {
        return None;
    };
    let stored = submitted.blobs().count() == layers.len() + 1;
    let digests = layers.iter().map(|layer| layer.digest.sha256()).collect::<Option<Vec<_>>>();
    let digests = digests.filter(|digests| stored && !digests.is_empty())?;
    Some((config.digest.clone(), digests))
}

/// Every manifest of the registry, image or not.
fn images(storage: &Storage) -> Result<Vec<Image>, StorageError> {
    let mut images = Vec::new();
    for repository in storage.repositories()? {
        let manifests = storage.manifests(&repository)?;
        let of = |digest| Image { repository: repository.clone(), digest };
        images.extend(manifests.into_iter().map(of));
    }
    Ok(images)
}

fn read_manifest(storage: &Storage, image: &Image) -> Option<(Submitted, u64)> {
    let reference = Reference::Digest(image.digest.clone());
    let manifest = storage.manifest(&image.repository, &reference).ok().flatten()?;
    let submitted = Submitted::parse(&manifest.bytes, Some(&manifest.media_type)).ok()?;
    Some((submitted, manifest.bytes.len() as u64))
}

/// Builds the index of a layer and keeps it.
fn build(
    storage: &Storage,
    layer: Digest,
    stop: &CancellationToken,
) -> Result<LayerEntry, IndexingError> {
    let blob = storage.any_blob(&layer.into())?.ok_or(IndexingError::Missing(layer))?;
    let mut indexer = Indexer::new();
    feed(&mut indexer, blob.file, stop).map_err(|source| IndexingError::Read { layer, source })?;
    if stop.is_cancelled() {
        return Err(IndexingError::Stopped);
    }
    let index = indexer.finish().map_err(|source| IndexingError::Layer { layer, source })?;
    if index.layer != layer {
        return Err(IndexingError::Damaged { expected: layer, actual: index.layer });
    }
    let packed = LayerBlobs::from(&index).pack()?;
    storage.put_layer_index(&packed)?;
    Ok(packed.entry)
}

/// Shows the layer to the indexer, to its end unless it is malformed or time to stop.
fn feed(indexer: &mut Indexer, mut file: File, stop: &CancellationToken) -> io::Result<()> {
    while !stop.is_cancelled() {
        let mut piece = Vec::with_capacity(READ);
        if file.by_ref().take(READ as u64).read_to_end(&mut piece)? == 0 {
            break;
        }
        if indexer.write_bytes(piece.into()).is_err() {
            // What is wrong is said at its end.
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::storage::testing::fixture;
    use super::*;

    #[tokio::test]
    async fn regression_a_layer_is_indexed_once_what_kept_it_from_that_has_passed() {
        let fixture = fixture();
        let storage = Arc::new(fixture.storage);
        let (metrics, tasks) = (Arc::new(Metrics::default()), TaskTracker::new());
        let indexing =
            Indexing::new(storage.clone(), None, metrics, tasks, CancellationToken::new());
        let empty_archive = [0; 1024];
        let layer = Digest::of(&empty_archive);
        let error = indexing.layer(layer).await.unwrap_err();
        assert!(matches!(*error, IndexingError::Missing(_)), "{error}");
        storage.put_blob(&layer.into(), &empty_archive).unwrap();
        assert_eq!(indexing.layer(layer).await.unwrap().layer, layer);
        // What is wrong with the layer itself is found out once.
        let rubbish = [1; 1024];
        let layer = Digest::of(&rubbish);
        storage.put_blob(&layer.into(), &rubbish).unwrap();
        let first = indexing.layer(layer).await.unwrap_err();
        assert!(Arc::ptr_eq(&first, &indexing.layer(layer).await.unwrap_err()));
    }
}
