//! Where images come from: a registry, or files of this host.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;
use undermount_fs::digest::Digest;

use super::CopyError;
use super::layout::{FileBlob, Layout, LayoutError, Region};
use super::location::{FileForm, FileLocation, Location};
use super::storage;
use crate::image::{Descriptor, Platform, Reference, Repository};
use crate::prepare::image_serve::ImageServe;
use crate::prepare::sources::Sources;
use crate::registry::client::{BlobSource, Client, RawManifest, RemoteBlob};

/// What images are copied from, each opened once.
pub struct Origins<'a> {
    sources: &'a Sources,
    /// Where what has to be unpacked lies meanwhile.
    scratch: PathBuf,
    layouts: Mutex<HashMap<Location, Arc<OnceCell<Arc<Layout>>>>>,
}

/// The images around one image: what its manifest and blobs are read from.
#[derive(Clone)]
pub enum Origin {
    /// A repository of a registry.
    Registry(Client, Repository),
    /// Files.
    Layout(Arc<Layout>),
    /// An image of the tree of the undercloud's Apache.
    Tree(Arc<ImageServe>, Repository),
}

impl<'a> Origins<'a> {
    /// Registries as `sources` reach them, and files.
    pub fn new(sources: &'a Sources, scratch: PathBuf) -> Self {
        Self { sources, scratch, layouts: Mutex::default() }
    }

    /// The image at `location` and what it is read from. Of several architectures all are
    /// meant, or the one for this host.
    ///
    /// # Errors
    /// [`CopyError`] where it cannot be had.
    pub async fn find(
        &self,
        location: &Location,
        all: bool,
    ) -> Result<(Origin, RawManifest), CopyError> {
        match location {
            Location::Registry(reference) => self.find_in_registry(reference, all).await,
            Location::File(FileLocation { form: FileForm::ImageServe, path, name }) => {
                let tree = Arc::new(ImageServe::new(path));
                let name = name.as_deref().unwrap_or_default();
                let reference = reference_of(name)?;
                let found = match (reference.digest(), reference.tag()) {
                    (Some(digest), _) => tree.manifest(reference.repository(), digest),
                    (None, Some(tag)) => tree.tagged(reference.repository(), tag),
                    (None, None) => None,
                };
                let named = found.ok_or_else(|| CopyError::NotFound(location.clone()))?;
                let origin = Origin::Tree(tree, reference.repository().clone());
                self.choose(origin, named, all).await
            }
            Location::File(file) => {
                let layout = self.layout(&FileLocation { name: None, ..file.clone() }).await?;
                let found = layout.find(file.name.as_deref()).map_err(|error| match error {
                    LayoutError::NoImage { .. } => CopyError::NotFound(location.clone()),
                    error => error.into(),
                })?;
                let named = layout.manifest(&found.digest)?;
                self.choose(Origin::Layout(layout), named, all).await
            }
            Location::Storage(_) => {
                let layout = self.open(location).await?;
                let named = layout.manifest(&layout.find(None)?.digest)?;
                Ok((Origin::Layout(layout), named))
            }
        }
    }

    async fn find_in_registry(
        &self,
        reference: &Reference,
        all: bool,
    ) -> Result<(Origin, RawManifest), CopyError> {
        let found = match all {
            true => self.sources.manifest(reference).await,
            false => self.sources.image(reference).await,
        };
        let named = found.map_err(|error| match error.is_not_found() {
            true => CopyError::NotFound(reference.clone().into()),
            false => error.into(),
        })?;
        let client = self.sources.client().clone();
        Ok((Origin::Registry(client, reference.repository().clone()), named))
    }

    async fn choose(
        &self,
        origin: Origin,
        named: RawManifest,
        all: bool,
    ) -> Result<(Origin, RawManifest), CopyError> {
        let document = named.document().map_err(|source| origin.unusable(&named, source))?;
        let (false, crate::image::Document::Index(index)) = (all, document) else {
            return Ok((origin, named));
        };
        let chosen = index.select(self.platform()).map(|child| child.digest);
        let chosen = chosen.map_err(|source| origin.unusable(&named, source))?;
        let child = origin.manifest(&chosen).await?;
        Ok((origin, child))
    }

    fn platform(&self) -> &Platform {
        self.sources.platform()
    }

