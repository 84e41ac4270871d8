//! Images that are to stay local: completed without delay, and again after every start.
//!
//! `<cache>/pins.json` lists them. A pinned image need not be mounted or known to podman.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Progress;

use super::completion::{Completer, Completion};
use super::images::{Extent, ImageError, Images, Ready};
use crate::blocking::blocking;
use crate::control::{Failure, PinStatus};
use crate::host::file::{self, Lasting};
use crate::image::Reference;

const FILE: &str = "pins.json";

/// Pauses between attempts to find pinned images again, from the first to the longest one.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

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
    /// Why it was not found yet.
    trouble: Option<String>,
}

/// The pinned images of a cache.
pub struct Pins {
    images: Arc<Images>,
    completer: Completer,
    directory: PathBuf,
    pins: Mutex<BTreeMap<Reference, Pin>>,
    /// The first pause.
    pause: Duration,
}

impl Pins {
    /// The pins that are written down in the cache at `directory`.
    pub fn open(images: Arc<Images>, completer: Completer, directory: &Path) -> Self {
        let records = read(&directory.join(FILE));
        let pins = records.into_iter().filter_map(|record| {
            let pin = Pin { manifest: record.manifest, work: None, trouble: None };
            Some((record.reference.parse().ok()?, pin))
        });
        let pins = Mutex::new(pins.collect());
        Self { images, completer, directory: directory.to_owned(), pins, pause: PAUSE }
    }

    /// Goes on to complete what is pinned. An image that cannot be had yet, since the agent starts
    /// before the network, is tried again and stays pinned. Nobody who wants to know what is
    /// pinned waits for the registries.
    pub async fn restore(&self) {
        let mut pause = self.pause;
        loop {
            for (reference, manifest) in self.waiting().await {
                match self.prepare(&reference.pinned(manifest)).await {
                    Ok(ready) => self.resume(&reference, ready).await,
                    Err(error) => self.note(&reference, &manifest, &error).await,
                }
            }
            if self.waiting().await.is_empty() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What is pinned and was not found again yet.
    async fn waiting(&self) -> Vec<(Reference, Digest)> {
        let pins = self.pins.lock().await;
        let waiting = pins.iter().filter(|(_, pin)| pin.work.is_none());
        waiting.map(|(reference, pin)| (reference.clone(), pin.manifest)).collect()
    }

    /// Notes why a pinned image is not completed yet.
    async fn note(&self, reference: &Reference, manifest: &Digest, error: &ImageError) {
        let words = Failure::of(error).in_words();
        tracing::error!(%reference, error = words, "cannot complete a pinned image yet");
        let mut pins = self.pins.lock().await;
        if let Some(pin) = pins.get_mut(reference).filter(|pin| pin.manifest == *manifest) {
            pin.trouble = Some(words);
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
        let pin = Pin { manifest, work: Some(self.begin(ready)), trouble: None };
        let earlier = pins.insert(reference.clone(), pin);
        let written = self.write(&pins).await;
        if written.is_err() {
            match earlier {
                Some(earlier) => pins.insert(reference.clone(), earlier),
                None => pins.remove(reference),
            };
        }
        written.map(|()| manifest)
    }

    /// Lets an image go.
    ///
    /// # Errors
    /// [`PinError`] where it is not pinned, or what is left cannot be written down.
    pub async fn unpin(&self, reference: &Reference) -> Result<(), PinError> {
        let mut pins = self.pins.lock().await;
        let pin = pins.remove(reference).ok_or_else(|| PinError::NotPinned(reference.clone()))?;
        let written = self.write(&pins).await;
        if written.is_err() {
            pins.insert(reference.clone(), pin);
        }
        written
    }

    async fn write(&self, pins: &BTreeMap<Reference, Pin>) -> Result<(), PinError> {
        let record = |(reference, pin): (&Reference, &Pin)| Record {
            reference: reference.to_string(),
            manifest: pin.manifest,
        };
        let records: Vec<Record> = pins.iter().map(record).collect();
        let json = serde_json::to_vec_pretty(&records).expect("records are plain data");
        let path = self.directory.join(FILE);
        let write = move || {
            let written = file::replace(&path, &json, 0o600, Lasting::PowerCut);
            written.map_err(|source| PinError::Record { path, source })
        };
        blocking(write).await
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
                trouble: match work {
                    Some((_, completion)) => completion.trouble(),
                    None => pin.trouble.clone(),
                },
            };
            (described, work.map(|(ready, _)| ready.clone()))
        };
        pins.iter().map(describe).collect()
    }
}

/// What is written down; nothing where the file is missing. One that cannot be read is kept under
/// another name, for whoever wants to pin its images again.
fn read(path: &Path) -> Vec<Record> {
    let read = std::fs::read(path).and_then(|json| Ok(serde_json::from_slice(&json)?));
    read.unwrap_or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            let aside = path.with_extension("json.damaged");
            let moved = std::fs::rename(path, &aside).err();
            tracing::error!(path = %path.display(), %error, aside = %aside.display(), ?moved,
                "cannot read what is pinned: pin it again");
        }
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::agent::testing::{described, image_reply, images, silent_registry};
    use crate::registry::client::testing::{Reply, Server};

