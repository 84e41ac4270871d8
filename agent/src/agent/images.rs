//! Images made ready to mount: resolved, indexed, merged.
//!
//! ```text
//! reference -> manifest and config     registry; the last known ones where it is unreachable
//!           -> an index for each layer known here, or attached to the image, or built from
//!                                      the layer's bytes (which are then all here)
//!           -> merged tree
//! ```
//!
//! What an index says of its layer is held against the manifest and the config before it is
//! used; whether it tells the truth about the contents shows when they are read (every object is
//! hashed) and when the layer is complete (the index is built again and compared).

mod holder;
mod indexes;
mod openings;
mod room;

pub use holder::{Holder, Indexed};

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use tokio::sync::{OnceCell, Semaphore};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::{Content, Filler, IngestError, Layer, Pace, Patience, Progress, Told};
use undermount_fs::index::{IndexError, LayerTree, Trust};
use undermount_fs::source::{Piece, PieceRequest, Priority, Source};
use undermount_fs::tree::{ImageTree, TreeError};

use self::openings::Openings;
use super::cache::{Cache, CacheError, LayerRecord};
use crate::image::artifact::pack::{PackEntry, Purpose};
use crate::image::{
    Descriptor, Document, ImageConfig, Manifest, ManifestError, Platform, Reference,
};
use crate::registry::client::{Client, Fault, Image, RegistryError};

/// Layers that are indexed or completed side by side.
const SIDE_BY_SIDE: usize = 3;

/// Trees that are fetched side by side: they are small, and each takes a round trip.
const TREES_SIDE_BY_SIDE: usize = 8;

/// How long the registry may take to tell what a name means.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take where the last known answer can be used instead.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// An image cannot be mounted or pulled.
#[derive(Debug)]
pub struct ImageError {
    /// The image.
    pub reference: Reference,
    /// Why.
    pub fault: Box<ImageFault>,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.fault {
            // It names the image, and what of it, itself.
            ImageFault::Registry(error) => error.fmt(f),
            _ => write!(f, "image {}", self.reference),
        }
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.fault {
            ImageFault::Registry(error) => error.source(),
            fault => Some(fault),
        }
    }
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// The registry does not have it, refuses it or cannot be reached.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// Manifest or config are damaged or contradict each other.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer could not be fetched or unpacked.
    #[error(transparent)]
    Layer(#[from] IngestError),
    /// An index contradicts the manifest or the config.
    #[error("layer {layer}: {what}")]
    Mismatch {
        /// The layer.
        layer: Digest,
        /// What contradicts what.
        what: &'static str,
    },
    /// No index of the layer is known or attached to the image.
    #[error("the registry has no index of it; `undermount prepare` makes one")]
    NoIndex,
    /// The image has fewer layers.
    #[error("the image has no such layer")]
    NoSuchLayer,
    /// The layers do not make an image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The cache cannot be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The quota has no room for it.
    #[error(
        "its files take {image} bytes; with the {pinned} bytes of the images that are mounted or \
         complete that makes {needed}, and the quota is {quota}: raise --quota, or allow with \
         --evict-complete that they are dropped and fetched again"
    )]
    Quota {
        /// Bytes of this image's files.
        image: u64,
        /// Bytes of the files that must stay.
        pinned: u64,
        /// Bytes of both together, what they share counted once.
        needed: u64,
        /// Bytes that may be kept.
        quota: u64,
    },
    /// The cache cannot be written.
    #[error("cannot keep {what} in the cache")]
    Keep {
        /// What was to be kept.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl ImageFault {
    fn of(self, reference: &Reference) -> ImageError {
        ImageError { reference: reference.clone(), fault: Box::new(self) }
    }
}

/// An image whose manifest and config are known.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The name it was asked for by.
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: ImageConfig,
}

/// An image that can be mounted.
pub struct Ready {
    /// Which one.
    pub image: Resolved,
    /// Its layers, the lowest first.
    pub layers: Vec<Arc<Layer>>,
    /// What came with the image to fetch first; empty where all its indexes were known here.
    pub packs: Vec<PackEntry>,
}

/// How much of an image is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the compressed layers, each counted once.
    pub compressed: u64,
    /// Bytes of all distinct file contents.
    pub content: u64,
    /// Bytes of them that are here.
    pub local: u64,
}

/// The images of a cache.
pub struct Images {
    cache: Cache,
    client: Client,
    filler: Arc<Filler>,
    platform: Platform,
    /// Digests of trees that were found to lie, so that they are not believed again.
    liars: Mutex<HashSet<Digest>>,
    openings: Openings,
    /// Layers that are indexed here at the same time.
    builders: Semaphore,
}

