//! An OCI image layout in a directory as a destination.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::image::Descriptor;
use crate::registry::client::RawManifest;

use super::super::blob_file::{BlobFileError, Whole, write};
use super::super::layout::{FileBlob, Region, blob_path};
use super::super::names::{Names, OCI_LAYOUT};
use super::{Attachment, Opened, StoreError, Taken};

/// The layout below a directory.
pub struct DirectoryStore {
    root: PathBuf,
    whole: Whole,
    /// Held while `index.json` is rewritten.
    names: Mutex<()>,
}

impl DirectoryStore {
    /// The layout below `root`, made when the first file is written.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), whole: Whole::default(), names: Mutex::default() }
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn key(&self) -> String {
        format!("oci:{}", self.root.display())
    }

    pub(super) async fn take(&self, blob: &Descriptor) -> Taken {
        let path = blob_path(&self.root, &blob.digest);
        match self.whole.is_whole(&path, blob).await {
            true => Taken::Here,
            false => Taken::Missing(Opened::File(path)),
        }
    }

    pub(super) async fn put(&self, raw: &RawManifest) -> Result<bool, StoreError> {
        let path = blob_path(&self.root, &raw.digest);
        if self.whole.is_whole(&path, &raw.descriptor()).await {
            return Ok(false);
        }
        self.write(&path, &raw.bytes)?;
        Ok(true)
    }

    pub(super) async fn name(&self, name: &str, raw: &RawManifest) -> Result<bool, StoreError> {
        let put = self.put(raw).await?;
        let named = self.rename(|names| names.set(name, raw)).await?;
        Ok(put || named)
    }

    pub(super) async fn attach(
        &self,
        name: &Option<String>,
        attachment: &Attachment,
    ) -> Result<bool, StoreError> {
        let put = self.put(&attachment.raw).await?;
        let listed = self.rename(|names| names.attach(name.as_deref(), attachment)).await?;
        Ok(put || listed)
    }

    /// Changes `index.json`, which other clients may have written.
    async fn rename(&self, change: impl FnOnce(&mut Names) -> bool) -> Result<bool, StoreError> {
        let _renaming = self.names.lock().await;
        let path = self.root.join("index.json");
        let mut names = match fs::read(&path) {
            Ok(bytes) => Names::read(&bytes, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Names::default(),
            Err(source) => {
                return Err(BlobFileError::Write { path, source }.into());
            }
        };
        if !change(&mut names) {
            return Ok(false);
        }
        self.write(&self.root.join("oci-layout"), OCI_LAYOUT.as_bytes())?;
        self.write(&path, &names.to_bytes())?;
        Ok(true)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), BlobFileError> {
        let failed = |source| BlobFileError::Write { path: path.to_owned(), source };
        write(path, bytes).map_err(failed)
    }

    pub(super) fn blob(&self, blob: &Descriptor) -> FileBlob {
        let path = blob_path(&self.root, &blob.digest);
        FileBlob { region: Region { path, start: 0, length: blob.size }, digest: blob.digest }
    }
}
