//! What the registry has done, in numbers (Prometheus text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};

/// Answers by method and status.
const REQUESTS: &str = "undermount_registry_requests_total";
/// Requests whose answer has not been sent to its end.
const IN_PROGRESS: &str = "undermount_registry_requests_in_progress";
/// Bytes of bodies that were sent.
const SENT: &str = "undermount_registry_sent_bytes_total";
/// Bytes of uploads that were received.
const RECEIVED: &str = "undermount_registry_received_bytes_total";
/// Uploads that have begun and not ended.
const UPLOADS: &str = "undermount_registry_uploads";
/// Reads of blobs that were refused because the client reads enough already.
const REFUSED_READS: &str = "undermount_registry_refused_reads_total";
/// Blobs that were removed as garbage.
const COLLECTED: &str = "undermount_registry_collected_blobs_total";
/// Bytes of such blobs.
const COLLECTED_BYTES: &str = "undermount_registry_collected_bytes_total";
/// Images whose index was made here.
const INDEXED: &str = "undermount_registry_images_indexed_total";
/// Images of which no index could be made.
const NOT_INDEXED: &str = "undermount_registry_images_not_indexed_total";
/// Images whose index is being made.
const INDEXING: &str = "undermount_registry_images_indexing";

/// A number that only grows, or grows and shrinks.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// The registry's numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    /// See [`IN_PROGRESS`].
    pub in_progress: Counter,
    /// See [`SENT`].
    pub sent: Counter,
    /// See [`RECEIVED`].
    pub received: Counter,
    /// See [`REFUSED_READS`].
    pub refused_reads: Counter,
    /// See [`COLLECTED`].
    pub collected: Counter,
    /// See [`COLLECTED_BYTES`].
    pub collected_bytes: Counter,
    /// See [`INDEXED`].
    pub indexed: Counter,
    /// See [`NOT_INDEXED`].
    pub not_indexed: Counter,
}

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes away one that was added.
    pub fn remove_one(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, method: &Method, status: StatusCode) {
        // Methods are free text; those that nobody serves share a name.
        let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH];
        let known = known.contains(method) || *method == Method::DELETE;
        let name = if known { method.as_str() } else { "other" };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((name.to_owned(), status.as_u16())).or_default() += 1;
    }

    /// All numbers as text; `uploads` and `indexing` are counted by the caller.
    pub fn render(&self, uploads: usize, indexing: usize) -> String {
        let mut text = format!("# TYPE {REQUESTS} counter\n");
        for ((method, status), count) in
            &*self.requests.lock().unwrap_or_else(PoisonError::into_inner)
        {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{REQUESTS}{{method=\"{method}\",status=\"{status}\"}} {count}");
        }
        for (name, kind, value) in [
            (IN_PROGRESS, "gauge", self.in_progress.get()),
            (SENT, "counter", self.sent.get()),
            (RECEIVED, "counter", self.received.get()),
            (REFUSED_READS, "counter", self.refused_reads.get()),
            (COLLECTED, "counter", self.collected.get()),
            (COLLECTED_BYTES, "counter", self.collected_bytes.get()),
            (UPLOADS, "gauge", uploads as u64),
            (INDEXED, "counter", self.indexed.get()),
            (NOT_INDEXED, "counter", self.not_indexed.get()),
            (INDEXING, "gauge", indexing as u64),
        ] {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_by_name() {
        let metrics = Metrics::default();
        metrics.answered(&Method::GET, StatusCode::OK);
        metrics.answered(&Method::GET, StatusCode::OK);
        metrics.answered(&Method::from_bytes(b"BREW").unwrap(), StatusCode::METHOD_NOT_ALLOWED);
        metrics.sent.add(5);
        metrics.in_progress.add(2);
        metrics.in_progress.remove_one();
        let text = metrics.render(3, 4);
        for line in [
            "undermount_registry_requests_total{method=\"GET\",status=\"200\"} 2",
            "undermount_registry_requests_total{method=\"other\",status=\"405\"} 1",
            "undermount_registry_sent_bytes_total 5",
            "# TYPE undermount_registry_requests_in_progress gauge",
            "undermount_registry_requests_in_progress 1",
            "undermount_registry_uploads 3",
            "undermount_registry_images_indexing 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
