//! Index artifacts beside the images that they belong to, in a repository.

use std::io::Read as _;

use bytes::Bytes;
use undermount_fs::digest::Digest;

use super::super::digest::ContentDigest;
use super::super::storage::{Referrer, Storage, StorageError, StoredManifest};
use super::{Image, IndexingError};
use crate::image::ImageConfig;
use crate::image::artifact::LayerEntry;
use crate::image::manifest::{Descriptor, MAX_CONFIG, media_type};

/// What came of attaching an artifact.
pub enum Attached {
    /// It is there.
    Done,
    /// The image was deleted meanwhile.
    ImageGone,
    /// Some of its blobs were removed as garbage before they belonged to a repository.
    BlobsGone,
}

/// The index artifacts that are attached to an image.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn artifacts(storage: &Storage, image: &Image) -> Result<Vec<ContentDigest>, StorageError> {
    let referrers = storage.referrers(&image.repository, &image.digest)?;
    let descriptors = referrers.iter().filter_map(|json| serde_json::from_slice(json).ok());
    let ours = descriptors.filter(|descriptor: &Descriptor| {
        descriptor.artifact_type.as_deref() == Some(media_type::UNDERMOUNT_INDEX)
    });
    Ok(ours.map(|descriptor| descriptor.digest.into()).collect())
}

/// Whether the image has no artifact yet, and all that one is made of.
///
/// # Errors
/// [`IndexingError::Missing`] where its repository lacks a layer, others where the disk fails.
pub fn lacks_artifact(
    storage: &Storage,
    image: &Image,
    config: &ContentDigest,
    layers: &[Digest],
) -> Result<bool, IndexingError> {
    let mounts = mounted_layers(storage, image, config)? == Some(layers.len());
    if !mounts || !artifacts(storage, image)?.is_empty() {
        return Ok(false);
    }
    for layer in layers {
        // A registry that takes sparse images must not tell what is in layers of others.
        if storage.blob(&image.repository, &(*layer).into())?.is_none() {
            return Err(IndexingError::Missing(*layer));
        }
    }
    Ok(true)
}

/// How many layers the configuration of an image has (image-spec, "rootfs"). Where that is another
/// number than the manifest's, nobody can run the image and no index is of use.
fn mounted_layers(
    storage: &Storage,
    image: &Image,
    config: &ContentDigest,
) -> Result<Option<usize>, IndexingError> {
    let Some(blob) = storage.blob(&image.repository, config)? else { return Ok(None) };
    if blob.size > MAX_CONFIG as u64 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = (&blob.file).take(blob.size).read_to_end(&mut bytes);
    read.map_err(IndexingError::Config)?;
    Ok(ImageConfig::parse(bytes.into()).ok().map(|config| config.diff_ids.len()))
}

/// Stores the artifact in the repository of its image.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn put_artifact(
    storage: &Storage,
    image: &Image,
    descriptor: &Descriptor,
    manifest: &Bytes,
    entries: &[LayerEntry],
) -> Result<Attached, StorageError> {
    let change = storage.change(&image.repository);
    if storage.manifest_size(&image.repository, &image.digest)?.is_none() {
        return Ok(Attached::ImageGone);
    }
    let empty: ContentDigest = Digest::of(b"{}").into();
    if storage.any_blob(&empty)?.is_none() {
        storage.put_blob(&empty, b"{}")?;
    }
    let indexes = entries.iter().flat_map(|entry| [entry.tree_blob.digest, entry.spans.digest]);
    let blobs: Vec<ContentDigest> =
        std::iter::once(empty).chain(indexes.map(ContentDigest::from)).collect();
    for blob in &blobs {
        if !change.link_blob(blob)? {
            return Ok(Attached::BlobsGone);
        }
    }
    let stored = StoredManifest {
        digest: descriptor.digest.into(),
        media_type: descriptor.media_type.clone(),
        bytes: manifest.to_vec(),
    };
    let descriptor = serde_json::to_vec(descriptor).expect("descriptors become JSON");
    let referrer = Referrer { subject: image.digest.clone(), descriptor };
    change.put_manifest(&stored, &blobs, Some(&referrer), &[])?;
    Ok(Attached::Done)
}
