//! What the next start of an image is going to read, fetched before it asks, where no pack brings it.
//!
//! ```text
//! image that came without a start-up pack -> profiles of earlier starts: on this node, of this
//!   build; else with peers; else on this node, of another build
//!   -> units of this build -> their spans; reads of the start go first
//! ```
//!
//! A pack holds the same in a tenth of the bytes and a few requests, but somebody has to make it. This
//! serves images whose registry makes none, a cache that was lost, and a new build. Nothing is read
//! ahead through the mount here, as it is with a pack: the start is being recorded, and would be
//! said to have read whatever an earlier one has.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use undermount_fs::pack::Profile;

use super::images::{ImageError, Images, Ready};
use crate::blocking::blocking;
use crate::image::artifact::pack::Purpose;
use crate::peer::exchange::Exchange;
use crate::profile::{Profiles, StartRecord, combined, fitting, most_of, place_units};

/// Images whose profiles are read at a time: so much memory they may take.
const SIDE_BY_SIDE: usize = 2;

/// How long it may take to ask peers.
const PEERS: Duration = Duration::from_secs(2);

/// Fetches what starts have read.
#[derive(Clone)]
pub struct Foresight {
    images: Arc<Images>,
    peers: Option<Exchange>,
    planning: Arc<Semaphore>,
}

impl Foresight {
    /// Fetches for `images` by the profiles that their cache has, and those of `peers`.
    pub fn new(images: Arc<Images>, peers: Option<Exchange>) -> Self {
        Self { images, peers, planning: Arc::new(Semaphore::new(SIDE_BY_SIDE)) }
    }

    /// Fetches what earlier starts of the image have read and is not here, unless it came with a
    /// pack that does so. What cannot be had comes when it is read.
    pub async fn fetch(&self, ready: &Arc<Ready>) {
        if ready.packs.iter().any(|pack| pack.purpose == Purpose::Start) {
            return;
        }
        let reference = &ready.image.reference;
        let profile = match self.profile(ready).await {
            Ok(Some(profile)) => profile,
            Ok(None) => return,
            Err(error) => {
                return tracing::debug!(%reference, %error, "cannot place what starts have read");
            }
        };
        let size = ready.layers.iter().map(|layer| layer.tree.header().layer_size.get()).sum();
        let filler = self.images.filler();
        match filler.fetch_foreseen(&profile, &ready.layers, most_of(size)).await {
            Ok(came) => tracing::info!(%reference, units = came.units, fetched = came.fetched,
                "fetched what earlier starts have read"),
            Err(error) => tracing::info!(%reference, error = &error as &dyn std::error::Error,
                "cannot fetch all that earlier starts have read"),
        }
    }

    /// What earlier starts have read of the image; `None` where nothing is known of any.
    async fn profile(&self, ready: &Arc<Ready>) -> Result<Option<Profile>, ImageError> {
        let Ok(_turn) = self.planning.acquire().await else { return Ok(None) };
        let records = self.records(ready).await;
        if records.is_empty() {
            return Ok(None);
        }
        let (images, ready) = (self.images.clone(), ready.clone());
        blocking(move || Ok(Some(place_units(&combined(&records), &images.merge(&ready)?)))).await
    }

    /// What is known of starts of the image, or of another build of it.
    async fn records(&self, ready: &Arc<Ready>) -> Vec<StartRecord> {
        let (own, manifest) = (self.own(ready).await, ready.image.digest);
        let is_its = |records: &[StartRecord]| records.iter().any(|one| one.manifest == manifest);
        let Some(peers) = self.peers.as_ref().filter(|_| !is_its(&own)) else { return own };
        let scope = ready.image.reference.repository().scope();
        let told = timeout(PEERS, peers.profiles(&scope, &manifest)).await.unwrap_or_default();
        // Of two that tell of another build, one's own can be trusted.
        if own.is_empty() || is_its(&told) { told } else { own }
    }

    /// What this node knows of starts of the image, or of another build of it.
    async fn own(&self, ready: &Arc<Ready>) -> Vec<StartRecord> {
        let (images, image) = (self.images.clone(), ready.clone());
        blocking(move || {
            let (path, manifest) = (image.image.reference.repository().path(), image.image.digest);
            let profiles = Profiles::new(images.profiles_dir());
            // The same image may have been started under another name.
            let fits = |record: &StartRecord| record.manifest == manifest || record.is_of(path);
            let known = profiles.dated(fits).unwrap_or_else(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read profiles");
                Vec::new()
            });
            fitting(known, &manifest)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{images, ready};
    use crate::profile::FileUnit;

    fn record(ready: &Ready, build: &[u8], path: &str) -> StartRecord {
        let unit = FileUnit { path: path.to_owned(), number: 0 };
        let manifest = undermount_fs::digest::Digest::of(build);
        let reference = ready.image.reference.to_string();
        StartRecord::new(reference, manifest, "service".to_owned()).with_start(&[unit])
    }

    #[tokio::test]
    async fn an_image_is_foreseen_by_its_own_starts_or_those_of_another_build() {
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        let (foresight, profiles) =
            (Foresight::new(images.clone(), None), Profiles::new(images.profiles_dir()));
        let image = Arc::new(ready("image"));
        let paths = async || -> Vec<String> {
            let records = foresight.own(&image).await;
            combined(&records).into_iter().map(|unit| unit.path).collect()
        };
        assert!(paths().await.is_empty());
        assert!(foresight.profile(&image).await.unwrap().is_none());
        profiles.add(record(&ready("other"), b"elsewhere", "other")).unwrap();
        assert!(paths().await.is_empty(), "of another repository");
        profiles.add(record(&image, b"a build", "earlier")).unwrap();
        assert_eq!(paths().await, ["earlier"]);
        profiles.add(record(&ready("other"), b"image", "same")).unwrap();
        assert_eq!(paths().await, ["same"], "under another name");
    }
}
