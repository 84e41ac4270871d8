//! The shelf behind a login: user `alice`, password `s3cret`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::shelf::Shelf;
use crate::http::{Request, Response, Server};

/// Demands basic authentication of every request.
pub fn basic(shelf: Arc<Shelf>) -> Server {
    Server::start(move |request| match is_alice(request) {
        true => shelf.answer(request),
        false => unauthorized(r#"Basic realm="fixture""#.to_owned()),
    })
}

/// Demands a token for the repository, which only alice gets. What it does not know, such as the
/// referrers API, it lets nobody at.
pub fn bearer(shelf: Arc<Shelf>) -> Server {
    Server::start(move |request| {
        if let Some(query) = request.path.strip_prefix("/token?") {
            return match is_alice(request) {
                true => token(query),
                false => Response::new(401, ""),
            };
        }
        let scope = repository(&request.path)
            .map(|repository| STANDARD.encode(format!("repository:{repository}:pull")));
        let authorization = request.header("authorization").unwrap_or_default();
        match authorization.strip_prefix("Bearer ") {
            Some(_) if request.path == "/v2/" => shelf.answer(request),
            Some(token) if Some(token) == scope.as_deref() => shelf.answer(request),
            _ => {
                let host = request.header("host").unwrap_or_default();
                let realm = format!(r#"Bearer realm="http://{host}/token",service="fixture""#);
                unauthorized(realm)
            }
        }
    })
}

/// A token is its scope, encoded.
fn token(query: &str) -> Response {
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%2F", "/");
    let token = STANDARD.encode(scope);
    Response::new(200, format!(r#"{{"token":"{token}","expires_in":300}}"#))
}

/// The repository that a path is about, if it is one that is known.
fn repository(path: &str) -> Option<&str> {
    let path = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|mark| Some(path.split_once(mark)?.0))
}

fn is_alice(request: &Request) -> bool {
    let expected = format!("Basic {}", STANDARD.encode("alice:s3cret"));
    request.header("authorization") == Some(expected.as_str())
}

fn unauthorized(challenge: String) -> Response {
    Response::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}"#)
        .header("WWW-Authenticate", challenge)
}
