//! The copy: images move from their sources to their destinations, each distinct blob once.
//!
//! ```text
//! location     where an image is or goes, in words
//! origin       what it is read from: a registry, layout, archive, podman's storage, a tree
//! rounds       which copies wait for which others
//! image        one image: blobs, manifests, attachments, index, last its name
//!   blob       one blob: there? shared? else streamed, hashed, indexed    ledger, journal
//! store        what it is written to: a registry, the tree of the Apache, a layout, an archive
//! ```
//! A name is written last, so what a name means is whole at any moment: a run that was killed
//! leaves blobs that the next one finds, and no image that cannot be pulled. An image whose tag
//! is right already costs one request. What fails does not stop the others.

mod annotated;
mod attachments;
mod blob;
pub mod blob_file;
mod destination;
mod docker;
mod files;
mod image;
mod index;
mod journal;
mod layout;
mod ledger;
mod location;
mod names;
pub mod origin;
mod pack;
pub mod place;
mod rounds;
mod storage;
mod store;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use undermount_fs::digest::Digest;
use undermount_fs::layer::LayerError;

use crate::image::ManifestError;
use crate::image::artifact::ArtifactError;
use crate::registry::client::RegistryError;

use self::attachments::Finder;
use self::blob::BlobMover;
use self::destination::Destinations;
use self::image::ImageCopier;
use self::index::Indexes;
use self::journal::Journal;
use self::origin::Origins;
use self::pack::Packs;
use self::rounds::rounds;
use super::image_serve::ImageServeError;
use super::plan::Plan;
use super::progress::{Done, Progress};
use super::sources::Sources;

pub use self::blob_file::BlobFileError;
pub use self::files::Files;
pub use self::layout::LayoutError;
pub use self::location::{FileForm, FileLocation, Location, LocationError, split_host};
pub use self::storage::StorageError;
pub use self::store::StoreError;

/// How images are copied.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Images at a time; at least one.
    pub jobs: usize,
    /// Blobs that stream at a time; at least one.
    pub streams: usize,
    /// What becomes of indexes.
    pub indexing: Indexing,
    /// When what belongs to images is copied along.
    pub attached: Attached,
    /// What manifests look like at the destination.
    pub manifests: ManifestFormat,
    /// Where the tree of the Apache that serves this undercloud's images is. A destination that
    /// takes no uploads is then taken for that Apache.
    pub image_serve: Option<PathBuf>,
    /// Where profiles of starts are, by which copied images get packs; `None` for no packs.
    pub profiles: Option<PathBuf>,
    /// Where things lie until they are pushed, in directories that go with the run.
    pub scratch: PathBuf,
    /// Where a run writes down what it begins, so that the next one goes on after a kill.
    pub state: Option<PathBuf>,
}

/// What becomes of index artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Indexing {
    /// None is attached.
    Off,
    /// Each image is indexed on the way, and its index attached.
    #[default]
    Build,
    /// The source's index goes along, like everything that belongs to an image.
    Carry,
}

/// When what belongs to an image (signatures, attestations, bills of materials) is looked for
/// at the source and copied along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attached {
    /// Never.
    Never,
    /// When the image is copied. One that is there already costs no request more.
    WithImage,
    /// Also when the image is there already: it may have been signed since.
    #[default]
    Always,
}

impl Attached {
    /// Whether to look, where the image is `present` at its destination or not.
    fn applies(self, present: bool) -> bool {
        match self {
            Self::Never => false,
            Self::WithImage => !present,
            Self::Always => true,
        }
    }
}

/// What manifests look like at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestFormat {
    /// As at the source, byte by byte: digests and signatures hold.
    #[default]
    Keep,
    /// Docker's schema 2, as the original makes of every manifest: digests change.
    Docker,
    /// The name means a manifest that names the index of each layer, as podman since 5.1 asks for
    /// it; the one of the source is kept by its digest. Takes [`Indexing::Build`].
    Annotated,
}

/// An image that has to be at a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CopyJob {
    /// Where it is.
    pub source: Location,
    /// Where it goes.
    pub target: Location,
    /// Whether all of its architectures go along.
    pub multi_arch: bool,
}

/// A plan that cannot be carried out; nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A name that no registry could know.
    #[error(transparent)]
    Name(#[from] LocationError),
}

