//! Hands pieces, and profiles of starts, to other nodes: HTTP/1.1, a route each.
//!
//! ```text
//! GET /v1/pieces/HEX?...   (see wanted)
//!   signed by a member?            401
//!   well-formed?                   400
//!   its ticket good?               403
//!   uploads decide                 200 from disk, or as it arrives
//!                                  307 + undermount-peers     these have it
//!                                  202                        nothing has arrived: ask again
//!                                  404, 503 + undermount-retry-after-ms
//!   to be read from the registry   403 not from that one; 502 it could not be read
//! ```
//!
//! A request for a piece that has not begun to arrive waits for [`HOLD`] at most, so that silence
//! means that a node is dead. An upload has a slot from its first byte to its last; memory is
//! bounded by the slots, and an upload of which nothing is taken for `SEND` is cut off.

mod body;
mod profiles;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tokio::sync::Semaphore;
use undermount_fs::source::Scope;

use super::client::{ARRIVING, PEERS, RETRY_AFTER_MS, TICKET, text};
use super::exchange::{Exchange, Place};
use super::keys::{Call, CallError, Caller, ClusterKeys};
use super::member::MemberId;
use super::pieces::PieceKey;
use super::profiles::{BadProfiles, PROFILES};
use super::rate::Rate;
use super::realm::{Denied, Realm};
use super::uploads::{Answer, Have, Request};
use super::wanted::{BadCall, PieceCall};
use body::{Slot, stream_arriving, stream_stored};

/// How long a request waits for the first byte of what is on its way.
pub const HOLD: Duration = Duration::from_millis(300);
/// How long an upload may wait for its receiver before it is cut off.
const SEND: Duration = Duration::from_secs(10);
/// The pause that a node without memory for another piece asks for.
const CROWDED: Duration = Duration::from_millis(200);

/// Hands out the pieces of an [`Exchange`].
#[derive(Clone)]
pub struct PieceServer(Arc<Inner>);

struct Inner {
    exchange: Exchange,
    keys: ClusterKeys,
    rate: Option<Rate>,
    /// Turns of requests about profiles.
    profiles: Semaphore,
}

/// Why a request gets nothing.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Unsigned(#[from] CallError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Malformed(#[from] BadCall),
    #[error("this node reads nothing from the registry of that repository")]
    Unreached,
    #[error("this node cannot do it")]
    Failed,
    #[error("not a profile: {0}")]
    Profile(BadProfiles),
    #[error("the body has more than {0} bytes")]
    TooLong(usize),
    #[error("not in time")]
    Late,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unsigned(_) => StatusCode::UNAUTHORIZED,
            Self::Denied(_) | Self::Unreached => StatusCode::FORBIDDEN,
            Self::Malformed(_) | Self::Profile(_) => StatusCode::BAD_REQUEST,
            Self::Failed => StatusCode::BAD_GATEWAY,
            Self::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Late => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn response(&self) -> Response {
        tracing::debug!(refusal = %self, "refused a peer");
        (self.status(), Body::from(self.to_string())).into_response()
    }
}

/// A request that may be answered.
struct Admitted {
    call: PieceCall,
    asker: MemberId,
    key: PieceKey,
}

impl PieceServer {
    /// A server of what `exchange` has, for members that have one of `keys`; it sends no more than
    /// `rate` bytes in a second, if that is given.
    pub fn new(exchange: Exchange, keys: ClusterKeys, rate: Option<u64>) -> Self {
        let profiles = Semaphore::new(profiles::SIDE_BY_SIDE);
        Self(Arc::new(Inner { exchange, keys, rate: rate.map(Rate::new), profiles }))
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/pieces/{digest}", get(piece))
            .route(PROFILES, profiles::routes())
            .with_state(self)
    }

    async fn answer(&self, target: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        let admitted = self.admit(target, headers).await?;
        let held = tokio::time::Instant::now() + HOLD;
        loop {
            let place = self.exchange().place(&admitted.key);
            let have = match &place {
                None => Have::Nothing,
                Some(Place::Stored) => Have::Whole,
                Some(Place::Arriving(piece)) => piece.have().ok_or(Refusal::Failed)?,
            };
            let request = admitted.request();
            let now = self.exchange().now();
            let answer = self.exchange().uploads().answer(&request, have, now);
            match answer {
                Answer::Serve => {
                    let slot = Slot::new(self.clone(), admitted.asker);
                    if let Some(response) = self.serve(&admitted, place, slot).await {
                        return Ok(response);
                    }
                    if self.exchange().pieces().has(&admitted.key) {
                        return Err(Refusal::Failed);
                    }
                    // It was damaged and has been removed.
                }
                Answer::Begin => match self.begin(&admitted)? {
                    Some(busy) => return Ok(busy),
                    None => continue,
                },
                Answer::Wait => {
                    let Some(Place::Arriving(piece)) = place else { continue };
                    if tokio::time::timeout_at(held, piece.begun()).await.is_err() {
                        return Ok(StatusCode::ACCEPTED.into_response());
                    }
                    // To begin again at once would only repeat the question to the registry.
                    piece.have().ok_or(Refusal::Failed)?;
                }
                Answer::Redirect(to) => return Ok(self.redirect(&to)),
                Answer::Missing => return Ok(StatusCode::NOT_FOUND.into_response()),
                Answer::Busy(pause) => return Ok(self.busy(pause)),
            }
        }
    }

