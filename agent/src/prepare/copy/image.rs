//! One image: its blobs, its manifest or manifests, its index artifact, and last its tag.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use undermount_fs::layer::LayerError;

use crate::image::artifact::{Artifact, LayerBlobs};
use crate::image::{Descriptor, Document, Manifest, ManifestError, Reference};
use crate::registry::client::{Client, Fault, RawManifest, RegistryError};

use super::blob::{BlobFailure, BlobMover, is_damage};
use super::export::Export;
use super::index::{IndexFailure, Indexes};
use super::{CopyError, CopyJob, CopyOptions, ManifestFormat, docker};
use crate::prepare::progress::{Done, Progress};
use crate::prepare::sources::Sources;

/// Blobs of one image that are looked after at a time.
pub(super) const BLOBS_AT_A_TIME: usize = 4;

/// Copies images one by one; shared by all of them.
pub struct ImageCopier<'a> {
    sources: &'a Sources,
    client: Client,
    mover: BlobMover,
    indexes: Option<Indexes>,
    manifests: ManifestFormat,
    export: Option<Export>,
}

/// What was done for an image so far.
#[derive(Debug, Default)]
struct Moved {
    bytes: u64,
    shared: usize,
    blobs: usize,
    /// Artifacts that the registry refused while it had no manifest that they belong to.
    refused: Vec<Artifact>,
}

impl<'a> ImageCopier<'a> {
    /// A copier that behaves as `options` say.
    ///
    /// # Errors
    /// Where the scratch directory cannot be made.
    pub fn new(
        sources: &'a Sources,
        options: &CopyOptions,
        progress: Arc<dyn Progress>,
    ) -> std::io::Result<Self> {
        let client = sources.client().clone();
        Ok(Self {
            sources,
            mover: BlobMover::new(client.clone(), options.streams, progress),
            indexes: options.index.then(|| Indexes::new(&options.scratch)).transpose()?,
            client,
            manifests: options.manifests,
            export: options.image_serve.as_deref().map(Export::new),
        })
    }

    /// Copies the image of `job`, unless it is at its destination already.
    ///
    /// # Errors
    /// [`CopyError`] with whatever did not go well; the tag is then as it was.
    pub async fn copy(&self, job: &CopyJob) -> Result<Done, CopyError> {
        let named = self.look_up(job).await?;
        if let Some(export) = &self.export
            && export.serves(&job.target, &self.client).await?
        {
            return export.copy(job, named, self.sources).await;
        }
        let present = self.client.resolve(&job.target).await?;
        if present.is_some_and(|present| present.digest == named.digest)
            && self.is_indexed(job, &named).await?
        {
            return Ok(Done::Unchanged);
        }
        let mut moved = Moved::default();
        match named.document().map_err(|error| manifest_error(&job.source, error))? {
            Document::Manifest(manifest) => {
                self.bring_manifest(job, &named, &manifest, &mut moved).await?;
            }
            Document::Index(index) => {
                for child in &index.manifests {
                    self.bring_child(job, child, &mut moved).await?;
                }
            }
        }
        self.client.put_manifest(&job.target, &named.media_type, &named.bytes).await?;
        for artifact in &moved.refused {
            self.attach_again(job, artifact).await?;
        }
        Ok(Done::Copied { bytes: moved.bytes, shared: moved.shared, blobs: moved.blobs })
    }

    async fn look_up(&self, job: &CopyJob) -> Result<RawManifest, CopyError> {
        let found = match job.multi_arch {
            true => self.sources.manifest(&job.source).await,
            false => self.sources.image(&job.source).await,
        };
        let found = found.map_err(|error| match error.is_not_found() {
            true => CopyError::NotFound(job.source.clone()),
            false => error.into(),
        })?;
        Ok(match self.manifests {
            ManifestFormat::Keep => found,
            ManifestFormat::Docker => docker::convert(found),
        })
    }

    /// Whether the image at the destination has its index, or none is wanted. That of a list is
    /// not asked for: its children were indexed before its tag was written.
    async fn is_indexed(&self, job: &CopyJob, named: &RawManifest) -> Result<bool, CopyError> {
        if self.indexes.is_none() {
            return Ok(true);
        }
        let Ok(Document::Manifest(manifest)) = named.document() else { return Ok(true) };
        if indexable_layers(&manifest).is_empty() {
            return Ok(true);
        }
        let found = self.client.index_artifacts(job.target.repository(), &named.digest).await?;
        Ok(!found.is_empty())
    }

    /// Brings one image of a list, by digest.
    async fn bring_child(
        &self,
        job: &CopyJob,
        child: &Descriptor,
        moved: &mut Moved,
    ) -> Result<(), CopyError> {
        let source = job.source.repository().at(child.digest);
        let raw = self.sources.manifest(&source).await?;
        let document = raw.document().map_err(|error| manifest_error(&source, error))?;
        let manifest = document.into_manifest().map_err(|error| manifest_error(&source, error))?;
        self.bring_manifest(job, &raw, &manifest, moved).await?;
        let target = job.target.repository().at(child.digest);
        self.client.put_manifest(&target, &raw.media_type, &raw.bytes).await?;
        Ok(())
    }

