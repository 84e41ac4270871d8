//! Contents that came in a moment ago, still in memory.
//!
//! A start reads what its pack brings within seconds. It is answered from here, before the disk
//! has the content and without a look at it. What is here was hashed as it came in.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Object;
use super::key::ObjectKey;

/// Bytes that are held at most, all in all.
const LIMIT: usize = 48 * 1024 * 1024;

/// Contents by key, the oldest of which go first.
#[derive(Default)]
pub(super) struct Fresh {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    contents: HashMap<ObjectKey, Bytes>,
    batches: VecDeque<Batch>,
    bytes: usize,
}

/// What came in together, and shares its memory.
struct Batch {
    came: Instant,
    keys: Vec<ObjectKey>,
    bytes: usize,
}

impl Fresh {
    /// Holds `objects`, which share one piece of memory and came in `now`.
    pub fn hold(&self, now: Instant, objects: &[Object]) {
        let bytes = objects.iter().map(|object| object.bytes().len()).sum();
        let keys = objects.iter().map(|object| *object.key()).collect();
        let mut state = self.state();
        for object in objects {
            state.contents.insert(*object.key(), object.bytes().clone());
        }
        state.batches.push_back(Batch { came: now, keys, bytes });
        state.bytes += bytes;
        while state.bytes > LIMIT && state.forget_oldest() {}
    }

    /// The content of an object that came in lately.
    pub fn get(&self, key: &ObjectKey) -> Option<Bytes> {
        self.state().contents.get(key).cloned()
    }

    /// Lets go of what is `age` or older `now`.
    pub fn forget(&self, now: Instant, age: Duration) {
        let mut state = self.state();
        while state.batches.front().is_some_and(|batch| now.duration_since(batch.came) >= age) {
            state.forget_oldest();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_oldest(&mut self) -> bool {
        let Some(batch) = self.batches.pop_front() else { return false };
        for key in &batch.keys {
            self.contents.remove(key);
        }
        self.bytes -= batch.bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(number: usize, size: usize) -> Object {
        Object::name(vec![number as u8; size].into())
    }

    #[test]
    fn the_oldest_go_beyond_the_limit() {
        let fresh = Fresh::default();
        let size = 1024 * 1024;
        for number in 0..=LIMIT / size {
            fresh.hold(Instant::now(), &[object(number, size)]);
        }
        assert!(fresh.get(object(0, size).key()).is_none());
        assert!(fresh.get(object(1, size).key()).is_some());
        assert!(fresh.state().bytes <= LIMIT);
    }

    #[test]
    fn what_is_old_is_let_go_of() {
        let fresh = Fresh::default();
        let (old, new) = (object(1, 10), object(2, 10));
        let (begin, age) = (Instant::now(), Duration::from_secs(10));
        fresh.hold(begin, std::slice::from_ref(&old));
        fresh.hold(begin + age / 2, std::slice::from_ref(&new));
        fresh.forget(begin + age, age);
        assert!(fresh.get(old.key()).is_none());
        assert_eq!(fresh.get(new.key()).unwrap(), *new.bytes());
        fresh.forget(begin + age * 2, age);
        let state = fresh.state();
        assert_eq!((state.bytes, state.contents.len()), (0, 0));
    }
}
