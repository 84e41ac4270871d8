//! The destinations of a run: which store a target is in, each opened once.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::CopyError;
use super::location::{FileForm, FileLocation, Location};
use super::origin::reference_of;
use super::store::{ArchiveStore, DirectoryStore, RegistryStore, Spot, Store, TreeStore};
use crate::image::Reference;
use crate::registry::client::{Client, Fault, RegistryError};

/// All destinations of a run.
pub struct Destinations {
    client: Client,
    registries: Arc<Store>,
    /// The tree that stands for registries which take no uploads.
    tree: Option<PathBuf>,
    files: Mutex<HashMap<(FileForm, PathBuf), Arc<Store>>>,
    /// Whether a registry, `host[:port]`, takes no uploads.
    read_only: Mutex<HashMap<String, bool>>,
}

impl Destinations {
    /// Registries that `client` reaches, and files. A registry that takes no uploads is taken
    /// for the Apache that serves `tree`.
    pub fn new(client: &Client, tree: Option<&Path>) -> Self {
        Self {
            client: client.clone(),
            registries: Arc::new(Store::Registry(RegistryStore::new(client.clone()))),
            tree: tree.map(Path::to_owned),
            files: Mutex::default(),
            read_only: Mutex::default(),
        }
    }

    /// Where the image `target` goes.
    ///
    /// # Errors
    /// [`CopyError`] where nothing can be written there.
    pub async fn spot(&self, target: &Location) -> Result<Spot, CopyError> {
        match target {
            Location::Registry(reference) => {
                let store = match &self.tree {
                    Some(tree) if self.is_read_only(reference).await? => {
                        self.files(FileForm::ImageServe, tree).await?
                    }
                    _ => Arc::clone(&self.registries),
                };
                Ok(Spot { store, reference: reference.clone(), name: reference.to_string() })
            }
            Location::File(FileLocation { form, path, name: Some(name) })
                if *form != FileForm::DockerArchive =>
            {
                let (reference, name) = (reference_of(name)?, name.clone());
                Ok(Spot { store: self.files(*form, path).await?, reference, name })
            }
            Location::File(FileLocation { form, .. }) if *form != FileForm::DockerArchive => {
                Err(CopyError::Unnamed(target.clone()))
            }
            Location::File(_) | Location::Storage(_) => Err(CopyError::SourceOnly(target.clone())),
        }
    }

    async fn files(&self, form: FileForm, path: &Path) -> Result<Arc<Store>, CopyError> {
        let mut files = self.files.lock().await;
        if let Some(known) = files.get(&(form, path.to_owned())) {
            return Ok(Arc::clone(known));
        }
        let owned = path.to_owned();
        // What an earlier run left of an archive is hashed.
        let opened = tokio::task::spawn_blocking(move || match form {
            FileForm::ImageServe => Ok(Store::Tree(TreeStore::new(&owned))),
            FileForm::OciArchive => ArchiveStore::open(&owned).map(Store::Archive),
            FileForm::Oci | FileForm::DockerArchive => {
                Ok(Store::Directory(DirectoryStore::new(&owned)))
            }
        });
        let store = Arc::new(opened.await.expect("stores are opened without a panic")?);
        files.insert((form, path.to_owned()), Arc::clone(&store));
        Ok(store)
    }

    /// Whether the registry of `target` opens no upload.
    async fn is_read_only(&self, target: &Reference) -> Result<bool, CopyError> {
        let repository = target.repository();
        let mut known = self.read_only.lock().await;
        if let Some(&read_only) = known.get(repository.host()) {
            return Ok(read_only);
        }
        let read_only = match self.client.start_upload(repository).await {
            Ok(upload) => {
                // A registry that does not understand this forgets the upload in time.
                let _ = upload.cancel().await;
                false
            }
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => true,
            Err(error) => return Err(error.into()),
        };
        known.insert(repository.host().to_owned(), read_only);
        Ok(read_only)
    }

    /// Makes the archives; those in `incomplete`, which lack images, are not made.
    ///
    /// # Errors
    /// What could not be made, each with its reason.
    pub async fn finish(&self, incomplete: &HashSet<PathBuf>) -> Vec<CopyError> {
        let mut errors = Vec::new();
        for ((form, path), store) in self.files.lock().await.iter() {
            match incomplete.contains(path) {
                true if *form == FileForm::OciArchive => {
                    errors.push(CopyError::Unwritten(path.clone()));
                }
                whole => {
                    let finished = store.finish(!whole).await;
                    errors.extend(finished.err().map(CopyError::from));
                }
            }
        }
        errors
    }
}
