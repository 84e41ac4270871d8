//! Images that are to stay local: completed without delay, and again after every start.
//!
//! `<cache>/pins.json` lists them. A pinned image need not be mounted or known to podman.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Progress;

use super::cache::write_atomically;
use super::completion::{Completer, Completion};
use super::images::{Extent, ImageError, Images, Ready};
use crate::control::PinStatus;
use crate::image::Reference;

const FILE: &str = "pins.json";

/// An image cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is not pinned.
    #[error("{0} is not pinned")]
    NotPinned(Reference),
    /// The list cannot be written.
    #[error("cannot write {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A pin as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    reference: String,
    manifest: Digest,
}

struct Pin {
    manifest: Digest,
    /// `None` until the image was found again after a start.
    work: Option<(Arc<Ready>, Completion)>,
}

/// The pinned images of a cache.
pub struct Pins {
    images: Arc<Images>,
    completer: Completer,
    directory: PathBuf,
    pins: Mutex<BTreeMap<Reference, Pin>>,
}

impl Pins {
    /// The pins that are written down in the cache at `directory`.
    pub fn open(images: Arc<Images>, completer: Completer, directory: &Path) -> Self {
        let records = read(&directory.join(FILE));
        let pins = records.into_iter().filter_map(|record| {
            let pin = Pin { manifest: record.manifest, work: None };
            Some((record.reference.parse().ok()?, pin))
        });
        let pins = Mutex::new(pins.collect());
        Self { images, completer, directory: directory.to_owned(), pins }
    }

    /// Goes on to complete what is pinned. An image that cannot be had is logged; it stays pinned.
    /// Nobody who wants to know what is pinned waits for the registries.
    pub async fn restore(&self) {
        let pins = self.pins.lock().await;
        let pinned: Vec<(Reference, Digest)> =
            pins.iter().map(|(reference, pin)| (reference.clone(), pin.manifest)).collect();
        drop(pins);
        for (reference, manifest) in pinned {
            match self.prepare(&reference.pinned(manifest)).await {
                Ok(ready) => self.resume(&reference, ready).await,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(%reference, error, "cannot complete a pinned image");
                }
            }
        }
    }

    /// Begins to complete a pinned image, unless it was let go or pinned anew meanwhile.
    async fn resume(&self, reference: &Reference, ready: Arc<Ready>) {
        let mut pins = self.pins.lock().await;
        if let Some(pin) = pins.get_mut(reference)
            && pin.manifest == ready.image.digest
            && pin.work.is_none()
        {
            pin.work = Some(self.begin(ready));
        }
    }

    async fn prepare(&self, reference: &Reference) -> Result<Arc<Ready>, ImageError> {
        let image = self.images.resolve(reference).await?;
        Ok(Arc::new(self.images.make_ready(image, &Progress::default()).await?))
    }

    fn begin(&self, ready: Arc<Ready>) -> (Arc<Ready>, Completion) {
        (ready.clone(), self.completer.begin(ready, true, Vec::new()))
    }

    /// Pins what `reference` means now; the digest of its manifest.
    ///
    /// # Errors
    /// [`PinError`] where it cannot be had or written down.
    pub async fn pin(&self, reference: &Reference) -> Result<Digest, PinError> {
        let ready = self.prepare(reference).await?;
        let manifest = ready.image.digest;
        let mut pins = self.pins.lock().await;
        let work = Some(self.begin(ready));
        pins.insert(reference.clone(), Pin { manifest, work });
        self.write(&pins)?;
        Ok(manifest)
    }

    /// Lets an image go.
    ///
    /// # Errors
    /// [`PinError`] where it is not pinned.
    pub async fn unpin(&self, reference: &Reference) -> Result<(), PinError> {
        let mut pins = self.pins.lock().await;
        if pins.remove(reference).is_none() {
            return Err(PinError::NotPinned(reference.clone()));
        }
        self.write(&pins)
    }

    fn write(&self, pins: &BTreeMap<Reference, Pin>) -> Result<(), PinError> {
        let record = |(reference, pin): (&Reference, &Pin)| Record {
            reference: reference.to_string(),
            manifest: pin.manifest,
        };
        let records: Vec<Record> = pins.iter().map(record).collect();
        let json = serde_json::to_vec_pretty(&records).expect("records are plain data");
        write_atomically(&self.directory, FILE, &json)
            .map_err(|source| PinError::Record { path: self.directory.join(FILE), source })
    }

    /// How many images are pinned.
    pub async fn count(&self) -> usize {
        self.pins.lock().await.len()
    }

    /// What is pinned, and how much of it is here.
    pub async fn status(&self) -> Vec<PinStatus> {
        let mut status = Vec::new();
        for (pin, ready) in self.described().await {
            let extent = match ready {
                Some(ready) => self.images.extent(&ready).await,
                None => Extent::default(),
            };
            let (content_bytes, local_bytes) = (extent.content, extent.local);
            status.push(PinStatus { content_bytes, local_bytes, ..pin });
        }
        status
    }

    /// The pins without their sizes, and the images that were found.
    async fn described(&self) -> Vec<(PinStatus, Option<Arc<Ready>>)> {
        let pins = self.pins.lock().await;
        let describe = |(reference, pin): (&Reference, &Pin)| {
            let work = pin.work.as_ref();
            let described = PinStatus {
                reference: reference.to_string(),
                manifest: pin.manifest,
                content_bytes: 0,
                local_bytes: 0,
                trouble: work.and_then(|(_, completion)| completion.trouble()),
            };
            (described, work.map(|(ready, _)| ready.clone()))
        };
        pins.iter().map(describe).collect()
    }
}

/// What is written down; nothing where the file is missing or damaged.
fn read(path: &Path) -> Vec<Record> {
    let Ok(json) = std::fs::read(path) else { return Vec::new() };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "damaged list of pins");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::agent::testing::{images, silent_registry};

    #[tokio::test]
    async fn regression_what_is_pinned_can_be_told_while_a_registry_is_silent() {
        let server = silent_registry().await;
        let cache = tempfile::tempdir().unwrap();
        let reference = format!("{}:tag", server.repository());
        let record = Record { reference: reference.clone(), manifest: Digest::of(b"manifest") };
        let json = serde_json::to_vec(&[record]).unwrap();
        std::fs::write(cache.path().join(FILE), json).unwrap();
        let images = images(cache.path());
        let completer = Completer::new(images.clone(), Duration::ZERO);
        let pins = Pins::open(images, completer, cache.path());
        let mut restoring = std::pin::pin!(pins.restore());
        assert!(restoring.as_mut().now_or_never().is_none(), "it waits for the registry");
        assert_eq!(pins.count().now_or_never(), Some(1));
        let status = pins.status().now_or_never().unwrap();
        assert_eq!(status[0].reference, reference);
    }
}
