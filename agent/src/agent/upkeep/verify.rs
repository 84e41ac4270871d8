//! Hashing everything, and fetching again what is damaged.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, FillError, Layer, Progress};
use undermount_fs::index::LayerTree;
use undermount_fs::object::{CHUNK, ObjectKey, State, Surveyed};
use undermount_fs::source::SourceError;

use super::needs::Unknown;
use super::{Recorded, Upkeep, UpkeepError, background};
use crate::agent::images::ImageError;
use crate::control::{Failure, VerifyReport};

/// What is still missing is named up to this number, and counted beyond it.
const LOST_MAX: usize = 1000;

/// What was damaged, and dropped.
#[derive(Default)]
struct Damage {
    blobs: HashSet<Digest>,
    /// Objects; of an incomplete one, the chunks that were there.
    objects: HashMap<ObjectKey, Vec<usize>>,
}

impl Upkeep {
    /// Hashes every object, chunk, index and small blob; drops what is damaged and fetches it
    /// again, where a record says from where. `progress` counts hashed bytes.
    ///
    /// # Errors
    /// [`UpkeepError`] where directories cannot be read. What cannot be fetched is told in the
    /// report.
    pub async fn verify(&self, progress: &Arc<Progress>) -> Result<VerifyReport, UpkeepError> {
        let (upkeep, hashed) = (self.clone(), progress.clone());
        let (mut report, damage) = background::run(move || upkeep.audit(&hashed)).await??;
        if report.damaged > 0 {
            let troubles = self.repair(&damage).await;
            self.settle(&damage, troubles, &mut report);
        }
        Ok(report)
    }

    fn audit(&self, progress: &Progress) -> Result<(VerifyReport, Damage), UpkeepError> {
        let (mut report, mut damage) = (VerifyReport::default(), Damage::default());
        let objects = self.images.filler().store().survey()?;
        let blobs = self.images.filler().blobs();
        let list = blobs.list().map_err(self.unreadable("blobs"))?;
        progress.expect(objects.iter().map(|object| object.length).sum());
        progress.expect(list.iter().map(|blob| blob.bytes).sum());
        for blob in list {
            if blobs.get(&blob.digest).is_none() {
                damage.blobs.insert(blob.digest);
            }
            report.checked.add(blob.bytes);
            progress.advance(blob.bytes);
        }
        damage.blobs.extend(self.missing());
        self.audit_objects(&objects, &mut report, &mut damage, progress);
        self.audit_incomplete(&objects, &mut report, &mut damage, progress);
        report.damaged = (damage.blobs.len() + damage.objects.len()) as u64;
        Ok((report, damage))
    }

    /// Manifests and trees that are gone and without which nobody can tell what is needed: whoever
    /// found them damaged before has dropped them.
    fn missing(&self) -> Vec<Digest> {
        let (cache, unknown) = (self.images.cache(), self.needs().unknown.into_iter());
        let blobs = unknown.filter_map(|unknown| match unknown {
            Unknown::Manifest(manifest) => Some(manifest),
            Unknown::Index(layer) => Some(cache.layer(&layer)?.tree),
        });
        blobs.filter(|blob| !cache.blobs.has(blob)).collect()
    }

    fn audit_objects(
        &self,
        objects: &[Surveyed],
        report: &mut VerifyReport,
        damage: &mut Damage,
        progress: &Progress,
    ) {
        let store = self.images.filler().store();
        for object in objects.iter().filter(|object| object.state == State::Complete) {
            let audited = store.audit(object);
            report.checked.add(audited.bytes);
            progress.advance(object.length);
            if let (true, Some(key)) = (audited.damaged, object.key) {
                damage.objects.insert(key, Vec::new());
            }
        }
    }

    /// The digests of chunks are in the trees of the layers only.
    fn audit_incomplete(
        &self,
        objects: &[Surveyed],
        report: &mut VerifyReport,
        damage: &mut Damage,
        progress: &Progress,
    ) {
        let incomplete = objects.iter().filter(|object| object.state == State::Incomplete);
        let mut wanted: HashMap<ObjectKey, &Surveyed> =
            incomplete.filter_map(|object| Some((object.key?, object))).collect();
        for layer in self.needs().layers {
            if wanted.is_empty() {
                return;
            }
            let Some(tree) = self.images.kept_tree(&layer) else { continue };
            for content in contents(&tree) {
                let Some(object) = wanted.get(&content.key) else { continue };
                let store = self.images.filler().store();
                // An index that lies says nothing of the object.
                let Some((audited, chunks)) = store.audit_incomplete(content.large_name()) else {
                    continue;
                };
                report.checked.add(audited.bytes);
                progress.advance(object.length);
                wanted.remove(&content.key);
                if audited.damaged {
                    damage.objects.insert(content.key, chunks);
                }
            }
        }
        report.unknown = wanted.len() as u64;
    }

