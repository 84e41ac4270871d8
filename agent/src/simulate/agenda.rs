//! What is going to happen, in order, and what time it is.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Delays whose events are kept apart.
const LANES: usize = 4;

/// Events that lie ahead. Those of one moment come in the order in which they were entered, so
/// that a run depends on nothing but its seed.
pub struct Agenda<E> {
    now: Duration,
    entered: u64,
    ahead: BinaryHeap<Entry<E>>,
    /// Events that were entered with the same delay are in order by themselves, which spares the
    /// heap most of its work.
    lanes: Vec<(Duration, VecDeque<Entry<E>>)>,
}

struct Entry<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Agenda<E> {
    /// Nothing ahead, and the clock at zero.
    pub fn new() -> Self {
        let (ahead, lanes) = (BinaryHeap::new(), Vec::with_capacity(LANES));
        Self { now: Duration::ZERO, entered: 0, ahead, lanes }
    }

    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Has `event` happen at `at`, or now if that is past.
    pub fn enter(&mut self, at: Duration, event: E) {
        let entry = self.entry(at.max(self.now), event);
        self.ahead.push(entry);
    }

    /// Has `event` happen after `delay`.
    pub fn enter_in(&mut self, delay: Duration, event: E) {
        let entry = self.entry(self.now + delay, event);
        let known = self.lanes.iter().position(|(of, _)| *of == delay);
        if known.is_none() && self.lanes.len() == LANES {
            return self.ahead.push(entry);
        }
        let lane = known.unwrap_or_else(|| {
            self.lanes.push((delay, VecDeque::new()));
            self.lanes.len() - 1
        });
        self.lanes[lane].1.push_back(entry);
    }

    fn entry(&mut self, at: Duration, event: E) -> Entry<E> {
        self.entered += 1;
        Entry { at, number: self.entered, event }
    }

    /// Goes to the next event; `None` when nothing lies ahead.
    pub fn proceed(&mut self) -> Option<E> {
        // The entry that comes first is the greatest.
        let fronts = self.lanes.iter_mut().filter(|(_, lane)| !lane.is_empty());
        let lane = fronts.max_by(|(_, one), (_, other)| one.front().cmp(&other.front()));
        let Entry { at, event, .. } = match (lane, self.ahead.peek()) {
            (Some((_, lane)), top) if lane.front() > top => lane.pop_front()?,
            _ => self.ahead.pop()?,
        };
        self.now = at;
        Some(event)
    }
}

// The heap gives its greatest first, which is to be the earliest.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_entered() {
        let mut agenda = Agenda::new();
        let second = Duration::from_secs(1);
        agenda.enter(second * 2, "late");
        agenda.enter(second, "first");
        agenda.enter(second, "second");
        assert_eq!(agenda.proceed(), Some("first"));
        assert_eq!(agenda.now(), second);
        agenda.enter(Duration::ZERO, "past");
        agenda.enter_in(second, "with the late one, but after it");
        let rest: Vec<_> = std::iter::from_fn(|| agenda.proceed()).collect();
        assert_eq!(rest, ["second", "past", "late", "with the late one, but after it"]);
        assert_eq!(agenda.now(), second * 2);
    }

    #[test]
    fn delays_that_recur_and_those_that_do_not_keep_the_order() {
        let mut agenda = Agenda::new();
        let mut expected = Vec::new();
        for number in 0_u64..1000 {
            let delay = Duration::from_millis(number * 7919 % 10 * 100);
            agenda.enter_in(delay, number);
            expected.push((agenda.now() + delay, number));
            if number % 3 == 0 {
                let next = *expected.iter().min().unwrap();
                expected.retain(|entry| *entry != next);
                assert_eq!((agenda.proceed(), agenda.now()), (Some(next.1), next.0));
            }
        }
        expected.sort_unstable();
        let rest: Vec<u64> = std::iter::from_fn(|| agenda.proceed()).collect();
        assert_eq!(rest, expected.into_iter().map(|(_, number)| number).collect::<Vec<_>>());
    }
}
