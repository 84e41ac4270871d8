//! What is to stay local, and what is offered no longer.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::{Api, refused};
use crate::agent::pins::PinError;
use crate::control::{Dependants, DrainRequest, PeersStatus, PinRequest, Pinned};
use crate::image::Reference;

pub(super) async fn pin(State(api): State<Api>, Json(request): Json<PinRequest>) -> Response {
    let _busy = api.enter();
    let pinned = match request.reference.parse::<Reference>() {
        Ok(reference) => api.services.pins.pin(&reference).await,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    match pinned {
        Ok(manifest) => Json(Pinned { manifest }).into_response(),
        Err(error) => refuse_pin(&error),
    }
}

pub(super) async fn unpin(State(api): State<Api>, Json(request): Json<PinRequest>) -> Response {
    let _busy = api.enter();
    let gone = match request.reference.parse::<Reference>() {
        Ok(reference) => api.services.pins.unpin(&reference).await,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    match gone {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refuse_pin(&error),
    }
}

fn refuse_pin(error: &PinError) -> Response {
    let status = match error {
        PinError::Image(_) => StatusCode::BAD_GATEWAY,
        PinError::NotPinned(_) => StatusCode::NOT_FOUND,
        PinError::Record { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refused(status, error)
}

pub(super) async fn drain(State(api): State<Api>, Json(request): Json<DrainRequest>) -> Response {
    let _busy = api.enter();
    if let Err(error) = api.services.layers.drain(request.drained).await {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, &error);
    }
    if let Some(peers) = &api.services.peers {
        peers.membership.drain(request.drained);
    }
    let images = api.services.layers.in_use().into_iter();
    let mounts = api.services.owner.mounts().await.into_iter();
    Json(Dependants {
        images: images.map(|reference| reference.to_string()).collect(),
        mounts: mounts.map(|mount| mount.dir.display().to_string()).collect(),
    })
    .into_response()
}

pub(super) async fn peers(State(api): State<Api>) -> Response {
    let _busy = api.enter();
    match &api.services.peers {
        Some(peers) => {
            let traffic = api.services.sharing.as_ref().map(|sharing| sharing.exchange.traffic());
            Json(PeersStatus { membership: peers.membership.status(), traffic }).into_response()
        }
        None => refused(StatusCode::NOT_FOUND, &NoPeers),
    }
}

/// The agent works alone.
#[derive(Debug, thiserror::Error)]
#[error("this agent shares nothing with peers: see `[peers]` in its configuration, and its log")]
struct NoPeers;
