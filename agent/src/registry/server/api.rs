//! The distribution API over HTTP: which request is answered by what.

mod blob;
mod garbage;
mod listing;
mod manifest;
mod profiles;
mod upload;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::{Access, Gate, LIFETIME};
use super::body::Buffers;
use super::digest::ContentDigest;
use super::error::ApiError;
use super::indexing::Indexing;
use super::library::Library;
use super::limit::ReadLimit;
use super::listen::Peer;
use super::metrics::Metrics;
use super::observe::Observed;
use super::packing::Packing;
use super::storage::{Storage, StorageError};
use super::target::{ParseTargetError, Target, percent_decode};
use super::upload::Sessions;
use crate::blocking::{blocking, outcome};
use crate::metrics::CONTENT_TYPE;

pub use garbage::collect_garbage;

/// The digest of what is answered; a de-facto standard that the specification describes.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Tells old clients which protocol this is.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// What has a digest in its path never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// What the handlers share.
pub struct Registry {
    /// What is pulled from.
    pub library: Arc<dyn Library>,
    /// What is pushed to; `None` where the registry only serves what others write.
    pub writer: Option<Writer>,
    /// Who may do what.
    pub gate: Gate,
    /// How many blobs a client may read at a time.
    pub reads: Arc<ReadLimit>,
    /// What the registry has done.
    pub metrics: Arc<Metrics>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Work that goes on when its client has gone.
    pub tasks: TaskTracker,
    /// For the bodies of answers.
    pub buffers: Arc<Buffers>,
}

/// What a registry with a directory of its own pushes to.
pub struct Writer {
    /// The blobs and repositories.
    pub storage: Arc<Storage>,
    /// The uploads in progress.
    pub sessions: Arc<Sessions>,
    /// Makes the indexes of pushed images.
    pub indexing: Arc<Indexing>,
    /// Takes profiles and makes packs of them; `None` where it does not.
    pub packing: Option<Arc<Packing>>,
    /// Whether manifests may name what was never pushed.
    pub sparse: bool,
    /// Ends long work early.
    pub stop: CancellationToken,
}

type Answer = Result<Response, ApiError>;

