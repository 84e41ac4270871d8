//! One image: its blobs, its manifest or manifests, what belongs to them, and last its name.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use undermount_fs::digest::Digest;
use undermount_fs::layer::LayerError;

use super::annotated;
use super::attachments::{self, Finder};
use super::blob::{BlobFailure, BlobMover, Supply, is_damage};
use super::destination::Destinations;
use super::index::{IndexFailure, Indexes};
use super::origin::{Origin, Origins};
use super::store::{Attachment, BlobRole, FoundBy, Spot, StoreError};
use super::{Attached, CopyError, CopyJob, Indexing, ManifestFormat, docker};
use crate::image::artifact::{Artifact, ArtifactError, LayerBlobs};
use crate::image::{Descriptor, Document, Index, Manifest, referrers};
use crate::prepare::progress::Done;
use crate::registry::client::{Fault, RawManifest, RegistryError};

/// Blobs of one image that are looked after at a time.
const BLOBS_AT_A_TIME: usize = 4;
/// How deep lists may lie in lists, and things that belong to things.
const MAX_DEPTH: usize = 4;
/// The architecture whose image a tag means for clients that know no lists.
const COMMON: &str = "amd64";

/// Copies images one by one; shared by all of them.
pub struct ImageCopier<'a> {
    /// Where they come from.
    pub origins: Origins<'a>,
    /// Where they go.
    pub destinations: Destinations,
    /// What moves their blobs.
    pub mover: BlobMover,
    /// The indexes that are built.
    pub indexes: Indexes,
    /// What becomes of indexes.
    pub indexing: Indexing,
    /// When what belongs to images is looked for.
    pub attached: Attached,
    /// What manifests look like.
    pub manifests: ManifestFormat,
    /// What finds that.
    pub finder: Finder,
}

/// An image that is being copied.
struct Work<'a> {
    copier: &'a ImageCopier<'a>,
    job: &'a CopyJob,
    origin: Origin,
    spot: Spot,
    moved: Moved,
    /// Whether the destination had it all before.
    changed: bool,
    /// What the registry refused while it had no manifest that it belongs to.
    refused: Vec<(Digest, Attachment)>,
    /// What is shown in place of manifests, by their digest.
    annotated: HashMap<Digest, RawManifest>,
}

#[derive(Debug, Default)]
struct Moved {
    bytes: u64,
    shared: usize,
    blobs: usize,
}

impl ImageCopier<'_> {
    /// Copies the image of `job`, unless it is at its destination already.
    ///
    /// # Errors
    /// [`CopyError`] with whatever did not go well; the name is then as it was.
    pub async fn copy(&self, job: &CopyJob) -> Result<Done, CopyError> {
        let (origin, found) = self.origins.find(&job.source, job.multi_arch).await?;
        let spot = self.destinations.spot(&job.target).await?;
        let mut work = Work::new(self, job, origin, spot);
        let named = match self.manifests {
            ManifestFormat::Keep | ManifestFormat::Annotated => found.clone(),
            ManifestFormat::Docker => docker::convert(found.clone()),
        };
        // What belongs to an image names it by digest.
        let has_attachments = named.digest == found.digest;
        let present = work.is_present(&named).await?;
        let document = work.read(&named)?;
        let common = match present {
            true => None,
            false => work.bring(&named, &document, 0).await?,
        };
        if has_attachments && self.attached.applies(present) {
            work.bring_all_attachments(&named, &document, present).await?;
        }
        if !present {
            let shown = work.show(&named, &document).await?;
            work.changed |= work.spot.name(&shown, common.as_ref()).await?;
        }
        work.attach_refused().await?;
        Ok(work.done())
    }
}

impl<'a> Work<'a> {
    fn new(copier: &'a ImageCopier<'a>, job: &'a CopyJob, origin: Origin, spot: Spot) -> Self {
        Self {
            copier,
            job,
            origin,
            spot,
            moved: Moved::default(),
            changed: false,
            refused: Vec::new(),
            annotated: HashMap::new(),
        }
    }

    fn done(self) -> Done {
        let Moved { bytes, shared, blobs } = self.moved;
        match self.changed {
            true => Done::Copied { bytes, shared, blobs },
            false => Done::Unchanged,
        }
    }

