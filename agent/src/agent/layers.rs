//! Layers for podman: what the additional layer store offers, and why it offers no more.
//!
//! ```text
//! Store (kernel) -> LayerShelf::layer -> name: images that the reference has meant   (record)
//!                                          | unknown layer, or a pull: ask the registry
//!                                          v
//!                                        plan: this layer, in this chain, from which mount
//!                                          v
//!                                        view: a directory of a content mount  -> Offer
//! ```
//!
//! podman itself downloads what is not offered. Each such [`Refusal`] is logged and counted, and
//! `undermount explain` shows it.
//!
//! # Chains
//!
//! A layer with opaque directories looks different above different layers ([`LayerView`]), but
//! podman asks for it by the name of the image and the layer's digest alone. The layer is shown by
//! whiteouts only while that name can mean but one chain of layers below it. A name has other
//! chains if it ever meant another image with the layer, if it means several images (one for each
//! platform), or if podman asks under it for a layer of an image that is not known here; the latter
//! two are remembered as `NameRecord::others`. From then on the layer is shown by markers, which
//! suit every chain. At every pull the registry is asked again what the name means.
//!
//! [`LayerView`]: undermount_fs::view::LayerView

mod blob;
mod departure;
mod name;
mod offer;
mod plan;
mod record;
mod shown;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::runtime::Handle;
use undermount_fs::digest::Digest;

use self::blob::Blobs;
pub use self::departure::look_at;
use self::name::Name;
pub use self::plan::Refusal;
use self::record::Records;
pub use self::shown::{ShelfError, Shown};
use super::completion::Completer;
use super::images::Images;
use crate::blocking::blocking;
use crate::control::{Explanation, LayersStatus, StoreImage};
use crate::image::Reference;
use crate::podman::{LayerKey, Occasion, Offer, Refused, Shelf};

/// How long podman waits for an answer before it downloads the layer itself. All layers of a pull
/// share this time where they need the same answer of the registry.
const DEADLINE: Duration = Duration::from_secs(20);

/// The least that is left of [`DEADLINE`] for any layer.
const LEAST_DEADLINE: Duration = Duration::from_millis(100);

/// So long a new worker waits for indexes that the cache has lost: a keeper kills a worker that takes
/// a minute.
const RESTORE_WITHIN: Duration = Duration::from_secs(20);

/// The layers that podman is offered.
#[derive(Clone)]
pub struct LayerShelf(Arc<Inner>);

struct Inner {
    images: Arc<Images>,
    completer: Completer,
    shown: Arc<Shown>,
    records: Records,
    blobs: Blobs,
    names: Mutex<HashMap<Reference, Arc<Name>>>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    drained: AtomicBool,
    /// Held by the one look for what may go.
    departure: tokio::sync::Mutex<()>,
    /// Where users are counted, so that the thread that reports them does not wait.
    runtime: Handle,
}

impl LayerShelf {
    /// A shelf of the layers of `images`, which shows them through `shown`, keeps what it knows of
    /// names in `cache` and works in tasks of `runtime`.
    ///
    /// # Errors
    /// [`ShelfError`] where `cache` cannot be used.
    pub fn new(
        images: Arc<Images>,
        completer: Completer,
        shown: Shown,
        cache: &Path,
        runtime: Handle,
    ) -> Result<Self, ShelfError> {
        let records = Records::open(&cache.join("podman"))?;
        let drained = AtomicBool::new(records.is_drained());
        let filler = images.filler();
        let blobs = Blobs::new(filler.source().clone(), filler.store().clone(), cache.join("tmp"));
        Ok(Self(Arc::new(Inner {
            images,
            completer,
            shown: Arc::new(shown),
            records,
            blobs,
            names: Mutex::default(),
            refusals: Mutex::default(),
            drained,
            departure: tokio::sync::Mutex::default(),
            runtime,
        })))
    }

    /// Shows again what the previous worker showed, and goes on to complete what podman uses.
    pub async fn restore(&self) {
        let inner = self.0.clone();
        if blocking(move || inner.shown.restore(&inner.images)).await {
            let fetched = tokio::time::timeout(RESTORE_WITHIN, self.fetch_indexes()).await;
            if fetched.is_err() {
                tracing::warn!("indexes that the cache has lost did not come in time");
            }
            let inner = self.0.clone();
            blocking(move || inner.shown.restore_lost(&inner.images)).await;
        }
        for record in self.0.records.in_use() {
            let Ok(reference) = record.reference.parse() else { continue };
            let shelf = self.clone();
            tokio::spawn(async move { shelf.name(&reference).complete(&shelf.0).await });
        }
    }

    /// Fetches what the images that podman uses need, and the cache has lost.
    async fn fetch_indexes(&self) {
        let names = self.in_use().into_iter().map(|reference| self.name(&reference));
        join_all(names.map(|name| async move { name.fetch_indexes(&self.0).await })).await;
    }

    fn name(&self, reference: &Reference) -> Arc<Name> {
        let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        let name = names.entry(reference.clone()).or_insert_with(|| Name::new(reference.clone()));
        name.note_asked();
        name.clone()
    }

