//! Manifests: served and stored byte by byte as they came.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode, header, request};

use super::super::digest::{Algorithm, ContentDigest};
use super::super::error::ApiError;
use super::super::garbage::delete_manifest;
use super::super::indexing::{Image, Indexing};
use super::super::manifest::Submitted;
use super::super::name::Repository;
use super::super::storage::{Referrer, Storage, StorageError, StoredManifest};
use super::super::target::Reference;
use super::super::upload::ReceiveError;
use super::{
    Answer, CONTENT_DIGEST, FOREVER, Parameters, Registry, Writer, etag, is_known, joined, text,
};
use crate::blocking::blocking;
use crate::image::reference::Tag;

/// The largest manifest that is stored (distribution-spec, "Pushing Manifests": at least 4 MB).
const MAX_MANIFEST: usize = 4 << 20;
/// How long a manifest may take to come in: a fraction of a second as a rule.
const BODY: Duration = Duration::from_secs(60);
/// So many tags can be given by parameter.
const MAX_TAGS: usize = 100;
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

impl Registry {
    /// GET and HEAD of a manifest.
    pub(super) async fn get_manifest(
        &self,
        repository: Repository,
        reference: Reference,
        head: &request::Parts,
    ) -> Answer {
        let (place, wanted) = (repository.clone(), reference.clone());
        let accept = joined(&head.headers, header::ACCEPT);
        let found = self.ask(move |library| library.manifest(&place, &wanted, &accept)).await?;
        let manifest = found.ok_or_else(|| unknown(repository, &reference))?;
        let etag = etag(&manifest.digest);
        let mut response = if is_known(head, &etag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            content(manifest.bytes, &manifest.media_type, &head.method)
        };
        let headers = response.headers_mut();
        for (name, value) in [(header::ETAG, etag), (CONTENT_DIGEST, manifest.digest.to_string())] {
            headers.insert(name, value.try_into().expect("digests are ASCII"));
        }
        if matches!(reference, Reference::Digest(_)) {
            headers.insert(header::CACHE_CONTROL, FOREVER);
        }
        Ok(response)
    }

    /// PUT of a manifest, by digest or tag; tags may also be given as parameters.
    pub(super) async fn put_manifest(
        &self,
        repository: Repository,
        reference: Reference,
        head: &request::Parts,
        body: Body,
    ) -> Answer {
        let tags = tags(&reference, &Parameters::of(&head.uri)?)?;
        let bytes = within(BODY, collect(body)).await?;
        let submitted = Submitted::parse(&bytes, text(&head.headers, header::CONTENT_TYPE))?;
        let digest = digest_of(&reference, &bytes)?;
        let image = Image { repository: repository.clone(), digest: digest.clone() };
        let Writer { storage, indexing, sparse, .. } = self.writer()?;
        let push = Push { repository, digest, bytes, submitted, tags, sparse: *sparse };
        let storing = store(push, Arc::clone(storage), Arc::clone(indexing));
        let created = self.to_its_end(storing).await?;
        indexing.settled(&image).await;
        Ok(created)
    }

    /// DELETE of a manifest, or of a tag only.
    pub(super) async fn delete_manifest(
        &self,
        repository: Repository,
        reference: Reference,
    ) -> Answer {
        let (place, gone) = (repository.clone(), reference.clone());
        let existed = self
            .on_storage(move |storage| match &gone {
                Reference::Tag(tag) => storage.change(&place).delete_tag(tag),
                Reference::Digest(digest) => {
                    let image = Image { repository: place.clone(), digest: digest.clone() };
                    delete_manifest(storage, &storage.change(&place), &image)
                }
            })
            .await?;
        if !existed {
            return Err(unknown(repository, &reference));
        }
        tracing::info!(%repository, reference = words(&reference), "manifest deleted");
        Ok(StatusCode::ACCEPTED.into_response())
    }
}

/// Stores a manifest and begins to index it.
async fn store(push: Push, storage: Arc<Storage>, indexing: Arc<Indexing>) -> Answer {
    let image = Image { repository: push.repository.clone(), digest: push.digest.clone() };
    let promise = indexing.promise(&image, &push.submitted, push.bytes.len() as u64);
    let push = blocking(move || push.store(&storage)).await?;
    tracing::info!(repository = %push.repository, digest = %push.digest,
        tags = ?push.tags.iter().map(Tag::as_str).collect::<Vec<_>>(), "manifest pushed");
    if let Some(promise) = promise {
        promise.keep();
    }
    indexing.pack_subject(&push.repository, &push.submitted);
    Ok(push.created())
}

/// A manifest that is being pushed.
struct Push {
    repository: Repository,
    digest: ContentDigest,
    bytes: Bytes,
    submitted: Submitted,
    tags: Vec<Tag>,
    /// Whether it may name what was never pushed.
    sparse: bool,
}

