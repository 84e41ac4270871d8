//! A name that podman asks for, and the images that it has meant.
//!
//! ```text
//! offer(layer) -> lock -> record read? -> at a pull: ask the registry what the name means now
//!    -> offered before? -> which known image has the layer, else ask the registry
//!    -> index missing? look once more -> plan, show -> Offer, remembered
//! hold -> count a user, complete the image      release -> count it off
//! ```
//!
//! Requests wait for each other: the first layer of a pull resolves the image and the indexes of
//! all its layers, and the requests for the others find that done. Two things do not wait. What was
//! offered before is given at once to whoever starts a container, and a registry that holds up the
//! first request for too long does not hold up each of the others once more.

mod inquiry;
mod keeping;
mod report;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt as _, iter};
use tokio::sync::Mutex;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Blob;

use self::inquiry::Inquiry;
use super::plan::{Refusal, place_of};
use super::record::NameRecord;
use super::{Inner, offer};
use crate::agent::completion::Completion;
use crate::agent::images::Indexed;
use crate::blocking::blocking;
use crate::control::StoreImage;
use crate::image::Reference;
use crate::podman::{Occasion, Offer};

/// Manifests that are fetched again side by side.
const SIDE_BY_SIDE: usize = 8;

/// A name, shared by all requests for its layers.
pub struct Name {
    reference: Reference,
    state: Mutex<State>,
    /// The offers by the digest that podman asks for, until something new is learnt of the name.
    offers: std::sync::Mutex<HashMap<Digest, Arc<Offer>>>,
    /// When the question to the registry began that is under way; `None` where there is none.
    asking: std::sync::Mutex<Option<Instant>>,
    /// The last answer of [`Self::status`].
    told: std::sync::Mutex<Vec<StoreImage>>,
    /// Whether the record is about to be saved.
    saving: AtomicBool,
    /// Whether anybody has asked for the name since the last [look](Self::let_go).
    asked: AtomicBool,
}

#[derive(Default)]
struct State {
    record: NameRecord,
    /// Whether [`Self::record`] includes what is on disk. As long as that cannot be read, it is not
    /// overwritten, and the name may have meant anything.
    loaded: bool,
    /// The images of the record, the latest last, except those whose manifests are no longer here.
    images: Vec<Known>,
    inquiry: Inquiry,
}

struct Known {
    image: Arc<Indexed>,
    /// Whether the indexes of its layers were let go, since nobody uses it.
    is_bare: bool,
    completion: Option<Completion>,
}

impl Name {
    /// A name of which nothing is known yet.
    pub fn new(reference: Reference) -> Arc<Self> {
        Arc::new(Self {
            reference,
            state: Mutex::default(),
            offers: std::sync::Mutex::default(),
            asking: std::sync::Mutex::default(),
            told: std::sync::Mutex::default(),
            saving: AtomicBool::new(false),
            asked: AtomicBool::new(true),
        })
    }