    /// The offer for `key`. The work goes on when the caller stops waiting: the next layer of the
    /// image profits from it.
    async fn offer(&self, key: LayerKey, occasion: Occasion) -> Result<Arc<Offer>, Refusal> {
        let (shelf, name) = (self.clone(), self.name(&key.reference));
        let digest = key.digest;
        if occasion == Occasion::Path
            && !self.is_drained()
            && let Some(offer) = name.offered(&self.0, &digest)
        {
            return Ok(offer);
        }
        let deadline = DEADLINE.saturating_sub(name.asking_for()).max(LEAST_DEADLINE);
        let work = tokio::spawn(async move { name.offer(&shelf.0, &digest, occasion).await });
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok(offer)) => offer,
            Ok(Err(_)) => Err(Refusal::Interrupted),
            Err(_) => Err(Refusal::Late),
        }
    }

    fn note(&self, key: &LayerKey, refusal: &Refusal) {
        let LayerKey { reference, digest } = key;
        tracing::warn!(%reference, layer = %digest, reason = %refusal.in_words(),
            "podman has to pull a layer itself");
        let mut refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(refusal.label()).or_default() += 1;
    }

    /// How often podman had to pull a layer itself since this process started, by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().map(|(label, count)| ((*label).to_owned(), *count)).collect()
    }

    /// With `drained`, offers only layers that podman uses already; without it, offers all again.
    /// The choice survives a restart.
    ///
    /// # Errors
    /// [`ShelfError`] where it cannot be written down.
    pub async fn drain(&self, drained: bool) -> Result<(), ShelfError> {
        self.0.drained.store(drained, Ordering::SeqCst);
        let records = self.0.records.clone();
        blocking(move || records.set_drained(drained)).await
    }

    /// Whether the agent of this `cache` was drained when it ended.
    pub fn was_drained(cache: &Path) -> bool {
        Records::beside(&cache.join("podman")).is_drained()
    }

    /// The layers that podman uses, of those that the agent of this `cache` shows, by the digests
    /// that podman asks for; `None` where they cannot be read.
    pub fn used_layers(cache: &Path) -> Option<HashSet<Digest>> {
        let used = Records::beside(&cache.join("podman")).used_layers();
        used.inspect_err(|error| tracing::warn!(%error, "cannot tell which layers podman uses"))
            .ok()
    }

    /// Counts the views of layers.
    pub fn census(&self) -> LayersStatus {
        self.0.shown.census()
    }

    /// Whether the agent is drained: nothing new is offered.
    pub fn is_drained(&self) -> bool {
        self.0.drained.load(Ordering::SeqCst)
    }

    /// The names that podman uses, as far as it has reported that.
    pub fn in_use(&self) -> Vec<Reference> {
        let records = self.0.records.in_use();
        records.into_iter().filter_map(|record| record.reference.parse().ok()).collect()
    }

    /// The images that podman uses, or has looked for since this process started.
    pub async fn images(&self) -> Vec<StoreImage> {
        let names: Vec<Arc<Name>> = {
            let names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.values().cloned().collect()
        };
        let mut images = Vec::new();
        for name in names {
            images.extend(name.status(&self.0).await);
        }
        images.sort_by(|a, b| (&a.reference, a.manifest).cmp(&(&b.reference, b.manifest)));
        images
    }

    /// How podman would get each layer of `reference`, and why.
    ///
    /// # Errors
    /// [`Refusal`] where the image can be resolved neither here nor at the registry.
    pub async fn explain(&self, reference: &Reference) -> Result<Explanation, Refusal> {
        self.name(reference).explain(&self.0).await
    }
}

impl Shelf for LayerShelf {
    fn layer(
        &self,
        key: &LayerKey,
        occasion: Occasion,
    ) -> BoxFuture<'static, Result<Arc<Offer>, Refused>> {
        let (shelf, key) = (self.clone(), key.clone());
        async move {
            let offer = shelf.offer(key.clone(), occasion).await;
            offer.map_err(|refusal| {
                // Logged once for each layer of a pull: when podman looks for it.
                if occasion == Occasion::Path {
                    shelf.note(&key, &refusal);
                }
                Refused
            })
        }
        .boxed()
    }

    fn blob(
        &self,
        key: &LayerKey,
        offset: u64,
        length: u32,
    ) -> BoxFuture<'static, Result<Bytes, Refused>> {
        let (shelf, key) = (self.clone(), key.clone());
        async move {
            let name = shelf.name(&key.reference);
            let blob = name.blob(&shelf.0, &key.digest).await.map_err(|_| Refused)?;
            shelf.0.blobs.read(&blob, offset, length).await.map_err(|error| {
                tracing::error!(layer = %blob.digest, error = &error as &dyn std::error::Error,
                    "cannot hand podman a layer's bytes");
                Refused
            })
        }
        .boxed()
    }

    fn hold(&self, key: &LayerKey) {
        let (shelf, key) = (self.clone(), key.clone());
        self.0.runtime.spawn(async move {
            shelf.name(&key.reference).hold(&shelf.0, &key.digest).await;
        });
    }

    fn release(&self, key: &LayerKey) {
        let (shelf, key) = (self.clone(), key.clone());
        self.0.runtime.spawn(async move {
            shelf.name(&key.reference).release(&shelf.0, &key.digest).await;
        });
    }
}
