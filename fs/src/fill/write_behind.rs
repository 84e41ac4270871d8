//! Writes objects to the disk behind the reads that they were fetched for.
//!
//! ```text
//! decoded -> hold: readable from now on -> queue -> writer thread -> on the disk
//!                                            `- too long: the decoder writes by itself
//! ```
//!
//! Creating thousands of files takes a processor longer than decoding them does, and no read needs
//! it done: an object is held in memory, and read from there, until it is written and for a while
//! longer. So the writer thread takes only what the processors have left over. It takes an ordinary
//! share once the queue is long, a load in it is old, or the store is full: then reads that fetch
//! something wait for the room that the writer makes.
//!
//! Whatever is lost with the process before it is written is fetched again.

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

/// The longest queue, in loads.
const QUEUE: usize = 32;
/// A queue of more loads than this is urgent.
const LONG: usize = QUEUE / 2;
/// A load that has waited for longer than this is urgent.
const OLD: Duration = Duration::from_secs(1);
/// With this many loads in the queue, whoever decodes a miss writes by itself. It is less than
/// [`QUEUE`] since the store holds less of misses than of packs.
const QUEUE_OF_MISSES: usize = 12;
/// About how many bytes of misses make a load.
const BATCH: usize = 1024 * 1024;
/// About how long an object is held in memory: until the start that it was fetched for has read it.
const HELD: Duration = Duration::from_secs(10);
/// Runs that each processor may decode at the same time. The number of readers does not bound them,
/// since a read is answered before its run ends.
const DECODERS_PER_PROCESSOR: usize = 4;
/// Runs that may be decoded at the same time, however few processors there are.
const DECODERS_MIN: usize = 8;

/// Writes objects into a store, behind the reads that they were fetched for.
pub(super) struct WriteBehind {
    store: Arc<Store>,
    /// The queue of the writer thread, which is started when there is something to write.
    queue: Mutex<Option<mpsc::Sender<Work>>>,
    /// A permit for each run that may still be decoded.
    decoders: Arc<Semaphore>,
    decoders_max: u32,
    /// About how long objects are held in memory.
    held: Duration,
    /// Whether a task runs that lets go of what was held long enough.
    is_releasing: Arc<AtomicBool>,
}

/// Objects that can be read already and are still to be written. They are held in memory at least as
/// long as this exists.
#[derive(Default)]
pub(super) struct Load {
    objects: Vec<Object>,
    held: Vec<Unwritten>,
}

/// What the writer thread is asked to do.
enum Work {
    /// Write a load that has been in the queue since this time.
    Write(Load, Instant),
    /// Say that everything before this is written.
    Tell(oneshot::Sender<()>),
}

/// Objects of a miss, collected while its run is decoded; queued whenever they are about
/// [`BATCH`] bytes, and when this is dropped.
pub(super) struct Batch<'b> {
    behind: &'b WriteBehind,
    /// Those that cannot be read yet.
    objects: Vec<Object>,
    /// Those that can.
    load: Load,
    /// Weight of both, in bytes.
    bytes: usize,
}

