//! Recordings and packs on the control socket.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};

use super::{Api, follow, refused};
use crate::agent::owner::OwnerError;
use crate::control::{Failure, PackRequest, RecordingRequest};
use crate::profile::StartRecord;

/// The routes below `/v1`.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/recordings", post(begin).get(status).delete(end))
        .route("/packs", post(pack))
}

async fn begin(State(api): State<Api>, Json(request): Json<RecordingRequest>) -> Response {
    let _busy = api.enter();
    let Some(ready) = api.services.owner.mounted(&request.dir).await else {
        return not_mounted(request);
    };
    api.services.recordings.begin(&request.dir, &ready);
    StatusCode::NO_CONTENT.into_response()
}

async fn status(State(api): State<Api>, Json(request): Json<RecordingRequest>) -> Response {
    let _busy = api.enter();
    match api.services.recordings.status(&request.dir) {
        Some(status) => Json(status).into_response(),
        None => not_recorded(&request),
    }
}

/// Ends a recording and answers with what was read, as a profile without a command.
async fn end(State(api): State<Api>, Json(request): Json<RecordingRequest>) -> Response {
    let _busy = api.enter();
    let Some(profile) = api.services.recordings.end(&request.dir) else {
        return not_recorded(&request);
    };
    let Some(ready) = api.services.owner.mounted(&request.dir).await else {
        return not_mounted(request);
    };
    let units = match api.services.packer.named(&ready, profile).await {
        Ok(units) => units,
        Err(error) => return refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    };
    let (reference, manifest) = (ready.image.reference.to_string(), ready.image.digest);
    let record = StartRecord::new(reference, manifest, String::new()).with_start(&units);
    ([(header::CONTENT_TYPE, "application/json")], record.to_json()).into_response()
}

async fn pack(State(api): State<Api>, Json(request): Json<PackRequest>) -> Response {
    let packer = api.services.packer.clone();
    follow(&api, |progress| async move { packer.pack(&request, &progress).await })
}

fn not_mounted(request: RecordingRequest) -> Response {
    let error = OwnerError::NotMounted { dir: request.dir };
    (StatusCode::NOT_FOUND, Json(Failure::of(&error))).into_response()
}

fn not_recorded(request: &RecordingRequest) -> Response {
    let error = format!("reads of {} are not recorded", request.dir.display());
    (StatusCode::NOT_FOUND, Json(Failure { error, cause: None })).into_response()
}
