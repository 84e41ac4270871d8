//! Putting manifests into a registry.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Body, Request};
use undermount_fs::digest::{Digest, WrongDigest};

use crate::image::Reference;

use super::Client;
use super::auth::Access;
use super::error::{Fault, RegistryError, Subject};
use super::manifests::digest_of;
use super::response::expect;

/// Says that a manifest was listed under its subject (distribution-spec 1.1).
const SUBJECT_HEADER: &str = "oci-subject";

/// Whether the registry lists a manifest that was put under its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// It does.
    ByRegistry,
    /// It says nothing of a subject: the manifest has none, or the registry does not know
    /// about them and the fallback tag is the client's to keep.
    ByNobody,
}

impl Client {
    /// Puts a manifest, byte by byte as it is, under the tag or digest of `reference`.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses it (a blob may be missing), keeps other
    /// bytes or cannot be reached.
    pub async fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<Listed, RegistryError> {
        let subject = Subject::Manifest(reference.clone());
        let digest = Digest::of(bytes);
        let repository = &self.home(reference.repository(), &subject)?;
        let endpoint = self.endpoint(repository);
        let path = format!("v2/{}/manifests/{}", repository.path(), reference.identifier());
        let kind = HeaderValue::from_str(media_type)
            .map_err(|_| Fault::Protocol(format!("media type `{media_type}`")).of(&subject))?;
        self.retry(&subject, || async {
            let mut request = Request::new(Method::PUT, endpoint.url(&path).await?);
            request.headers_mut().insert(CONTENT_TYPE, kind.clone());
            *request.body_mut() = Some(Body::from(bytes.clone()));
            let response = endpoint.send(request, &Access::push(repository)).await?;
            let response = expect(response, &[StatusCode::CREATED]).await?;
            check_stored(response.headers(), digest)?;
            let listed = response.headers().contains_key(SUBJECT_HEADER);
            Ok(if listed { Listed::ByRegistry } else { Listed::ByNobody })
        })
        .await
    }
}

/// The registry's own name for what it stored, where it says one we know.
fn check_stored(headers: &HeaderMap, expected: Digest) -> Result<(), Fault> {
    match digest_of(headers) {
        Some(actual) if actual != expected => {
            Err(Fault::WrongDigest(WrongDigest { expected, actual }))
        }
        _ => Ok(()),
    }
}