    /// The pins of a cache in which the image `reference` is pinned.
    fn pins(cache: &Path, reference: &str, manifest: Digest) -> Pins {
        let record = Record { reference: reference.to_owned(), manifest };
        std::fs::write(cache.join(FILE), serde_json::to_vec(&[record]).unwrap()).unwrap();
        let images = images(cache);
        let completer = Completer::new(images.clone(), Duration::ZERO);
        Pins::open(images, completer, cache)
    }

    #[test]
    fn regression_a_damaged_list_of_pins_is_not_written_over() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().join(FILE);
        assert!(read(&path).is_empty());
        std::fs::write(&path, "[{\"reference\":").unwrap();
        assert!(read(&path).is_empty());
        let aside = cache.path().join("pins.json.damaged");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), "[{\"reference\":");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn regression_what_cannot_be_written_down_is_not_pinned_or_let_go() {
        let image = described(&[]);
        let manifest = Digest::of(&image[0]);
        let server = Server::start(move |seen| image_reply(&image, seen)).await;
        let cache = tempfile::tempdir().unwrap();
        let pinned = format!("{}:pinned", server.repository());
        let pins = pins(cache.path(), &pinned, manifest);
        // Nothing can be renamed to a directory that holds something.
        let file = cache.path().join(FILE);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir_all(file.join("directory")).unwrap();
        let other: Reference = format!("{}:tag", server.repository()).parse().unwrap();
        let error = pins.pin(&other).await.unwrap_err();
        assert!(matches!(error, PinError::Record { .. }), "{error}");
        pins.unpin(&pinned.parse().unwrap()).await.unwrap_err();
        let status = pins.status().await;
        assert_eq!(status.iter().map(|pin| &pin.reference).collect::<Vec<_>>(), [&pinned]);
    }

    #[tokio::test]
    async fn regression_what_is_pinned_can_be_told_while_a_registry_is_silent() {
        let server = silent_registry().await;
        let cache = tempfile::tempdir().unwrap();
        let reference = format!("{}:tag", server.repository());
        let pins = pins(cache.path(), &reference, Digest::of(b"manifest"));
        let mut restoring = std::pin::pin!(pins.restore());
        assert!(restoring.as_mut().now_or_never().is_none(), "it waits for the registry");
        assert_eq!(pins.count().now_or_never(), Some(1));
        let status = pins.status().now_or_never().unwrap();
        assert_eq!(status[0].reference, reference);
    }

    #[tokio::test]
    async fn regression_a_pinned_image_is_completed_once_its_registry_is_back() {
        let image = described(&[]);
        let (manifest, is_back) = (Digest::of(&image[0]), Arc::new(AtomicBool::new(false)));
        let back = is_back.clone();
        let server = Server::start(move |seen| match back.load(Ordering::SeqCst) {
            true => image_reply(&image, seen),
            false => Reply::new(401, ""),
        })
        .await;
        let cache = tempfile::tempdir().unwrap();
        let mut pins = pins(cache.path(), &format!("{}:tag", server.repository()), manifest);
        pins.pause = Duration::from_millis(1);
        let comes_back = async {
            while pins.status().await[0].trouble.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            is_back.store(true, Ordering::SeqCst);
        };
        let both = async { futures_util::join!(pins.restore(), comes_back) };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
        let pins = pins.pins.lock().await;
        assert!(pins.values().all(|pin| pin.work.is_some()));
    }
}
