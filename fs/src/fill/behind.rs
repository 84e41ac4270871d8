//! Objects on their way to the disk, behind the reads that they were fetched for.
//!
//! ```text
//! decoded -> hold: can be read -> queue -> a thread writes -> the disk has it
//!                                  `- full: who has decoded writes
//! ```
//!
//! Making thousands of files takes a processor longer than unpacking them does, and nobody waits
//! for it: what has come is held in memory, and read from there, until it is written, and a while
//! longer. So the thread that writes takes what the processors have left over, until much or
//! something old waits for it, or the store is full: reads that fetch something wait for whoever
//! makes room.
//!
//! What is lost with the process before it is written is fetched again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::extract::note_unkept;
use crate::object::{Holding, Object, Store, Unwritten, weight};
use crate::share::{LEAST, ORDINARY, set_nice};

/// Loads that wait for the disk, at most; of misses there are fewer, since less of them is held.
const UNWRITTEN: usize = 32;
const UNWRITTEN_OF_MISSES: usize = 12;
/// Where one has waited for this long, it is urgent.
const OLD: Duration = Duration::from_secs(1);
/// Bytes that are sent to the disk together, about.
const BATCH: usize = 1024 * 1024;
/// What has come is held in memory for about this long: until the start that it is for has read it.
const HELD: Duration = Duration::from_secs(10);
/// Runs that are decoded at the same time for each processor, and at least. Readers are answered
/// before the end of a run, so they alone would bound nothing.
const DECODERS: (usize, usize) = (4, 8);

/// Writes objects into a store, behind those who read them.
pub(super) struct Behind {
    store: Arc<Store>,
    /// To the thread that writes, once there is something to write.
    thread: Mutex<Option<mpsc::Sender<Work>>>,
    decoders: Arc<Semaphore>,
    most_decoders: u32,
    /// How long objects are held in memory.
    held: Duration,
    /// Whether somebody sees to it that memory is given back.
    releases: Arc<AtomicBool>,
}

/// Objects that can be read, and have to be written.
#[derive(Default)]
pub(super) struct Load {
    objects: Vec<Object>,
    held: Vec<Unwritten>,
}

enum Work {
    Write(Load, Instant),
    /// Tells that everything before is written.
    Tell(oneshot::Sender<()>),
}

/// What comes with a miss, piece by piece; sent to the disk at its end, and whenever it is large.
pub(super) struct Batch<'b> {
    behind: &'b Behind,
    objects: Vec<Object>,
    load: Load,
    bytes: usize,
}

