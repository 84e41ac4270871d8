//! The images of a registry, with their sizes.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Document, Reference, Repository};
use crate::registry::client::{Client, Fault, RegistryError, Subject};

/// Questions that are asked at a time.
const PARALLEL: usize = 16;

/// An image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The repository, without the registry.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The manifest that the tag names.
    pub digest: Digest,
    /// Bytes of its blobs, each once; of all platforms.
    pub size: u64,
}

/// The tagged images of the registry `host[:port]`, or of one of its repositories, ordered by
/// name.
///
/// # Errors
/// [`RegistryError`] where the registry does not tell.
pub async fn list(
    client: &Client,
    host: &str,
    repository: Option<&Repository>,
) -> Result<Vec<Listed>, RegistryError> {
    let repositories = match repository {
        Some(repository) => vec![repository.clone()],
        None => {
            let paths = client.catalog(host).await?;
            // A name that is none cannot be asked for.
            paths.iter().filter_map(|path| Repository::new(host, path).ok()).collect()
        }
    };
    let wanted = repository.is_some();
    let tagged = stream::iter(repositories).map(|repository| async move {
        match client.tags(&repository).await {
            // Its last tag was deleted meanwhile.
            Err(error) if error.is_not_found() && !wanted => Ok(Vec::new()),
            tags => Ok::<_, RegistryError>(
                tags?.iter().filter_map(|tag| Some(repository.tagged(tag.parse().ok()?))).collect(),
            ),
        }
    });
    let tagged: Vec<Vec<Reference>> = tagged.buffer_unordered(PARALLEL).try_collect().await?;
    let listed = stream::iter(tagged.into_iter().flatten())
        .map(|image| async move { describe(client, &image).await });
    let listed: Vec<Option<Listed>> = listed.buffer_unordered(PARALLEL).try_collect().await?;
    let mut listed: Vec<Listed> = listed.into_iter().flatten().collect();
    listed.sort_by(|one, two| (&one.repository, &one.tag).cmp(&(&two.repository, &two.tag)));
    Ok(listed)
}

/// `None` where it was deleted meanwhile.
async fn describe(client: &Client, image: &Reference) -> Result<Option<Listed>, RegistryError> {
    let raw = match client.manifest(image).await {
        Err(error) if error.is_not_found() => return Ok(None),
        raw => raw?,
    };
    let document = raw.document().map_err(|error| unreadable(image, error))?;
    let blobs = blobs(client, image.repository(), document).await?;
    let repository = image.repository().path().to_owned();
    let (tag, size) = (image.identifier(), blobs.values().map(|blob| blob.size).sum());
    Ok(Some(Listed { repository, tag, digest: raw.digest, size }))
}

/// The blobs of an image, or of all images of an index that are there.
pub(super) async fn blobs(
    client: &Client,
    repository: &Repository,
    document: Document,
) -> Result<BTreeMap<Digest, Descriptor>, RegistryError> {
    let mut blobs = BTreeMap::new();
    let mut waiting = vec![document];
    while let Some(document) = waiting.pop() {
        match document {
            Document::Manifest(manifest) => {
                let parts = std::iter::once(manifest.config).chain(manifest.layers);
                blobs.extend(parts.map(|blob| (blob.digest, blob)));
            }
            Document::Index(index) => {
                for child in index.manifests {
                    let reference = repository.at(child.digest);
                    match client.manifest(&reference).await {
                        Ok(raw) => waiting
                            .push(raw.document().map_err(|error| unreadable(&reference, error))?),
                        // An index may name images that were never copied.
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    Ok(blobs)
}

pub(super) fn unreadable(image: &Reference, error: crate::image::ManifestError) -> RegistryError {
    Fault::Manifest(error).of(&Subject::Manifest(image.clone()))
}