    fn read(&self, raw: &RawManifest) -> Result<Document, CopyError> {
        raw.document().map_err(|error| self.origin.unusable(raw, error))
    }

    /// Whether the name at the destination means what it is to mean.
    async fn is_present(&self, named: &RawManifest) -> Result<bool, CopyError> {
        match self.copier.manifests {
            ManifestFormat::Annotated => Ok(self.spot.shows_annotated(&named.digest).await?),
            _ => Ok(self.spot.has(named).await? && self.is_indexed(named).await?),
        }
    }

    /// What the name is to mean: `named`, or what is shown in its place, with `named` kept by its
    /// digest.
    async fn show(
        &mut self,
        named: &RawManifest,
        document: &Document,
    ) -> Result<RawManifest, CopyError> {
        let shown = match document {
            Document::Manifest(_) => self.annotated.remove(&named.digest),
            Document::Index(_) => annotated::of_list(named, &self.annotated),
        };
        let Some(shown) = shown else { return Ok(named.clone()) };
        self.changed |= self.spot.put(named).await?;
        for image in self.annotated.values() {
            self.changed |= self.spot.put(image).await?;
        }
        Ok(shown)
    }

    /// Whether the image at the destination has its index, or none is wanted. That of a list is
    /// not asked for: its children were indexed before its tag was written.
    async fn is_indexed(&self, named: &RawManifest) -> Result<bool, CopyError> {
        if self.copier.indexing != Indexing::Build {
            return Ok(true);
        }
        let Document::Manifest(manifest) = self.read(named)? else { return Ok(true) };
        if indexable_layers(&manifest).is_empty() {
            return Ok(true);
        }
        Ok(self.spot.is_indexed(&named.digest).await?)
    }

    /// Brings what `raw` names. Of a list, gives the image that clients without lists get.
    async fn bring(
        &mut self,
        raw: &RawManifest,
        document: &Document,
        depth: usize,
    ) -> Result<Option<RawManifest>, CopyError> {
        match document {
            Document::Manifest(manifest) => {
                self.bring_manifest(raw, manifest).await?;
                Ok(None)
            }
            Document::Index(index) => self.bring_children(raw, index, depth).await,
        }
    }

    /// Brings the images of a list, by digest.
    async fn bring_children(
        &mut self,
        list: &RawManifest,
        index: &Index,
        depth: usize,
    ) -> Result<Option<RawManifest>, CopyError> {
        if depth >= MAX_DEPTH {
            return Err(CopyError::TooDeep(list.digest));
        }
        let mut common = None;
        for child in &index.manifests {
            let raw = self.origin.manifest(&child.digest).await?;
            let document = self.read(&raw)?;
            Box::pin(self.bring(&raw, &document, depth + 1)).await?;
            self.changed |= self.spot.put(&raw).await?;
            let platform = child.platform.as_ref();
            let is_common = platform.is_some_and(|platform| platform.architecture == COMMON);
            if common.is_none() || is_common {
                common = common.filter(|(known, _)| *known).or(Some((is_common, raw)));
            }
        }
        Ok(common.map(|(_, raw)| raw))
    }

    /// Brings what a manifest names, and attaches its index; the manifest itself comes after.
    async fn bring_manifest(
        &mut self,
        raw: &RawManifest,
        manifest: &Manifest,
    ) -> Result<(), CopyError> {
        let is_image = manifest.check_is_image().is_ok();
        let role = if is_image { BlobRole::Layer } else { BlobRole::Other };
        let layers = manifest.layers.iter().map(|layer| (layer, role));
        let blobs = std::iter::once((&manifest.config, BlobRole::Other)).chain(layers);
        let indexable = match self.copier.indexing {
            Indexing::Build => indexable_layers(manifest),
            _ => Vec::new(),
        };
        let work = &*self;
        let config = self.copier.origins.sources().known_config(&manifest.config.digest);
        let arrivals: Vec<u64> = stream::iter(blobs.filter(|(blob, _)| !is_foreign(blob)))
            .map(|(blob, role)| {
                let is_indexed = indexable.iter().any(|layer| layer.digest == blob.digest);
                let indexes = is_indexed.then_some(&work.copier.indexes);
                let mover = &work.copier.mover;
                let from = match &config {
                    Some(bytes) if blob.digest == manifest.config.digest => Supply::Memory(bytes),
                    _ => Supply::Origin(&work.origin),
                };
                async move {
                    let arrival = mover.bring(blob, role, from, &work.spot, indexes).await;
                    arrival.map_err(|failure| work.blob_error(blob, failure))
                }
            })
            .buffer_unordered(BLOBS_AT_A_TIME)
            .try_collect()
            .await?;
        self.count(&arrivals);
        if !indexable.is_empty() {
            self.attach_index(raw, &indexable).await?;
        }
        Ok(())
    }