    /// Brings what a manifest names, and attaches its index; the manifest itself comes after.
    async fn bring_manifest(
        &self,
        job: &CopyJob,
        raw: &RawManifest,
        manifest: &Manifest,
        moved: &mut Moved,
    ) -> Result<(), CopyError> {
        let (from, to) = (job.source.repository(), job.target.repository());
        let indexable = indexable_layers(manifest);
        let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
        let arrivals: Vec<u64> = stream::iter(blobs.filter(|blob| !is_foreign(blob)))
            .map(|blob| {
                let is_layer = indexable.iter().any(|layer| layer.digest == blob.digest);
                let indexes = self.indexes.as_ref().filter(|_| is_layer);
                async move {
                    let arrival = self.mover.bring(blob, from, to, indexes).await;
                    arrival.map_err(|failure| blob_error(job, blob, failure))
                }
            })
            .buffer_unordered(BLOBS_AT_A_TIME)
            .try_collect()
            .await?;
        moved.bytes += arrivals.iter().sum::<u64>();
        moved.shared += arrivals.iter().filter(|&&bytes| bytes == 0).count();
        moved.blobs += arrivals.len();
        if let Some(indexes) = &self.indexes
            && !indexable.is_empty()
        {
            moved.refused.extend(self.attach_index(job, raw, &indexable, indexes).await?);
        }
        Ok(())
    }

    /// Builds the index artifact of a manifest and attaches it, so that nobody sees the tag
    /// before it; gives it back where the registry wants the manifest first. An image whose
    /// layers cannot be indexed goes without: nodes then build their own index.
    async fn attach_index(
        &self,
        job: &CopyJob,
        raw: &RawManifest,
        layers: &[&Descriptor],
        indexes: &Indexes,
    ) -> Result<Option<Artifact>, CopyError> {
        let to = job.target.repository();
        let mut built = Vec::new();
        for layer in layers {
            match indexes.get(&self.client, layer, to).await {
                Ok(index) => built.push(index),
                Err(failure) => return without_index(job, layer, failure).map(|()| None),
            }
        }
        let artifact = build_artifact(raw.descriptor(), built).await;
        let artifact = artifact.map_err(|error| CopyError::Artifact {
            image: job.target.clone(),
            source: Box::new(error),
        })?;
        match self.client.attach(to, &artifact).await {
            Ok(()) => Ok(None),
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => {
                Ok(Some(artifact))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Attaches what was refused before the manifest was there. A registry that still refuses
    /// takes no artifacts.
    async fn attach_again(&self, job: &CopyJob, artifact: &Artifact) -> Result<(), CopyError> {
        match self.client.attach(job.target.repository(), artifact).await {
            Err(error @ RegistryError { fault: Fault::Status { .. }, .. }) => {
                let error = error.in_words();
                tracing::warn!(image = %job.target, error, "the registry takes no index");
                Ok(())
            }
            attached => Ok(attached?),
        }
    }
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
pub(super) fn is_foreign(blob: &Descriptor) -> bool {
    !blob.urls.is_empty()
        && (blob.media_type.contains("nondistributable") || blob.media_type.contains("foreign"))
}

/// Compresses trees, so it belongs on a thread of its own.
async fn build_artifact(
    subject: Descriptor,
    layers: Vec<LayerBlobs>,
) -> Result<Artifact, crate::image::artifact::ArtifactError> {
    tokio::task::spawn_blocking(move || Artifact::build(&subject, &layers))
        .await
        .expect("the artifact is built without a panic")
}

fn without_index(
    job: &CopyJob,
    layer: &Descriptor,
    failure: IndexFailure,
) -> Result<(), CopyError> {
    match failure {
        IndexFailure::Registry(error) => Err(error.into()),
        IndexFailure::Scratch(source) => Err(CopyError::Scratch { layer: layer.digest, source }),
        IndexFailure::Layer(source) if is_damage(&source) => Err(damaged(job, layer, source)),
        IndexFailure::Layer(error) => {
            tracing::warn!(image = %job.target, layer = %layer.digest, %error, "no index for this image");
            Ok(())
        }
    }
}

fn blob_error(job: &CopyJob, blob: &Descriptor, failure: BlobFailure) -> CopyError {
    match failure {
        BlobFailure::Registry(error) => error.into(),
        BlobFailure::Scratch(source) => CopyError::Scratch { layer: blob.digest, source },
        BlobFailure::Layer(source) => damaged(job, blob, source),
    }
}

fn damaged(job: &CopyJob, layer: &Descriptor, source: LayerError) -> CopyError {
    let (image, source) = (Box::new(job.source.clone()), Box::new(source));
    CopyError::Layer { image, layer: layer.digest, source }
}

pub(super) fn manifest_error(image: &Reference, source: ManifestError) -> CopyError {
    CopyError::Manifest { image: image.clone(), source: Box::new(source) }
}
