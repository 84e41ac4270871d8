//! What an agent answers other nodes about members (see [`super::inquiry`]).

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{AUTHORIZATION, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::inquiry::{JOIN, JoinRequest, MAX_JOIN, MEMBERS, encode, etag};
use super::node::Node;
use super::swim::Record;
use crate::peer::keys::{Call, CallError, Caller, ClusterKeys};

/// The node, once it listens.
pub(super) type Ready = Arc<OnceLock<Arc<Node>>>;

/// The routes of an agent.
pub(super) fn router(node: Ready) -> Router {
    Router::new()
        .route(MEMBERS, get(members))
        .route(JOIN, post(join))
        .layer(DefaultBodyLimit::max(MAX_JOIN))
        .with_state(node)
}

async fn members(State(node): State<Ready>, headers: HeaderMap) -> Response {
    let Some(node) = node.get() else { return not_ready() };
    let own = node.own().id;
    let call = Call { to: Some(own), method: "GET", target: MEMBERS, body: b"" };
    let caller = match check(&node.keys, &headers, &call) {
        Ok(caller) => caller,
        Err(error) => return refuse(error),
    };
    let tag = etag(&node.digest());
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response();
    }
    let mut response = answer(&node.keys, &caller, &node.state());
    if let Ok(tag) = tag.parse() {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

async fn join(State(node): State<Ready>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(node) = node.get() else { return not_ready() };
    let (caller, request) = match check_join(&node.keys, &headers, &body) {
        Ok(joining) => joining,
        Err(response) => return *response,
    };
    if request.member.id == node.own().id {
        let same = "this is the node that asks, or one with the same cache directory";
        return (StatusCode::CONFLICT, same).into_response();
    }
    node.act(|swim, now| {
        if request.leaves {
            swim.give_up(now, request.member);
        } else {
            swim.welcome(now, request.member);
        }
    });
    if request.wants_state {
        answer(&node.keys, &caller, &node.state())
    } else {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// The signer of a request to join, and the request; or the refusal.
pub(super) fn check_join(
    keys: &ClusterKeys,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Caller, JoinRequest), Box<Response>> {
    let call = Call { to: None, method: "POST", target: JOIN, body };
    let caller = check(keys, headers, &call).map_err(|error| Box::new(refuse(error)))?;
    let wrong = |words: &'static str| Box::new((StatusCode::BAD_REQUEST, words).into_response());
    let request: JoinRequest =
        postcard::from_bytes(body).map_err(|_| wrong("this is no request to join"))?;
    if request.member.id != caller.member {
        return Err(wrong("a node can only bring itself"));
    }
    Ok((caller, request))
}

fn check(keys: &ClusterKeys, headers: &HeaderMap, call: &Call<'_>) -> Result<Caller, CallError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    keys.check(header, call, SystemTime::now())
}

/// The answer with a state, sealed for the caller.
pub(super) fn answer(keys: &ClusterKeys, caller: &Caller, state: &[Record]) -> Response {
    match keys.seal_answer(caller, encode(state)) {
        Ok(sealed) => sealed.into_response(),
        Err(error) => refuse(error),
    }
}

/// The answer (401) to a request that is not signed as it should be.
pub(super) fn refuse(error: CallError) -> Response {
    (StatusCode::UNAUTHORIZED, error.to_string()).into_response()
}

fn not_ready() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the peer network of this node is not up yet").into_response()
}
