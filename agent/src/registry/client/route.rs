//! Which registry is asked for a repository: mirrors first, as registries.conf has it, and the
//! repository's own place last.
//!
//! A mirror that does not have something, or does not answer, costs one request and nothing
//! else. One that kept us waiting for nothing is left out for a while, unless the repository's own
//! place fails, too. What that says is the answer. Nothing is ever written to a mirror.

use http::{HeaderMap, Method};
use reqwest::{Request, Response};

use super::Client;
use super::auth::Access;
use super::error::{Fault, RegistryError, Subject};
use super::registries_conf::Routes;
use crate::image::Repository;

/// Where a repository is read from, in order.
pub(super) struct Way {
    /// Mirrors.
    pub mirrors: Vec<Repository>,
    /// Its own place.
    pub home: Repository,
    /// Mirrors that hang, as it seems: they are asked where its own place fails.
    pub hanging: Vec<Repository>,
}

/// A request for something in a repository.
pub(super) struct Ask {
    pub method: Method,
    pub headers: HeaderMap,
    /// Whether it is asked for by digest.
    pub pinned: bool,
}

impl Client {
    /// Where `repository` is read from, in order; its own place is the last.
    pub(super) fn places(
        &self,
        repository: &Repository,
        pinned: bool,
    ) -> Result<Vec<Repository>, Fault> {
        let Routes { mirrors, home } = self.shared.config.registries.routes(repository, pinned)?;
        mirrors.iter().chain([&home]).map(|name| place(name)).collect()
    }

    /// The way to `repository` at this moment.
    pub(super) fn way(&self, repository: &Repository, pinned: bool) -> Result<Way, Fault> {
        let mut places = self.places(repository, pinned)?;
        let home = places.pop().ok_or(Fault::Blocked)?;
        let hangs = |mirror: &Repository| self.endpoint(mirror).hangs();
        let (hanging, mirrors) = places.into_iter().partition(hangs);
        Ok(Way { mirrors, home, hanging })
    }

    /// The own place of `repository`, for what is written and what `about` says of it.
    pub(super) fn home(
        &self,
        repository: &Repository,
        about: &Subject,
    ) -> Result<Repository, RegistryError> {
        let routes = self.shared.config.registries.routes(repository, true);
        let home = routes.and_then(|routes| place(&routes.home));
        home.map_err(|fault| fault.of(about))
    }

    /// The answer of the first place that has `path` of the repository, else of its own place.
    pub(super) async fn ask_anywhere(
        &self,
        repository: &Repository,
        ask: &Ask,
        path: &str,
    ) -> Result<Response, Fault> {
        let Way { mirrors, home, hanging } = self.way(repository, ask.pinned)?;
        if let Some(response) = self.ask_mirrors(&mirrors, ask, path).await {
            return Ok(response);
        }
        let answer = self.ask_at(&home, ask, path).await;
        if answer.as_ref().is_ok_and(|answer| !answer.status().is_server_error()) {
            return answer;
        }
        self.ask_mirrors(&hanging, ask, path).await.map_or(answer, Ok)
    }

    /// The answer of the first mirror that has it.
    async fn ask_mirrors(&self, mirrors: &[Repository], ask: &Ask, path: &str) -> Option<Response> {
        for mirror in mirrors {
            let endpoint = self.endpoint(mirror);
            let watch = endpoint.watch();
            match self.ask_at(mirror, ask, path).await {
                Ok(response) => {
                    watch.answered();
                    let status = response.status();
                    if status.is_success() {
                        return Some(response);
                    }
                    tracing::debug!(%mirror, %status, "the mirror does not have it");
                }
                Err(fault) => {
                    tracing::info!(%mirror, fault = fault.in_words(), "cannot use a mirror")
                }
            }
        }
        None
    }

    async fn ask_at(&self, place: &Repository, ask: &Ask, path: &str) -> Result<Response, Fault> {
        let endpoint = self.endpoint(place);
        let url = endpoint.url(&format!("v2/{}/{path}", place.path())).await?;
        let mut request = Request::new(ask.method.clone(), url);
        *request.headers_mut() = ask.headers.clone();
        endpoint.send(request, &Access::pull(place)).await
    }
}

/// The repository that a location in registries.conf leads to.
fn place(name: &str) -> Result<Repository, Fault> {
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    Repository::new(host, path)
        .map_err(|error| Fault::Protocol(format!("registries.conf leads to {error}")))
}