    /// Notes that somebody asks for the name.
    pub fn note_asked(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Lets go of the indexes of older images that podman does not use, where nobody has asked for
    /// the name since this was last called. Returns whether the name itself can be forgotten:
    /// nobody uses it, and all that is known of it is written down.
    pub fn let_go(&self) -> bool {
        let was_asked = self.asked.swap(false, Ordering::SeqCst);
        let Ok(mut state) = self.state.try_lock() else { return false };
        if was_asked || self.saving.load(Ordering::SeqCst) {
            return false;
        }
        state.drop_unused_indexes();
        let is_saved = state.loaded || state.record == NameRecord::default();
        let is_completed = state.images.iter().any(|known| known.completion.is_some());
        is_saved && !is_completed && state.record.uses.is_empty()
    }

    /// What was offered for the layer `key` and is still there, without waiting for anybody.
    pub fn offered(&self, shelf: &Inner, key: &Digest) -> Option<Arc<Offer>> {
        let offer = self.offers().get(key).cloned();
        offer.filter(|offer| shelf.shown.has(&offer.directory))
    }

    /// How long the question to the registry has been under way; zero where there is none.
    pub fn asking_for(&self) -> Duration {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn offers(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Offer>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offer for the layer that podman asks for by `key`.
    ///
    /// # Errors
    /// The [`Refusal`] where podman has to download it.
    pub async fn offer(
        &self,
        shelf: &Inner,
        key: &Digest,
        occasion: Occasion,
    ) -> Result<Arc<Offer>, Refusal> {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        if shelf.drained.load(Ordering::SeqCst) && !state.record.uses.contains_key(key) {
            return Err(Refusal::Drained);
        }
        if occasion == Occasion::Pull {
            self.look_again(shelf, &mut state, key).await;
        }
        if let Some(offer) = self.offered(shelf, key) {
            return Ok(offer);
        }
        let (at, place) = self.find(shelf, &mut state, key).await?;
        state.images[at].index(shelf).await;
        if state.images[at].image.lacks_index(place) {
            self.ask_for_indexes(shelf, &mut state, at).await;
        }
        self.make_offer(shelf, &state, at, place, *key).await
    }

    /// Makes and remembers the offer for layer `place` of image `at`, for which podman asks by
    /// `key`.
    async fn make_offer(
        &self,
        shelf: &Inner,
        state: &State,
        at: usize,
        place: usize,
        key: Digest,
    ) -> Result<Arc<Offer>, Refusal> {
        let (shown, image) = (shelf.shown.clone(), state.images[at].image.clone());
        let (others, uses) = (state.others(), state.record.uses.contains_key(&key));
        let make = move || offer::make(&shown, &image, place, &key, others.as_deref(), uses);
        let offer = Arc::new(blocking(make).await?);
        self.offers().insert(key, offer.clone());
        Ok(offer)
    }

    /// The directories of the layers of image `at`, the uppermost first, if it has packs and begins
    /// to be used. podman is about to ask for them.
    async fn directories(&self, shelf: &Inner, state: &State, at: usize) -> Vec<PathBuf> {
        let known = &state.images[at];
        if known.completion.is_some() || known.image.ready().packs.is_empty() {
            return Vec::new();
        }
        let mut directories = Vec::new();
        for (place, layer) in known.image.image.manifest.layers.iter().enumerate().rev() {
            let offer = match self.offered(shelf, &layer.digest) {
                Some(offer) => Some(offer),
                None => self.make_offer(shelf, state, at, place, layer.digest).await.ok(),
            };
            directories.extend(offer.map(|offer| offer.directory.clone()));
        }
        directories
    }

    /// The image that has the layer `key` and the place of the layer in it: among the known images,
    /// or else from the registry.
    async fn find(
        &self,
        shelf: &Inner,
        state: &mut State,
        key: &Digest,
    ) -> Result<(usize, usize), Refusal> {
        if let Some(found) = state.place(key) {
            return Ok(found);
        }
        if state.inquiry.is_missing(key, Instant::now()) {
            return Err(Refusal::UnknownLayer);
        }
        self.ask(shelf, state, key).await?;
        state.place(key).ok_or_else(|| {
            state.inquiry.note_missing(*key, Instant::now());
            Refusal::UnknownLayer
        })
    }

    /// At a pull, asks whether the name has come to mean another image. Where the registry does not
    /// answer, it may have.
    async fn look_again(&self, shelf: &Inner, state: &mut State, key: &Digest) {
        if self.reference.digest().is_some() || state.inquiry.is_fresh(Instant::now()) {
            return;
        }
        if let Err(refusal) = self.ask(shelf, state, key).await {
            tracing::warn!(reference = %self.reference, reason = refusal.in_words(),
                "cannot tell whether a name means what it meant");
            self.learn_of_others(shelf, state).await;
        }
    }

    /// Asks the registry what the name means, unless it has just failed after a long time.
    async fn ask(&self, shelf: &Inner, state: &mut State, key: &Digest) -> Result<(), Refusal> {
        state.inquiry.may_ask(Instant::now())?;
        state.inquiry.begin(Instant::now());
        let _asking = Asking::begin(self);
        let outcome = self.learn(shelf, state, key).await;
        state.inquiry.end(Instant::now(), &outcome);
        outcome
    }

    async fn learn(&self, shelf: &Inner, state: &mut State, key: &Digest) -> Result<(), Refusal> {
        let holds = |manifest: &_| place_of(manifest, key).is_some();
        let found = shelf.images.find_holder(&self.reference, holds).await;
        let found = found.map_err(|error| Refusal::unresolved(&error))?;
        if found.one_of_several || found.image.is_none() {
            self.learn_of_others(shelf, state).await;
        }
        let Some(image) = found.image else { return Ok(()) };
        let digest = image.digest;
        if state.images.last().is_some_and(|known| known.digest() == digest) {
            return Ok(());
        }
        let known = state.images.iter().position(|known| known.digest() == digest);
        let known = match known {
            Some(at) => state.images.remove(at),
            None => {
                shelf.images.expect_start(&image);
                let image = shelf.images.indexed(image).await;
                state.inquiry.note_search(Instant::now());
                Known::new(image)
            }
        };
        state.images.push(known);
        self.offers().clear();
        let used = state.used_manifests();
        if state.record.add(digest, |manifest| used.contains(manifest)) {
            self.save(shelf, state).await;
        }
        Ok(())
    }

    /// Looks once more for the indexes that an image lacks: the registry may have got them since,
    /// or was out of reach before.
    async fn ask_for_indexes(&self, shelf: &Inner, state: &mut State, at: usize) {
        let now = Instant::now();
        if state.inquiry.has_searched(now) || state.inquiry.may_ask(now).is_err() {
            return;
        }
        let _asking = Asking::begin(self);
        let found = shelf.images.indexed_again(&state.images[at].image).await;
        state.inquiry.note_search(Instant::now());
        if let Some(image) = found {
            state.images[at].replace(shelf, image);
            self.offers().clear();
        }
    }

    async fn learn_of_others(&self, shelf: &Inner, state: &mut State) {
        if !std::mem::replace(&mut state.record.others, true) {
            self.offers().clear();
            self.save(shelf, state).await;
        }
    }

    /// Counts a user of the layer `key`, whose image is completed from now on.
    pub async fn hold(self: &Arc<Self>, shelf: &Arc<Inner>, key: &Digest) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        state.record.hold(*key);
        if let Some((at, _)) = state.place(key) {
            state.images[at].index(shelf).await;
            let shown = self.directories(shelf, &state, at).await;
            state.images[at].complete(shelf, shown);
        }
        self.save_soon(shelf);
    }

    /// Counts a user of the layer `key` off. Once podman uses no layer of the name, none of its
    /// images is completed any more.
    pub async fn release(self: &Arc<Self>, shelf: &Arc<Inner>, key: &Digest) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        state.record.release(key);
        if state.record.uses.is_empty() {
            state.images.iter_mut().for_each(|known| known.completion = None);
        }
        self.save_soon(shelf);
    }

    /// Fetches what the images that podman uses lack here: manifests and indexes.
    pub async fn fetch_indexes(&self, shelf: &Inner) {
        let (records, reference) = (shelf.records.clone(), self.reference.clone());
        let record = blocking(move || records.get(&reference)).await.unwrap_or_default();
        let fetching = record.manifests.iter().rev().map(|manifest| async move {
            if let Err(error) = shelf.images.restore(&self.reference, manifest).await {
                tracing::warn!(reference = %self.reference, %error, "cannot fetch a manifest again");
            }
        });
        iter(fetching).buffer_unordered(SIDE_BY_SIDE).collect::<()>().await;
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        for at in state.used().into_iter().rev() {
            if let Some(image) = shelf.images.indexed_again(&state.images[at].image).await {
                state.images[at].replace(shelf, image);
            }
        }
    }

    /// Goes on to complete what podman uses.
    pub async fn complete(&self, shelf: &Inner) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        for at in state.used() {
            state.images[at].index(shelf).await;
            state.images[at].complete(shelf, Vec::new());
        }
    }

