//! Where images come from: a registry, or files of this host.

use std::sync::Arc;

use futures_util::StreamExt as _;
use undermount_fs::digest::{Digest, WrongDigest};

use super::CopyError;
use super::layout::{FileBlob, Layout, LayoutError, Region};
use super::location::{FileForm, FileLocation, Location, split_host};
use crate::image::manifest::MAX_CONFIG;
use crate::image::{Descriptor, Document, ImageConfig, Platform, Reference, Repository};
use crate::prepare::image_serve::ImageServe;
use crate::prepare::sources::Sources;
use crate::registry::client::{BlobSource, Client, Fault, RawManifest, RemoteBlob};

/// What images are copied from, each asked and opened once.
pub struct Origins<'a> {
    sources: &'a Sources,
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
    pub fn new(sources: &'a Sources) -> Self {
        Self { sources }
    }

    /// What reaches them.
    pub fn sources(&self) -> &'a Sources {
        self.sources
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
                let layout = self.layout(file).await?;
                let found = layout.find(file.name.as_deref()).map_err(|error| match error {
                    LayoutError::NoImage { .. } => CopyError::NotFound(location.clone()),
                    error => error.into(),
                })?;
                let named = layout.manifest(&found.digest)?;
                self.choose(Origin::Layout(layout), named, all).await
            }
            Location::Storage(name) => {
                let layout = self.sources.files().stored(name).await?;
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
        let (false, Document::Index(index)) = (all, document) else {
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
        self.sources.files().layout(location).await
    }

    /// The images beside the one at `location` that differ from it in the tag alone: their tags,
    /// in the order of the files. Podman's storage is not listed.
    ///
    /// # Errors
    /// [`CopyError`] where the files cannot be read.
    pub async fn tags(&self, location: &Location) -> Result<Vec<String>, CopyError> {
        let Location::File(file) = location else { return Ok(Vec::new()) };
        let name = file.name.as_deref().unwrap_or_default();
        if file.form == FileForm::ImageServe {
            let reference = reference_of(name)?;
            return Ok(ImageServe::new(&file.path).tags(reference.repository()));
        }
        let layout = self.layout(file).await?;
        let Some((repository, _tag)) = name.rsplit_once(':') else {
            // The whole name is the tag: the path says what the image is.
            return Ok(layout.names().into_iter().map(str::to_owned).collect());
        };
        let tag = |known: &&str| {
            let (alike, tag) = known.rsplit_once(':')?;
            (split_host(alike).1 == split_host(repository).1).then(|| tag.to_owned())
        };
        Ok(layout.names().iter().filter_map(tag).collect())
    }
}

/// The reference that the name of an image in files stands for; its registry means nothing.
///
/// # Errors
/// [`CopyError`] where no registry could know it.
pub fn reference_of(name: &str) -> Result<Reference, CopyError> {
    let whole = match split_host(name) {
        (Some(_), _) => name.to_owned(),
        (None, _) => format!("localhost/{name}"),
    };
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

    /// The configuration of the image that `raw` is the manifest of.
    ///
    /// # Errors
    /// [`CopyError`] where it cannot be had, or is not that of an image.
    pub async fn config(&self, raw: &RawManifest) -> Result<ImageConfig, CopyError> {
        let manifest = raw.document().and_then(Document::into_manifest);
        let manifest = manifest.map_err(|source| self.unusable(raw, source))?;
        let blob = &manifest.config;
        if let Self::Registry(client, repository) = self {
            return Ok(client.config(repository, blob).await?);
        }
        let source = self.blob(blob)?;
        let mut chunks = source.open(0);
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await.transpose()? {
            if bytes.len() + chunk.len() > MAX_CONFIG {
                return Err(Fault::TooLarge(MAX_CONFIG as u64).of(&source.subject()).into());
            }
            bytes.extend_from_slice(&chunk);
        }
        let actual = Digest::of(&bytes);
        if actual != blob.digest {
            let wrong = WrongDigest { expected: blob.digest, actual };
            return Err(Fault::WrongDigest(wrong).of(&source.subject()).into());
        }
        ImageConfig::parse(bytes.into()).map_err(|source| self.unusable(raw, source))
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
