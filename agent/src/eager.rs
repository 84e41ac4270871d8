//! How an image gets to a node without lazy loading: every layer is pulled, checked and unpacked
//! before anything starts. The demo and the bench compare themselves with it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::codec::Codec;
use undermount_fs::digest::{Digest, Verified, WrongDigest};

use crate::image::{Descriptor, Platform, Reference, Repository};
use crate::registry::client::{Client, RegistryError};

/// Layers that are pulled side by side: as many as podman does.
const SIDE_BY_SIDE: usize = 6;

/// An image cannot be pulled and unpacked.
#[derive(Debug, thiserror::Error)]
pub enum EagerError {
    /// The registry does not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It delivers something else.
    #[error(transparent)]
    Wrong(#[from] WrongDigest),
    /// A layer is no archive, or the directory cannot be written.
    #[error("cannot unpack into {}", root.display())]
    Unpack {
        /// The directory.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The layers that a node has pulled, so that images which share them pull them once.
#[derive(Debug, Default)]
pub struct Pulled(HashMap<Digest, Bytes>);

/// Pulls the layers of an image side by side, but for those that were `pulled` before, checks them
/// and unpacks all into the new directory `root`, one after the other. The bytes that were pulled.
///
/// # Errors
/// [`EagerError`] where the registry does not deliver, or the directory cannot be written.
pub async fn pull_and_unpack(
    client: &Client,
    reference: &Reference,
    pulled: &mut Pulled,
    root: &Path,
) -> Result<u64, EagerError> {
    let image = client.image(reference, &Platform::host()).await?;
    let repository = reference.repository();
    let failed = |source| EagerError::Unpack { root: root.to_owned(), source };
    std::fs::create_dir_all(root).map_err(failed)?;
    let layers: Vec<_> = image
        .manifest
        .layers
        .iter()
        .map(|layer| (layer, pulled.0.get(&layer.digest).cloned()))
        .collect();
    let mut pulls = iter(layers)
        .map(|(layer, known)| async move {
            match known {
                Some(blob) => Ok((layer.digest, blob, 0)),
                None => pull(client, repository, layer).await,
            }
        })
        .buffered(SIDE_BY_SIDE);
    let mut bytes = 0;
    while let Some((digest, blob, came)) = pulls.try_next().await? {
        let (layer, directory) = (blob.clone(), root.to_owned());
        let unpacking = tokio::task::spawn_blocking(move || unpack(&layer, &directory));
        unpacking.await.map_err(io::Error::other).flatten().map_err(failed)?;
        bytes += came;
        pulled.0.insert(digest, blob);
    }
    Ok(bytes)
}

async fn pull(
    client: &Client,
    repository: &Repository,
    layer: &Descriptor,
) -> Result<(Digest, Bytes, u64), EagerError> {
    let mut reader = client.read_blob(repository, &layer.digest, layer.size, 0);
    let mut blob = BytesMut::new();
    while let Some(chunk) = reader.next().await? {
        blob.extend_from_slice(&chunk);
    }
    let bytes = blob.len() as u64;
    let blob = Verified::check(blob.freeze(), &layer.digest)?.into_bytes();
    Ok((layer.digest, blob, bytes))
}

fn unpack(layer: &[u8], root: &Path) -> io::Result<()> {
    let reader: Box<dyn Read> = match Codec::detect(layer) {
        Codec::Gzip => Box::new(MultiGzDecoder::new(layer)),
        Codec::Zstd => Box::new(zstd::Decoder::new(layer)?),
        Codec::Plain => Box::new(layer),
    };
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        match hidden(&path) {
            Some(hidden) => remove_inside(root, &hidden)?,
            None => {
                // What lies there is replaced, also by links, which do not overwrite.
                if !entry.header().entry_type().is_dir() {
                    remove_inside(root, &path)?;
                }
                entry.unpack_in(root)?;
            }
        }
    }
    Ok(())
}

/// What a whiteout hides (OCI image-spec, layer): a name, or all that its directory held.
fn hidden(path: &Path) -> Option<PathBuf> {
    let directory = path.parent()?;
    match path.file_name()?.as_bytes().strip_prefix(b".wh.")? {
        b".wh..opq" => Some(directory.join(".")),
        name => Some(directory.join(OsStr::from_bytes(name))),
    }
}

/// Removes what `path` names below `root`. What leads out of it, by `..` or a symbolic link, is
/// left alone: it is the host's.
fn remove_inside(root: &Path, path: &Path) -> io::Result<()> {
    let mut names = path.components().filter(|part| !matches!(part, Component::RootDir));
    if names.any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Ok(());
    }
    let whole = path.as_os_str().as_bytes().ends_with(b"/.");
    let path = root.join(path.strip_prefix("/").unwrap_or(path));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let Ok(parent) = parent.canonicalize() else { return Ok(()) };
    if !parent.starts_with(root.canonicalize()?) {
        return Ok(());
    }
    let target = parent.join(name);
    match whole {
        // Not through a link that stands in the directory's place.
        true if target.is_symlink() => Ok(()),
        true => remove(&target.join(".")),
        false => remove(&target),
    }
}

/// Removes a file, a directory, or the content of a directory whose path ends in `.`.
fn remove(path: &Path) -> io::Result<()> {
    if path.as_os_str().as_bytes().ends_with(b"/.") {
        let children: Vec<OsString> = match std::fs::read_dir(path) {
            Ok(children) => {
                children.map(|child| Ok(child?.file_name())).collect::<io::Result<_>>()?
            }
            Err(_) => Vec::new(),
        };
        return children.into_iter().try_for_each(|child| remove(&path.join(child)));
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(members: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn layers_are_unpacked_one_over_the_other() {
        let root = tempfile::tempdir().unwrap();
        let lower = [("a", "1"), ("gone", "x"), ("dir/old", "x"), ("dir/sub/old", "x")];
        unpack(&layer(&lower), root.path()).unwrap();
        let upper = [("a", "2"), (".wh.gone", ""), ("dir/.wh..wh..opq", ""), ("dir/new", "n")];
        unpack(&layer(&upper), root.path()).unwrap();
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).ok();
        assert_eq!(read("a").as_deref(), Some("2"));
        assert_eq!(read("dir/new").as_deref(), Some("n"));
        for path in ["gone", "dir/old", "dir/sub"] {
            assert!(!root.path().join(path).exists(), "{path}");
        }
    }

    #[test]
    fn regression_nothing_outside_the_root_is_removed() {
        let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = host.path().join("kept");
        std::fs::write(&kept, "").unwrap();
        std::os::unix::fs::symlink(host.path(), root.path().join("out")).unwrap();
        let absolute = host.path().join(".wh.kept");
        let whiteouts = ["out/.wh.kept", "out/.wh..wh..opq", "a/../../.wh.x"].map(PathBuf::from);
        for path in whiteouts.into_iter().chain([absolute]) {
            remove_inside(root.path(), &hidden(&path).unwrap()).unwrap();
        }
        assert!(kept.exists());
    }
}
