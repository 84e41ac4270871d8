//! Contents that came in a moment ago, held in memory.
//!
//! A start reads within seconds whatever its pack brings, and whatever lies around a file that it
//! misses. Such reads are answered from here, before the disk has the content and without a look at
//! it. Each content was hashed as it came in.
//!
//! ```text
//! hold -> batch: unwritten --(Unwritten is dropped)--> written --(too old, or too many)--> forgotten
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::key::ObjectKey;
use super::{Object, Store};

/// About how many bytes an object takes in memory beside its content.
const OVERHEAD: usize = 256;

/// The most bytes of packs that are held: a start reads them some seconds after they came.
const OF_PACKS_MAX: usize = 48 * 1024 * 1024;

/// The most bytes of misses that are held: whatever is read later is on the disk by then.
const OF_MISSES_MAX: usize = 16 * 1024 * 1024;

/// What brought the objects that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// The pack of a start.
    Pack,
    /// A read that missed something near them.
    Miss,
}

/// What a store holds in memory.
pub(super) struct Held {
    of_packs: Fresh,
    of_misses: Fresh,
}

impl Held {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { of_packs: Fresh::new(OF_PACKS_MAX), of_misses: Fresh::new(OF_MISSES_MAX) }
    }
}

impl Store {
    /// Holds `objects`, which came in together, in memory, so that they can be read before
    /// [`Self::insert`] has kept them: as long as the answer exists, and after that until they are old
    /// or others need the memory.
    pub fn hold(&self, holding: Holding, objects: &[Object]) -> Unwritten {
        let fresh = match holding {
            Holding::Pack => &self.held.of_packs,
            Holding::Miss => &self.held.of_misses,
        };
        fresh.hold(Instant::now(), objects)
    }

    /// The content of an object that is held in memory.
    pub fn held(&self, key: &ObjectKey) -> Option<Bytes> {
        self.held.of_packs.get(key).or_else(|| self.held.of_misses.get(key))
    }

    /// Whether an object is held in memory.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.held.of_packs.has(key) || self.held.of_misses.has(key)
    }

    /// Lets go of whatever is written and was held for `age` or longer. Returns whether anything is
    /// still held.
    pub fn release_held(&self, age: Duration) -> bool {
        let now = Instant::now();
        self.held.of_packs.forget(now, age) | self.held.of_misses.forget(now, age)
    }
}

/// Contents by key. Beyond a limit the oldest go, but none that is not written yet.
struct Fresh {
    /// The most bytes that are held of what is written.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each with the number of the latest batch that has it.
    contents: HashMap<ObjectKey, (Bytes, u64)>,
    /// The oldest first.
    batches: VecDeque<Batch>,
    /// The number of the next batch.
    next: u64,
    bytes: usize,
}

/// Objects that came in together, and may share their memory.
struct Batch {
    number: u64,
    came: Instant,
    keys: Vec<ObjectKey>,
    bytes: usize,
    unwritten: Weak<()>,
}

/// Objects are held in memory at least as long as this exists: until they are written.
#[derive(Debug)]
pub struct Unwritten(#[expect(dead_code, reason = "only its existence counts")] Arc<()>);

impl Fresh {
    /// Nothing yet; at most `limit` bytes of what is written.
    fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// Holds `objects`, which came in together `now`.
    fn hold(&self, now: Instant, objects: &[Object]) -> Unwritten {
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

    /// The content of an object that is held.
    fn get(&self, key: &ObjectKey) -> Option<Bytes> {
        self.state().contents.get(key).map(|(content, _)| content.clone())
    }

    /// Whether an object is held.
    fn has(&self, key: &ObjectKey) -> bool {
        self.state().contents.contains_key(key)
    }

    /// Lets go of whatever is written and `age` or older `now`. Returns whether anything is left.
    fn forget(&self, now: Instant, age: Duration) -> bool {
        let mut state = self.state();
        while state.forget_oldest(|batch| now.duration_since(batch.came) >= age) {}
        !state.batches.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go of the oldest batch that is written and `may_go`. Returns whether there was one.
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

/// About how many bytes an object takes in memory: thousands of tiny ones take more than they hold.
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