    /// The layout in the files at `location`.
    ///
    /// # Errors
    /// [`CopyError`] where there is none.
    pub async fn layout(&self, location: &FileLocation) -> Result<Arc<Layout>, CopyError> {
        self.open(&Location::File(location.clone())).await
    }

    async fn open(&self, location: &Location) -> Result<Arc<Layout>, CopyError> {
        let cell = {
            let mut layouts = self.layouts.lock().expect("no panic while it is held");
            Arc::clone(layouts.entry(location.clone()).or_default())
        };
        let opened = cell.get_or_try_init(|| async {
            let opened = match location {
                Location::Storage(name) => storage::export(name, &self.scratch).await?,
                Location::File(file) => self.open_files(file.clone()).await?,
                Location::Registry(_) => unreachable!("a registry is no layout"),
            };
            Ok::<_, CopyError>(Arc::new(opened))
        });
        opened.await.cloned()
    }

    async fn open_files(&self, file: FileLocation) -> Result<Layout, CopyError> {
        let scratch = self.scratch.clone();
        // Archives are read to their end, and those of docker compressed.
        let opened = tokio::task::spawn_blocking(move || match file.form {
            FileForm::Oci => Layout::directory(&file.path),
            FileForm::OciArchive => Layout::archive(&file.path),
            FileForm::DockerArchive => Layout::docker_archive(&file.path, &scratch),
            FileForm::ImageServe => unreachable!("a tree is no layout"),
        });
        Ok(opened.await.expect("layouts are opened without a panic")?)
    }
}

/// The reference that the name of an image in files stands for; its registry means nothing.
///
/// # Errors
/// [`CopyError`] where no registry could know it.
pub fn reference_of(name: &str) -> Result<Reference, CopyError> {
    let first = name.split('/').next().unwrap_or_default();
    let has_host = name.contains('/') && first.contains(['.', ':']) || first == "localhost";
    let whole = if has_host { name.to_owned() } else { format!("localhost/{name}") };
    whole.parse().map_err(|source| {
        CopyError::Location(super::LocationError::Name { name: name.to_owned(), source })
    })
}

impl Origin {
    /// The manifest or index `digest`.
    ///
    /// # Errors
    /// [`CopyError`] where it cannot be had.
    pub async fn manifest(&self, digest: &Digest) -> Result<RawManifest, CopyError> {
        match self {
            Self::Registry(client, repository) => {
                Ok(client.manifest(&repository.at(*digest)).await?)
            }
            Self::Layout(layout) => Ok(layout.manifest(digest)?),
            Self::Tree(tree, repository) => tree
                .manifest(repository, digest)
                .ok_or_else(|| CopyError::NotFound(repository.at(*digest).into())),
        }
    }

    /// A blob that a manifest here names.
    ///
    /// # Errors
    /// [`CopyError`] where files lack it; a registry is not asked.
    pub fn blob(&self, blob: &Descriptor) -> Result<Box<dyn BlobSource>, CopyError> {
        match self {
            Self::Registry(client, repository) => {
                Ok(Box::new(RemoteBlob::new(client, repository, blob)))
            }
            Self::Layout(layout) => Ok(Box::new(layout.blob(blob)?)),
            Self::Tree(tree, repository) => {
                let layer = tree.blob_path(repository, &blob.digest, true);
                let path = match layer.exists() {
                    true => layer,
                    false => tree.blob_path(repository, &blob.digest, false),
                };
                let region = Region { path, start: 0, length: blob.size };
                Ok(Box::new(FileBlob { region, digest: blob.digest }))
            }
        }
    }

    /// The repository that blobs can be mounted from, where this is one of `host`.
    pub fn repository_on(&self, host: &str) -> Option<&Repository> {
        match self {
            Self::Registry(_, repository) if repository.host() == host => Some(repository),
            _ => None,
        }
    }

    /// An error about a manifest that cannot be used.
    pub fn unusable(&self, raw: &RawManifest, source: crate::image::ManifestError) -> CopyError {
        let image = match self {
            Self::Registry(_, repository) | Self::Tree(_, repository) => {
                repository.at(raw.digest).to_string()
            }
            Self::Layout(_) => raw.digest.to_string(),
        };
        CopyError::Manifest { image, source: Box::new(source) }
    }
}
