//! The part of the distribution API that pulling takes: GET and HEAD of manifests and blobs.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;
use undermount_fs::digest::Digest;

use super::{Mirror, MirrorError};
use crate::image::Repository;
use crate::registry::client::Fault;
use crate::registry::server::range::Wanted;

const VERSION: &str = "docker-distribution-api-version";
const CONTENT_DIGEST: &str = "docker-content-digest";

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Base,
    Manifest { name: &'a str, identifier: &'a str },
    Blob { name: &'a str, digest: &'a str },
}

/// All paths, for repositories' names hold slashes.
pub(super) fn router(mirror: Mirror) -> Router {
    Router::new().fallback(answer).with_state(mirror)
}

async fn answer(State(mirror): State<Mirror>, request: Request) -> Response {
    // The body, which nobody reads, could not be shared between threads.
    let (head, _) = request.into_parts();
    let mut response = match respond(&mirror, &head).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(path = head.uri.path(), %error, "not mirrored");
            error.into_response()
        }
    };
    response.headers_mut().insert(VERSION, http::HeaderValue::from_static("registry/2.0"));
    response
}

async fn respond(mirror: &Mirror, request: &Parts) -> Result<Response, MirrorError> {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Err(MirrorError::Method { method: request.method.clone() });
    }
    // The only character of names and digests that some clients encode.
    let path = request.uri.path().replace("%3A", ":").replace("%3a", ":");
    let unknown = || MirrorError::Path { path: path.clone() };
    let upstream = |name| mirror.upstreams.find(name, namespace(request.uri.query()).as_deref());
    let head = request.method == Method::HEAD;
    match target(&path).ok_or_else(unknown)? {
        Target::Base => Ok(StatusCode::OK.into_response()),
        Target::Manifest { name, identifier } => mirror
            .manifest(&upstream(name)?, identifier, head)
            .await
            .unwrap_or_else(|| Err(unknown())),
        Target::Blob { name, digest } => {
            let digest: Digest = digest.parse().map_err(|_| unknown())?;
            mirror.blob(&upstream(name)?, &digest, head, &request.headers).await
        }
    }
}

fn target(path: &str) -> Option<Target<'_>> {
    let rest = path.strip_prefix("/v2")?;
    if matches!(rest, "" | "/") {
        return Some(Target::Base);
    }
    let (front, last) = rest.strip_prefix('/')?.rsplit_once('/')?;
    match front.rsplit_once('/')? {
        (name, "manifests") => Some(Target::Manifest { name, identifier: last }),
        (name, "blobs") => Some(Target::Blob { name, digest: last }),
        _ => None,
    }
}

/// The parameter by which containerd names the registry.
fn namespace(query: Option<&str>) -> Option<String> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find_map(|(key, value)| (key == "ns").then_some(value))?;
    Some(value.replace("%3A", ":").replace("%3a", ":"))
}

impl Mirror {
    /// A manifest; `None` where `identifier` is neither a tag nor a digest.
    async fn manifest(
        &self,
        repository: &Repository,
        identifier: &str,
        head: bool,
    ) -> Option<Result<Response, MirrorError>> {
        let reference = match identifier.contains(':') {
            true => repository.tagged("latest".parse().ok()?).pinned(identifier.parse().ok()?),
            false => repository.tagged(identifier.parse().ok()?),
        };
        Some(self.manifests.find(&reference).await.map(|found| {
            let headers = [
                (header::CONTENT_TYPE.as_str(), found.media_type),
                (header::CONTENT_LENGTH.as_str(), found.bytes.len().to_string()),
                (header::ETAG.as_str(), format!("\"{}\"", found.digest)),
                (CONTENT_DIGEST, found.digest.to_string()),
            ];
            let body = if head { Body::empty() } else { Body::from(found.bytes) };
            response(StatusCode::OK, headers, body)
        }))
    }

    async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        head: bool,
        headers: &HeaderMap,
    ) -> Result<Response, MirrorError> {
        let common = |length: u64| {
            [
                (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
                (header::CONTENT_LENGTH.as_str(), length.to_string()),
                (header::ACCEPT_RANGES.as_str(), "bytes".to_owned()),
                (header::ETAG.as_str(), format!("\"{digest}\"")),
                (CONTENT_DIGEST, digest.to_string()),
            ]
        };
        if head {
            let size = self.transfers.size(repository, digest).await?;
            return Ok(response(StatusCode::OK, common(size), Body::empty()));
        }
        let blob = self.transfers.open(repository, digest).await?;
        let size = blob.size;
        let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
        // Several parts at once are answered by the whole, which a client has to be ready for.
        let (status, part) = match Wanted::parse(range, size) {
            Wanted::Unsatisfiable => return Err(MirrorError::Range { size }),
            Wanted::Parts(parts) if parts.len() == 1 => {
                (StatusCode::PARTIAL_CONTENT, parts.into_iter().next().unwrap_or(0..size))
            }
            _ => (StatusCode::OK, 0..size),
        };
        let mut answer = response(status, common(part.end - part.start), Body::empty());
        if status == StatusCode::PARTIAL_CONTENT {
            let words = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
            let words = words.try_into().expect("digits are visible ASCII");
            answer.headers_mut().insert(header::CONTENT_RANGE, words);
        }
        *answer.body_mut() = Body::from_stream(blob.read(part));
        Ok(answer)
    }
}

fn response<const N: usize>(
    status: StatusCode,
    headers: [(&str, String); N],
    body: Body,
) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    // A media type from a registry may hold what no header may.
    response.body(body).unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
}

impl MirrorError {
    /// The status and the code of the distribution-spec.
    fn classify(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Path { .. } => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Upstream(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "UNSUPPORTED"),
            Self::Registry(error) => match error.fault {
                Fault::NotFound(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
                // The node may not: who logs in at the mirror may not either.
                Fault::Unauthorized { .. } | Fault::NoCredentials => {
                    (StatusCode::FORBIDDEN, "DENIED")
                }
                _ => (StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
            },
            Self::Transfer { .. } => (StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
            Self::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for MirrorError {
    fn into_response(self) -> Response {
        let (status, code) = self.classify();
        let errors = json!({ "errors": [{ "code": code, "message": self.to_string() }] });
        (status, axum::Json(errors)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, expected) in [
            ("/v2/", Some(Target::Base)),
            ("/v2/a/b/manifests/t", Some(Target::Manifest { name: "a/b", identifier: "t" })),
            (
                "/v2/manifests/manifests/t",
                Some(Target::Manifest { name: "manifests", identifier: "t" }),
            ),
            ("/v2/a/blobs/sha256:0", Some(Target::Blob { name: "a", digest: "sha256:0" })),
            ("/v2/_catalog", None),
            ("/v2/a/tags/list", None),
            ("/v1/a/blobs/x", None),
            ("/v2manifests/x/y", None),
        ] {
            assert_eq!(target(path), expected, "{path}");
        }
    }

    #[test]
    fn the_namespace_may_be_encoded() {
        assert_eq!(namespace(Some("x=1&ns=uc%3A8787")).as_deref(), Some("uc:8787"));
        assert_eq!(namespace(Some("x=1")), None);
        assert_eq!(namespace(None), None);
    }
}
