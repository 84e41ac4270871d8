//! Asks other nodes for pieces, and turns their answers into [`Event`]s. Decides nothing.
//!
//! ```text
//! PieceCall -> signed GET, with a ticket -> 200 a body; 307, 202, 503, ... an event; else a lie
//! ```

pub mod profiles;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use reqwest::Response;

use super::fetch::Event;
use super::keys::{Call, ClusterKeys, Ticket};
use super::member::{Member, MemberId};
use super::wanted::PieceCall;

/// The header with the scope ticket of a request.
pub const TICKET: HeaderName = HeaderName::from_static("undermount-ticket");
/// The header of a 200 whose sender does not have all of the piece itself.
pub const ARRIVING: HeaderName = HeaderName::from_static("undermount-arriving");
/// The header with the members that a 307 names, separated by commas.
pub const PEERS: HeaderName = HeaderName::from_static("undermount-peers");
/// The header with the pause that a 503 asks for, in milliseconds.
pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("undermount-retry-after-ms");

/// How long the head of an answer may take. A node that itself waits for the piece says so after
/// [`super::server::HOLD`].
const ANSWER: Duration = Duration::from_millis(1000);
/// The most members that are taken from a redirect.
const MOST_NAMED: usize = 8;

/// The way to other nodes.
#[derive(Debug, Clone)]
pub struct PeerClient {
    http: reqwest::Client,
    scheme: &'static str,
    own: MemberId,
    keys: ClusterKeys,
}

/// The answer of a node.
pub enum Reply {
    /// It sends the piece from the requested byte on.
    Sends {
        /// Whether the sender does not have all of it itself.
        arriving: bool,
        /// The bytes; an error is the end of the connection.
        body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    },
    /// Anything else.
    Says(Event),
    /// No honest node answers like this; why, in words.
    Lies(String),
}

impl PeerClient {
    /// A client of the node `own`, which reaches others by `http` and `scheme` (`http` or `https`).
    /// The client should give up connecting after half a second.
    pub fn new(
        own: MemberId,
        keys: ClusterKeys,
        http: reqwest::Client,
        scheme: &'static str,
    ) -> Self {
        Self { http, scheme, own, keys }
    }

    /// Asks `member` for a piece, at its second address where the first cannot be reached.
    pub async fn ask(&self, member: &Member, call: &PieceCall, ticket: Option<Ticket>) -> Reply {
        let mut reply = Reply::Says(Event::Unreachable);
        for address in member.addresses.iter().take(2) {
            reply = self.ask_at(*address, member.id, call, ticket.as_ref()).await;
            if !matches!(reply, Reply::Says(Event::Unreachable)) {
                break;
            }
        }
        reply
    }

    async fn ask_at(
        &self,
        address: SocketAddr,
        member: MemberId,
        call: &PieceCall,
        ticket: Option<&Ticket>,
    ) -> Reply {
        let target = call.target();
        let signed = Call { to: Some(member), method: "GET", target: &target, body: b"" };
        let signed = self.keys.sign(self.own, &signed, SystemTime::now());
        let url = format!("{}://{address}{target}", self.scheme);
        let send = || {
            let mut request = self.http.get(&url).header(AUTHORIZATION, &signed.header);
            if let Some(ticket) = ticket {
                request = request.header(TICKET, ticket.to_string());
            }
            tokio::time::timeout(ANSWER, request.send())
        };
        // An idle connection may have ended just now: it is tried once more.
        let answer = match send().await {
            Ok(Err(error)) if !error.is_connect() && !error.is_timeout() => send().await,
            answer => answer,
        };
        match answer {
            Ok(Ok(response)) => read(response, call),
            Ok(Err(error)) if error.is_connect() => Reply::Says(Event::Unreachable),
            Ok(Err(_)) | Err(_) => Reply::Says(Event::NoAnswer),
        }
    }
}

/// The event that an answer means.
fn read(response: Response, call: &PieceCall) -> Reply {
    let headers = response.headers();
    Reply::Says(match response.status() {
        StatusCode::OK => return sends(response, call),
        StatusCode::TEMPORARY_REDIRECT => Event::Redirect(named(headers)),
        StatusCode::ACCEPTED => Event::Waiting,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let pause = text(headers, &RETRY_AFTER_MS).and_then(|pause| pause.parse().ok());
            Event::Busy(Duration::from_millis(pause.unwrap_or(1000)))
        }
        StatusCode::MISDIRECTED_REQUEST | StatusCode::UNAUTHORIZED => Event::Foreign,
        _ => Event::Missing,
    })
}

fn sends(response: Response, call: &PieceCall) -> Reply {
    let expected = call.wanted.size() - call.offset;
    match response.content_length() {
        Some(length) if length == expected => {}
        length => {
            let length =
                length.map_or("an unknown number of".to_owned(), |length| length.to_string());
            return Reply::Lies(format!("offered {length} bytes instead of {expected}"));
        }
    }
    let arriving = response.headers().contains_key(ARRIVING);
    Reply::Sends { arriving, body: response.bytes_stream().boxed() }
}

/// Reads a body of at most `limit` bytes; the error is in words.
pub(super) async fn read_body(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| error.to_string())? {
        if body.len() + chunk.len() > limit {
            return Err(format!("more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The value of the header `name`; `None` where it is missing or not text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn named(headers: &HeaderMap) -> Vec<MemberId> {
    let names = text(headers, &PEERS).unwrap_or_default().split(',');
    names.filter_map(|name| name.parse().ok()).take(MOST_NAMED).collect()
}
