//! Manifests and what hangs on them: by tag or digest, checked, chosen for a platform.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use undermount_fs::digest::{Digest, Verified, WrongDigest};

use crate::image::manifest::{MAX_CONFIG, MAX_MANIFEST, without_parameters};
use crate::image::{
    Descriptor, Document, ImageConfig, Manifest, ManifestError, Platform, Reference, Repository,
    media_type,
};

use super::error::{Fault, RegistryError, Subject};
use super::response::{Limit, expect, read_all};
use super::route::Ask;
use super::{Client, Message};

const DIGEST_HEADER: &str = "docker-content-digest";

/// A manifest as the registry keeps it.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// The bytes, which hash to [`Self::digest`].
    pub bytes: Bytes,
    /// The media type, without parameters.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
}

impl RawManifest {
    /// Reads the bytes.
    ///
    /// # Errors
    /// [`ManifestError`] where they are not an image or index.
    pub fn document(&self) -> Result<Document, ManifestError> {
        Document::parse(&self.bytes, Some(&self.media_type))
    }

    /// The descriptor by which others refer to the manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest, self.bytes.len() as u64)
    }
}

/// An image, resolved for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name it was found by, pinned to the digest of [`Self::raw`].
    pub reference: Reference,
    /// The index that it was chosen from, where the name meant one.
    pub index: Option<RawManifest>,
    /// The image's manifest as it came.
    pub raw: RawManifest,
    /// The manifest, read.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfig,
}

impl Client {
    /// The manifest that `reference` names. Asked for by digest, the bytes have that digest;
    /// asked for by tag, they have the one that the registry says, if it says one.
    ///
    /// # Errors
    /// [`RegistryError`] where it is missing, wrong, too large or cannot be fetched.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        if let Some(found) = self.manifest_elsewhere(reference).await? {
            return Ok(found);
        }
        let subject = Subject::Manifest(reference.clone());
        self.retry(&subject, || self.manifest_once(reference)).await
    }

    async fn manifest_once(&self, reference: &Reference) -> Result<RawManifest, Fault> {
        let response = self.ask(Method::GET, reference).await?;
        let response = expect(response, &[StatusCode::OK]).await?;
        let promised = digest_of(response.headers());
        let content_type = content_type_of(response.headers());
        let limit = Limit::Most(MAX_MANIFEST as u64);
        let bytes = read_all(response, limit, self.reading()).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().copied().or(promised)
            && expected != digest
        {
            return Err(Fault::WrongDigest(WrongDigest { expected, actual: digest }));
        }
        let document = Document::parse(&bytes, content_type.as_deref())?;
        Ok(RawManifest { media_type: document.media_type().to_owned(), bytes, digest })
    }

    /// What `reference` names at this moment, without its bytes where the registry allows:
    /// digest, media type and size. `None` if it does not exist.
    ///
    /// # Errors
    /// [`RegistryError`] where that cannot be found out.
    pub async fn resolve(
        &self,
        reference: &Reference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let subject = Subject::Manifest(reference.clone());
        let found = self.retry(&subject, || self.resolve_once(reference)).await;
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn resolve_once(&self, reference: &Reference) -> Result<Descriptor, Fault> {
        let response = self.ask(Method::HEAD, reference).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(Fault::NotFound(Message::default()));
        }
        let headers = response.headers();
        let size = headers.get(CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse().ok());
        let told = (digest_of(headers), size, content_type_of(headers));
        if let (StatusCode::OK, (Some(digest), Some(size), Some(kind))) = (response.status(), told)
            && media_type::MANIFESTS.contains(&kind.as_str())
        {
            return Ok(Descriptor::new(&kind, digest, size));
        }
        // A server of plain files tells less, and some refuse HEAD.
        Ok(self.manifest_once(reference).await?.descriptor())
    }

    async fn ask(&self, method: Method, reference: &Reference) -> Result<reqwest::Response, Fault> {
        let accept = HeaderValue::from_str(&media_type::MANIFESTS.join(", "));
        let accept = accept.expect("media types are visible ASCII");
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let ask = Ask { method, headers, pinned: reference.digest().is_some() };
        let path = format!("manifests/{}", reference.identifier());
        self.ask_anywhere(reference.repository(), &ask, &path).await
    }

    /// The image that `reference` means on `platform`, with its configuration.
    ///
    /// # Errors
    /// [`RegistryError`] about whichever part is missing, wrong or no image.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Image, RegistryError> {
        self.image_beside(reference, platform, |_| std::future::ready(None)).await
    }

    /// The same, where `elsewhere` may have the configuration: it gives bytes that have the digest
    /// of the descriptor, or none.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub async fn image_beside<F>(
        &self,
        reference: &Reference,
        platform: &Platform,
        elsewhere: impl FnOnce(Descriptor) -> F,
    ) -> Result<Image, RegistryError>
    where
        F: Future<Output = Option<Verified>>,
    {
        let subject = Subject::Manifest(reference.clone());
        let unusable = |error: ManifestError| Fault::Manifest(error).of(&subject);
        let named = self.manifest(reference).await?;
        let (index, raw) = match named.document().map_err(unusable)? {
            Document::Manifest(_) => (None, named),
            Document::Index(index) => {
                let chosen = index.select(platform).map_err(unusable)?;
                (Some(named), self.manifest(&reference.pinned(chosen.digest)).await?)
            }
        };
        let manifest = raw.document().and_then(Document::into_manifest).map_err(unusable)?;
        manifest.check_is_image().map_err(unusable)?;
        let config = match elsewhere(manifest.config.clone()).await {
            Some(raw) => ImageConfig::parse(raw.into_bytes()).map_err(unusable)?,
            None => self.config(reference.repository(), &manifest.config).await?,
        };
        config.layers(&manifest).map_err(unusable)?;
        let reference = reference.pinned(raw.digest);
        Ok(Image { reference, index, raw, manifest, config })
    }

    /// The image configuration `config` of `repository`.
    ///
    /// # Errors
    /// [`RegistryError`] where it is missing, wrong or malformed.
    pub async fn config(
        &self,
        repository: &Repository,
        config: &Descriptor,
    ) -> Result<ImageConfig, RegistryError> {
        let raw = self.small_blob(repository, config, MAX_CONFIG as u64).await?;
        let subject = Subject::Blob(repository.clone(), config.digest);
        ImageConfig::parse(raw.into_bytes()).map_err(|error| Fault::Manifest(error).of(&subject))
    }

    /// The whole blob that `blob` describes, verified, where it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`RegistryError`] where it is missing, wrong or too large.
    pub async fn small_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Verified, RegistryError> {
        let subject = Subject::Blob(repository.clone(), blob.digest);
        if blob.size > limit {
            return Err(Fault::TooLarge(limit).of(&subject));
        }
        self.retry(&subject, || async {
            let bytes = self.blob_once(repository, &blob.digest, Limit::Exactly(blob.size)).await?;
            Verified::check(bytes, &blob.digest).map_err(Fault::WrongDigest)
        })
        .await
    }
}

/// The digest that the registry says the manifest has, where it says one we know.
pub(super) fn digest_of(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

fn content_type_of(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(without_parameters(text).to_owned())
}
