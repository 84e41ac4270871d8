//! The other way, to compare with: every layer is pulled and unpacked before anything starts.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use futures_util::future::try_join_all;
use undermount_fs::digest::{Digest, Verified};

use super::DemoError;
use crate::image::{Descriptor, Reference, Repository};
use crate::registry::client::Client;

/// Pulls the layers of an image that are not among `present` side by side, checks them and
/// unpacks all of the image's layers into `root`, one after the other; gives the bytes pulled.
///
/// # Errors
/// Where the registry does not deliver, or the directory cannot be written.
pub async fn pull_and_unpack(
    client: &Client,
    reference: &Reference,
    present: &mut Vec<(Digest, Bytes)>,
    root: &Path,
) -> Result<u64, DemoError> {
    let manifest = client.manifest(reference).await?;
    let manifest = manifest.document()?.into_manifest()?;
    let repository = reference.repository();
    let missing = manifest
        .layers
        .iter()
        .filter(|layer| present.iter().all(|(digest, _)| *digest != layer.digest));
    let pulled = try_join_all(missing.map(|layer| pull(client, repository, layer))).await?;
    let bytes = pulled.iter().map(|(_, blob)| blob.len() as u64).sum();
    present.extend(pulled);
    let layers: Vec<Bytes> = manifest
        .layers
        .iter()
        .filter_map(|layer| present.iter().find(|(digest, _)| *digest == layer.digest))
        .map(|(_, blob)| blob.clone())
        .collect();
    let root = root.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(&layers, &root));
    unpacking.await.map_err(|error| DemoError::Host(io::Error::other(error)))??;
    Ok(bytes)
}

async fn pull(
    client: &Client,
    repository: &Repository,
    layer: &Descriptor,
) -> Result<(Digest, Bytes), DemoError> {
    let mut reader = client.read_blob(repository, &layer.digest, layer.size, 0);
    let mut blob = BytesMut::new();
    while let Some(chunk) = reader.next().await? {
        blob.extend_from_slice(&chunk);
    }
    let checked = Verified::check(blob.freeze(), &layer.digest)
        .map_err(|error| DemoError::Host(io::Error::other(error)))?;
    Ok((layer.digest, checked.into_bytes()))
}

fn unpack(layers: &[Bytes], root: &PathBuf) -> Result<(), DemoError> {
    std::fs::create_dir(root).map_err(DemoError::Host)?;
    for layer in layers {
        let mut archive = tar::Archive::new(GzDecoder::new(&layer[..]));
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.unpack(root).map_err(DemoError::Host)?;
    }
    Ok(())
}
