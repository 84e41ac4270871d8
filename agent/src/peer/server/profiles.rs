//! Answers requests about profiles of starts ([`crate::peer::profiles`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodRouter;
use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::timeout;

use super::{PieceServer, Refusal, target_of, ticket_of};
use crate::peer::client::profiles::STARTS;
use crate::peer::exchange::KeepError;
use crate::peer::profiles::{ONE_MAX, ProfileCall};

/// How many requests about profiles are answered at a time: each may have a body in memory.
pub(super) const SIDE_BY_SIDE: usize = 4;
/// How long a request may take, waiting for its turn and for its body included.
const LONGEST: Duration = Duration::from_secs(10);

/// The methods of the route.
pub(super) fn routes() -> MethodRouter<PieceServer> {
    MethodRouter::new().get(profiles).head(profiles).put(profiles)
}

async fn profiles(State(server): State<PieceServer>, request: HttpRequest) -> Response {
    let answer = async {
        let Ok(_turn) = server.0.profiles.acquire().await else { return Err(Refusal::Late) };
        server.answer_about_profiles(request).await
    };
    match timeout(LONGEST, answer).await.unwrap_or(Err(Refusal::Late)) {
        Ok(response) => response,
        Err(refusal) => {
            server.exchange().counters().refused.fetch_add(1, Ordering::Relaxed);
            refusal.response()
        }
    }
}

impl PieceServer {
    async fn answer_about_profiles(&self, request: HttpRequest) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, ONE_MAX).await.map_err(|_| Refusal::TooLong(ONE_MAX))?;
        let target = target_of(&head.uri);
        let caller = self.caller(head.method.as_str(), target, &head.headers, &body)?;
        let call = ProfileCall::parse(target)?;
        let realm = self.realm(&call.scope, &caller, ticket_of(&head.headers)).await?;
        if head.method == Method::PUT {
            return match self.exchange().keep_profile(realm, &call, body).await {
                Ok(true) => Ok(StatusCode::NO_CONTENT.into_response()),
                Ok(false) => Ok(StatusCode::CONFLICT.into_response()),
                Err(KeepError::Bad(bad)) => Err(Refusal::Profile(bad)),
                Err(KeepError::Disk(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot keep a profile for peers");
                    Err(Refusal::Failed)
                }
            };
        }
        let answer = self.exchange().kept_profiles(realm, call).await;
        if head.method == Method::HEAD {
            return Ok([(STARTS, answer.starts.to_string())].into_response());
        }
        let Some(profiles) = answer.profiles else {
            return Ok(StatusCode::NOT_FOUND.into_response());
        };
        let sealed: Bytes = self.0.keys.seal_answer(&caller, profiles.into())?.into();
        self.pass(sealed.len() as u64).await;
        Ok(Body::from(sealed).into_response())
    }
}
