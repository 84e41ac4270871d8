//! Fetches what the start of an image is going to read before it asks, where no pack brings that.
//!
//! ```text
//! image that came without a start-up pack
//!   -> profiles of earlier starts:    of this build, recorded here; else whatever peers know;
//!                                     else of another build, recorded here
//!   -> place_units                    where these files are in the layers of this build
//!   -> Filler::fetch_foreseen         their spans, in the order of the start, behind its own reads
//! ```
//!
//! A pack holds the same in about a quarter of the bytes and a few requests, but somebody has to build it.
//! This module is for images whose registry builds none, for a cache that was lost, and for a new
//! build. Unlike with a pack, nothing is read ahead through the mount: this start is being recorded,
//! and its profile would claim every file that an earlier start has read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use undermount_fs::pack::Profile;

use super::images::{ImageError, Images, Ready};
use crate::blocking::blocking;
use crate::image::artifact::pack::Purpose;
use crate::peer::exchange::Exchange;
use crate::profile::{Profiles, StartRecord, combined, fitting, most_of, place_units};

/// Images whose profiles are read at the same time: this bounds the memory that they take.
const SIDE_BY_SIDE: usize = 2;

/// How long all peers together may take to answer.
const PEERS: Duration = Duration::from_secs(2);

/// Fetches what earlier starts have read.
#[derive(Clone)]
pub struct Foresight {
    images: Arc<Images>,
    /// The other nodes; `None` where this one shares no starts with them.
    peers: Option<Exchange>,
    planning: Arc<Semaphore>,
}

impl Foresight {
    /// Fetches for `images`, by the profiles in their cache and those that `peers` know.
    pub fn new(images: Arc<Images>, peers: Option<Exchange>) -> Self {
        Self { images, peers, planning: Arc::new(Semaphore::new(SIDE_BY_SIDE)) }
    }

    /// Fetches what earlier starts of the image have read and is missing here, unless the image came
    /// with a start-up pack. What cannot be fetched is left to whoever reads it.
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

    /// What earlier starts have read, as units of this image; `None` where no start is known.
    async fn profile(&self, ready: &Arc<Ready>) -> Result<Option<Profile>, ImageError> {
        let Ok(_turn) = self.planning.acquire().await else { return Ok(None) };
        let records = self.records(ready).await;
        if records.is_empty() {
            return Ok(None);
        }
        let (images, ready) = (self.images.clone(), ready.clone());
        blocking(move || Ok(Some(place_units(&combined(&records), &images.merge(&ready)?)))).await
    }

    /// The starts of the image, or of another build of it, that say most about the next one.
    async fn records(&self, ready: &Arc<Ready>) -> Vec<StartRecord> {
        let (own, manifest) = (self.own(ready).await, ready.image.digest);
        let is_its = |records: &[StartRecord]| records.iter().any(|one| one.manifest == manifest);
        let Some(peers) = self.peers.as_ref().filter(|_| !is_its(&own)) else { return own };
        let scope = ready.image.reference.repository().scope();
        let told = peers.profiles(&scope, &manifest, PEERS).await;
        // Where both know other builds only, what was recorded here can be trusted.
        if own.is_empty() || is_its(&told) { told } else { own }
    }

    /// The starts of the image, or of another build of it, that this node has recorded.
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
