//! The copy: images move from their sources to their destinations, each distinct blob once.
//!
//! ```text
//! image  manifests by digest, index artifact, tag      copy/image
//! blob   here? mount? else stream, hash and index      copy/blob, copy/ledger
//! index  of each layer once, kept on disk meanwhile    copy/index
//! ```
//! A tag is written last, so what a tag names is whole at any moment: a run that was killed
//! leaves blobs that the next one finds, and no image that cannot be pulled. An image whose tag
//! is right already costs one request. What fails does not stop the others.

mod blob;
mod docker;
mod export;
mod image;
mod index;
mod ledger;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use undermount_fs::digest::Digest;
use undermount_fs::layer::LayerError;

use crate::image::artifact::ArtifactError;
use crate::image::{ManifestError, Reference, ReferenceError};
use crate::registry::client::RegistryError;

use self::image::ImageCopier;
use super::image_serve::ImageServeError;
use super::plan::Plan;
use super::progress::{Done, Progress};
use super::sources::Sources;

/// How images are copied.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Images at a time; at least one.
    pub jobs: usize,
    /// Blobs that stream at a time; at least one.
    pub streams: usize,
    /// Whether indexes are built and attached.
    pub index: bool,
    /// What manifests look like at the destination.
    pub manifests: ManifestFormat,
    /// Where the tree of the Apache that serves this undercloud's images is. A destination that
    /// takes no uploads is then taken for that Apache.
    pub image_serve: Option<PathBuf>,
    /// Where indexes lie until they are attached, in a directory of their own.
    pub scratch: PathBuf,
}

/// What manifests look like at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestFormat {
    /// As at the source, byte by byte: digests and signatures hold.
    #[default]
    Keep,
    /// Docker's schema 2, as the original makes of every manifest: digests change.
    Docker,
}

/// An image that has to be at a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CopyJob {
    /// Where it is.
    pub source: Reference,
    /// Where it goes.
    pub target: Reference,
    /// Whether all of its architectures go along.
    pub multi_arch: bool,
}

/// A plan that cannot be carried out; nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A name that no registry could know.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A list of images, which no role can change.
    #[error("Cannot run a modify role on multi-arch image {0}")]
    ModifyMultiArch(String),
    /// An image that has to be changed on the way.
    #[error("image {image} asks for modify_role `{role}`, which this version cannot run")]
    Modify {
        /// The image.
        image: String,
        /// The role.
        role: String,
    },
}

/// The copies that `plan` needs, each once.
///
/// # Errors
/// [`JobError`] where the plan cannot be carried out.
pub fn jobs(plan: &Plan) -> Result<Vec<CopyJob>, JobError> {
    let mut jobs = Vec::new();
    let mut seen = HashSet::new();
    for image in plan.all_images() {
        let Some(target) = image.target() else { continue };
        if let Some(modification) = &image.modify {
            let (image_name, role) = (image.source(), modification.role.clone());
            return Err(match image.multi_arch {
                true => JobError::ModifyMultiArch(image_name),
                false => JobError::Modify { image: image_name, role },
            });
        }
        let job = CopyJob {
            source: image.source().parse()?,
            target: target.parse()?,
            multi_arch: image.multi_arch,
        };
        if seen.insert(job.clone()) {
            jobs.push(job);
        }
    }
    Ok(jobs)
}

/// An image that could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source does not have it.
    #[error("Not found image: {0}")]
    NotFound(Reference),
    /// A registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// A manifest cannot be used.
    #[error("image {image}: {source}")]
    Manifest {
        /// The image.
        image: Reference,
        /// Why.
        source: Box<ManifestError>,
    },
    /// A layer that no node could unpack.
    #[error("layer {layer} of {image} is damaged")]
    Layer {
        /// The image.
        image: Box<Reference>,
        /// The layer's blob.
        layer: Digest,
        /// How.
        source: Box<LayerError>,
    },
    /// The index artifact cannot be made.
    #[error("the index of {image} cannot be made")]
    Artifact {
        /// The image.
        image: Reference,
        /// Why.
        source: Box<ArtifactError>,
    },
    /// The tree of files failed.
    #[error(transparent)]
    ImageServe(#[from] ImageServeError),
    /// The disk of this host failed.
    #[error("cannot keep the index of layer {layer} in the scratch directory")]
    Scratch {
        /// The layer's blob.
        layer: Digest,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<RegistryError> for CopyError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl CopyError {
    /// Whether the source simply does not have the image.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// What became of each job, in the order of the jobs.
#[derive(Debug)]
pub struct CopyReport {
    /// The jobs and their outcomes.
    pub outcomes: Vec<(CopyJob, Result<Done, CopyError>)>,
}

impl CopyReport {
    /// The jobs that failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&CopyJob, &CopyError)> {
        self.outcomes.iter().filter_map(|(job, outcome)| Some((job, outcome.as_ref().err()?)))
    }
}

/// Copies the images of `jobs`.
///
/// # Errors
/// Where the scratch directory cannot be made. What happens to images is in the report.
pub async fn run(
    jobs: Vec<CopyJob>,
    sources: &Sources,
    options: &CopyOptions,
    progress: Arc<dyn Progress>,
) -> std::io::Result<CopyReport> {
    progress.images(jobs.len());
    let copier = ImageCopier::new(sources, options, Arc::clone(&progress))?;
    let (copier, progress) = (&copier, &progress);
    let outcomes = stream::iter(jobs.into_iter().enumerate()).map(|(position, job)| async move {
        let name = job.target.to_string();
        progress.begun(&name);
        let outcome = copier.copy(&job).await;
        progress.ended(&name, outcome.as_ref());
        (position, (job, outcome))
    });
    let mut outcomes: Vec<_> = outcomes.buffer_unordered(options.jobs.max(1)).collect().await;
    outcomes.sort_by_key(|(position, _)| *position);
    Ok(CopyReport { outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect() })
}
