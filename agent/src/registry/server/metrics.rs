//! What the registry has done, in numbers.

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric as Measured, Registry};

use crate::metrics::names::{self, Metric};
use crate::metrics::render;

/// The registry's numbers.
#[derive(Debug)]
pub struct Metrics {
    page: Registry,
    requests: Family<Answered, Counter>,
    uploads: Gauge,
    indexing: Gauge,
    /// See [`names::REGISTRY_IN_PROGRESS`].
    pub in_progress: Gauge,
    /// See [`names::REGISTRY_SENT`].
    pub sent: Counter,
    /// See [`names::REGISTRY_RECEIVED`].
    pub received: Counter,
    /// See [`names::REGISTRY_REFUSED_READS`].
    pub refused_reads: Counter,
    /// See [`names::REGISTRY_COLLECTED`].
    pub collected: Counter,
    /// See [`names::REGISTRY_COLLECTED_BYTES`].
    pub collected_bytes: Counter,
    /// See [`names::REGISTRY_INDEXED`].
    pub indexed: Counter,
    /// See [`names::REGISTRY_NOT_INDEXED`].
    pub not_indexed: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: String,
    status: u16,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut page = Registry::default();
        Self {
            requests: told(&mut page, names::REGISTRY_REQUESTS),
            uploads: told(&mut page, names::REGISTRY_UPLOADS),
            indexing: told(&mut page, names::REGISTRY_INDEXING),
            in_progress: told(&mut page, names::REGISTRY_IN_PROGRESS),
            sent: told(&mut page, names::REGISTRY_SENT),
            received: told(&mut page, names::REGISTRY_RECEIVED),
            refused_reads: told(&mut page, names::REGISTRY_REFUSED_READS),
            collected: told(&mut page, names::REGISTRY_COLLECTED),
            collected_bytes: told(&mut page, names::REGISTRY_COLLECTED_BYTES),
            indexed: told(&mut page, names::REGISTRY_INDEXED),
            not_indexed: told(&mut page, names::REGISTRY_NOT_INDEXED),
            page,
        }
    }
}

/// A number that stands on `page`.
fn told<T: Measured + Clone + Default>(page: &mut Registry, metric: Metric) -> T {
    let number = T::default();
    page.register(metric.stem(), metric.help, number.clone());
    number
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, method: &Method, status: StatusCode) {
        // Methods are free text; those that nobody serves share a name.
        let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH];
        let known = known.contains(method) || *method == Method::DELETE;
        let method = if known { method.as_str() } else { "other" }.to_owned();
        self.requests.get_or_create(&Answered { method, status: status.as_u16() }).inc();
    }

    /// All numbers as text; `uploads` and `indexing` are counted by the caller.
    pub fn render(&self, uploads: usize, indexing: usize) -> String {
        self.uploads.set(uploads as i64);
        self.indexing.set(indexing as i64);
        render(&self.page)
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
        metrics.sent.inc_by(5);
        metrics.in_progress.inc_by(2);
        metrics.in_progress.dec();
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