impl Images {
    /// The images in `cache`: names are resolved with `client`, bytes come from `source`, and a
    /// read waits for them with `patience`.
    pub fn new(cache: Cache, client: Client, source: Arc<dyn Source>, patience: Patience) -> Self {
        let filler = Filler::new(cache.store.clone(), cache.blobs.clone(), source, patience);
        Self {
            cache,
            client,
            filler: Arc::new(filler),
            platform: Platform::host(),
            liars: Mutex::default(),
            openings: Openings::default(),
            builders: Semaphore::new(SIDE_BY_SIDE),
        }
    }

    /// Reads what is missing; a view needs it.
    pub fn filler(&self) -> &Arc<Filler> {
        &self.filler
    }

    /// The cache that they are in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    fn blobs(&self) -> &Blobs {
        &self.cache.blobs
    }

    /// What `reference` means: from the registry, or what it meant last where the registry cannot
    /// be reached.
    ///
    /// # Errors
    /// [`ImageError`] where the registry does not have it, or nobody knows.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        if let Some(digest) = reference.digest()
            && let Ok(Some(known)) = self.stored(reference, digest)
        {
            return Ok(known);
        }
        let known = self.cache.reference(reference);
        let timeout = if known.is_some() { KNOWN_TIMEOUT } else { RESOLVE_TIMEOUT };
        let client = self.client.until(Instant::now() + timeout);
        let elsewhere = |config| self.shared(reference, config);
        match client.image_beside(reference, &self.platform, elsewhere).await {
            Ok(image) => self.remember(reference, image),
            Err(error) => self.resolve_offline(reference, error),
        }
        .map_err(|fault| fault.of(reference))
    }

    /// A small blob of the image, where other nodes may have it.
    async fn shared(&self, reference: &Reference, blob: Descriptor) -> Option<Verified> {
        let source = self.filler.source();
        if !source.shares() {
            return None;
        }
        let request = PieceRequest {
            scope: reference.repository().scope(),
            pieces: vec![Piece { blob: blob.digest, range: 0..blob.size, digest: blob.digest }],
            priority: Priority::Demand,
            deadline: Instant::now() + KNOWN_TIMEOUT,
        };
        // Where nobody has it, the registry is asked in the ordinary way, and says why not.
        source.fetch(request).await.ok()?.into_iter().next()
    }

    /// Keeps manifest and config, and what the name means.
    fn remember(&self, reference: &Reference, image: Image) -> Result<Resolved, ImageFault> {
        let digest = image.raw.digest;
        self.keep("a manifest", image.raw.bytes)?;
        self.keep("a config", image.config.raw.clone())?;
        if let Err(error) = self.cache.put_reference(reference, &digest) {
            tracing::warn!(%reference, error = &error as &dyn Error, "cannot note what it means");
        }
        let (manifest, config) = (image.manifest, image.config);
        Ok(Resolved { reference: reference.clone(), digest, manifest, config })
    }

    /// The image that `reference` meant with this manifest: from here, or once more from the
    /// registry.
    ///
    /// # Errors
    /// [`ImageError`] where the registry does not have it, or cannot be reached.
    pub async fn restore(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<Resolved, ImageError> {
        if let Ok(Some(known)) = self.stored(reference, manifest) {
            return Ok(known);
        }
        let client = self.client.until(Instant::now() + RESOLVE_TIMEOUT);
        let pinned = reference.pinned(*manifest);
        let image = client
            .image(&pinned, &self.platform)
            .await
            .map_err(|error| ImageFault::Registry(Box::new(error)).of(reference))?;
        let kept = self
            .keep("a manifest", image.raw.bytes)
            .and_then(|_| self.keep("a config", image.config.raw.clone()));
        kept.map_err(|fault| fault.of(reference))?;
        let (manifest, config) = (image.manifest, image.config);
        Ok(Resolved { reference: reference.clone(), digest: image.raw.digest, manifest, config })
    }

    /// What `reference` meant last, if `failure` says that the registry cannot tell.
    fn resolve_offline(
        &self,
        reference: &Reference,
        failure: RegistryError,
    ) -> Result<Resolved, ImageFault> {
        let known = self.cache.reference(reference).filter(|_| is_outage(&failure));
        let stored = match known {
            Some(record) => self.stored(reference, &record.manifest)?,
            None => None,
        };
        let stored = stored.ok_or_else(|| ImageFault::Registry(Box::new(failure)))?;
        tracing::warn!(%reference, manifest = %stored.digest,
            "registry unreachable: using what the name meant last");
        Ok(stored)
    }

    /// The image with this manifest, if manifest and config are here.
    fn stored(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<Resolved>, ManifestError> {
        let Some(manifest) = self.blobs().get(digest) else { return Ok(None) };
        let manifest = match Document::parse(manifest.bytes(), None)? {
            Document::Manifest(manifest) => *manifest,
            // A pinned index: the registry chooses again.
            Document::Index(_) => return Ok(None),
        };
        let Some(config) = self.blobs().get(&manifest.config.digest) else { return Ok(None) };
        let config = ImageConfig::parse(config.into_bytes())?;
        Ok(Some(Resolved { reference: reference.clone(), digest: *digest, manifest, config }))
    }

    /// Sees to it that every layer of `image` has an index. Layers for which none is known or
    /// attached are fetched whole; `progress` counts their bytes.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be had or contradicts the image.
    pub async fn make_ready(
        &self,
        image: Resolved,
        progress: &Progress,
    ) -> Result<Ready, ImageError> {
        match self.layers(&image, progress).await {
            Ok((layers, packs)) => Ok(Ready { image, layers: share_equal(layers), packs }),
            Err(fault) => Err(fault.of(&image.reference)),
        }
    }

    async fn layers(
        &self,
        image: &Resolved,
        progress: &Progress,
    ) -> Result<(Vec<Arc<Layer>>, Vec<PackEntry>), ImageFault> {
        let layers: Vec<(Descriptor, Digest)> = image
            .config
            .layers(&image.manifest)?
            .into_iter()
            .map(|(layer, diff_id)| (layer.clone(), *diff_id))
            .collect();
        let attached = OnceCell::new();
        let layers = iter(layers)
            .map(|(layer, diff_id)| self.layer(image, layer, diff_id, &attached, progress))
            .buffered(TREES_SIDE_BY_SIDE)
            .try_collect()
            .await?;
        let packs = attached.into_inner().map(|attached| attached.packs).unwrap_or_default();
        Ok((layers, packs))
    }

    /// Brings in what the image's packs hold: what its start reads, and what it has that an image
    /// here, its predecessor, has not. What cannot be had that way comes when it is read. `told`
    /// hears of what has come.
    pub async fn unpack(&self, ready: &Ready, told: Option<&Told>) {
        let is_of_use = |purpose: &Purpose| match purpose {
            Purpose::Start => true,
            Purpose::Update(predecessor) => self.blobs().has(predecessor),
        };
        for entry in ready.packs.iter().filter(|entry| is_of_use(&entry.purpose)) {
            let reference = &ready.image.reference;
            let pack = entry.in_scope(reference.repository().scope());
            let unpacked = match self.openings.take(&entry.blob) {
                Some(opening) => self.filler.unpack_opened(opening, &ready.layers, told).await,
                None => self.filler.unpack(&pack, &ready.layers, told).await,
            };
            match unpacked {
                Ok(unpacked) => tracing::info!(%reference, purpose = %entry.purpose,
                    units = unpacked.units, bytes = unpacked.bytes, foreign = unpacked.foreign,
                    fetched = unpacked.fetched, "unpacked a pack"),
                Err(error) => tracing::warn!(%reference, purpose = %entry.purpose,
                    error = &error as &dyn Error, "cannot use a pack"),
            }
        }
    }

    /// Fetches everything of `ready` that is not here, and checks every index against the bytes.
    /// `progress` counts compressed bytes.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be had or its index is wrong.
    pub async fn complete(
        &self,
        ready: &Ready,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        iter(distinct(&ready.layers))
            .map(|layer| self.complete_layer(layer, pace, progress))
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await
            .and_then(|()| {
                Ok(self.cache.put_complete(&ready.image.reference, &ready.image.digest)?)
            })
            .map_err(|fault: ImageFault| fault.of(&ready.image.reference))
    }

    /// Fetches the small layers of `ready`, each with one request. What cannot be had comes later.
    pub async fn complete_small(&self, ready: &Ready) {
        let small = distinct(&ready.layers).into_iter().filter(|layer| layer.is_small());
        let pace = Pace::unlimited(Priority::Pack);
        let outcomes = iter(small)
            .map(
                |layer| async move { self.complete_layer(layer, pace, &Progress::default()).await },
            )
            .buffer_unordered(SIDE_BY_SIDE);
        let failures = outcomes.filter_map(|outcome| async { outcome.err() });
        let failed: Vec<ImageFault> = failures.collect().await;
        for error in failed {
            tracing::warn!(reference = %ready.image.reference, error = &error as &dyn Error,
                "cannot fetch a small layer");
        }
    }

    async fn complete_layer(
        &self,
        layer: Arc<Layer>,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), ImageFault> {
        let digest = layer.digest();
        let is_here = missing_bytes(&self.cache, &layer) == Ok(0);
        if self.is_own(&layer) && is_here {
            return Ok(());
        }
        let outcome = if layer.is_checked() && is_here {
            Ok(())
        } else if layer.is_small() && !layer.is_checked() {
            self.filler.fetch_whole(&layer, pace.priority).await
        } else {
            progress.expect(layer.tree.header().layer_size.get());
            self.filler.complete(&layer, pace, progress).await.map(drop)
        };
        if let Err(IngestError::WrongIndex { right, .. }) = &outcome {
            tracing::error!(layer = %digest, "quarantined an index that lies");
            self.distrust(&layer);
            // What is mounted goes on as it is; the next mount shows what the bytes say.
            if let Err(error) = self.keep_index(right) {
                tracing::warn!(layer = %digest, %error, "cannot keep an index");
            }
        }
        outcome?;
        let record = LayerRecord { tree: layer.tree_digest(), trust: Trust::Own };
        Ok(self.cache.put_layer(&digest, &record)?)
    }

    /// The merged tree of `ready`.
    ///
    /// # Errors
    /// [`ImageError`] where the layers do not make an image.
    pub fn merge(&self, ready: &Ready) -> Result<ImageTree, ImageError> {
        let trees = ready.layers.iter().map(|layer| layer.tree.clone()).collect();
        ImageTree::merge(trees).map_err(|error| {
            // An index of somebody else may be to blame. The next attempt builds its own.
            ready.layers.iter().filter(|layer| !self.is_own(layer)).for_each(|l| self.distrust(l));
            ImageFault::Tree(error).of(&ready.image.reference)
        })
    }

    /// Whether the index of `layer` was built here.
    fn is_own(&self, layer: &Layer) -> bool {
        let own = LayerRecord { tree: layer.tree_digest(), trust: Trust::Own };
        self.cache.layer(&layer.digest()) == Some(own)
    }

    /// Forgets the index of `layer` and does not believe it again.
    fn distrust(&self, layer: &Layer) {
        self.note_liar(layer.tree_digest());
        self.cache.forget_layer(&layer.digest());
    }

    fn note_liar(&self, tree: Digest) {
        self.liars.lock().unwrap_or_else(PoisonError::into_inner).insert(tree);
    }

    fn is_liar(&self, tree: &Digest) -> bool {
        self.liars.lock().unwrap_or_else(PoisonError::into_inner).contains(tree)
    }

    /// How much of `ready` is here. Looks at every file.
    pub fn extent(&self, ready: &Ready) -> Extent {
        let mut extent = Extent::default();
        for layer in distinct(&ready.layers) {
            let header = layer.tree.header();
            let content = header.content_size.get();
            let missing = missing_bytes(&self.cache, &layer).unwrap_or(content);
            extent.compressed += header.layer_size.get();
            extent.content += content;
            extent.local += content.saturating_sub(missing);
        }
        extent
    }
}

/// Whether any layer of the image has extended attributes.
pub fn has_xattrs(ready: &Ready) -> bool {
    ready.layers.iter().any(|layer| layer.tree.has_xattrs())
}

/// Whether the registry could not be asked, as opposed to having said no.
fn is_outage(error: &RegistryError) -> bool {
    error.fault.is_transient() || matches!(error.fault, Fault::Deadline(_))
}

fn distinct(layers: &[Arc<Layer>]) -> Vec<Arc<Layer>> {
    let mut seen = HashSet::new();
    layers.iter().filter(|layer| seen.insert(layer.digest())).cloned().collect()
}

/// A layer that occurs twice is one layer.
fn share_equal(layers: Vec<Arc<Layer>>) -> Vec<Arc<Layer>> {
    let mut first = std::collections::HashMap::new();
    layers.into_iter().map(|layer| first.entry(layer.digest()).or_insert(layer).clone()).collect()
}

/// Bytes of the distinct contents of a layer that the store does not have complete.
fn missing_bytes(cache: &Cache, layer: &Layer) -> Result<u64, IndexError> {
    let tree: &LayerTree = &layer.tree;
    let mut seen = HashSet::new();
    let mut missing = 0;
    for number in tree.order() {
        let Some(content) = Content::of(tree, tree.inode(number.get())?)? else { continue };
        if seen.insert(content.key) && !content.is_stored(&cache.store) {
            missing += content.size;
        }
    }
    Ok(missing)
}
