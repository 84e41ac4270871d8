//! What went over a link: bytes, and the requests that they answer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// The methods that a pull uses.
const METHODS: [&[u8]; 4] = [b"GET ", b"HEAD ", b"POST ", b"PUT "];

/// What went over a link, from when it was opened or last emptied.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// Bytes from the registry.
    pub bytes: u64,
    /// The requests, in the order of their beginning.
    pub requests: Vec<Request>,
    /// Bytes from the registry so far, by milliseconds since the beginning.
    pub progress: Vec<(u64, u64)>,
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Method and path.
    pub words: String,
    /// When it was sent, in milliseconds since the beginning.
    pub begin_ms: u64,
    /// When the last byte of the answer came.
    pub end_ms: u64,
    /// Bytes of the answer.
    pub bytes: u64,
}

/// The request that a connection is busy with: in which measurement, by its beginning, and which of
/// its requests.
pub(super) type Current = Mutex<Option<(Instant, usize)>>;

/// Counts what goes over a link.
pub(super) struct Watch {
    state: Mutex<(Instant, Traffic)>,
}

impl Watch {
    /// From now on.
    pub fn new() -> Self {
        Self { state: Mutex::new((Instant::now(), Traffic::default())) }
    }

    /// Forgets what it has seen.
    pub fn begin(&self) {
        *self.state() = (Instant::now(), Traffic::default());
    }

    /// What it has seen.
    pub fn traffic(&self) -> Traffic {
        self.state().1.clone()
    }

    fn state(&self) -> MutexGuard<'_, (Instant, Traffic)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk on its way there.
    pub fn asked(&self, bytes: &[u8], current: &Current) {
        if !METHODS.iter().any(|method| bytes.starts_with(method)) {
            return;
        }
        let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line).trim_end_matches(" HTTP/1.1").to_owned();
        let mut state = self.state();
        let begin_ms = state.0.elapsed().as_millis() as u64;
        let place = state.1.requests.len();
        state.1.requests.push(Request { words, begin_ms, end_ms: begin_ms, bytes: 0 });
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some((state.0, place));
    }

    /// A chunk on its way back.
    pub fn answered(&self, bytes: &[u8], current: &Current) {
        let mut state = self.state();
        let begin = state.0;
        let now = begin.elapsed().as_millis() as u64;
        let count = bytes.len() as u64;
        let traffic = &mut state.1;
        traffic.bytes += count;
        match traffic.progress.last_mut() {
            Some(last) if last.0 == now => last.1 = traffic.bytes,
            _ => traffic.progress.push((now, traffic.bytes)),
        }
        let current = *current.lock().unwrap_or_else(PoisonError::into_inner);
        // A request from before the beginning has no place here.
        let place = current.filter(|(since, _)| *since == begin).map(|(_, place)| place);
        if let Some(request) = place.and_then(|place| traffic.requests.get_mut(place)) {
            request.end_ms = now;
            request.bytes += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_an_answer_to_a_request_from_before_the_beginning_is_no_other_requests() {
        let (watch, old, new) = (Watch::new(), Current::default(), Current::default());
        watch.asked(b"GET /old HTTP/1.1\r\n", &old);
        // A measurement begins later than the one before.
        std::thread::sleep(std::time::Duration::from_millis(1));
        watch.begin();
        watch.asked(b"GET /new HTTP/1.1\r\n", &new);
        watch.answered(b"late", &old);
        watch.answered(b"ok", &new);
        let traffic = watch.traffic();
        assert_eq!((traffic.bytes, traffic.requests[0].bytes), (6, 2));
    }
}
