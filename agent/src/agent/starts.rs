//! Starts, noticed: what the first container of an image reads is recorded without being asked.
//!
//! ```text
//! image mounted, or used by podman -> recording -> first read … silence -> profile
//!    -> <cache>/profiles -> offered to the image's registry, where that wants more, or to peers
//! ```
//!
//! The kernel asks for the bytes of a file once, so the first start of an image is seen after each
//! boot and no other. Which container it is nobody tells: a profile is kept under the command
//! of the image's config. Layers that several images share are recorded for all of those that are
//! starting: what one of them has read, the kernel has for the others, whose profiles would lack it.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::digest::Digest;
use undermount_fs::pack::Profile;
use undermount_fs::view::{Recording, View};

use super::images::{Images, Ready};
use crate::image::RunConfig;
use crate::image::artifact::pack::Purpose;
use crate::peer::exchange::Exchange;
use crate::profile::{ENOUGH, Profiles, StartRecord, is_all, name_units};
use crate::registry::client::{Client, RegistryError};

/// How often a recording is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A start is over when it has read nothing new for this long.
const SILENCE: Duration = Duration::from_secs(10);
/// A start is over this long after its first read, whatever it still reads.
const LIMIT: Duration = Duration::from_secs(120);
/// An image that nobody reads for this long was not started.
const PATIENCE: Duration = Duration::from_secs(600);
/// Fewer units are no start: somebody has looked into the image.
const LEAST: usize = 4;
/// Profiles that a node keeps.
const KEPT: usize = 256;
/// All nodes start an image at about the same time; so long they wait at most before they ask
/// whether its registry needs a profile.
const SPREAD: Duration = Duration::from_secs(10);

/// What becomes of starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// Recorded, kept, and offered to the registry that the image is from, or to peers.
    #[default]
    Share,
    /// Recorded and kept.
    Keep,
    /// Not recorded.
    Off,
}

/// Notices starts.
#[derive(Clone)]
pub struct Starts {
    view: Arc<View>,
    keeper: Arc<Keeper>,
    recorded: Recorded,
    /// Images whose start was noticed since the mounts were made, a digest a line.
    seen: PathBuf,
    running: Arc<Mutex<HashMap<Digest, AbortOnDropHandle<()>>>>,
}

/// What is done with a start that is over.
struct Keeper {
    images: Arc<Images>,
    client: Client,
    profiles: Profiles,
    /// The other nodes, for starts of images whose registry makes no packs.
    peers: Option<Exchange>,
    share: bool,
}

/// What is known of a recording.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes on.
    Going,
    /// The start is over.
    Over,
    /// There is no start.
    None,
}

impl Starts {
    /// Notices starts of `images` that are read through `view`, and has registries (by `client`)
    /// and `peers` know of them; those that were seen are written down in the file `seen`, which
    /// lasts as long as the mounts.
    pub fn new(
        images: Arc<Images>,
        view: Arc<View>,
        client: Client,
        peers: Option<Exchange>,
        recorded: Recorded,
        seen: PathBuf,
    ) -> Self {
        let profiles = Profiles::new(images.profiles_dir());
        let share = recorded == Recorded::Share;
        let keeper = Arc::new(Keeper { images, client, profiles, peers, share });
        Self { view, keeper, recorded, seen, running: Arc::default() }
    }

    /// Records the start of an image that can be read from now on, if none was seen yet. One that
    /// came with a pack of its starts has nothing to tell: it reads what the pack says.
    pub fn watch(&self, ready: &Arc<Ready>) {
        let manifest = ready.image.digest;
        let has_pack = ready.packs.iter().any(|pack| pack.purpose == Purpose::Start);
        if self.recorded == Recorded::Off || has_pack || !self.is_first(&manifest) {
            return;
        }
        let layers = ready.layers.iter().map(|layer| layer.digest());
        let recording = self.view.recorder().begin(layers);
        let (keeper, ready) = (self.keeper.clone(), ready.clone());
        let task = tokio::spawn(async move {
            if let Some(profile) = until_over(recording).await {
                keeper.take(&ready, profile).await;
            }
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, task| !task.is_finished());
        running.insert(manifest, AbortOnDropHandle::new(task));
    }

    /// Whether the image is seen for the first time; from now on it is not.
    fn is_first(&self, manifest: &Digest) -> bool {
        let line = manifest.hex();
        let seen = std::fs::read_to_string(&self.seen).unwrap_or_default();
        if seen.lines().any(|seen| seen == line) {
            return false;
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.seen);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
            tracing::warn!(path = %self.seen.display(), %error, "cannot note a start");
        }
        true
    }
}

/// Waits until the start is over; what it read, if there was one.
async fn until_over(recording: Arc<Recording>) -> Option<Profile> {
    let begin = Instant::now();
    let mut first = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let last = recording.last_news();
        first = first.or(last.map(|_| Instant::now()));
        let since = |time: Option<Instant>| time.map(|time| time.elapsed());
        match verdict(begin.elapsed(), since(first), since(last)) {
            Verdict::Going => {}
            Verdict::Over => return Some(recording.profile()),
            Verdict::None => return None,
        }
    }
}