    /// Fetches again what was damaged; says what could not be had. A repository that does not deliver
    /// once is asked for no other of its images: each question would take as long.
    async fn repair(&self, damage: &Damage) -> Vec<String> {
        let (mut troubles, mut away) = (Vec::new(), HashSet::new());
        for image in self.recorded() {
            let repository = image.reference.repository();
            if away.contains(repository) {
                continue;
            }
            match self.repair_image(&image, damage).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(outage)) => {
                    troubles.push(format!("{repository}: {outage}"));
                    away.insert(repository.clone());
                }
                Err(error) => troubles.push(Failure::of(&error).in_words()),
            }
        }
        troubles
    }

    /// Fetches again what the image needs, until its registry does not deliver; breaks with why.
    async fn repair_image(
        &self,
        image: &Recorded,
        damage: &Damage,
    ) -> Result<ControlFlow<SourceError>, ImageError> {
        let resolved = self.images.restore(&image.reference, &image.manifest).await?;
        let is_touched = !damage.objects.is_empty()
            || resolved.manifest.layers.iter().any(|layer| {
                self.images.kept_tree(&layer.digest).is_none_or(|tree| {
                    let header = tree.header();
                    damage.blobs.contains(&header.spans)
                        || damage.blobs.contains(&header.span_table)
                })
            });
        if !is_touched {
            return Ok(ControlFlow::Continue(()));
        }
        let ready = self.images.make_ready(resolved, &Progress::default()).await?;
        for layer in &ready.layers {
            if let ControlFlow::Break(outage) = self.repair_layer(layer, damage).await {
                return Ok(ControlFlow::Break(outage));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// As [`Self::repair_image`]. What fails here shows in what is still missing at the end.
    async fn repair_layer(&self, layer: &Arc<Layer>, damage: &Damage) -> ControlFlow<SourceError> {
        let filler = self.images.filler();
        let header = layer.tree.header();
        let lost_spans = [header.spans, header.span_table]
            .iter()
            .any(|blob| damage.blobs.contains(blob) && !filler.blobs().has(blob));
        if lost_spans && let Err(error) = filler.bring_table(layer).await {
            tracing::warn!(layer = %layer.digest(), %error, "cannot fetch a span table again");
            outage(&error)?;
        }
        for content in contents(&layer.tree) {
            let Some(chunks) = damage.objects.get(&content.key) else { continue };
            if content.is_stored(filler.store()) {
                continue;
            }
            let content = Arc::new(content);
            let units: Vec<usize> =
                if chunks.is_empty() { content.all_units().collect() } else { chunks.clone() };
            for unit in units {
                let start = unit as u64 * CHUNK;
                let range = start..(start + CHUNK).min(content.size);
                if let Err(error) = filler.read(layer, &content, range).await {
                    tracing::warn!(object = %content.key, %error, "cannot fetch it again");
                    outage(&error)?;
                    break;
                }
            }
            let store = filler.store().clone();
            // What is in memory only is written: the disk lacks it.
            if !content.is_large()
                && let Err(error) = background::run(move || content.whole_file(&store)).await
            {
                tracing::warn!(%error, "cannot look at what was fetched again");
            }
        }
        ControlFlow::Continue(())
    }

    /// Counts what is here again.
    fn settle(&self, damage: &Damage, troubles: Vec<String>, report: &mut VerifyReport) {
        let (store, blobs) = (self.images.filler().store(), self.images.filler().blobs());
        let needs = self.needs();
        let mut lost = troubles;
        for blob in &damage.blobs {
            match (blobs.has(blob), needs.blobs.contains(blob)) {
                (true, _) => report.repaired += 1,
                (false, true) => lost.push(format!("blob {blob}")),
                (false, false) => report.dropped += 1,
            }
        }
        for (key, chunks) in &damage.objects {
            let is_here = store.contains(key) || !chunks.is_empty() && self.has_chunks(key, chunks);
            match (is_here, needs.objects.contains_key(key)) {
                (true, _) => report.repaired += 1,
                (false, true) => lost.push(format!("object {key}")),
                (false, false) => report.dropped += 1,
            }
        }
        let more = lost.len().saturating_sub(LOST_MAX);
        if more > 0 {
            lost.truncate(LOST_MAX);
            lost.push(format!("{more} more"));
        }
        report.lost = lost;
    }

    /// Whether chunks of an incomplete object are here again.
    fn has_chunks(&self, key: &ObjectKey, chunks: &[usize]) -> bool {
        let store = self.images.filler().store();
        let layers = self.needs().layers;
        let mut trees = layers.iter().filter_map(|layer| self.images.kept_tree(layer));
        let has_all = |content: Content| {
            content.key == *key && chunks.iter().all(|unit| content.is_unit_stored(store, *unit))
        };
        trees.any(|tree| contents(&tree).any(has_all))
    }
}

/// Breaks where `error` says that the registry does not deliver.
fn outage(error: &FillError) -> ControlFlow<SourceError> {
    match error.outage() {
        Some(outage @ (SourceError::Unavailable { .. } | SourceError::Deadline { .. })) => {
            ControlFlow::Break(outage.clone())
        }
        _ => ControlFlow::Continue(()),
    }
}

/// The file contents of a layer. A damaged index ends them; what reads it says so.
fn contents(tree: &LayerTree) -> impl Iterator<Item = Content> + '_ {
    Content::all(tree).map_while(Result::ok).map(|(_, content)| content)
}
