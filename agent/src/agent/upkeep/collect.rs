//! Dropping what no image needs.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use undermount_fs::object::{ObjectKey, State, Surveyed};

use super::{Needs, Upkeep, UpkeepError, background};
use crate::agent::cache::{SET_ASIDE, is_unfinished};
use crate::control::{CollectReport, CollectRequest};

/// Files of a record that is being written are younger than this.
const SETTLED: Duration = Duration::from_secs(60);

impl Upkeep {
    /// Drops what no recorded image needs, what crashes and older versions left, and, where
    /// `request` says so, what was not used for longest.
    ///
    /// # Errors
    /// [`UpkeepError`] where directories cannot be read.
    pub async fn collect(&self, request: CollectRequest) -> Result<CollectReport, UpkeepError> {
        let upkeep = self.clone();
        background::run(move || upkeep.collect_now(request)).await?
    }

    fn collect_now(&self, request: CollectRequest) -> Result<CollectReport, UpkeepError> {
        // What arrives from now on is not looked at: somebody is just fetching an image.
        let begin = SystemTime::now();
        let needs = self.needs();
        let mut report = CollectReport::default();
        if let Some(unknown) = needs.unknown.first() {
            report.trouble = Some(format!(
                "{unknown} is missing or damaged, so nobody can tell what else is needed; run \
                 `undermount cache verify`"
            ));
        } else {
            self.drop_objects(&needs, begin, &mut report)?;
            self.drop_blobs(&needs, begin, &mut report)?;
            let is_needed = |layer: &_| needs.layers.contains(layer);
            report.records = self.images.cache().retain_layers(begin, is_needed);
        }
        self.drop_leftovers(begin, &mut report)?;
        if let Some(target) = request.to {
            self.shrink(target, &mut report)?;
        }
        Ok(report)
    }

    fn drop_objects(
        &self,
        needs: &Needs,
        begin: SystemTime,
        report: &mut CollectReport,
    ) -> Result<(), UpkeepError> {
        let store = self.images.filler().store();
        let is_superfluous = |object: &Surveyed| {
            let is_needed = |key: &ObjectKey| {
                let has_successor = object.state == State::Incomplete && store.contains(key);
                needs.objects.contains_key(key) && !has_successor
            };
            !object.key.as_ref().is_some_and(is_needed)
        };
        for object in store.survey()? {
            if is_superfluous(&object) && object.is_older_than(begin) && store.discard(&object) > 0
            {
                report.objects.add(object.allocated);
            }
        }
        Ok(())
    }

    fn drop_blobs(
        &self,
        needs: &Needs,
        begin: SystemTime,
        report: &mut CollectReport,
    ) -> Result<(), UpkeepError> {
        let blobs = self.images.filler().blobs();
        for blob in blobs.list().map_err(self.unreadable("blobs"))? {
            let is_superfluous = !needs.blobs.contains(&blob.digest) && blob.modified < begin;
            if is_superfluous && blobs.remove(&blob.digest).is_ok() {
                report.blobs.add(blob.bytes);
            }
        }
        Ok(())
    }

    /// Files of records that were never finished, and caches of older versions.
    fn drop_leftovers(
        &self,
        begin: SystemTime,
        report: &mut CollectReport,
    ) -> Result<(), UpkeepError> {
        for directory in ["layers", "refs"] {
            let path = self.cache.join(directory);
            let entries = fs::read_dir(&path).map_err(self.unreadable(directory))?;
            for entry in entries.filter_map(Result::ok) {
                let is_unfinished = is_unfinished(&entry.file_name().to_string_lossy());
                if is_unfinished && is_settled(&entry.path(), begin) {
                    report.leftovers += u64::from(fs::remove_file(entry.path()).is_ok());
                }
            }
        }
        let entries = fs::read_dir(&self.cache).map_err(self.unreadable(""))?;
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(SET_ASIDE) {
                report.leftovers += u64::from(fs::remove_dir_all(entry.path()).is_ok());
            }
        }
        Ok(())
    }

    fn shrink(&self, target: u64, report: &mut CollectReport) -> Result<(), UpkeepError> {
        let store = self.images.filler().store();
        let (used, evicted) = (store.usage().bytes, store.usage().evicted);
        if used > target {
            report.objects.bytes += store.make_room(used - target)?;
            report.objects.count += store.usage().evicted - evicted;
        }
        Ok(())
    }
}

fn is_settled(path: &Path, now: SystemTime) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > SETTLED))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use undermount_fs::digest::Digest;
    use undermount_fs::fill::Progress;

    use super::*;
    use crate::agent::testing::{described, image_registry, images, keep_image, keep_index, layer};
    use crate::image::Reference;

    #[tokio::test]
    async fn regression_what_an_image_needs_whose_manifest_is_gone_is_kept_until_it_is_back() {
        let layers = [layer(&[("file", None)])];
        let server = image_registry(described(&layers)).await;
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        let reference: Reference = format!("{}:tag", server.repository()).parse().unwrap();
        let manifest = keep_image(&images, &layers);
        keep_index(&images, &layers[0]);
        images.cache().put_complete(&reference, &manifest).unwrap();
        images.cache().blobs.remove(&manifest).unwrap();
        let upkeep = Upkeep::new(images.clone(), Vec::new());
        let report = upkeep.collect(CollectRequest::default()).await.unwrap();
        assert!(report.trouble.unwrap().contains(&format!("the manifest {manifest}")));
        let here = |digest: &Digest| images.cache().blobs.has(digest);
        assert!(here(&layers[0].tree_digest()));
        assert!(images.cache().layer(&layers[0].digest()).is_some());

        let report = upkeep.verify(&Arc::new(Progress::default())).await.unwrap();
        assert_eq!((report.damaged, report.repaired, report.lost), (1, 1, Vec::new()));
        let report = upkeep.collect(CollectRequest::default()).await.unwrap();
        assert!(report.trouble.is_none() && here(&manifest) && here(&layers[0].tree_digest()));
    }
}
