//! How transfers share links.
//!
//! An *uplink* is shared evenly by the flows that leave through it at a time. A *downlink* works
//! them off in the order in which they end, from when they began. That is less than what TCP and
//! switches do, and enough to see who waits for whom: no flow gets more than its links have, and
//! over a time no link carries more than its rate.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// The name of a flow.
pub type FlowId = u64;

/// The sending side of a node or of the registry.
///
/// Kept is how many bytes each flow would have sent that was there from the beginning (the
/// *mark*): a flow ends when the mark has grown by its length, whoever comes and goes meanwhile.
#[derive(Debug)]
pub struct Uplink {
    /// Bytes per second.
    rate: f64,
    mark: f64,
    marked_at: Duration,
    flows: HashMap<FlowId, Flow>,
    ends: BinaryHeap<End>,
    carried: f64,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    begin: f64,
    end: f64,
}

/// The mark at which a flow ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct End(f64, FlowId);

impl Uplink {
    /// An idle link of so many bytes per second.
    pub fn new(rate: f64) -> Self {
        Self {
            rate,
            mark: 0.0,
            marked_at: Duration::ZERO,
            flows: HashMap::new(),
            ends: BinaryHeap::new(),
            carried: 0.0,
        }
    }

    /// Bytes that it has carried, also of flows that were broken off.
    pub fn carried(&self) -> f64 {
        self.carried
    }

    /// Begins to send `bytes`.
    pub fn begin(&mut self, now: Duration, flow: FlowId, bytes: u64) {
        self.advance(now);
        let end = self.mark + bytes as f64;
        self.flows.insert(flow, Flow { begin: self.mark, end });
        self.ends.push(End(end, flow));
    }

    /// Breaks a flow off, if it has not ended.
    pub fn break_off(&mut self, now: Duration, flow: FlowId) {
        self.advance(now);
        if let Some(Flow { begin, end }) = self.flows.remove(&flow) {
            self.carried += (self.mark - begin).min(end - begin);
        }
    }

    /// Bytes of a flow that have left so far; `None` when it is not there.
    pub fn sent(&mut self, now: Duration, flow: FlowId) -> Option<u64> {
        self.advance(now);
        let Flow { begin, end } = self.flows.get(&flow)?;
        // Not less than what has left for want of a last bit of precision.
        Some((self.mark.min(*end) - begin + 1e-3) as u64)
    }

    /// When the next flow will end if none comes or goes.
    pub fn next_end(&mut self, now: Duration) -> Option<Duration> {
        self.advance(now);
        let End(end, _) = self.first()?;
        let seconds = (end - self.mark).max(0.0) * self.flows.len() as f64 / self.rate;
        // Up to the nanosecond after, so that the end has come then.
        Some(now + Duration::from_secs_f64(seconds) + Duration::from_nanos(1))
    }

    /// A flow that has ended by now.
    pub fn ended(&mut self, now: Duration) -> Option<FlowId> {
        self.advance(now);
        let End(end, flow) = self.first()?;
        if end > self.mark + f64::EPSILON * self.mark {
            return None;
        }
        self.ends.pop();
        let Flow { begin, end } = self.flows.remove(&flow)?;
        self.carried += end - begin;
        Some(flow)
    }

    /// The flow that ends first; forgets those that were broken off.
    fn first(&mut self) -> Option<End> {
        while let Some(End(end, flow)) = self.ends.peek().copied() {
            if self.flows.get(&flow).is_some_and(|flow| flow.end == end) {
                return Some(End(end, flow));
            }
            self.ends.pop();
        }
        None
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.marked_at).as_secs_f64();
        if !self.flows.is_empty() {
            self.mark += passed * self.rate / self.flows.len() as f64;
        }
        self.marked_at = self.marked_at.max(now);
    }
}

/// The receiving side of a node.
#[derive(Debug)]
pub struct Downlink {
    rate: f64,
    free_at: Duration,
}

impl Downlink {
    /// An idle link of so many bytes per second.
    pub fn new(rate: f64) -> Self {
        Self { rate, free_at: Duration::ZERO }
    }

    /// When `bytes` are here whose first left the sender at `begin` and whose last at `now`.
    pub fn deliver(&mut self, begin: Duration, now: Duration, bytes: u64) -> Duration {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate);
        self.free_at = self.free_at.max(begin) + takes;
        self.free_at.max(now)
    }
}

// The heap gives its greatest first, which is to be the earliest end.
impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for End {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Until the next end; who ended, and in which millisecond.
    fn next(link: &mut Uplink, now: Duration) -> (FlowId, u64) {
        let end = link.next_end(now).unwrap();
        assert_eq!(link.ended(end - Duration::from_nanos(10)), None);
        (link.ended(end).unwrap(), (end.as_secs_f64() * 1000.0).round() as u64)
    }

    #[test]
    fn a_flow_alone_has_the_whole_link_and_two_share_it() {
        let mut link = Uplink::new(1000.0);
        link.begin(at(0), 1, 1000);
        assert_eq!(next(&mut link, at(0)), (1, 1000));
        // 500 of 1000 bytes alone, 250 of both until the short one is through, the rest alone.
        link.begin(at(2000), 2, 1000);
        link.begin(at(2500), 3, 250);
        assert_eq!(link.sent(at(2700), 2), Some(600));
        assert_eq!(next(&mut link, at(2700)), (3, 3000));
        assert_eq!(next(&mut link, at(3001)), (2, 3250));
        assert_eq!((link.flows.len(), link.next_end(at(4000))), (0, None));
        assert_eq!(link.carried() as u64, 2250);
    }

    #[test]
    fn a_flow_that_is_broken_off_leaves_its_share_and_counts_what_it_carried() {
        let mut link = Uplink::new(1000.0);
        link.begin(at(0), 1, 1000);
        link.begin(at(0), 2, 1000);
        link.break_off(at(1000), 1);
        assert_eq!((link.carried() as u64, link.sent(at(1000), 1)), (500, None));
        assert_eq!(next(&mut link, at(1000)), (2, 1500));
        link.break_off(at(2000), 1);
        assert_eq!(link.carried() as u64, 1500);
    }

    #[test]
    fn a_downlink_takes_one_after_the_other_and_is_no_faster_than_the_sender() {
        let mut link = Downlink::new(1000.0);
        // Two at a time from two senders, each at the link's rate: together they take twice as long.
        assert_eq!(link.deliver(at(1000), at(1500), 500), at(1500));
        assert_eq!(link.deliver(at(1000), at(1500), 500), at(2000));
        assert_eq!(link.deliver(at(1900), at(2400), 500), at(2500));
        assert_eq!(link.deliver(at(9000), at(9900), 500), at(9900), "a slow sender");
        // What one sender shares out among two has come when the last of it was sent.
        assert_eq!(link.deliver(at(20_000), at(21_000), 500), at(21_000));
        assert_eq!(link.deliver(at(20_000), at(21_000), 500), at(21_000));
    }

    #[test]
    fn marks_stay_exact_over_many_flows() {
        let mut link = Uplink::new(1.25e9);
        let (mut now, mut ended) = (Duration::ZERO, 0);
        for flow in 0..100_000 {
            link.begin(now, flow, 2 << 20);
            if link.flows.len() == 16 {
                now = link.next_end(now).unwrap();
                while link.ended(now).is_some() {
                    ended += 1;
                }
            }
        }
        assert_eq!(ended + link.flows.len(), 100_000);
        let expected = 100_000.0 * f64::from(2 << 20) / 1.25e9;
        assert!((now.as_secs_f64() / expected - 1.0).abs() < 0.001, "{now:?} {expected}");
    }
}