    async fn admit(&self, target: &str, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let caller = self.caller("GET", target, headers, b"")?;
        let call = PieceCall::parse(target)?;
        let realm = self.realm(&call.wanted.scope, &caller, ticket_of(headers)).await?;
        let key = (realm, call.wanted.piece.digest);
        Ok(Admitted { call, asker: caller.member, key })
    }

    /// The member that has signed a request.
    fn caller(
        &self,
        method: &str,
        target: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Caller, CallError> {
        let signed = Call { to: Some(self.exchange().roster().own), method, target, body };
        self.0.keys.check(text(headers, &AUTHORIZATION), &signed, SystemTime::now())
    }

    /// The realm that `caller`, which shows `ticket`, is admitted to.
    async fn realm(
        &self,
        scope: &Scope,
        caller: &Caller,
        ticket: Option<&str>,
    ) -> Result<Realm, Denied> {
        let now = SystemTime::now();
        self.exchange().realms().admit(scope, caller.member, ticket, now).await
    }

    /// Begins to fetch the piece for the asker; the answer instead, if there is no memory for it.
    fn begin(&self, admitted: &Admitted) -> Result<Option<Response>, Refusal> {
        let wanted = &admitted.call.wanted;
        if !self.exchange().origin().reaches(&wanted.scope) {
            return Err(Refusal::Unreached);
        }
        let Some(room) = self.exchange().room_for(admitted.asker, wanted.size()) else {
            return Ok(Some(self.busy(CROWDED)));
        };
        self.exchange().obtain(admitted.key, wanted, admitted.call.hop + 1, room);
        Ok(None)
    }

    /// Sends the piece; `None` where it turns out not to be here.
    async fn serve(
        &self,
        admitted: &Admitted,
        place: Option<Place>,
        slot: Slot,
    ) -> Option<Response> {
        let offset = admitted.call.offset;
        let (size, arriving, body) = match place? {
            Place::Stored => {
                let (exchange, key) = (self.exchange().clone(), admitted.key);
                let open = tokio::task::spawn_blocking(move || exchange.pieces().get(&key));
                let open = open.await.ok()??;
                (open.size, false, stream_stored(open, offset, slot))
            }
            Place::Arriving(piece) => {
                let arriving = piece.have() != Some(Have::Whole);
                (piece.size(), arriving, stream_arriving(piece, offset, slot))
            }
        };
        // Another piece under the same digest cannot be; a request for another size can.
        if size != admitted.call.wanted.size() {
            return Some(StatusCode::BAD_REQUEST.into_response());
        }
        self.exchange().counters().uploaded.count(0);
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, (size - offset).into());
        if arriving {
            headers.insert(ARRIVING, HeaderValue::from_static("1"));
        }
        Some(response)
    }

    fn redirect(&self, to: &[MemberId]) -> Response {
        self.exchange().counters().redirected.fetch_add(1, Ordering::Relaxed);
        let names: Vec<String> = to.iter().map(ToString::to_string).collect();
        (StatusCode::TEMPORARY_REDIRECT, [(PEERS, names.join(","))]).into_response()
    }

    fn busy(&self, pause: Duration) -> Response {
        self.exchange().counters().busy.fetch_add(1, Ordering::Relaxed);
        let pause = pause.as_millis().to_string();
        (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER_MS, pause)]).into_response()
    }

    fn exchange(&self) -> &Exchange {
        &self.0.exchange
    }

    /// Counts bytes that are about to be sent, and waits as long as the rate demands.
    async fn pass(&self, bytes: u64) {
        self.exchange().counters().uploaded.add(bytes);
        if let Some(rate) = &self.0.rate {
            tokio::time::sleep(rate.take(bytes, std::time::Instant::now())).await;
        }
    }
}

impl Admitted {
    fn request(&self) -> Request {
        let PieceCall { wanted, mode, hop, tried, .. } = &self.call;
        Request {
            piece: wanted.piece.digest,
            asker: self.asker,
            mode: *mode,
            hop: *hop,
            tried: tried.clone(),
        }
    }
}

fn target_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", PathAndQuery::as_str)
}

fn ticket_of(headers: &HeaderMap) -> Option<&str> {
    text(headers, &TICKET)
}

async fn piece(State(server): State<PieceServer>, request: HttpRequest) -> Response {
    match server.answer(target_of(request.uri()), request.headers()).await {
        Ok(response) => response,
        Err(refusal) => {
            server.exchange().counters().refused.fetch_add(1, Ordering::Relaxed);
            refusal.response()
        }
    }
}
