//! What is shown of a name: how much of its images is here, and how podman gets their layers.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use undermount_fs::digest::Digest;

use super::super::plan::{Refusal, place_of, plan};
use super::super::{Inner, offer};
use super::{Known, Name, State};
use crate::agent::completion::Completion;
use crate::agent::images::{Indexed, Ready};
use crate::blocking::blocking;
use crate::control::{Explanation, LayerFate, StoreImage};
use crate::image::Descriptor;

/// How long a status waits for work on the name to end before it repeats the previous answer.
const STATUS_WITHIN: Duration = Duration::from_millis(500);

impl Name {
    /// How much of each image that the name has meant is used, and how much is here.
    pub async fn status(&self, shelf: &Inner) -> Vec<StoreImage> {
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let images = {
            let locked = tokio::time::timeout(STATUS_WITHIN, self.state.lock()).await;
            let Ok(state) = locked else { return told().clone() };
            self.images_in(&state, shelf)
        };
        let mut status = Vec::with_capacity(images.len());
        for (image, ready) in images {
            let extent = shelf.images.extent(&ready).await;
            status.push(StoreImage {
                image_bytes: extent.compressed,
                content_bytes: extent.content,
                local_bytes: extent.local,
                ..image
            });
        }
        told().clone_from(&status);
        status
    }

    /// The images of the name, without their sizes, and what of them can be read lazily.
    fn images_in(&self, state: &State, shelf: &Inner) -> Vec<(StoreImage, Arc<Ready>)> {
        let outage = shelf.images.filler().outages().of(&self.reference.repository().scope());
        let outage = outage.map(|outage| outage.to_string());
        let describe = |known: &Known| {
            let (image, ready) = (&known.image.image, known.image.ready());
            let used = |key: &&Digest| place_of(&image.manifest, key).is_some();
            let trouble = || known.completion.as_ref().and_then(Completion::trouble);
            let described = StoreImage {
                reference: self.reference.to_string(),
                manifest: image.digest,
                layers_in_use: state.record.uses.keys().filter(used).count(),
                layers: image.manifest.layers.len(),
                lazy_layers: ready.layers.len(),
                image_bytes: 0,
                content_bytes: 0,
                local_bytes: 0,
                trouble: outage.clone().or_else(trouble),
            };
            (described, ready)
        };
        state.images.iter().filter(|known| !known.is_bare).map(describe).collect()
    }

    /// How podman would get each layer of the image that the name means now, and why. The lock on
    /// the state is not held while the registry is asked, so that no request for a layer waits for
    /// this.
    ///
    /// # Errors
    /// [`Refusal::Unresolved`] where the image cannot be resolved.
    pub async fn explain(&self, shelf: &Inner) -> Result<Explanation, Refusal> {
        let (known, others) = {
            let mut state = self.state.lock().await;
            self.load(shelf, &mut state).await;
            let indexed = state.images.iter().filter(|known| !known.is_bare);
            let known: Vec<_> = indexed.map(|known| known.image.clone()).collect();
            (known, state.others())
        };
        let images = &shelf.images;
        let image = images.resolve(&self.reference).await;
        let image = image.map_err(|error| Refusal::unresolved(&error))?;
        let image = match known.into_iter().find(|known| known.image.digest == image.digest) {
            Some(known) => images.indexed_again(&known).await.map_or(known, Arc::new),
            None => Arc::new(images.indexed(image).await),
        };
        let (reference, manifest) = (self.reference.to_string(), image.image.digest);
        let layers = blocking(move || fates(&image, others.as_deref())).await;
        Ok(Explanation { reference, manifest, layers })
    }
}

/// How podman would get each layer of `image`; `others` as in [`plan`].
fn fates(image: &Indexed, others: Option<&[Arc<Indexed>]>) -> Vec<LayerFate> {
    let fate = |(layer, place): (&Descriptor, usize)| {
        let (lazy, reason) = match plan(image, place, &layer.digest, others) {
            Ok(plan) => (true, offer::way(&plan).to_owned()),
            Err(refusal) => (false, refusal.in_words()),
        };
        LayerFate { layer: layer.digest, lazy, reason }
    };
    image.image.manifest.layers.iter().zip(0..).map(fate).collect()
}
