//! Bringing in mounted images in the background: first what a start reads, then all of it.
//!
//! ```text
//! begin -> packs, else what earlier starts have read     where nothing more is wanted, that is all
//!       |  beside it: small layers, one request each
//!       `> 3 s later: the whole image; after a failure again, until it is complete
//! ```
//!
//! Once an image is complete, neither its start nor a reboot needs the network. One image of an
//! owner is completed at a time, three layers side by side, each blob as one stream that gives way
//! to reads that somebody waits for. The pace is such that the image is complete within the time
//! that the operator allows; each stream keeps a pace, since all nodes of a cloud do this at the
//! same time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::fill::{IngestError, Pace, Progress};
use undermount_fs::source::Priority;

use super::foresight::Foresight;
use super::images::{ImageError, ImageFault, Images, Ready};
use super::readahead::Readahead;
use super::starts::Starts;
use crate::blocking::blocking;
use crate::control::Failure;

/// How long completion waits first: a program that starts in the mount goes before it.
const DELAY: Duration = Duration::from_secs(3);

/// The least pace, in bytes per second: small images need not take their time.
const LEAST_PACE: u64 = 4 * 1024 * 1024;

/// The pause after the first failure; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest pause after everything was fetched, and not all of it kept.
const NOT_KEPT_PAUSE: Duration = Duration::from_secs(3600);

/// Completes the images of an owner one after the other.
#[derive(Clone)]
pub struct Completer {
    images: Arc<Images>,
    within: Duration,
    turn: Arc<Semaphore>,
    starts: Option<Starts>,
    foresight: Option<Foresight>,
}

/// The completion of an image, which ends when this is dropped.
pub struct Completion {
    trouble: Arc<Mutex<Option<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Completer {
    /// A completer for `images`, each of which may take the time `within`; zero brings in only what
    /// a start reads.
    pub fn new(images: Arc<Images>, within: Duration) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { images, within, turn, starts: None, foresight: None }
    }

    /// Makes the completer have the starts of its images recorded.
    #[must_use]
    pub fn with_starts(self, starts: Starts) -> Self {
        Self { starts: Some(starts), ..self }
    }

    /// Makes the completer bring in what earlier starts have read, for images that came without a
    /// pack.
    #[must_use]
    pub fn with_foresight(self, foresight: Foresight) -> Self {
        Self { foresight: Some(foresight), ..self }
    }

    /// Begins to complete an image. With `packs`, its packs come first, or else what earlier starts
    /// have read. What packs bring is read ahead below the directories `shown`, see [`Readahead`].
    pub fn begin(&self, ready: Arc<Ready>, packs: bool, shown: Vec<PathBuf>) -> Completion {
        if let Some(starts) = self.starts.as_ref().filter(|_| packs) {
            starts.watch(&ready);
        }
        let trouble = Arc::new(Mutex::new(None));
        let (completer, seen) = (self.clone(), trouble.clone());
        let task = tokio::spawn(async move { completer.run(&ready, packs, shown, &seen).await });
        Completion { trouble, _task: AbortOnDropHandle::new(task) }
    }

    async fn run(
        &self,
        ready: &Arc<Ready>,
        packs: bool,
        shown: Vec<PathBuf>,
        trouble: &Mutex<Option<String>>,
    ) {
        let unpack = async {
            if packs {
                self.unpack(ready, shown).await;
                if let Some(foresight) = &self.foresight {
                    foresight.fetch(ready).await;
                }
            }
        };
        if self.within.is_zero() {
            return unpack.await;
        }
        tokio::join!(unpack, self.images.complete_small(ready));
        let reference = &ready.image.reference;
        let mut pause = PAUSE;
        tokio::time::sleep(DELAY).await;
        loop {
            let error = match self.attempt(ready).await {
                Ok(()) => {
                    set(trouble, None);
                    return tracing::info!(%reference, "image is complete");
                }
                Err(error) => error,
            };
            let words = Failure::of(&error).in_words();
            tracing::warn!(error = words, "cannot complete an image");
            set(trouble, Some(words));
            if is_final(&error) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.await_room(&error).await;
        }
    }

    /// Waits for the room that an image lacked which was fetched and not kept, for [`NOT_KEPT_PAUSE`] at
    /// most: to fetch it again before would be in vain. Where room is not what it lacked, so would it.
    async fn await_room(&self, error: &ImageError) {
        let ImageFault::NotKept { missing } = *error.fault else { return };
        let store = self.images.filler().store().clone();
        let has_room = || {
            let store = store.clone();
            blocking(move || store.has_room(missing))
        };
        if has_room().await {
            return tokio::time::sleep(NOT_KEPT_PAUSE).await;
        }
        let end = tokio::time::Instant::now() + NOT_KEPT_PAUSE;
        while tokio::time::Instant::now() < end && !has_room().await {
            tokio::time::sleep(LONGEST_PAUSE).await;
        }
    }

    async fn unpack(&self, ready: &Arc<Ready>, shown: Vec<PathBuf>) {
        let reads = !shown.is_empty() && !ready.packs.is_empty();
        let ahead = reads.then(|| Readahead::begin(self.images.clone(), ready.clone(), shown));
        self.images.unpack(ready, ahead.as_ref().map(Readahead::told)).await;
        if let Some(ahead) = ahead {
            ahead.end().await;
        }
    }

    async fn attempt(&self, ready: &Ready) -> Result<(), ImageError> {
        let _turn = self.turn.acquire().await;
        let bytes: u64 = ready.image.manifest.layers.iter().map(|layer| layer.size).sum();
        let pace = (bytes / self.within.as_secs().max(1)).max(LEAST_PACE);
        let pace = Pace { priority: Priority::Background, bytes_per_second: Some(pace) };
        self.images.complete(ready, pace, &Progress::default()).await
    }
}

impl Completion {
    /// Why the last attempt failed; `None` where none has failed, or one has succeeded since.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn set(trouble: &Mutex<Option<String>>, words: Option<String>) {
    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = words;
}

/// Whether trying again cannot help: the blob is not what its index or manifest says.
fn is_final(error: &ImageError) -> bool {
    matches!(
        &*error.fault,
        ImageFault::Layer(
            IngestError::WrongIndex { .. }
                | IngestError::WrongDigest { .. }
                | IngestError::Layer { .. }
        )
    )
}
