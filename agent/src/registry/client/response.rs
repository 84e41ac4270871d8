//! What an answer means: its status in words, its body within limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::error::{Fault, Message};
use super::progress::{Pace, Progress};

/// Most bytes of an error's body that are read, and characters that are shown.
const MAX_ERROR_BODY: u64 = 64 << 10;
const MAX_MESSAGE: usize = 300;

/// How long a body may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// At most so many bytes.
    Most(u64),
    /// Exactly so many bytes, as a manifest promises.
    Exactly(u64),
}

impl Limit {
    fn bytes(self) -> u64 {
        match self {
            Self::Most(bytes) | Self::Exactly(bytes) => bytes,
        }
    }
}

/// Counts the bytes of bodies as they come in, those that are thrown away included.
pub type Meter = Arc<AtomicU64>;

/// How a body is read.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// The least pace.
    pub pace: Pace,
    /// Who counts the bytes.
    pub meter: Option<Meter>,
}

/// The body of an answer, watched for stalls.
pub(super) struct Body {
    response: Response,
    progress: Progress,
    meter: Option<Meter>,
    received: u64,
}

impl Body {
    /// The body of `response`, unless somebody compressed it on the way.
    pub fn of(response: Response, reading: Reading) -> Result<Self, Fault> {
        check_encoding(response.headers())?;
        let Reading { pace, meter } = reading;
        Ok(Self { response, progress: Progress::new(pace), meter, received: 0 })
    }

    /// The next bytes, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let began = Instant::now();
            let outcome = timeout(self.progress.patience(), self.response.chunk()).await;
            let waited = began.elapsed();
            let chunk = match outcome {
                Ok(chunk) => chunk.map_err(|error| Fault::Broken {
                    received: self.received,
                    source: error.without_url(),
                })?,
                Err(_) => Some(Bytes::new()),
            };
            let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
            self.received += bytes;
            if let Some(meter) = &self.meter {
                meter.fetch_add(bytes, Ordering::Relaxed);
            }
            self.progress.record(waited, bytes).or_else(|stalled| match &chunk {
                // What is there is there.
                None => Ok(()),
                Some(_) => Err(Fault::Stalled {
                    received: stalled.received,
                    seconds: stalled.waited.as_secs(),
                }),
            })?;
            if chunk.as_ref().is_none_or(|chunk| !chunk.is_empty()) {
                return Ok(chunk);
            }
        }
    }
}

/// The whole body, within `limit`; the memory grows with what comes.
pub(super) async fn read_all(
    response: Response,
    limit: Limit,
    reading: Reading,
) -> Result<Bytes, Fault> {
    let mut source = Body::of(response, reading)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = source.chunk().await? {
        if (body.len() + chunk.len()) as u64 > limit.bytes() {
            return Err(match limit {
                Limit::Most(bytes) => Fault::TooLarge(bytes),
                Limit::Exactly(expected) => Fault::Size { found: "more".into(), expected },
            });
        }
        body.extend_from_slice(&chunk);
    }
    match limit {
        Limit::Exactly(expected) if (body.len() as u64) < expected => {
            Err(Fault::Short { received: body.len() as u64, expected })
        }
        _ => Ok(body.freeze()),
    }
}

/// Refuses a body that somebody compressed on the way.
fn check_encoding(headers: &HeaderMap) -> Result<(), Fault> {
    match headers.get(CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes())) {
        Some(encoding) if encoding != "identity" => Err(Fault::Encoded(encoding.into_owned())),
        _ => Ok(()),
    }
}

/// The answer, if its status is one of `expected`.
pub(super) async fn expect(response: Response, expected: &[StatusCode]) -> Result<Response, Fault> {
    if expected.contains(&response.status()) {
        return Ok(response);
    }
    if response.status().is_success() {
        let status = response.status();
        return Err(Fault::Protocol(format!("unexpected status {status}")));
    }
    Err(fault_of(response).await)
}

/// What an answer that is no success says.
pub(super) async fn fault_of(response: Response) -> Fault {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let body = read_all(response, Limit::Most(MAX_ERROR_BODY), Reading::default())
        .await
        .unwrap_or_default();
    let message = message(&body);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let message = match message.is_empty() {
                true => status.to_string(),
                false => format!("{status}: {message}"),
            };
            Fault::Unauthorized { with: String::new(), message }
        }
        StatusCode::NOT_FOUND => Fault::NotFound(Message(message)),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Fault::Busy { status, retry_after, message: Message(message) }
        }
        _ => Fault::Status { status, message: Message(message) },
    }
}

/// Seconds only: the date form says nothing where clocks differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The words of an error body (distribution-spec, "Error codes"); nothing of any other body,
/// which is HTML as a rule.
fn message(body: &[u8]) -> String {
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let words: Vec<String> = errors
        .into_iter()
        .map(|error| match error.message.is_empty() {
            true => error.code,
            false => format!("{}: {}", error.code, error.message),
        })
        .collect();
    words.join("; ").chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_registrys_words_are_shown_and_nothing_else() {
        let body = br#"{"errors":[{"code":"A","message":"m\n","detail":{}},{"code":"B"}]}"#;
        assert_eq!(message(body), "A: m; B");
        assert_eq!(message(b"<html>"), "");
        assert_eq!(message(br#"{"errors":null}"#), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(message(long.as_bytes()).len(), MAX_MESSAGE);
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert(RETRY_AFTER, HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT"));
        assert_eq!(retry_after(&headers), None);
    }
}
