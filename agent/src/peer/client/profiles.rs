//! Asks a member for its profiles of starts, or hands it one: the client's side of the requests in
//! [`crate::peer::profiles`].

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderName, Method, StatusCode};
use reqwest::Response;

use super::{PeerClient, TICKET, read_body, text};
use crate::peer::keys::{Call, SignedCall, Ticket};
use crate::peer::member::Member;
use crate::peer::profiles::{ALL_MAX, ProfileCall};

/// The header that says how many starts of an image a member has.
pub const STARTS: HeaderName = HeaderName::from_static("undermount-starts");

/// How long a whole answer may take. No start waits for it.
const ANSWER: Duration = Duration::from_secs(5);

/// Why a member did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// No connection.
    #[error("it cannot be reached")]
    Unreachable,
    /// It does not answer in time, or not completely.
    #[error("it does not answer")]
    NoAnswer,
    /// It belongs to another cluster.
    #[error("it is of another cluster")]
    Foreign,
    /// It refuses, with this status.
    #[error("it refuses ({0})")]
    Refused(StatusCode),
    /// No honest node answers like this; why, in words.
    #[error("it lies: {0}")]
    Lies(String),
}

impl PeerClient {
    /// How many starts of the image of `call` the `member` has.
    ///
    /// # Errors
    /// [`Unheard`] where it does not answer, or not with a number.
    pub async fn recorded_starts(
        &self,
        member: &Member,
        call: &ProfileCall,
        ticket: Option<Ticket>,
    ) -> Result<usize, Unheard> {
        let (_, response) = self.send(member, Method::HEAD, call, ticket, Bytes::new()).await?;
        let starts = text(response.headers(), &STARTS).and_then(|starts| starts.parse().ok());
        starts.ok_or_else(|| Unheard::Lies("it does not say how many starts it has".to_owned()))
    }

    /// Hands a profile of one start, as a body, to `member`.
    ///
    /// # Errors
    /// [`Unheard`] where it does not take it; [`Unheard::Refused`] with 409 where it has enough.
    pub async fn give_profile(
        &self,
        member: &Member,
        call: &ProfileCall,
        ticket: Option<Ticket>,
        body: Bytes,
    ) -> Result<(), Unheard> {
        self.send(member, Method::PUT, call, ticket, body).await.map(drop)
    }

    /// The body with the profiles that `member` has of the image of `call` or of another build.
    ///
    /// # Errors
    /// [`Unheard`] where it does not answer as it should; [`Unheard::Refused`] with 404 where it
    /// has none.
    pub async fn profiles(
        &self,
        member: &Member,
        call: &ProfileCall,
        ticket: Option<Ticket>,
    ) -> Result<Vec<u8>, Unheard> {
        let (signed, response) = self.send(member, Method::GET, call, ticket, Bytes::new()).await?;
        let sealed = read_body(response, ALL_MAX).await.map_err(|_| Unheard::NoAnswer)?;
        self.keys.open_answer(&signed, &sealed).map_err(|error| Unheard::Lies(error.to_string()))
    }

    async fn send(
        &self,
        member: &Member,
        method: Method,
        call: &ProfileCall,
        ticket: Option<Ticket>,
        body: Bytes,
    ) -> Result<(SignedCall, Response), Unheard> {
        let target = call.target();
        let signed =
            Call { to: Some(member.id), method: method.as_str(), target: &target, body: &body };
        let signed = self.keys.sign(self.own, &signed, SystemTime::now());
        for address in member.addresses.iter().take(2) {
            let url = format!("{}://{address}{target}", self.scheme);
            let mut request = self.http.request(method.clone(), url).timeout(ANSWER);
            if let Some(ticket) = &ticket {
                request = request.header(TICKET, ticket.to_string());
            }
            let request = request.header(AUTHORIZATION, &signed.header).body(body.clone());
            match request.send().await {
                Ok(response) => return heard(response).map(|response| (signed, response)),
                Err(error) if error.is_connect() => {}
                // It may have got it: only one who was not reached is asked at the other address.
                Err(_) => return Err(Unheard::NoAnswer),
            }
        }
        Err(Unheard::Unreachable)
    }
}

fn heard(response: Response) -> Result<Response, Unheard> {
    match response.status() {
        StatusCode::OK | StatusCode::NO_CONTENT => Ok(response),
        StatusCode::MISDIRECTED_REQUEST | StatusCode::UNAUTHORIZED => Err(Unheard::Foreign),
        status => Err(Unheard::Refused(status)),
    }
}