/// What to think of a recording that began `begin` ago, saw its first read `first` ago and its
/// last new one `last` ago.
fn verdict(begin: Duration, first: Option<Duration>, last: Option<Duration>) -> Verdict {
    match (first, last) {
        (Some(first), Some(last)) if last >= SILENCE || first >= LIMIT => Verdict::Over,
        (None, _) | (_, None) if begin >= PATIENCE => Verdict::None,
        _ => Verdict::Going,
    }
}

impl Keeper {
    async fn take(self: Arc<Self>, ready: &Arc<Ready>, profile: Profile) {
        let (keeper, image) = (self.clone(), ready.clone());
        let kept = tokio::task::spawn_blocking(move || keeper.keep(&image, &profile)).await;
        let Ok(Some(record)) = kept else { return };
        if self.share {
            tokio::time::sleep(jitter(SystemTime::now())).await;
            self.offer(ready, &record).await;
        }
    }

    /// Keeps a profile of the start, if it was one; the record of this start alone.
    fn keep(&self, ready: &Ready, profile: &Profile) -> Option<StartRecord> {
        let reference = ready.image.reference.to_string();
        let tree = match self.images.merge(ready) {
            Ok(tree) => tree,
            Err(error) => {
                tracing::debug!(reference, %error, "cannot name what a start has read");
                return None;
            }
        };
        if profile.units().len() < LEAST || is_all(profile, &tree) {
            tracing::debug!(reference, units = profile.units().len(), "not a start");
            return None;
        }
        let command: Vec<String> =
            RunConfig::of(&ready.image.config).command().map(ToString::to_string).collect();
        let record = StartRecord::new(reference, ready.image.digest, command.join(" "))
            .with_start(&name_units(profile, &tree));
        let kept = self.profiles.add(record.clone());
        match kept.and_then(|name| self.profiles.keep_newest(KEPT).map(|()| name)) {
            Ok(name) => tracing::info!(profile = name, "recorded a start"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "lost a start"),
        }
        Some(record)
    }

    /// Sends a record to the registry of the image, if that wants it; where it makes no packs of
    /// them, to the other nodes.
    async fn offer(&self, ready: &Ready, record: &StartRecord) {
        let (repository, manifest) = (ready.image.reference.repository(), &ready.image.digest);
        let sent = async {
            match self.client.recorded_starts(repository, manifest).await? {
                Some(starts) if starts < ENOUGH => {
                    self.client.offer_profile(repository, manifest, record.to_json()).await?;
                    Ok::<_, RegistryError>(true)
                }
                Some(_) => Ok(true),
                None => Ok(false),
            }
        };
        let makes_packs = sent.await.unwrap_or_else(|error| {
            tracing::info!(%repository, %error, "cannot offer a profile");
            false
        });
        if let Some(peers) = self.peers.as_ref().filter(|_| !makes_packs) {
            peers.offer_profile(&repository.scope(), record).await;
        }
    }
}

/// Some time up to [`SPREAD`], another one on each node.
fn jitter(now: SystemTime) -> Duration {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SPREAD.mul_f64(f64::from(since.subsec_micros() % 1000) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{images, ready};
    use crate::image::artifact::pack::{Origin, PackEntry};
    use crate::registry::client::testing::client;

    #[tokio::test]
    async fn an_image_is_watched_once_and_only_if_it_came_without_a_pack_of_its_starts() {
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        let view = Arc::new(View::new(images.filler().clone()));
        let seen = cache.path().join("starts");
        let starts = Starts::new(images, view, client(|_| {}), None, Recorded::Keep, seen.clone());
        let packed = |name, purpose| {
            let digest = Digest::of(name);
            let (origin, blob, head) = (Origin::ByHand, digest, digest);
            let pack = PackEntry { purpose, origin, blob, size: 1, head, head_size: 1 };
            Ready { packs: vec![pack], ..ready(std::str::from_utf8(name).unwrap()) }
        };
        let plain = Arc::new(ready("plain"));
        let updated = packed(b"updated", Purpose::Update(Digest::of(b"before")));
        for image in [packed(b"packed", Purpose::Start), updated].map(Arc::new) {
            starts.watch(&image);
        }
        starts.watch(&plain);
        starts.watch(&plain);
        let noted = std::fs::read_to_string(seen).unwrap();
        let expected = [Digest::of(b"updated"), Digest::of(b"plain")];
        assert_eq!(noted.lines().collect::<Vec<_>>(), expected.map(|digest| digest.hex()));
    }

    #[test]
    fn a_start_ends_with_silence_or_at_its_limit() {
        let seconds = |seconds: u64| Duration::from_secs(seconds);
        for (begin, first, last, expected) in [
            (5, None, None, Verdict::Going),
            (599, None, None, Verdict::Going),
            (600, None, None, Verdict::None),
            (700, Some(50), Some(9), Verdict::Going),
            (700, Some(50), Some(10), Verdict::Over),
            (130, Some(120), Some(0), Verdict::Over),
        ] {
            let found = verdict(seconds(begin), first.map(seconds), last.map(seconds));
            assert_eq!(found, expected, "{begin} {first:?} {last:?}");
        }
    }

    #[test]
    fn nodes_do_not_ask_at_the_same_time() {
        let at = |micros| jitter(SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        assert!(at(0) < at(500) && at(500) < at(999) && at(999) < SPREAD);
    }
}
