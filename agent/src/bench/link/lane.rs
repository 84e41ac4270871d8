//! The rate and the delay of a link, for all connections that cross it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Shape;

/// The two directions of a node's link. Clones are the same link: what one of them carries, the
/// others wait for.
#[derive(Clone)]
pub struct Lanes {
    /// From the side that connects.
    pub(super) there: Lane,
    /// To the side that connects.
    pub(super) back: Lane,
}

impl Lanes {
    /// A link of this shape, seen from the node.
    pub fn new(shape: Shape) -> Self {
        Self { there: Lane::new(shape), back: Lane::new(shape) }
    }

    /// The same link for those who connect to the node.
    pub fn reversed(&self) -> Self {
        Self { there: self.back.clone(), back: self.there.clone() }
    }
}

/// One direction of the link.
#[derive(Clone)]
pub(super) struct Lane {
    shape: Shape,
    free: Arc<Mutex<Instant>>,
}

impl Lane {
    fn new(shape: Shape) -> Self {
        Self { shape, free: Arc::new(Mutex::new(Instant::now())) }
    }

    /// When `bytes` that are sent now arrive: after all that was sent before them.
    pub fn arrival(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free).max(Instant::now());
        *free = match self.shape.bits_per_second {
            Some(rate) => start + Duration::from_secs_f64(bytes as f64 * 8.0 / rate.max(1) as f64),
            None => start,
        };
        *free + self.delay()
    }

    /// How long a byte is on its way.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.shape.rtt_ms * 500)
    }

    /// How long it takes until the other side has answered.
    pub fn round_trip(&self) -> Duration {
        Duration::from_millis(self.shape.rtt_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_connects_to_the_node_shares_the_other_direction_with_it() {
        let lanes = Lanes::new(Shape { bits_per_second: Some(8), rtt_ms: 0 });
        let sent = lanes.there.arrival(3);
        let answered = lanes.reversed().back.arrival(2);
        assert_eq!(answered - sent, Duration::from_secs(2), "both leave the node");
        assert!(lanes.reversed().there.arrival(1) < answered, "what it takes does not wait");
    }
}
