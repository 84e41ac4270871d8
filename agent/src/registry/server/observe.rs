//! Each request from its head to the last byte of its answer: counted, and logged if wished.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::metrics::Metrics;

/// The events of the access log.
const LOG: &str = "undermount::access";

/// A request whose answer has not been sent to its end.
pub struct Observed {
    metrics: Arc<Metrics>,
    log: Option<Entry>,
    sent: u64,
}

/// What the access log tells of a request.
struct Entry {
    begin: Instant,
    peer: SocketAddr,
    method: Method,
    uri: Uri,
    agent: String,
    status: StatusCode,
}

impl Observed {
    /// A request that has just come; `log` says whether its end is logged.
    pub fn begin(
        metrics: &Arc<Metrics>,
        log: bool,
        peer: SocketAddr,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
    ) -> Self {
        metrics.in_progress.inc();
        let agent = || headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let entry = || Entry {
            begin: Instant::now(),
            peer,
            method: method.clone(),
            uri: uri.clone(),
            agent: agent().unwrap_or_default().to_owned(),
            status: StatusCode::OK,
        };
        Self { metrics: Arc::clone(metrics), log: log.then(entry), sent: 0 }
    }

    /// Follows the answer to its end.
    pub fn answer(mut self, method: &Method, response: Response) -> Response {
        self.metrics.answered(method, response.status());
        if let Some(entry) = &mut self.log {
            entry.status = response.status();
        }
        response.map(|body| Body::new(ObservedBody { body, observed: self }))
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.metrics.in_progress.dec();
        self.metrics.sent.inc_by(self.sent);
        if let Some(entry) = &self.log {
            tracing::info!(
                target: LOG,
                peer = %entry.peer,
                method = %entry.method,
                uri = %entry.uri,
                status = entry.status.as_u16(),
                bytes = self.sent,
                seconds = entry.begin.elapsed().as_secs_f64(),
                agent = entry.agent,
                "request"
            );
        }
    }
}

struct ObservedBody {
    body: Body,
    observed: Observed,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.observed.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