    /// Where the compressed bytes of the layer `key` are, and how many.
    pub async fn blob(&self, shelf: &Inner, key: &Digest) -> Result<Blob, Refusal> {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        let (at, place) = self.find(shelf, &mut state, key).await?;
        let layer = &state.images[at].image.image.manifest.layers[place];
        let scope = self.reference.repository().scope();
        Ok(Blob { scope, digest: layer.digest, size: layer.size })
    }
}

/// A question to the registry, under way until this is dropped.
struct Asking<'a>(&'a Name);

impl<'a> Asking<'a> {
    fn begin(name: &'a Name) -> Self {
        *name.asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Self(name)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        *self.0.asking.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl State {
    /// The image that has the layer `key`, the latest where several do, and the place of the layer
    /// in it.
    fn place(&self, key: &Digest) -> Option<(usize, usize)> {
        let place =
            |(at, known): (usize, &Known)| Some((at, place_of(&known.image.image.manifest, key)?));
        self.images.iter().enumerate().rev().find_map(place)
    }

    /// The images that podman uses layers of, by their places.
    fn used(&self) -> BTreeSet<usize> {
        self.record.uses.keys().filter_map(|key| Some(self.place(key)?.0)).collect()
    }

    /// The manifests of all images that have layers which podman uses.
    fn used_manifests(&self) -> HashSet<Digest> {
        let is_used = |known: &&Known| {
            self.record.uses.keys().any(|key| place_of(&known.image.image.manifest, key).is_some())
        };
        self.images.iter().filter(is_used).map(Known::digest).collect()
    }

    /// Lets go of the indexes of images that podman uses no layer of, except the latest.
    fn drop_unused_indexes(&mut self) {
        let used = self.used();
        let older = self.images.len().saturating_sub(1);
        for (at, known) in self.images.iter_mut().enumerate().take(older) {
            if !known.is_bare && !used.contains(&at) {
                let image = Indexed::new(known.image.image.clone(), Vec::new(), Vec::new());
                *known = Known { is_bare: true, ..Known::new(image) };
            }
        }
    }

    /// All images that the name may have meant; `None` if it may have meant others.
    fn others(&self) -> Option<Vec<Arc<Indexed>>> {
        let images = self.images.iter().map(|known| known.image.clone());
        (self.loaded && !self.record.others).then(|| images.collect())
    }
}

impl Known {
    fn new(image: Indexed) -> Self {
        Self { image: Arc::new(image), is_bare: false, completion: None }
    }

    /// Looks for the indexes again, where they were let go.
    async fn index(&mut self, shelf: &Inner) {
        if self.is_bare {
            *self = Self::new(shelf.images.indexed_here(self.image.image.clone()).await);
        }
    }

    /// The digest of its manifest.
    fn digest(&self) -> Digest {
        self.image.image.digest
    }

    /// Replaces the image by the same one with more indexes, and completes that if it was being
    /// completed.
    fn replace(&mut self, shelf: &Inner, image: Indexed) {
        self.image = Arc::new(image);
        if self.completion.take().is_some() {
            self.complete(shelf, Vec::new());
        }
    }

    /// Completes the image; what its packs bring is read ahead below the directories `shown`.
    fn complete(&mut self, shelf: &Inner, shown: Vec<PathBuf>) {
        if self.completion.is_none() {
            self.completion = Some(shelf.completer.begin(self.image.ready(), true, shown));
        }
    }
}

#[cfg(test)]
mod tests;
