//! What a registry lists, page by page: its repositories, and the tags of each.

use http::header::ACCEPT;
use http::{HeaderValue, Method, StatusCode};
use reqwest::{Request, Url};
use serde::Deserialize;

use crate::image::{Repository, referrers};

use super::Client;
use super::auth::Access;
use super::endpoint::Endpoint;
use super::error::{Fault, RegistryError, Subject};
use super::link;
use super::response::{Limit, Reading, expect, read_all};

/// Most pages of a list: more is a registry that turns in circles.
const MAX_PAGES: usize = 10_000;
/// The media type of these lists.
const JSON: &str = "application/json";
/// Most bytes of a page.
const MAX_PAGE: u64 = 16 << 20;
/// Most bytes of all pages of a list.
const MAX_LIST: u64 = 64 << 20;

#[derive(Deserialize)]
struct TagList {
    /// `null` where all tags were deleted.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

impl Client {
    /// The tags of `repository` in the registry's order, without those that belong to a
    /// manifest (`sha256-…`; see [`referrers::is_reserved_tag`]).
    ///
    /// # Errors
    /// [`RegistryError`] where the repository does not exist or cannot be listed.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        let mut tags = self.all_tags(repository).await?;
        tags.retain(|tag| !referrers::is_reserved_tag(tag));
        Ok(tags)
    }

    /// The tags of `repository` in the registry's order, those that belong to a manifest
    /// included.
    ///
    /// # Errors
    /// [`RegistryError`] where the repository does not exist or cannot be listed.
    pub async fn all_tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        let subject = Subject::Tags(repository.clone());
        let repository = &self.home(repository, &subject)?;
        let endpoint = self.endpoint(repository);
        let path = format!("v2/{}/tags/list", repository.path());
        let access = Access::pull(repository);
        self.retry(&subject, || async {
            let mut tags = Vec::new();
            let mut pages = self.pages(&endpoint, &access, &path, JSON, MAX_PAGES).await?;
            while let Some(page) = pages.next().await? {
                let page: TagList = read(&page)?;
                tags.extend(page.tags.unwrap_or_default());
            }
            Ok(tags)
        })
        .await
    }

    /// The repositories of the registry `host[:port]`, as paths.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry has no catalog, or none for us.
    pub async fn catalog(&self, host: &str) -> Result<Vec<String>, RegistryError> {
        let endpoint = self.endpoint_of(host);
        let access = Access::catalog(host);
        self.retry(&Subject::Registry(host.to_owned()), || async {
            let mut repositories = Vec::new();
            let path = "v2/_catalog";
            let mut pages = self.pages(&endpoint, &access, path, JSON, MAX_PAGES).await?;
            while let Some(page) = pages.next().await? {
                let page: Catalog = read(&page)?;
                repositories.extend(page.repositories.unwrap_or_default());
            }
            Ok(repositories)
        })
        .await
    }

    /// Whether the registry `host[:port]` has no repository, in one request.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry has no catalog, or none for us.
    pub async fn is_empty(&self, host: &str) -> Result<bool, RegistryError> {
        let endpoint = self.endpoint_of(host);
        let access = Access::catalog(host);
        self.retry(&Subject::Registry(host.to_owned()), || async {
            let path = "v2/_catalog?n=1";
            let mut pages = self.pages(&endpoint, &access, path, JSON, MAX_PAGES).await?;
            let Some(page) = pages.next().await? else { return Ok(false) };
            let page: Catalog = read(&page)?;
            Ok(page.repositories.is_some_and(|repositories| repositories.is_empty()))
        })
        .await
    }
}

fn read<'a, T: Deserialize<'a>>(page: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(page).map_err(|error| Fault::Protocol(format!("the list is {error}")))
}

/// The pages of a list.
pub(super) struct Pages<'a> {
    endpoint: &'a Endpoint,
    access: &'a Access,
    accept: &'static str,
    reading: Reading,
    next: Option<Url>,
    /// How many more pages are read before the list counts as endless.
    pages_left: usize,
    /// The same in bytes.
    bytes_left: u64,
}

impl Client {
    /// The pages of the list at `path`, of which each request says that it takes `accept`; the list
    /// counts as endless after `pages_left` of them.
    pub(super) async fn pages<'a>(
        &self,
        endpoint: &'a Endpoint,
        access: &'a Access,
        path: &str,
        accept: &'static str,
        pages_left: usize,
    ) -> Result<Pages<'a>, Fault> {
        let (next, reading) = (Some(endpoint.url(path).await?), self.reading());
        let bytes_left = MAX_LIST;
        Ok(Pages { endpoint, access, accept, reading, next, pages_left, bytes_left })
    }
}

impl Pages<'_> {
    /// The next page; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, Fault> {
        let Some(url) = self.next.take() else { return Ok(None) };
        let endless = || Fault::Protocol("the list does not end".to_owned());
        self.pages_left = self.pages_left.checked_sub(1).ok_or_else(endless)?;
        if self.bytes_left == 0 {
            return Err(endless());
        }
        let mut request = Request::new(Method::GET, url.clone());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(self.accept));
        let response = self.endpoint.send(request, self.access).await?;
        let response = expect(response, &[StatusCode::OK]).await?;
        if let Some(target) = link::next(response.headers()) {
            let next = self.endpoint.resolve(&url, &target)?;
            if !self.endpoint.is_own(&next) {
                return Err(Fault::Protocol(format!("the list goes on elsewhere: {target}")));
            }
            self.next = Some(next);
        }
        let limit = Limit::Most(MAX_PAGE.min(self.bytes_left));
        let page = read_all(response, limit, self.reading.clone()).await?;
        self.bytes_left -= page.len() as u64;
        Ok(Some(page))
    }
}
