//! Lists: repositories, tags, referrers.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, HeaderValue, header, request};
use serde_json::{Value, json};

use super::super::digest::ContentDigest;
use super::super::error::ApiError;
use super::super::indexing::Image;
use super::super::name::Repository;
use super::super::page::{Page, PageRequest};
use super::{Answer, Parameters, Registry};
use crate::image::manifest::media_type::OCI_INDEX;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Registry {
    /// GET of the catalog: repositories that have a manifest.
    pub(super) async fn catalog(&self, head: &request::Parts) -> Answer {
        let request = page_request(&Parameters::of(&head.uri)?)?;
        let repositories = self.ask(|library| library.repositories()).await?;
        let names = repositories.iter().map(|name| name.as_str().to_owned()).collect();
        let page = request.cut(head.uri.path(), names);
        Ok(listed(page, |names| json!({ "repositories": names })))
    }

    /// GET of the tags of a repository.
    pub(super) async fn tags(&self, repository: Repository, head: &request::Parts) -> Answer {
        let request = page_request(&Parameters::of(&head.uri)?)?;
        let place = repository.clone();
        let tags = self.ask(move |library| library.tags(&place)).await?;
        let tags = tags.ok_or_else(|| ApiError::RepositoryUnknown(repository.clone()))?;
        let page = request.cut(head.uri.path(), tags);
        Ok(listed(page, |tags| json!({ "name": repository.as_str(), "tags": tags })))
    }

    /// GET of the referrers of a manifest, which need not exist. Waits for the index artifact
    /// of an image that was just pushed.
    pub(super) async fn referrers(
        &self,
        repository: Repository,
        subject: ContentDigest,
        head: &request::Parts,
    ) -> Answer {
        let parameters = Parameters::of(&head.uri)?;
        let filter = parameters.get("artifactType").filter(|name| !name.is_empty());
        let image = Image { repository: repository.clone(), digest: subject.clone() };
        if let Some(writer) = &self.writer {
            writer.indexing.settled(&image).await;
        }
        let stored = self.ask(move |library| library.referrers(&repository, &subject)).await?;
        let manifests: Vec<Value> = stored
            .iter()
            .filter_map(|descriptor| serde_json::from_slice(descriptor).ok())
            .filter(|descriptor| filter.is_none_or(|wanted| has_type(descriptor, wanted)))
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let mut response = Json(index).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
        if filter.is_some() {
            headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        Ok(response)
    }
}

fn has_type(descriptor: &Value, wanted: &str) -> bool {
    descriptor.get("artifactType").and_then(Value::as_str) == Some(wanted)
}

fn page_request(parameters: &Parameters) -> Result<PageRequest, ApiError> {
    let number = |text: &str| {
        let malformed = || ApiError::Parameter { name: "n", value: text.to_owned() };
        text.parse::<usize>().map_err(|_| malformed())
    };
    let n = parameters.get("n").map(number).transpose()?;
    Ok(PageRequest { n, last: parameters.get("last").map(str::to_owned) })
}

fn listed(page: Page, body: impl FnOnce(Vec<String>) -> Value) -> Response {
    let mut response = Json(body(page.entries)).into_response();
    if let Some(link) = page.link {
        let link = HeaderValue::try_from(link).expect("names and tags are ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    response
}
