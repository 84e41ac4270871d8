//! A name that podman asks for, and the images that it has meant.
//!
//! One question at a time: the first layer of a pull resolves the image and the indexes of all
//! its layers, and the questions for the others find that done. Two things do not wait for it:
//! what was offered before is given to who starts a container, and a registry that holds up the
//! first question for too long does not hold up each of the others once more.

mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Blob;

use super::plan::{Refusal, place_of};
use super::record::NameRecord;
use super::{Inner, offer};
use crate::agent::completion::Completion;
use crate::agent::images::Indexed;
use crate::control::StoreImage;
use crate::image::{Descriptor, Reference};
use crate::podman::{Occasion, Offer};

/// For this long the registry's last answer counts: the layers of one pull share it.
const FRESH: Duration = Duration::from_secs(5);

/// Counts of users are written down together, this long after the first of them changed.
const SAVE_AFTER: Duration = Duration::from_millis(300);

/// A name.
pub struct Name {
    reference: Reference,
    state: Mutex<State>,
    /// What was offered, as long as nothing new is learnt of the name.
    offers: std::sync::Mutex<HashMap<Digest, Arc<Offer>>>,
    /// Since when the registry is being asked, if it is.
    asking: std::sync::Mutex<Option<Instant>>,
    /// What was told last of the images.
    told: std::sync::Mutex<Vec<StoreImage>>,
    /// Whether the record is about to be saved.
    saving: AtomicBool,
}

#[derive(Default)]
struct State {
    record: NameRecord,
    loaded: bool,
    /// The images of the record, the latest last; without those that cannot be had any more.
    images: Vec<Known>,
    /// When the registry was last asked, successfully or not.
    asked: Option<Instant>,
    /// When it failed after a long time, and why. Who has waited meanwhile does not ask once more.
    hung: Option<(Instant, Refusal)>,
    /// Layers that no image of the name had, and when the registry said so.
    missing: HashMap<Digest, Instant>,
}