impl Push {
    fn store(self, storage: &Storage) -> Result<Self, ApiError> {
        // Nobody removes a part between the look at it and the manifest that needs it.
        let change = storage.change(&self.repository);
        self.check_parts(storage)?;
        let blobs: Vec<_> = self.submitted.blobs().map(|part| part.digest.clone()).collect();
        let size = self.bytes.len() as u64;
        let referrer = self.submitted.subject.clone().map(|subject| Referrer {
            subject,
            descriptor: self.submitted.descriptor(&self.digest, size),
        });
        let manifest = StoredManifest {
            digest: self.digest.clone(),
            media_type: self.submitted.media_type.clone(),
            bytes: self.bytes.to_vec(),
        };
        change.put_manifest(&manifest, &blobs, referrer.as_ref(), &self.tags)?;
        drop(change);
        Ok(self)
    }

    /// Everything that the manifest consists of must be in its repository, with the size that
    /// the manifest says.
    fn check_parts(&self, storage: &Storage) -> Result<(), ApiError> {
        let size_of_blob = |digest: &ContentDigest| {
            Ok::<_, StorageError>(storage.blob(&self.repository, digest)?.map(|blob| blob.size))
        };
        let mut missing = Vec::new();
        let blobs = self.submitted.blobs().map(|part| (part, size_of_blob(&part.digest)));
        let manifests = self
            .submitted
            .manifests()
            .iter()
            .map(|part| (part, storage.manifest_size(&self.repository, &part.digest)));
        for (part, size) in blobs.chain(manifests) {
            match size? {
                None if self.sparse => {}
                None => missing.push(part.digest.clone()),
                Some(actual) if actual != part.size => {
                    let digest = part.digest.clone();
                    return Err(ApiError::DescriptorSize { digest, claimed: part.size, actual });
                }
                Some(_) => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(ApiError::ManifestBlobsUnknown { repository: self.repository.clone(), missing })
    }

    fn created(&self) -> Response {
        let mut response = StatusCode::CREATED.into_response();
        let headers = response.headers_mut();
        let location = format!("/v2/{}/manifests/{}", self.repository, self.digest);
        let mut values =
            vec![(header::LOCATION, location), (CONTENT_DIGEST, self.digest.to_string())];
        values.extend(self.submitted.subject.iter().map(|subject| (SUBJECT, subject.to_string())));
        values.extend(self.tags.iter().map(|tag| (TAG, tag.to_string())));
        for (name, value) in values {
            headers.append(name, value.try_into().expect("names and digests are ASCII"));
        }
        response
    }
}

fn content(bytes: Vec<u8>, media_type: &str, method: &Method) -> Response {
    let length = bytes.len();
    let body = if method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(media_type) = HeaderValue::from_str(media_type) {
        headers.insert(header::CONTENT_TYPE, media_type);
    }
    response
}

/// What `body` collects, unless that takes longer than `longest`.
async fn within(
    longest: Duration,
    body: impl Future<Output = Result<Bytes, ApiError>>,
) -> Result<Bytes, ApiError> {
    let late = |_| ReceiveError::Late(longest.as_secs());
    tokio::time::timeout(longest, body).await.map_err(late)?
}

/// Reads the body, as far as a manifest may reach.
async fn collect(body: Body) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(frame) = stream.next().await {
        let frame = frame.map_err(|error| ReceiveError::Broken(error.into()))?;
        if bytes.len() + frame.len() > MAX_MANIFEST {
            return Err(ApiError::ManifestSize(MAX_MANIFEST));
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.into())
}

fn tags(reference: &Reference, parameters: &Parameters) -> Result<Vec<Tag>, ApiError> {
    let malformed = |text: &str| ApiError::Parameter { name: "tag", value: text.to_owned() };
    let mut tags = match reference {
        Reference::Tag(tag) => vec![tag.clone()],
        Reference::Digest(_) => Vec::new(),
    };
    for text in parameters.all("tag") {
        let tag = text.parse().ok().filter(|_| tags.len() < MAX_TAGS);
        tags.push(tag.ok_or_else(|| malformed(text))?);
    }
    Ok(tags)
}

/// The digest that the manifest is stored under: the one it was pushed by, or the canonical.
fn digest_of(reference: &Reference, bytes: &[u8]) -> Result<ContentDigest, ApiError> {
    match reference {
        Reference::Tag(_) => Ok(ContentDigest::of(Algorithm::Sha256, bytes)),
        Reference::Digest(expected) => {
            let actual = ContentDigest::of(expected.algorithm(), bytes);
            if actual == *expected {
                Ok(actual)
            } else {
                Err(ApiError::ManifestDigest { expected: expected.clone(), actual })
            }
        }
    }
}

fn words(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => tag.to_string(),
        Reference::Digest(digest) => digest.to_string(),
    }
}

fn unknown(repository: Repository, reference: &Reference) -> ApiError {
    ApiError::ManifestUnknown { repository, reference: words(reference) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn regression_a_manifest_that_does_not_come_is_not_waited_for_without_end() {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from("{"))]);
        let body = Body::from_stream(first.chain(futures_util::stream::pending()));
        let taking = within(Duration::from_millis(10), collect(body));
        let patience = Duration::from_secs(60);
        let outcome = tokio::time::timeout(patience, taking).await.expect("it ends by itself");
        assert!(matches!(outcome, Err(ApiError::Receive(ReceiveError::Late(_)))));
    }
}