impl Behind {
    /// Writes into `store`.
    pub fn new(store: Arc<Store>) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let most = (DECODERS.0 * processors).max(DECODERS.1);
        Self {
            store,
            thread: Mutex::default(),
            decoders: Arc::new(Semaphore::new(most)),
            most_decoders: u32::try_from(most).unwrap_or(u32::MAX),
            held: HELD,
            releases: Arc::default(),
        }
    }

    /// Where it writes.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Lets somebody decode a run, for as long as the answer is kept.
    pub async fn decoder(&self) -> OwnedSemaphorePermit {
        self.decoders.clone().acquire_owned().await.expect("it is never closed")
    }

    /// Holds `objects`, which can be read from now on.
    pub fn hold(&self, holding: Holding, objects: Vec<Object>) -> Load {
        let held = self.store.hold(holding, &objects);
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current()
            && !self.releases.swap(true, Ordering::AcqRel)
        {
            let store = Arc::downgrade(&self.store);
            runtime.spawn(release(store, self.held, self.releases.clone()));
        }
        Load { objects, held: vec![held] }
    }

    /// Has `load` of a pack written; waits while too much waits already.
    pub async fn write(&self, load: Load) {
        let unsent = match self.thread() {
            None => load,
            Some(thread) => match thread.send(Work::Write(load, Instant::now())).await {
                Err(mpsc::error::SendError(Work::Write(load, _))) => load,
                _ => return,
            },
        };
        let store = self.store.clone();
        // What a panic keeps from the disk is fetched again.
        let _ = tokio::task::spawn_blocking(move || write(&store, unsent)).await;
    }

    /// The same with what came with a miss: where too much waits already, it is written at once.
    /// May block.
    fn write_or_help(&self, load: Load) {
        if load.objects.is_empty() {
            return;
        }
        let has_room = |thread: &mpsc::Sender<Work>| {
            thread.max_capacity() - thread.capacity() < UNWRITTEN_OF_MISSES
        };
        let unsent = match self.thread().filter(has_room) {
            None => load,
            Some(thread) => match thread.try_send(Work::Write(load, Instant::now())) {
                Err(
                    TrySendError::Full(Work::Write(load, _))
                    | TrySendError::Closed(Work::Write(load, _)),
                ) => load,
                _ => return,
            },
        };
        write(&self.store, unsent);
    }

    /// Waits until no run is being decoded; others wait meanwhile.
    pub async fn decoded(&self) {
        drop(self.decoders.acquire_many(self.most_decoders).await);
    }

    /// Waits until everything is written that waits for the thread.
    pub async fn written(&self) {
        let thread = self.lock().clone();
        let (tell, told) = oneshot::channel();
        if let Some(thread) = thread
            && thread.send(Work::Tell(tell)).await.is_ok()
        {
            // A thread that has ended writes no more.
            let _ = told.await;
        }
    }

    /// The way to the thread that writes; `None` where none can be had now.
    fn thread(&self) -> Option<mpsc::Sender<Work>> {
        let mut thread = self.lock();
        if thread.as_ref().is_none_or(mpsc::Sender::is_closed) {
            let (sender, waiting) = mpsc::channel(UNWRITTEN);
            let store = self.store.clone();
            let started = thread::Builder::new()
                .name("writer".to_owned())
                .spawn(move || write_all(&store, waiting));
            *thread = started.is_ok().then_some(sender);
        }
        thread.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::Sender<Work>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'b> Batch<'b> {
    /// Nothing yet, to be written by `behind`.
    pub fn new(behind: &'b Behind) -> Self {
        Self { behind, objects: Vec::new(), load: Load::default(), bytes: 0 }
    }

    /// Adds an object. May block.
    pub fn push(&mut self, object: Object) {
        self.bytes += weight(&object);
        self.objects.push(object);
        if self.bytes >= BATCH {
            self.send();
        }
    }

    /// Holds what was added so far, so that it can be read.
    pub fn hold(&mut self) {
        if !self.objects.is_empty() {
            let objects = std::mem::take(&mut self.objects);
            let Load { objects, held } = self.behind.hold(Holding::Miss, objects);
            self.load.objects.extend(objects);
            self.load.held.extend(held);
        }
    }

    fn send(&mut self) {
        self.hold();
        self.bytes = 0;
        self.behind.write_or_help(std::mem::take(&mut self.load));
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.send();
    }
}

/// What the thread does.
fn write_all(store: &Store, mut waiting: mpsc::Receiver<Work>) {
    while let Some(work) = waiting.blocking_recv() {
        match work {
            Work::Write(load, since) => {
                let is_behind = waiting.len() > UNWRITTEN / 2 || since.elapsed() > OLD;
                let bytes = load.objects.iter().map(|object| object.bytes().len() as u64).sum();
                let is_urgent = is_behind || !store.has_room(bytes);
                // Where it is not granted, the start has a little less.
                let _ = set_nice(if is_urgent { ORDINARY } else { LEAST });
                write(store, load);
            }
            // Who wanted to know may have gone away.
            Work::Tell(told) => drop(told.send(())),
        }
    }
}

/// Writes a load; what cannot be written is not held any longer either.
fn write(store: &Store, load: Load) {
    for object in &load.objects {
        if let Err(error) = store.insert(object) {
            note_unkept(object.key(), &error);
        }
    }
}

/// Gives the memory back once a start has read what is held for it.
async fn release(store: Weak<Store>, held: Duration, releases: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(held).await;
        let Some(store) = store.upgrade() else { return };
        // Before the look: who holds something after it finds that somebody is needed.
        releases.store(false, Ordering::Release);
        let is_anything_left = store.release_held(held);
        if !is_anything_left || releases.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use super::*;
    use crate::object::{ObjectKey, Pins, StoreLimits};

    /// Notes the nice value of who makes room.
    #[derive(Default)]
    struct Watch(Mutex<Vec<i32>>);

    impl Pins for Watch {
        fn keys(&self) -> HashSet<ObjectKey> {
            // SAFETY: the call takes numbers only; 0 stands for the calling thread.
            self.0.lock().unwrap().push(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) });
            HashSet::new()
        }
    }

    fn object(number: u8) -> Object {
        Object::name(vec![number; 100_000].into())
    }

    fn behind(root: &tempfile::TempDir, limits: StoreLimits) -> (Arc<Store>, Behind) {
        let store = Arc::new(Store::open(root.path(), limits).unwrap());
        (store.clone(), Behind::new(store))
    }

    #[tokio::test]
    async fn regression_room_is_made_with_an_ordinary_share() {
        let may_rise = thread::spawn(|| {
            set_nice(LEAST).unwrap();
            set_nice(ORDINARY).is_ok()
        });
        // Who is no root may only take less.
        let expected = if may_rise.join().unwrap() { ORDINARY } else { LEAST };
        let root = tempfile::tempdir().unwrap();
        let limits = StoreLimits { quota: Some(300_000), ..StoreLimits::default() };
        let (store, behind) = behind(&root, limits);
        let watch = Arc::new(Watch::default());
        store.set_pins(watch.clone());
        for number in 0..6 {
            behind.write(behind.hold(Holding::Pack, vec![object(number)])).await;
        }
        behind.written().await;
        assert!(store.usage().evicted > 0);
        let seen = watch.0.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|nice| *nice == expected), "{seen:?}");
    }

    #[tokio::test]
    async fn what_is_kept_can_be_read_at_once_and_is_written_soon() {
        let root = tempfile::tempdir().unwrap();
        let (store, behind) = behind(&root, StoreLimits::default());
        let objects: Vec<Object> = (0..UNWRITTEN as u8 * 2).map(object).collect();
        for object in &objects {
            let mut batch = Batch::new(&behind);
            batch.push(object.clone());
            batch.hold();
            assert_eq!(store.held(object.key()).unwrap(), object.bytes());
        }
        behind.written().await;
        assert!(objects.iter().all(|object| store.contains(object.key())));
    }

    #[tokio::test]
    async fn memory_is_given_back_after_a_while_and_again_after_what_comes_later() {
        let root = tempfile::tempdir().unwrap();
        let (store, mut behind) = behind(&root, StoreLimits::default());
        behind.held = Duration::from_millis(5);
        for number in 0..3 {
            drop(behind.hold(Holding::Pack, vec![object(number)]));
            let given_back = async {
                while store.holds(object(number).key()) {
                    tokio::time::sleep(behind.held).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), given_back).await.unwrap();
        }
    }
}
