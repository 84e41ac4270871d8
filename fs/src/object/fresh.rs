//! Contents that came in a moment ago, still in memory.
//!
//! A start reads within seconds what its pack brings, and what lies around a file that it misses.
//! It is answered from here, before the disk has the content and without a look at it. What is here
//! was hashed as it came in.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Object;
use super::key::ObjectKey;

/// What an object takes in memory beside its content, about, in bytes.
const OVERHEAD: usize = 256;

/// Contents by key. Beyond a limit the oldest go, but none that is not written yet.
pub(super) struct Fresh {
    /// Bytes that are held at most, all in all.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With the number of the latest batch that has each.
    contents: HashMap<ObjectKey, (Bytes, u64)>,
    /// The oldest first.
    batches: VecDeque<Batch>,
    /// The number of the next batch.
    next: u64,
    bytes: usize,
}

/// What came in together, and may share its memory.
struct Batch {
    number: u64,
    came: Instant,
    keys: Vec<ObjectKey>,
    bytes: usize,
    unwritten: Weak<()>,
}

/// Objects that are held in memory at least as long as this is kept: until they are written.
#[derive(Debug)]
pub struct Unwritten(#[expect(dead_code, reason = "it is there")] Arc<()>);

impl Fresh {
    /// Nothing yet, and no more than `limit` bytes of what is written.
    pub fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// Holds `objects`, which came in together `now`.
    pub fn hold(&self, now: Instant, objects: &[Object]) -> Unwritten {
        let bytes = objects.iter().map(weight).sum();
        let keys = objects.iter().map(|object| *object.key()).collect();
        let mark = Arc::new(());
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        for object in objects {
            state.contents.insert(*object.key(), (object.bytes().clone(), number));
        }
        let unwritten = Arc::downgrade(&mark);
        state.batches.push_back(Batch { number, came: now, keys, bytes, unwritten });
        state.bytes += bytes;
        while state.bytes > self.limit && state.forget_oldest(|_| true) {}
        Unwritten(mark)
    }

    /// The content of an object that came in lately.
    pub fn get(&self, key: &ObjectKey) -> Option<Bytes> {
        self.state().contents.get(key).map(|(content, _)| content.clone())
    }

    /// Whether an object came in lately.
    pub fn has(&self, key: &ObjectKey) -> bool {
        self.state().contents.contains_key(key)
    }

    /// Lets go of what is `age` or older `now`, and written; whether anything else is here.
    pub fn forget(&self, now: Instant, age: Duration) -> bool {
        let mut state = self.state();
        while state.forget_oldest(|batch| now.duration_since(batch.came) >= age) {}
        !state.batches.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go of the oldest batch that is written and `may_go`; whether there was one.
    fn forget_oldest(&mut self, may_go: impl Fn(&Batch) -> bool) -> bool {
        let goes = |batch: &Batch| batch.unwritten.strong_count() == 0 && may_go(batch);
        let place = self.batches.iter().position(goes);
        let Some(batch) = place.and_then(|place| self.batches.remove(place)) else { return false };
        for key in &batch.keys {
            // What came again since stays.
            if self.contents.get(key).is_some_and(|(_, number)| *number == batch.number) {
                self.contents.remove(key);
            }
        }
        self.bytes -= batch.bytes;
        true
    }
}

/// What an object takes in memory, about, in bytes: thousands of tiny ones take more than they hold.
pub fn weight(object: &Object) -> usize {
    object.bytes().len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 8 * 1024 * 1024;

    fn object(number: usize, size: usize) -> Object {
        Object::name(vec![number as u8; size].into())
    }

    #[test]
    fn the_oldest_go_beyond_the_limit() {
        let fresh = Fresh::new(LIMIT);
        let size = 1024 * 1024 - OVERHEAD;
        for number in 0..=LIMIT / (size + OVERHEAD) {
            drop(fresh.hold(Instant::now(), &[object(number, size)]));
        }
        assert!(fresh.get(object(0, size).key()).is_none());
        assert!(fresh.get(object(1, size).key()).is_some());
        assert!(fresh.state().bytes <= LIMIT);
    }

    #[test]
    fn what_is_old_is_let_go_of() {
        let fresh = Fresh::new(LIMIT);
        let (old, new) = (object(1, 10), object(2, 10));
        let (begin, age) = (Instant::now(), Duration::from_secs(10));
        drop(fresh.hold(begin, std::slice::from_ref(&old)));
        drop(fresh.hold(begin + age / 2, std::slice::from_ref(&new)));
        assert!(fresh.forget(begin + age, age), "something younger is here");
        assert!(fresh.get(old.key()).is_none());
        assert_eq!(fresh.get(new.key()).unwrap(), *new.bytes());
        assert!(!fresh.forget(begin + age * 2, age));
        let state = fresh.state();
        assert_eq!((state.bytes, state.contents.len()), (0, 0));
    }

    #[test]
    fn what_came_again_stays_as_long_as_the_last_time_it_came() {
        let fresh = Fresh::new(LIMIT);
        let again = object(1, 10);
        let (begin, age) = (Instant::now(), Duration::from_secs(10));
        drop(fresh.hold(begin, std::slice::from_ref(&again)));
        drop(fresh.hold(begin + age / 2, &[object(2, 10), again.clone()]));
        assert!(fresh.forget(begin + age, age));
        assert!(fresh.has(again.key()));
        assert!(!fresh.forget(begin + age * 2, age));
        assert!(!fresh.has(again.key()));
    }

    #[test]
    fn what_is_not_written_stays() {
        let fresh = Fresh::new(100);
        let (slow, quick) = (object(1, 90), object(2, 90));
        let unwritten = fresh.hold(Instant::now(), std::slice::from_ref(&slow));
        drop(fresh.hold(Instant::now(), std::slice::from_ref(&quick)));
        assert!(fresh.forget(Instant::now(), Duration::ZERO));
        assert!(fresh.has(slow.key()) && !fresh.has(quick.key()));
        drop(unwritten);
        assert!(!fresh.forget(Instant::now(), Duration::ZERO));
        assert!(!fresh.has(slow.key()));
    }
}