/// The copies that `plan` needs, each once. An image that is changed on the way is copied as it
/// is: [`super::modify`] goes on from there.
///
/// # Errors
/// [`JobError`] where the plan cannot be carried out.
pub fn jobs(plan: &Plan) -> Result<Vec<CopyJob>, JobError> {
    let mut jobs = Vec::new();
    let mut seen = HashSet::new();
    for image in plan.all_images() {
        let Some(target) = image.target() else { continue };
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
    NotFound(Location),
    /// A name that means nothing.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A destination that cannot be written to.
    #[error("{0} can be read from only")]
    SourceOnly(Location),
    /// A destination that says not what the image is called there.
    #[error("{0} lacks the name of the image, as in FORM:PATH:NAME")]
    Unnamed(Location),
    /// Several images for one name.
    #[error("{images} images cannot all be called {target}")]
    OneName {
        /// The name.
        target: Location,
        /// How many there are.
        images: usize,
    },
    /// A registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// A destination failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// Files hold no images, or damaged ones.
    #[error(transparent)]
    Layout(Box<LayoutError>),
    /// Podman's storage cannot be read.
    #[error(transparent)]
    Storage(Box<StorageError>),
    /// A manifest cannot be used.
    #[error("image {image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        source: Box<ManifestError>,
    },
    /// Lists in lists in lists.
    #[error("the list {0} holds lists that hold lists, deeper than anybody can mean it")]
    TooDeep(Digest),
    /// A layer that no node could unpack.
    #[error("layer {layer} of {image} is damaged")]
    Layer {
        /// The image.
        image: String,
        /// The layer's blob.
        layer: Digest,
        /// How.
        source: Box<LayerError>,
    },
    /// The index artifact cannot be made.
    #[error("the index of {image} cannot be made")]
    Artifact {
        /// The image.
        image: String,
        /// Why.
        source: Box<ArtifactError>,
    },
    /// The disk of this host failed.
    #[error("cannot keep the index of layer {layer}")]
    Scratch {
        /// The layer's blob.
        layer: Digest,
        /// What the system said.
        source: std::io::Error,
    },
    /// The scratch directory cannot be used.
    #[error("cannot make a directory in {}", path.display())]
    Temporary {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An archive that lacks images.
    #[error("{} was not written, for it lacks images; the same command goes on where this one stopped", .0.display())]
    Unwritten(PathBuf),
}

impl From<RegistryError> for CopyError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Registry(error) => error.into(),
            error => Self::Store(Box::new(error)),
        }
    }
}

impl From<ImageServeError> for CopyError {
    fn from(error: ImageServeError) -> Self {
        StoreError::from(error).into()
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
    /// What could not be brought to its end after all images: archives.
    pub unfinished: Vec<CopyError>,
}

impl CopyReport {
    /// The jobs that failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&CopyJob, &CopyError)> {
        self.outcomes.iter().filter_map(|(job, outcome)| Some((job, outcome.as_ref().err()?)))
    }

    /// Whether everything is where it should be.
    pub fn is_whole(&self) -> bool {
        self.unfinished.is_empty() && self.failures().next().is_none()
    }
}

/// Copies the images of `jobs`.
///
/// # Errors
/// Where the scratch directory cannot be used. What happens to images is in the report.
pub async fn run(
    jobs: Vec<CopyJob>,
    sources: &Sources,
    options: &CopyOptions,
    progress: Arc<dyn Progress>,
) -> std::io::Result<CopyReport> {
    progress.images(jobs.len());
    let journal = Arc::new(Journal::open(options.state.as_deref(), &options.scratch)?);
    let client = sources.client();
    let copier = ImageCopier {
        origins: Origins::new(sources),
        destinations: Destinations::new(client, options.image_serve.as_deref()),
        mover: BlobMover::new(Arc::clone(&journal), options.streams, Arc::clone(&progress)),
        indexes: Indexes::new(journal.indexes()),
        indexing: options.indexing,
        attached: options.attached,
        manifests: options.manifests,
        finder: Finder::default(),
    };
    let packs = options.profiles.clone().filter(|_| options.indexing == Indexing::Build);
    let packs = packs.map(|profiles| Packs::new(client.clone(), profiles, options.scratch.clone()));
    let copy = async |position, job: CopyJob| {
        let name = job.target.to_string();
        progress.begun(&name);
        let outcome = copier.copy(&job).await;
        if let (Some(packs), Ok(_), Location::Registry(target)) = (&packs, &outcome, &job.target) {
            packs.give(target).await;
        }
        progress.ended(&name, outcome.as_ref());
        (position, (job, outcome))
    };
    let mut outcomes = Vec::new();
    for round in rounds(jobs) {
        let copies = stream::iter(round).map(|(position, job)| copy(position, job));
        outcomes.extend(copies.buffer_unordered(options.jobs.max(1)).collect::<Vec<_>>().await);
    }
    outcomes.sort_by_key(|(position, _)| *position);
    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    let mut report = CopyReport { outcomes, unfinished: Vec::new() };
    let incomplete: HashSet<PathBuf> = report
        .failures()
        .filter_map(|(job, _)| match &job.target {
            Location::File(file) => Some(file.path.clone()),
            _ => None,
        })
        .collect();
    report.unfinished = copier.destinations.finish(&incomplete).await;
    if report.is_whole() {
        journal.forget();
    }
    Ok(report)
}
