//! What an operator asks of a registry: to delete a tag or a manifest, to remove garbage.

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, StatusCode};
use reqwest::Request;
use undermount_fs::digest::Digest;

use crate::image::{Reference, Repository, Tag};
use crate::registry::{Collected, GarbageRules};

use super::Client;
use super::auth::Access;
use super::error::{Fault, RegistryError, Subject};
use super::response::{Limit, expect, read_all};

/// The largest answer about garbage, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

impl Client {
    /// Deletes a tag, and leaves the manifest that it names and its other tags.
    ///
    /// # Errors
    /// [`RegistryError`] where it does not exist, or the registry does not delete tags: then as
    /// a rule with status 400 or 405.
    pub async fn delete_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<(), RegistryError> {
        self.delete(repository.tagged(tag.clone())).await
    }

    /// Deletes the manifest `digest` and all tags that name it.
    ///
    /// # Errors
    /// [`RegistryError`] where it does not exist, or the registry does not delete.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        self.delete(repository.at(*digest)).await
    }

    async fn delete(&self, reference: Reference) -> Result<(), RegistryError> {
        let subject = Subject::Manifest(reference.clone());
        let repository = &self.home(reference.repository(), &subject)?;
        let endpoint = self.endpoint(repository);
        let path = format!("v2/{}/manifests/{}", repository.path(), reference.identifier());
        self.retry(&subject, || async {
            let request = Request::new(Method::DELETE, endpoint.url(&path).await?);
            let response = endpoint.send(request, &Access::delete(repository)).await?;
            expect(response, &[StatusCode::ACCEPTED, StatusCode::OK]).await.map(drop)
        })
        .await
    }

    /// Lets `undermount registry` at `host[:port]` remove its garbage.
    ///
    /// # Errors
    /// [`RegistryError`] where it may not, or the registry is another program.
    pub async fn collect_garbage(
        &self,
        host: &str,
        rules: &GarbageRules,
    ) -> Result<Collected, RegistryError> {
        let GarbageRules { grace, untagged, dry_run } = rules;
        let path = format!("gc?grace={}&untagged={untagged}&dry_run={dry_run}", grace.as_secs());
        let endpoint = self.endpoint_of(host);
        self.retry(&Subject::Registry(host.to_owned()), || async {
            let mut request = Request::new(Method::POST, endpoint.url(&path).await?);
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
            let response = endpoint.send(request, &Access::none(host)).await?;
            let response = expect(response, &[StatusCode::OK]).await?;
            let answer = read_all(response, Limit::Most(MAX_ANSWER), self.reading()).await?;
            let unreadable = |error| Fault::Protocol(format!("the answer is {error}"));
            serde_json::from_slice(&answer).map_err(unreadable)
        })
        .await
    }
}