    fn count(&mut self, arrivals: &[u64]) {
        self.moved.bytes += arrivals.iter().sum::<u64>();
        self.moved.shared += arrivals.iter().filter(|&&bytes| bytes == 0).count();
        self.moved.blobs += arrivals.len();
        self.changed |= arrivals.iter().any(|&bytes| bytes > 0);
    }

    /// Builds the index artifact of a manifest and attaches it, so that nobody sees the name
    /// before it. An image whose layers cannot be indexed goes without: nodes then build their
    /// own index.
    async fn attach_index(
        &mut self,
        raw: &RawManifest,
        layers: &[&Descriptor],
    ) -> Result<(), CopyError> {
        let mut built = Vec::new();
        for layer in layers {
            let source = self.spot.blob(layer, BlobRole::Layer)?;
            match self.copier.indexes.get(&layer.digest, &*source).await {
                Ok(index) => built.push(index),
                Err(failure) => return self.without_index(layer, failure),
            }
        }
        if self.copier.manifests == ManifestFormat::Annotated {
            let tree = |index: &LayerBlobs| (index.layer, Digest::of(&index.tree));
            match annotated::of_image(raw, &built.iter().map(tree).collect()) {
                Some(shown) => {
                    self.push_index(&shown, built.clone()).await?;
                    self.annotated.insert(raw.digest, shown);
                }
                None => {
                    tracing::warn!(image = %self.job.target, "its manifest takes no annotations")
                }
            }
        }
        self.push_index(raw, built).await
    }

    async fn push_index(
        &mut self,
        raw: &RawManifest,
        built: Vec<LayerBlobs>,
    ) -> Result<(), CopyError> {
        let artifact = build_artifact(raw.descriptor(), built).await;
        let artifact = artifact.map_err(|error| CopyError::Artifact {
            image: self.job.target.to_string(),
            source: Box::new(error),
        })?;
        let refused = self.push_artifact(&artifact).await?;
        self.refused.extend(refused.map(|attachment| (raw.digest, attachment)));
        Ok(())
    }

    /// Pushes an index artifact; gives it back where the registry wants its subject first.
    async fn push_artifact(
        &mut self,
        artifact: &Artifact,
    ) -> Result<Option<Attachment>, CopyError> {
        for (blob, bytes) in &artifact.blobs {
            let (mover, from) = (&self.copier.mover, Supply::Memory(bytes));
            let moved = mover.bring(blob, BlobRole::Other, from, &self.spot, None).await;
            let moved = moved.map_err(|failure| self.blob_error(blob, failure))?;
            self.changed |= moved > 0;
        }
        let attachment = Attachment {
            raw: RawManifest {
                bytes: artifact.manifest.clone(),
                media_type: artifact.descriptor.media_type.clone(),
                digest: artifact.descriptor.digest,
            },
            descriptor: artifact.descriptor.clone(),
            found_by: FoundBy::Subject(Some(referrers::own_tag(&artifact.subject))),
        };
        self.attach(&artifact.subject, attachment).await
    }

    /// Attaches; gives back what the registry refuses.
    async fn attach(
        &mut self,
        subject: &Digest,
        attachment: Attachment,
    ) -> Result<Option<Attachment>, CopyError> {
        match self.spot.attach(subject, &attachment).await {
            Ok(changed) => {
                self.changed |= changed;
                Ok(None)
            }
            Err(StoreError::Registry(error)) if is_refusal(&error) => Ok(Some(attachment)),
            Err(error) => Err(error.into()),
        }
    }

