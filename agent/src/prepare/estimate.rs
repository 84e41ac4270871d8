//! What a copy would move, found out without moving anything: `--dry-run`.
//!
//! Each distinct blob counts once for each destination registry, with the first image that needs
//! it, as in the copy. A destination that has an image's tag with the same manifest has all of
//! it; else it is asked for each blob.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Document, ManifestError, Reference, ReferenceError};
use crate::registry::client::{RawManifest, RegistryError};

use super::copy::origin::{Origin, Origins};
use super::copy::{CopyError, Location, LocationError};
use super::plan::{Plan, PlannedImage};
use super::sources::Sources;

/// Images that are asked for at a time.
const PARALLEL: usize = 16;
/// How long the registries may take for all answers.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a copy would move.
#[derive(Debug, Default)]
pub struct Estimate {
    /// Image by image, in the order of the plan.
    pub images: Vec<ImageEstimate>,
    /// Bytes of distinct blobs that each destination registry has to take in.
    pub space: BTreeMap<String, u64>,
}

/// What one image would move.
#[derive(Debug)]
pub struct ImageEstimate {
    /// Where it goes.
    pub target: String,
    /// The role that changes it on the way; what that adds is not known before.
    pub modify_role: Option<String>,
    /// The bytes, or why they cannot be known.
    pub share: Result<Share, EstimateError>,
}

/// The bytes of an image, none of them counted with another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// To move.
    pub to_move: u64,
    /// At the destination already.
    pub there: u64,
    /// That come with an image before it.
    pub shared: u64,
}

/// An image whose size cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    /// A name that no registry could know.
    #[error(transparent)]
    Name(#[from] LocationError),
    /// A destination that no registry could know.
    #[error(transparent)]
    Target(#[from] ReferenceError),
    /// A registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The destination did not answer when it was asked for its certificate.
    #[error("{0} does not answer")]
    Silent(String),
    /// The registries did not answer in time.
    #[error("its registries did not answer within {} seconds", DEADLINE.as_secs())]
    Late,
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] CopyError),
    /// A manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<RegistryError> for EstimateError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// What is known of an image before blobs are counted.
struct Looked {
    host: String,
    blobs: Vec<(Descriptor, bool)>,
}

/// Asks sources and destinations what the copy of `plan` would move; destinations in `silent` are
/// known not to answer.
pub async fn estimate(plan: &Plan, sources: &Sources, silent: &BTreeSet<String>) -> Estimate {
    let mut seen = HashSet::new();
    let images: Vec<&PlannedImage> = plan
        .all_images()
        .filter(|image| image.target().is_some_and(|target| seen.insert((image.source(), target))))
        .collect();
    let deadline = Instant::now() + DEADLINE;
    let origins = &Origins::new(sources);
    let looks = images.iter().map(|image| async move {
        timeout_at(deadline, look(image, origins, silent)).await.map_err(|_| EstimateError::Late)?
    });
    let looked: Vec<_> = stream::iter(looks).buffered(PARALLEL).collect().await;
    let mut ledger = Ledger::default();
    let mut estimate = Estimate::default();
    for (image, looked) in images.into_iter().zip(looked) {
        estimate.images.push(ImageEstimate {
            target: image.target().unwrap_or_default(),
            modify_role: image.modify.as_ref().map(|modification| modification.role.clone()),
            share: looked.map(|looked| ledger.share(&looked)),
        });
    }
    estimate.space = ledger.space;
    estimate
}

/// Blobs that were counted, by destination registry.
#[derive(Default)]
struct Ledger {
    counted: HashMap<String, HashSet<Digest>>,
    space: BTreeMap<String, u64>,
}

impl Ledger {
    fn share(&mut self, looked: &Looked) -> Share {
        let counted = self.counted.entry(looked.host.clone()).or_default();
        let mut share = Share::default();
        for (blob, is_there) in &looked.blobs {
            match (counted.insert(blob.digest), is_there) {
                (false, _) => share.shared += blob.size,
                (true, true) => share.there += blob.size,
                (true, false) => share.to_move += blob.size,
            }
        }
        *self.space.entry(looked.host.clone()).or_default() += share.to_move;
        share
    }
}

async fn look(
    image: &PlannedImage,
    origins: &Origins<'_>,
    silent: &BTreeSet<String>,
) -> Result<Looked, EstimateError> {
    let destination = origins.sources().client();
    let source: Location = image.source().parse()?;
    let target: Reference = image.target().unwrap_or_default().parse()?;
    let host = target.repository().host();
    if silent.contains(host) {
        return Err(EstimateError::Silent(host.to_owned()));
    }
    let (origin, named) = origins.find(&source, image.multi_arch).await?;
    let blobs = blobs(&origin, &named).await?;
    let present = destination.resolve(&target).await?;
    let whole = present.is_some_and(|present| present.digest == named.digest);
    let asked = blobs.into_iter().map(|blob| async {
        let there = whole || destination.blob_exists(target.repository(), &blob.digest).await?;
        Ok::<_, EstimateError>((blob, there))
    });
    let blobs: Vec<_> = stream::iter(asked).buffered(PARALLEL).collect().await;
    Ok(Looked {
        host: target.repository().host().to_owned(),
        blobs: blobs.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The configuration and layers of the image, or of all images of a list.
async fn blobs(origin: &Origin, named: &RawManifest) -> Result<Vec<Descriptor>, EstimateError> {
    let manifests = match named.document()? {
        Document::Manifest(manifest) => vec![*manifest],
        Document::Index(index) => {
            let mut children = Vec::new();
            for child in &index.manifests {
                let child = origin.manifest(&child.digest).await?;
                children.push(child.document()?.into_manifest()?);
            }
            children
        }
    };
    let blobs = manifests
        .into_iter()
        .flat_map(|manifest| std::iter::once(manifest.config).chain(manifest.layers));
    Ok(blobs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_counts_once_for_each_destination() {
        let blob = |text: &str, size| Descriptor::new("", Digest::of(text.as_bytes()), size);
        let looked = |host: &str, there| Looked {
            host: host.to_owned(),
            blobs: vec![(blob("base", 100), there), (blob(host, 1), false)],
        };
        let mut ledger = Ledger::default();
        let shares = [("d:1", false), ("d:1", false), ("d:2", true)]
            .map(|(host, there)| ledger.share(&looked(host, there)));
        assert_eq!(shares[0], Share { to_move: 101, there: 0, shared: 0 });
        assert_eq!(shares[1], Share { to_move: 0, there: 0, shared: 101 });
        assert_eq!(shares[2], Share { to_move: 1, there: 100, shared: 0 });
        assert_eq!(ledger.space, [("d:1".to_owned(), 101), ("d:2".to_owned(), 1)].into());
    }
}
