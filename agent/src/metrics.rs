//! What is measured for Prometheus: all names in one place ([`names`]), and a page of figures.
//!
//! A registry counts as it works and keeps its page; an agent asks its parts for what they have
//! counted whenever somebody looks. Values are in base units (seconds, bytes), totals end in
//! `_total`, and labels have few values that are known beforehand: no image, layer or host.

pub mod names;

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use names::Metric;

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Everything in `registry` as text.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_text::encode(&mut text, registry).expect("strings take all that is written");
    text
}

/// Figures of one moment.
#[derive(Default)]
pub struct Page(Registry);

type Labelled<T> = Family<Vec<(&'static str, String)>, T>;

impl Page {
    /// A total so far.
    pub fn counter(&mut self, metric: Metric, value: u64) {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        self.0.register(metric.stem(), metric.help, counter);
    }

    /// Totals, one for each value of `label`.
    pub fn counters<V: ToString>(
        &mut self,
        metric: Metric,
        label: &'static str,
        values: impl IntoIterator<Item = (V, u64)>,
    ) {
        let family = Labelled::<Counter>::default();
        for (value, count) in values {
            family.get_or_create(&vec![(label, value.to_string())]).inc_by(count);
        }
        self.0.register(metric.stem(), metric.help, family);
    }

    /// A value as it is now.
    pub fn gauge(&mut self, metric: Metric, value: u64) {
        self.0.register(metric.stem(), metric.help, gauge(value));
    }

    /// Values as they are now, one for each value of `label`.
    pub fn gauges<V: ToString>(
        &mut self,
        metric: Metric,
        label: &'static str,
        values: impl IntoIterator<Item = (V, u64)>,
    ) {
        let family = Labelled::<Gauge>::default();
        for (value, now) in values {
            let labels = vec![(label, value.to_string())];
            family.get_or_create(&labels).set(gauge(now).get());
        }
        self.0.register(metric.stem(), metric.help, family);
    }

    /// How long things took.
    pub fn histogram(&mut self, metric: Metric, times: Times) {
        self.0.register(metric.stem(), metric.help, times);
    }

    /// The page as text.
    pub fn render(self) -> String {
        render(&self.0)
    }
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

/// A histogram of times that was counted elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Upper bounds in microseconds, the lowest first, with how many were no longer than that but
    /// longer than the bound before.
    pub buckets: Vec<(u64, u64)>,
    /// How many were longer than the last bound.
    pub longer: u64,
    /// All of them together.
    pub sum: Duration,
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bucket = |(micros, count): &(u64, u64)| (*micros as f64 / 1e6, *count);
        let buckets: Vec<_> = self.buckets.iter().map(bucket).collect();
        let count = self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.longer;
        encoder.encode_histogram::<NoLabelSet>(self.sum.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_each_kind_of_figure() {
        let mut page = Page::default();
        page.counters(names::READS, "source", [("cache", 5), ("registry", 2)]);
        page.counter(names::READ_ERRORS, 1);
        page.gauge(names::CACHE_BYTES, u64::MAX);
        page.gauges(names::FETCHES_WAITING, "priority", [("demand", 3)]);
        let times = Times {
            buckets: vec![(1_000, 2), (2_500_000, 1)],
            longer: 4,
            sum: Duration::from_millis(1500),
        };
        page.histogram(names::READ_WAIT, times);
        let text = page.render();
        for line in [
            "# TYPE undermount_reads_total counter",
            "undermount_reads_total{source=\"cache\"} 5",
            "undermount_read_errors_total 1",
            "undermount_cache_bytes 9223372036854775807",
            "undermount_fetches_waiting{priority=\"demand\"} 3",
            "# TYPE undermount_read_wait_seconds histogram",
            "undermount_read_wait_seconds_bucket{le=\"0.001\"} 2",
            "undermount_read_wait_seconds_bucket{le=\"2.5\"} 3",
            "undermount_read_wait_seconds_bucket{le=\"+Inf\"} 7",
            "undermount_read_wait_seconds_sum 1.5",
            "undermount_read_wait_seconds_count 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
