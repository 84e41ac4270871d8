//! What members ask each other over HTTP: whole states, where gossip is too slow or too lossy.
//!
//! ```text
//! GET  /v1/members   If-None-Match: "digest"  -> 304, or 200 the state, sealed
//! POST /v1/join      JoinRequest              -> 200 the state, sealed; 204 where none is wanted
//!                                                400 malformed, 409 it is the asking node itself
//! both                                        -> 401 unsigned, 503 not ready yet
//! ```
//!
//! Requests are signed, answers sealed ([`crate::peer::keys`]). Bodies are postcard: a state is the
//! list of its [`Record`]s, about 50 bytes each.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, IF_NONE_MATCH};
use http::{Method, StatusCode};
use reqwest::Response;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::swim::{Record, StateDigest};
use crate::peer::client::read_body;
use crate::peer::keys::{Call, CallError, ClusterKeys, SignedCall};
use crate::peer::member::MemberId;

/// The path of the list of members.
pub const MEMBERS: &str = "/v1/members";
/// The path of joining.
pub const JOIN: &str = "/v1/join";

/// The longest state that is accepted, in bytes: more than ten thousand members with all their
/// addresses.
pub const MAX_STATE: usize = 4 << 20;
/// The longest request to join, in bytes.
pub const MAX_JOIN: usize = 4096;

/// How long another node may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What a node says when it joins, leaves, or shows that it is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The node itself.
    pub member: Identity,
    /// Whether it says good-bye.
    pub leaves: bool,
    /// Whether it wants to know the members.
    pub wants_state: bool,
}

/// Why another node gives no state.
#[derive(Debug, thiserror::Error)]
pub enum InquiryError {
    /// It does not answer.
    #[error("{url} does not answer")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It refuses.
    #[error("{url} refuses: {status} {reason}")]
    Refused {
        /// What was asked.
        url: String,
        /// How.
        status: StatusCode,
        /// In its own words.
        reason: String,
    },
    /// Its answer is too long or malformed, or not sealed by a member of the cluster.
    #[error("{url} does not answer as a member of the cluster does: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// Encodes a state.
pub fn encode(state: &[Record]) -> Vec<u8> {
    postcard::to_allocvec(state).expect("members are plain data")
}

/// How HTTP reaches the nodes of the cluster.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The client for members, with their certificates where they have some.
    pub members: reqwest::Client,
    /// `http`, or `https` where members have certificates.
    pub scheme: &'static str,
    /// The client for seeds.
    pub seeds: reqwest::Client,
}

/// The asking side.
pub(super) struct Inquiry {
    pub own: MemberId,
    pub keys: ClusterKeys,
    pub http: HttpConfig,
}

/// The answer of a member that was asked for its state.
#[derive(Debug)]
pub(super) enum Answered {
    /// It knows the same.
    Same,
    /// It knows this.
    State(Vec<Record>),
}

impl Inquiry {
    /// Asks `member` for its state, unless its digest is `known`.
    pub async fn pull(
        &self,
        member: &Identity,
        known: &StateDigest,
    ) -> Result<Answered, InquiryError> {
        let call = Call { to: Some(member.id), method: "GET", target: MEMBERS, body: b"" };
        let signed = self.keys.sign(self.own, &call, SystemTime::now());
        let mut failed = None;
        for address in &member.addresses {
            let url = format!("{}://{address}{MEMBERS}", self.http.scheme);
            let request = self
                .http
                .members
                .request(Method::GET, &url)
                .header(AUTHORIZATION, &signed.header)
                .header(IF_NONE_MATCH, etag(known))
                .timeout(ANSWER);
            match request.send().await {
                Ok(response) if response.status() == StatusCode::NOT_MODIFIED => {
                    return Ok(Answered::Same);
                }
                Ok(response) => {
                    return self.state(url, &signed, response).await.map(Answered::State);
                }
                Err(source) => failed = Some(InquiryError::Unreachable { url, source }),
            }
        }
        Err(failed.expect("a member has an address"))
    }

    /// Sends `request` to the node at `place`. Returns its state if that was wanted, else nothing.
    pub async fn join(
        &self,
        place: &Place,
        request: &JoinRequest,
    ) -> Result<Vec<Record>, InquiryError> {
        let body = postcard::to_allocvec(request).expect("a request is plain data");
        let (http, url) = match place {
            Place::Seed(base) => (&self.http.seeds, format!("{base}{JOIN}")),
            Place::Node(address) => {
                (&self.http.members, format!("{}://{address}{JOIN}", self.http.scheme))
            }
        };
        let call = Call { to: None, method: "POST", target: JOIN, body: &body };
        let signed = self.keys.sign(self.own, &call, SystemTime::now());
        let sent = http
            .request(Method::POST, &url)
            .header(AUTHORIZATION, &signed.header)
            .body(body)
            .timeout(ANSWER)
            .send()
            .await;
        match sent {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => Ok(Vec::new()),
            Ok(response) => self.state(url, &signed, response).await,
            Err(source) => Err(InquiryError::Unreachable { url, source }),
        }
    }

    /// Reads and opens the state in a response.
    async fn state(
        &self,
        url: String,
        call: &SignedCall,
        response: Response,
    ) -> Result<Vec<Record>, InquiryError> {
        let status = response.status();
        let limit = if status.is_success() { MAX_STATE } else { 1024 };
        let body = match read_body(response, limit).await {
            Ok(body) => body,
            Err(reason) => return Err(InquiryError::Answer { url, reason }),
        };
        if status != StatusCode::OK {
            let reason = String::from_utf8_lossy(&body).into_owned();
            return Err(InquiryError::Refused { url, status, reason });
        }
        let opened = self.keys.open_answer(call, &body);
        let state = opened.map_err(|error: CallError| error.to_string()).and_then(|state| {
            postcard::from_bytes(&state).map_err(|error| format!("a damaged state: {error}"))
        });
        state.map_err(|reason| InquiryError::Answer { url, reason })
    }
}

/// Where to reach a node whose name is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The seed at this URL, to which [`JOIN`] is added.
    Seed(String),
    /// The agent at this address.
    Node(SocketAddr),
}

/// The entity tag of a state.
pub(super) fn etag(digest: &StateDigest) -> String {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}