impl WriteBehind {
    /// Writes into `store`.
    pub fn new(store: Arc<Store>) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let decoders = (DECODERS_PER_PROCESSOR * processors).max(DECODERS_MIN);
        Self {
            store,
            queue: Mutex::default(),
            decoders: Arc::new(Semaphore::new(decoders)),
            decoders_max: u32::try_from(decoders).unwrap_or(u32::MAX),
            held: HELD,
            is_releasing: Arc::default(),
        }
    }

    /// The store that it writes to.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Waits for the permit to decode a run, which is given back when it is dropped.
    pub async fn decoder(&self) -> OwnedSemaphorePermit {
        self.decoders.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Holds `objects` in memory, so that they can be read from now on.
    pub fn hold(&self, holding: Holding, objects: Vec<Object>) -> Load {
        if objects.is_empty() {
            return Load::default();
        }
        let held = self.store.hold(holding, &objects);
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current()
            && !self.is_releasing.swap(true, Ordering::AcqRel)
        {
            let store = Arc::downgrade(&self.store);
            runtime.spawn(release(store, self.held, self.is_releasing.clone()));
        }
        Load { objects, held: vec![held] }
    }

    /// Queues `load`, which came with a pack; waits while the queue is full.
    pub async fn write(&self, load: Load) {
        if load.objects.is_empty() {
            return;
        }
        let unsent = match self.queue() {
            None => load,
            Some(queue) => match queue.send(Work::Write(load, Instant::now())).await {
                Err(mpsc::error::SendError(Work::Write(load, _))) => load,
                _ => return,
            },
        };
        let store = self.store.clone();
        // What a panic keeps off the disk is fetched again.
        let _ = tokio::task::spawn_blocking(move || write(&store, unsent)).await;
    }

    /// Queues `load`, which came with a miss, or writes it at once where the queue is long. May block.
    fn write_or_help(&self, load: Load) {
        if load.objects.is_empty() {
            return;
        }
        let has_room =
            |queue: &mpsc::Sender<Work>| queue.max_capacity() - queue.capacity() < QUEUE_OF_MISSES;
        let unsent = match self.queue().filter(has_room) {
            None => load,
            Some(queue) => match queue.try_send(Work::Write(load, Instant::now())) {
                Err(
                    TrySendError::Full(Work::Write(load, _))
                    | TrySendError::Closed(Work::Write(load, _)),
                ) => load,
                _ => return,
            },
        };
        write(&self.store, unsent);
    }

    /// Waits until no run is being decoded; no other begins meanwhile.
    pub async fn all_decoded(&self) {
        drop(self.decoders.acquire_many(self.decoders_max).await);
    }

    /// Waits until everything that is in the queue now is written.
    pub async fn all_written(&self) {
        let queue = self.lock().clone();
        let (tell, told) = oneshot::channel();
        if let Some(queue) = queue
            && queue.send(Work::Tell(tell)).await.is_ok()
        {
            // A thread that has ended writes no more.
            let _ = told.await;
        }
    }

    /// The queue of the writer thread, which is started where none runs; `None` where that fails.
    fn queue(&self) -> Option<mpsc::Sender<Work>> {
        let mut queue = self.lock();
        if queue.as_ref().is_none_or(mpsc::Sender::is_closed) {
            let (sender, work) = mpsc::channel(QUEUE);
            let store = self.store.clone();
            let started = thread::Builder::new()
                .name("writer".to_owned())
                .spawn(move || run_writer(&store, work));
            *queue = started.is_ok().then_some(sender);
        }
        queue.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::Sender<Work>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'b> Batch<'b> {
    /// An empty batch, to be written by `behind`.
    pub fn new(behind: &'b WriteBehind) -> Self {
        Self { behind, objects: Vec::new(), load: Load::default(), bytes: 0 }
    }

    /// Adds an object.
    pub fn push(&mut self, object: Object) {
        self.bytes += weight(&object);
        self.objects.push(object);
    }

    /// Holds in memory whatever was added so far, so that it can be read.
    pub fn hold(&mut self) {
        let objects = std::mem::take(&mut self.objects);
        let Load { objects, held } = self.behind.hold(Holding::Miss, objects);
        self.load.objects.extend(objects);
        self.load.held.extend(held);
    }

    /// Queues the batch where it is large enough, or writes it where too much is queued: may block.
    pub fn send_if_large(&mut self) {
        if self.bytes >= BATCH {
            self.send();
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

/// What the writer thread does, until its queue is closed.
fn run_writer(store: &Store, mut queue: mpsc::Receiver<Work>) {
    while let Some(work) = queue.blocking_recv() {
        match work {
            Work::Write(load, since) => {
                let is_late = queue.len() > LONG || since.elapsed() > OLD;
                let bytes = load.objects.iter().map(|object| object.bytes().len() as u64).sum();
                let is_urgent = is_late || !store.has_room(bytes);
                // Only root may take a larger share again; others go on with the smaller one.
                let _ = set_nice(if is_urgent { ORDINARY } else { LEAST });
                write(store, load);
            }
            // Whoever wanted to know may be gone.
            Work::Tell(told) => drop(told.send(())),
        }
    }
}

/// Writes a load. From then on its objects need not be held, not even those that were not written.
fn write(store: &Store, load: Load) {
    for object in &load.objects {
        if let Err(error) = store.insert(object) {
            note_unkept(object.key(), &error);
        }
    }
}

/// Lets go of objects that were held for `held`, until there are none.
async fn release(store: Weak<Store>, held: Duration, is_releasing: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(held).await;
        let Some(store) = store.upgrade() else { return };
        // Cleared before the look: whoever holds something after it starts another task.
        is_releasing.store(false, Ordering::Release);
        let is_anything_left = store.release_held(held);
        if !is_anything_left || is_releasing.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use futures_util::FutureExt;

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

    fn behind(root: &tempfile::TempDir, limits: StoreLimits) -> (Arc<Store>, WriteBehind) {
        let store = Arc::new(Store::open(root.path(), limits).unwrap());
        (store.clone(), WriteBehind::new(store))
    }

    #[tokio::test]
    async fn regression_room_is_made_with_an_ordinary_share() {
        let may_rise = thread::spawn(|| {
            set_nice(LEAST).unwrap();
            set_nice(ORDINARY).is_ok()
        });
        // Whoever is not root may only take less.
        let expected = if may_rise.join().unwrap() { ORDINARY } else { LEAST };
        let root = tempfile::tempdir().unwrap();
        let limits = StoreLimits { quota: Some(300_000), ..StoreLimits::default() };
        let (store, behind) = behind(&root, limits);
        let watch = Arc::new(Watch::default());
        store.set_pins(watch.clone());
        for number in 0..6 {
            behind.write(behind.hold(Holding::Pack, vec![object(number)])).await;
        }
        behind.all_written().await;
        assert!(store.usage().evicted > 0);
        let seen = watch.0.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|nice| *nice == expected), "{seen:?}");
    }

    #[tokio::test]
    async fn what_is_kept_can_be_read_at_once_and_is_written_soon() {
        let root = tempfile::tempdir().unwrap();
        let (store, behind) = behind(&root, StoreLimits::default());
        let objects: Vec<Object> = (0..QUEUE as u8 * 2).map(object).collect();
        for object in &objects {
            let mut batch = Batch::new(&behind);
            batch.push(object.clone());
            batch.hold();
            assert_eq!(store.held(object.key()).unwrap(), object.bytes());
        }
        behind.all_written().await;
        assert!(objects.iter().all(|object| store.contains(object.key())));
    }

    #[tokio::test]
    async fn a_writer_that_has_ended_is_started_again() {
        let root = tempfile::tempdir().unwrap();
        let (store, behind) = behind(&root, StoreLimits::default());
        let (closed, _) = mpsc::channel(1);
        *behind.lock() = Some(closed);
        behind.write(behind.hold(Holding::Pack, vec![object(1)])).await;
        assert!(!behind.lock().as_ref().unwrap().is_closed());
        behind.all_written().await;
        assert!(store.contains(object(1).key()));
    }

    #[tokio::test]
    async fn only_so_many_runs_are_decoded_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let (_, behind) = behind(&root, StoreLimits::default());
        let mut decoders = Vec::new();
        for _ in 0..behind.decoders_max {
            decoders.push(behind.decoder().await);
        }
        assert!(behind.decoder().now_or_never().is_none());
        assert!(behind.all_decoded().now_or_never().is_none());
        decoders.pop();
        assert!(behind.decoder().now_or_never().is_some());
        decoders.clear();
        assert!(behind.all_decoded().now_or_never().is_some());
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
