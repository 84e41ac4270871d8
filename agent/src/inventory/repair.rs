//! What is damaged in one place, brought again from another: by pushing it to a registry, or by
//! writing the file of a tree.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use undermount_fs::digest::{Hasher, WrongDigest};

use crate::host::file::{self, Lasting};
use crate::image::{Descriptor, Reference, Repository};
use crate::registry::client::{Client, Fault, RawManifest, RegistryError, RemoteBlob, Subject};

use super::{Holder, PlaceError};

/// Brings things from `source` to `target`.
pub struct Repair<'a> {
    /// Reaches both.
    pub client: &'a Client,
    /// Where things are whole.
    pub source: &'a Holder,
    /// Where they are not.
    pub target: &'a Holder,
}

/// Something that could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The source does not have it, or the target refuses it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The name is none at the source.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The file cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Repair<'_> {
    /// The manifest that `reference` of the target names, as the source has it.
    ///
    /// # Errors
    /// [`RepairError`].
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<RawManifest, RepairError> {
        let name = reference.to_string();
        let image = name.strip_prefix(&format!("{}/", self.target.host)).unwrap_or(&name);
        Ok(self.client.manifest(&self.source.reference(image)?).await?)
    }

    /// Gives the target the manifest that `reference` names.
    ///
    /// # Errors
    /// [`RepairError`].
    pub async fn put_manifest(
        &self,
        reference: &Reference,
        raw: &RawManifest,
    ) -> Result<(), RepairError> {
        let Some(tree) = self.target.tree() else {
            self.client.put_manifest(reference, &raw.media_type, &raw.bytes).await?;
            return Ok(());
        };
        let repository = tree.join("v2").join(reference.repository().path());
        let path = repository.join("manifests").join(raw.digest.to_string()).join("index.json");
        let replace = || {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            file::replace(&path, &raw.bytes, 0o644, Lasting::PowerCut)
        };
        replace().map_err(|source| RepairError::Write { path: path.clone(), source })
    }

    /// A blob of `repository` of the target, from the repository of the same name.
    ///
    /// # Errors
    /// [`RepairError`].
    pub async fn blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> Result<(), RepairError> {
        let from = self.source.repository(repository.path())?;
        match self.target.tree() {
            None => {
                let source = RemoteBlob::new(self.client, &from, blob);
                Ok(self.client.copy_blob(blob, &source, repository, None, None).await?)
            }
            Some(tree) => self.blob_file(&from, repository, blob, tree).await,
        }
    }

    /// Writes the file of a blob, once all its bytes have come and hash right.
    async fn blob_file(
        &self,
        from: &Repository,
        to: &Repository,
        blob: &Descriptor,
        tree: &Path,
    ) -> Result<(), RepairError> {
        let path = blob_path(tree, to, blob);
        let failed = |source| RepairError::Write { path: path.clone(), source };
        let mut file = temporary(&path).map_err(failed)?;
        let mut hasher = Hasher::default();
        let mut reader = self.client.read_blob(from, &blob.digest, blob.size, 0);
        while let Some(chunk) = reader.next().await? {
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(failed)?;
        }
        let (expected, actual) = (blob.digest, hasher.finish());
        if expected != actual {
            let subject = Subject::Blob(from.clone(), expected);
            return Err(Fault::WrongDigest(WrongDigest { expected, actual }).of(&subject).into());
        }
        persist(file, &path).map_err(failed)
    }
}

/// Where the tree has the blob; where it would have it, if it is missing: layers end in `.gz`.
fn blob_path(tree: &Path, repository: &Repository, blob: &Descriptor) -> PathBuf {
    let blobs = tree.join("v2").join(repository.path()).join("blobs");
    let layer = blobs.join(format!("{}.gz", blob.digest));
    let is_layer = ["layer", "rootfs"].iter().any(|word| blob.media_type.contains(word));
    if layer.exists() || is_layer { layer } else { blobs.join(blob.digest.to_string()) }
}

fn temporary(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let readable = std::fs::Permissions::from_mode(0o644);
    tempfile::Builder::new().prefix(".undermount-").permissions(readable).tempfile_in(parent)
}

fn persist(file: tempfile::NamedTempFile, path: &Path) -> std::io::Result<()> {
    file.as_file().sync_data()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
