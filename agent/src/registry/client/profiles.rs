//! Profiles of starts, which `undermount registry` takes: `/v2/<name>/_undermount/profiles/<digest>`
//! (distribution-spec, "Extensions").

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use reqwest::Request;
use serde::Deserialize;
use undermount_fs::digest::Digest;

use crate::image::Repository;

use super::Client;
use super::auth::Access;
use super::error::{Fault, RegistryError, Subject};
use super::response::{Limit, expect, read_all};

/// The largest answer, in bytes.
const MAX_ANSWER: u64 = 4096;

/// What a registry says of the profiles of an image.
#[derive(Deserialize)]
struct Answer {
    starts: usize,
}

impl Client {
    /// How many starts of the image `manifest` its registry knows; `None` where it takes none.
    ///
    /// # Errors
    /// [`RegistryError`] where it cannot be asked.
    pub async fn recorded_starts(
        &self,
        repository: &Repository,
        manifest: &Digest,
    ) -> Result<Option<usize>, RegistryError> {
        let subject = Subject::Referrers(repository.clone(), *manifest);
        let repository = &self.home(repository, &subject)?;
        let endpoint = self.endpoint(repository);
        self.retry(&subject, || async {
            let url = endpoint.url(&path(repository, manifest)).await?;
            let request = Request::new(Method::GET, url);
            let response = endpoint.send(request, &Access::pull(repository)).await?;
            if response.status().is_client_error() {
                return Ok(None);
            }
            let response = expect(response, &[StatusCode::OK]).await?;
            let answer = read_all(response, Limit::Most(MAX_ANSWER), self.reading()).await?;
            let unreadable = |error| Fault::Protocol(format!("the answer is {error}"));
            let answer: Answer = serde_json::from_slice(&answer).map_err(unreadable)?;
            Ok(Some(answer.starts))
        })
        .await
    }

    /// Sends the profile `json` of a start of the image `manifest` to its registry.
    ///
    /// # Errors
    /// [`RegistryError`] where it is refused or cannot be sent.
    pub async fn offer_profile(
        &self,
        repository: &Repository,
        manifest: &Digest,
        json: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let subject = Subject::Referrers(repository.clone(), *manifest);
        let repository = &self.home(repository, &subject)?;
        let endpoint = self.endpoint(repository);
        let json = bytes::Bytes::from(json);
        self.retry(&subject, || async {
            let url = endpoint.url(&path(repository, manifest)).await?;
            let mut request = Request::new(Method::POST, url);
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(json.clone().into());
            let response = endpoint.send(request, &Access::pull(repository)).await?;
            expect(response, &[StatusCode::ACCEPTED]).await.map(drop)
        })
        .await
    }
}

fn path(repository: &Repository, manifest: &Digest) -> String {
    format!("v2/{}/_undermount/profiles/{manifest}", repository.path())
}