/// Answers one request.
pub async fn handle(
    State(registry): State<Arc<Registry>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request<Body>,
) -> Response {
    let method = request.method().clone();
    let head = (request.method(), request.uri(), request.headers());
    let observed = Observed::begin(&registry.metrics, registry.access_log, peer.address, head);
    let mut response = match answer(registry, peer, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    observed.answer(&method, response)
}

/// Gives a token to who shows a password ("Docker Registry v2 authentication").
pub async fn token(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Answer {
    let token = registry.gate.token(&headers).await?;
    let answer = json!({ "token": token, "access_token": token, "expires_in": LIFETIME.as_secs() });
    Ok(Json(answer).into_response())
}

/// Tells what the registry has done, to who may pull.
pub async fn metrics(
    State(registry): State<Arc<Registry>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> Answer {
    registry.gate.admit(peer, &headers, Access::Pull, None).await?;
    let count = |of: fn(&Writer) -> usize| registry.writer.as_ref().map_or(0, of);
    let (uploads, indexing) = (count(|on| on.sessions.len()), count(|on| on.indexing.len()));
    let text = registry.metrics.render(uploads, indexing);
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

async fn answer(registry: Arc<Registry>, peer: Peer, request: Request<Body>) -> Answer {
    let (head, body) = request.into_parts();
    let target = match Target::parse(head.uri.path()) {
        // What cannot be is not there; only who would put it there has to know why.
        Err(ParseTargetError::Tag(error)) if head.method != Method::PUT => {
            return Err(ApiError::NoSuchTag(error));
        }
        parsed => parsed?,
    };
    let access = match target {
        Target::Base => Access::Ping,
        _ if is_read(&head.method) => Access::Pull,
        Target::Profiles(..) => Access::Tell,
        _ => Access::Push,
    };
    registry.gate.admit(peer, &head.headers, access, target.repository()).await?;
    dispatch(&registry, target, peer, head, body).await
}

/// Answers a request for `target` that `peer` may make.
async fn dispatch(
    registry: &Arc<Registry>,
    target: Target,
    peer: Peer,
    head: request::Parts,
    body: Body,
) -> Answer {
    let reads = is_read(&head.method);
    match target {
        Target::Base if reads => Ok(Json(json!({})).into_response()),
        Target::Catalog if reads => registry.catalog(&head).await,
        Target::Tags(repository) if reads => registry.tags(repository, &head).await,
        Target::Referrers(repository, subject) if reads => {
            registry.referrers(repository, subject, &head).await
        }
        Target::Profiles(repository, image) => match head.method {
            Method::GET | Method::HEAD => registry.count_starts(repository, image).await,
            Method::POST => registry.take_profile(repository, image, body).await,
            method => Err(ApiError::Method(method)),
        },
        Target::Manifest(repository, reference) => match head.method {
            Method::GET | Method::HEAD => registry.get_manifest(repository, reference, &head).await,
            Method::PUT => registry.put_manifest(repository, reference, &head, body).await,
            Method::DELETE => registry.delete_manifest(repository, reference).await,
            method => Err(ApiError::Method(method)),
        },
        Target::Blob(repository, digest) => match head.method {
            Method::GET | Method::HEAD => registry.get_blob(repository, digest, &head, peer).await,
            Method::DELETE => registry.delete_blob(repository, digest).await,
            method => Err(ApiError::Method(method)),
        },
        Target::Uploads(repository) => match head.method {
            Method::POST => registry.begin_upload(repository, &head, body).await,
            method => Err(ApiError::Method(method)),
        },
        Target::Upload(repository, id) => match head.method {
            Method::GET | Method::HEAD => registry.upload_status(&repository, &id).await,
            Method::PATCH => registry.patch_upload(&repository, id, &head, body).await,
            Method::PUT => registry.finish_upload(&repository, id, &head, body).await,
            Method::DELETE => registry.cancel_upload(&repository, &id).await,
            method => Err(ApiError::Method(method)),
        },
        Target::Base | Target::Catalog | Target::Tags(_) | Target::Referrers(..) => {
            Err(ApiError::Method(head.method))
        }
    }
}

impl Registry {
    /// Asks the library, where that may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Library) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let library = Arc::clone(&self.library);
        blocking(move || question(&*library)).await
    }

    /// What is pushed to.
    fn writer(&self) -> Result<&Writer, ApiError> {
        self.writer.as_ref().ok_or(ApiError::ReadOnly)
    }

    /// Runs `work` on the storage, where it may block.
    async fn on_storage<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let storage = Arc::clone(&self.writer()?.storage);
        Ok(blocking(move || work(&storage)).await?)
    }

    /// Runs `work` to its end, even when the client goes away before.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        outcome(self.tasks.spawn(work).await).await
    }
}

/// The query of a request. A `+` stands for itself, as in media types: some clients send it as
/// it is, and no value has a space that it could mean.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        let malformed = || ApiError::Parameter {
            name: "query",
            value: uri.query().unwrap_or_default().to_owned(),
        };
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(name)?, percent_decode(value)?))
        });
        decoded.collect::<Option<_>>().map(Self).ok_or_else(malformed)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    fn digest(&self, name: &'static str) -> Result<Option<ContentDigest>, ApiError> {
        self.get(name).map(|text| text.parse().map_err(ApiError::Digest)).transpose()
    }
}

/// All values of a header as one list.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// The value of a header, if it is there and readable.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A digest as a strong entity tag.
fn etag(digest: &ContentDigest) -> String {
    format!("\"{digest}\"")
}

/// Whether the client has what carries `etag` already (RFC 9110, section 13.1.2).
fn is_known(head: &request::Parts, etag: &str) -> bool {
    let list = text(&head.headers, header::IF_NONE_MATCH).unwrap_or_default();
    list.split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_may_come_more_than_once() {
        let query = "tag=a&tag=b%2D1&digest=sha256%3Abad&artifactType=a/b+json";
        let uri: Uri = format!("/v2/a/manifests/x?{query}").parse().unwrap();
        let parameters = Parameters::of(&uri).unwrap();
        assert_eq!(parameters.all("tag").collect::<Vec<_>>(), ["a", "b-1"]);
        assert_eq!(parameters.get("artifactType"), Some("a/b+json"));
        assert_eq!(parameters.get("mount"), None);
        assert!(parameters.digest("digest").is_err());
    }

    #[test]
    fn entity_tags_are_compared_as_a_list() {
        let known = |value: &str| {
            let request = Request::builder().header(header::IF_NONE_MATCH, value).body(()).unwrap();
            is_known(&request.into_parts().0, "\"sha256:a\"")
        };
        assert!(known("\"sha256:a\"") && known("\"x\", W/\"sha256:a\"") && known("*"));
        assert!(!known("\"sha256:b\"") && !known("sha256:a"));
    }
}