    /// Attaches what was refused before the manifest was there. A registry that still refuses
    /// takes no artifacts.
    async fn attach_refused(&mut self) -> Result<(), CopyError> {
        for (subject, attachment) in std::mem::take(&mut self.refused) {
            match self.spot.attach(&subject, &attachment).await {
                Err(StoreError::Registry(error)) if is_refusal(&error) => {
                    let (image, error) = (&self.job.target, error.in_words());
                    let kind =
                        referrers::artifact_type(&attachment.descriptor).unwrap_or("artifact");
                    tracing::warn!(%image, kind, error, "the registry takes nothing that belongs to images");
                }
                attached => self.changed |= attached?,
            }
        }
        Ok(())
    }

    /// Brings what belongs to an image, or to a list and its images.
    async fn bring_all_attachments(
        &mut self,
        named: &RawManifest,
        document: &Document,
        present: bool,
    ) -> Result<(), CopyError> {
        let children: Vec<Digest> = match document {
            Document::Manifest(_) => Vec::new(),
            Document::Index(index) => index.manifests.iter().map(|child| child.digest).collect(),
        };
        for subject in std::iter::once(named.digest).chain(children) {
            self.bring_attachments(&subject, present, 0).await?;
        }
        Ok(())
    }

    async fn bring_attachments(
        &mut self,
        subject: &Digest,
        present: bool,
        depth: usize,
    ) -> Result<(), CopyError> {
        for attachment in self.copier.finder.find(&self.origin, subject).await? {
            let is_index = attachments::is_index(&attachment.descriptor);
            if is_index && self.copier.indexing != Indexing::Carry {
                continue;
            }
            if present && self.spot.has_attachment(&attachment).await? {
                continue;
            }
            let document = self.read(&attachment.raw)?;
            let digest = attachment.raw.digest;
            Box::pin(self.bring(&attachment.raw, &document, depth)).await?;
            if let Some(refused) = self.attach(subject, attachment).await? {
                self.refused.push((*subject, refused));
            }
            if depth < MAX_DEPTH && !is_index {
                Box::pin(self.bring_attachments(&digest, present, depth + 1)).await?;
            }
        }
        Ok(())
    }

    fn without_index(&self, layer: &Descriptor, failure: IndexFailure) -> Result<(), CopyError> {
        match failure {
            IndexFailure::Source(error) => Err(error.into()),
            IndexFailure::Scratch(source) => {
                Err(CopyError::Scratch { layer: layer.digest, source })
            }
            IndexFailure::Layer(source) if is_damage(&source) => Err(self.damaged(layer, source)),
            IndexFailure::Layer(error) => {
                let (image, layer) = (&self.job.target, &layer.digest);
                tracing::warn!(%image, %layer, %error, "no index for this image");
                Ok(())
            }
        }
    }

    fn blob_error(&self, blob: &Descriptor, failure: BlobFailure) -> CopyError {
        match failure {
            BlobFailure::Store(error) => error.into(),
            BlobFailure::Source(error) => *error,
            BlobFailure::Scratch(source) => CopyError::Scratch { layer: blob.digest, source },
            BlobFailure::Layer(source) => self.damaged(blob, source),
        }
    }

    fn damaged(&self, layer: &Descriptor, source: LayerError) -> CopyError {
        let (image, source) = (self.job.source.to_string(), Box::new(source));
        CopyError::Layer { image, layer: layer.digest, source }
    }
}

/// Whether a registry refuses, rather than fails.
fn is_refusal(error: &RegistryError) -> bool {
    matches!(error.fault, Fault::Status { .. } | Fault::NotFound(_))
}

/// The layers of an image that have an index: none where the manifest is not that of an image.
fn indexable_layers(manifest: &Manifest) -> Vec<&Descriptor> {
    if manifest.check_is_image().is_err() {
        return Vec::new();
    }
    let wanted =
        |layer: &&Descriptor| !is_foreign(layer) && !layer.media_type.contains("+encrypted");
    manifest.layers.iter().filter(wanted).collect()
}

/// Whether the blob lies elsewhere, by the will of its owner, and is never in a registry.
fn is_foreign(blob: &Descriptor) -> bool {
    !blob.urls.is_empty()
        && (blob.media_type.contains("nondistributable") || blob.media_type.contains("foreign"))
}

/// Compresses trees, so it belongs on a thread of its own.
async fn build_artifact(
    subject: Descriptor,
    layers: Vec<LayerBlobs>,
) -> Result<Artifact, ArtifactError> {
    tokio::task::spawn_blocking(move || Artifact::build(&subject, &layers))
        .await
        .expect("the artifact is built without a panic")
}