struct Known {
    image: Arc<Indexed>,
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
        })
    }

    /// What was offered for the layer `key`, without waiting for anybody.
    pub fn offered(&self, key: &Digest) -> Option<Arc<Offer>> {
        self.offers().get(key).cloned()
    }

    /// How long the registry has been asked by now.
    pub fn asking_for(&self) -> Duration {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn offers(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Offer>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offer for the layer that podman calls `key`.
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
        if let Some(offer) = self.offered(key) {
            return Ok(offer);
        }
        let (at, place) = self.find(shelf, &mut state, key).await?;
        self.make_offer(shelf, &state, at, place, key)
    }

    /// Makes the offer for layer `place` of an image, for which podman asks by `key`, and remembers
    /// it.
    fn make_offer(
        &self,
        shelf: &Inner,
        state: &State,
        at: usize,
        place: usize,
        key: &Digest,
    ) -> Result<Arc<Offer>, Refusal> {
        let (image, others) = (&state.images[at].image, state.others());
        let offer = Arc::new(offer::make(&shelf.shown, image, place, key, others.as_deref())?);
        self.offers().insert(*key, offer.clone());
        Ok(offer)
    }

    /// Where podman finds the layers of an image with packs that begins to be used, the uppermost
    /// first. It is about to ask for them.
    fn directories(&self, shelf: &Inner, state: &State, at: usize) -> Vec<PathBuf> {
        let known = &state.images[at];
        if known.completion.is_some() || known.image.ready().packs.is_empty() {
            return Vec::new();
        }
        let layers = known.image.image.manifest.layers.iter().enumerate().rev();
        let directory = |(place, layer): (usize, &Descriptor)| {
            let key = &layer.digest;
            let made = || self.make_offer(shelf, state, at, place, key).ok();
            self.offered(key).or_else(made).map(|offer| offer.directory.clone())
        };
        layers.filter_map(directory).collect()
    }

    /// The image that has the layer `key`, and where: among those known, or from the registry.
    async fn find(
        &self,
        shelf: &Inner,
        state: &mut State,
        key: &Digest,
    ) -> Result<(usize, usize), Refusal> {
        if let Some(found) = state.place(key) {
            return Ok(found);
        }
        if state.missing.get(key).is_some_and(|asked| asked.elapsed() < FRESH) {
            return Err(Refusal::UnknownLayer);
        }
        self.ask(shelf, state, key).await?;
        state.place(key).ok_or_else(|| {
            state.missing.insert(*key, Instant::now());
            Refusal::UnknownLayer
        })
    }

    /// At a pull: has the name come to mean another image? Where that cannot be found out, it may
    /// have.
    async fn look_again(&self, shelf: &Inner, state: &mut State, key: &Digest) {
        if self.reference.digest().is_some() || state.is_fresh() {
            return;
        }
        if let Err(refusal) = self.ask(shelf, state, key).await {
            tracing::warn!(reference = %self.reference, reason = refusal.in_words(),
                "cannot tell whether a name means what it meant");
            self.learn_of_others(shelf, state);
        }
    }

    /// Asks the registry what the name means.
    async fn ask(&self, shelf: &Inner, state: &mut State, key: &Digest) -> Result<(), Refusal> {
        if let Some((_, refusal)) = state.hung.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Err(refusal.clone());
        }
        let asked = Instant::now();
        state.asked = Some(asked);
        let _asking = Asking::begin(self);
        let outcome = self.learn(shelf, state, key).await;
        let failure = outcome.as_ref().err().filter(|_| asked.elapsed() > FRESH);
        state.hung = failure.map(|refusal| (Instant::now(), refusal.clone()));
        outcome
    }

    async fn learn(&self, shelf: &Inner, state: &mut State, key: &Digest) -> Result<(), Refusal> {
        let holds = |manifest: &_| place_of(manifest, key).is_some();
        let found = shelf.images.find_holder(&self.reference, holds).await;
        let found = found.map_err(|error| Refusal::unresolved(&error))?;
        if found.one_of_several || found.image.is_none() {
            self.learn_of_others(shelf, state);
        }
        let Some(image) = found.image else { return Ok(()) };
        let digest = image.digest;
        if state.images.last().is_some_and(|known| known.image.image.digest == digest) {
            return Ok(());
        }
        let known = state.images.iter().position(|known| known.image.image.digest == digest);
        let known = match known {
            Some(at) => state.images.remove(at),
            None => {
                shelf.images.expect_start(&image);
                Known { image: Arc::new(shelf.images.indexed(image).await), completion: None }
            }
        };
        state.images.push(known);
        self.offers().clear();
        if state.record.add(digest) {
            self.save(shelf, &state.record);
        }
        Ok(())
    }

    fn learn_of_others(&self, shelf: &Inner, state: &mut State) {
        if !std::mem::replace(&mut state.record.others, true) {
            self.offers().clear();
            self.save(shelf, &state.record);
        }
    }

    fn save(&self, shelf: &Inner, record: &NameRecord) {
        if let Err(error) = shelf.records.put(record) {
            tracing::error!(reference = %self.reference, error = &error as &dyn std::error::Error,
                "cannot keep what a name means");
        }
    }

    /// Reads the record, once. Needs no network where the cache is whole.
    async fn load(&self, shelf: &Inner, state: &mut State) {
        if state.loaded {
            return;
        }
        let new = || NameRecord { reference: self.reference.to_string(), ..NameRecord::default() };
        let mut record = shelf.records.get(&self.reference).unwrap_or_else(new);
        let mut images = Vec::new();
        for manifest in record.manifests.clone() {
            match shelf.images.kept(&self.reference, &manifest) {
                Some(image) => {
                    let image = Arc::new(shelf.images.indexed(image).await);
                    images.push(Known { image, completion: None });
                }
                None => {
                    tracing::warn!(reference = %self.reference, %manifest,
                        "a manifest is no longer in the cache");
                    record.others = true;
                }
            }
        }
        // All at once: whoever waits for this may go away before it has come to its end.
        (state.record, state.images, state.loaded) = (record, images, true);
    }

    /// Counts a user of the layer `key`, whose image is completed from now on.
    pub async fn hold(self: &Arc<Self>, shelf: &Arc<Inner>, key: &Digest) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        state.record.hold(*key);
        if let Some((at, _)) = state.place(key) {
            let shown = self.directories(shelf, &state, at);
            state.images[at].complete(shelf, shown);
        }
        self.save_soon(shelf);
    }

    /// Counts a user of the layer `key` off. An image that nobody uses is not completed.
    pub async fn release(self: &Arc<Self>, shelf: &Arc<Inner>, key: &Digest) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        state.record.release(key);
        if state.record.uses.is_empty() {
            state.images.iter_mut().for_each(|known| known.completion = None);
        }
        self.save_soon(shelf);
    }

    fn save_soon(self: &Arc<Self>, shelf: &Arc<Inner>) {
        if self.saving.swap(true, Ordering::SeqCst) {
            return;
        }
        let (name, shelf) = (self.clone(), shelf.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SAVE_AFTER).await;
            name.saving.store(false, Ordering::SeqCst);
            let record = name.state.lock().await.record.clone();
            name.save(&shelf, &record);
        });
    }

    /// Goes on to complete what podman uses.
    pub async fn complete(&self, shelf: &Inner) {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        let used: Vec<usize> =
            state.record.uses.keys().filter_map(|key| Some(state.place(key)?.0)).collect();
        for at in used {
            state.images[at].complete(shelf, Vec::new());
        }
    }

    /// The compressed bytes of the layer `key`: where from, and how many.
    pub async fn blob(&self, shelf: &Inner, key: &Digest) -> Result<Blob, Refusal> {
        let mut state = self.state.lock().await;
        self.load(shelf, &mut state).await;
        let (at, place) = self.find(shelf, &mut state, key).await?;
        let layer = &state.images[at].image.image.manifest.layers[place];
        let scope = self.reference.repository().scope();
        Ok(Blob { scope, digest: layer.digest, size: layer.size })
    }
}

/// The registry is being asked until this is dropped.
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
    fn is_fresh(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() < FRESH)
    }

    /// Which image has the layer `key`, the latest first, and where in it.
    fn place(&self, key: &Digest) -> Option<(usize, usize)> {
        let place =
            |(at, known): (usize, &Known)| Some((at, place_of(&known.image.image.manifest, key)?));
        self.images.iter().enumerate().rev().find_map(place)
    }

    /// All images that the name may have meant, if that is known.
    fn others(&self) -> Option<Vec<&Indexed>> {
        let images = self.images.iter().map(|known| &*known.image);
        (!self.record.others).then(|| images.collect())
    }
}

impl Known {
    /// Completes the image; what its packs bring is read ahead below the directories `shown`.
    fn complete(&mut self, shelf: &Inner, shown: Vec<PathBuf>) {
        if self.completion.is_none() {
            self.completion = Some(shelf.completer.begin(self.image.ready(), true, shown));
        }
    }
}

#[cfg(test)]
mod tests;
