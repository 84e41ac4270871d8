//! Garbage: what no image needs any more, found and removed while the registry serves.
//!
//! ```text
//! repository by repository, under its lock:
//!   manifests that nothing leads to (if wished)  ->  removed, with their indexes
//!   links of blobs that no manifest names        ->  removed, unless they are young
//! then, over all repositories:
//!   blobs that no repository has                 ->  removed, unless they are young
//! ```
//! What a pushed manifest names is never removed, whatever happens at the same time: see
//! [`Sweep`]. The age (`grace`) is for what is pushed before its manifest: such blobs stay while
//! an upload to their repository is open, and for a time after they were pushed, mounted or
//! asked for.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::digest::ContentDigest;
use super::indexing::{Image, artifacts};
use super::manifest::{Part, Submitted};
use super::name::Repository;
use super::storage::{Aged, Change, Storage, StorageError, Sweep};
use super::target::Reference;
use crate::registry::{Collected, GarbageRules};

/// Why garbage was not collected to the end.
#[derive(Debug, thiserror::Error)]
pub enum GarbageError {
    /// Somebody collects it already.
    #[error("garbage is being collected already")]
    Busy,
    /// The registry is shutting down.
    #[error("the registry is shutting down")]
    Stopped,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Collects garbage as of `now`. `is_busy` says whether someone uploads to a repository; `stop`
/// ends the work early, with what was removed so far gone.
///
/// # Errors
/// [`GarbageError`].
pub fn collect(
    storage: &Storage,
    rules: &GarbageRules,
    now: SystemTime,
    is_busy: impl Fn(&Repository) -> bool,
    stop: &CancellationToken,
) -> Result<Collected, GarbageError> {
    let sweep = storage.sweep().ok_or(GarbageError::Busy)?;
    let mut collector =
        Collector { storage, rules, now, needed: HashSet::new(), done: Collected::default() };
    for repository in sweep.repositories()? {
        if stop.is_cancelled() {
            return Err(GarbageError::Stopped);
        }
        collector.visit(&repository, is_busy(&repository))?;
    }
    let indexes = sweep.keep_indexes_of(&collector.needed, rules.dry_run)?;
    collector.needed.extend(indexes);
    collector.remove_blobs(&sweep, stop)?;
    Ok(collector.done)
}

/// Removes a manifest and the index that belongs to it; says whether it was there.
///
/// # Errors
/// [`StorageError`] where the disk fails.
pub fn delete_manifest(
    storage: &Storage,
    change: &Change<'_>,
    image: &Image,
) -> Result<bool, StorageError> {
    // A manifest that can no longer be read can still be deleted.
    let subject =
        read(storage, &image.repository, &image.digest).and_then(|submitted| submitted.subject);
    let existed = change.delete_manifest(&image.digest, subject.as_ref())?;
    // The index of an image is of no use without it; other referrers are their owners' affair.
    for artifact in artifacts(storage, image)? {
        change.delete_manifest(&artifact, Some(&image.digest))?;
    }
    Ok(existed)
}

fn read(storage: &Storage, repository: &Repository, digest: &ContentDigest) -> Option<Submitted> {
    let reference = Reference::Digest(digest.clone());
    let manifest = storage.manifest(repository, &reference).ok().flatten()?;
    Submitted::parse(&manifest.bytes, Some(&manifest.media_type)).ok()
}

/// One collection.
struct Collector<'a> {
    storage: &'a Storage,
    rules: &'a GarbageRules,
    now: SystemTime,
    /// What the repositories seen so far keep.
    needed: HashSet<ContentDigest>,
    done: Collected,
}

/// What a manifest leads to.
#[derive(Debug, Default)]
struct Node {
    /// Whether it stays for its own sake: it has a tag or is young.
    is_root: bool,
    children: Vec<ContentDigest>,
    subject: Option<ContentDigest>,
    blobs: Vec<ContentDigest>,
}

impl Node {
    fn of(submitted: Submitted) -> Self {
        let digest = |part: &Part| part.digest.clone();
        Self {
            is_root: false,
            children: submitted.manifests().iter().map(digest).collect(),
            // Also those that need not be here: somebody may have pushed them.
            blobs: submitted.named_blobs().map(digest).collect(),
            subject: submitted.subject,
        }
    }
}

impl Collector<'_> {
    /// Removes the garbage of one repository, and notes what it keeps.
    fn visit(&mut self, repository: &Repository, is_busy: bool) -> Result<(), StorageError> {
        let change = self.storage.change(repository);
        let manifests = change.manifests()?;
        let (nodes, all_read) = self.nodes(repository, &manifests)?;
        // Where a manifest leads that cannot be read is not known.
        let all_kept = !self.rules.untagged || !all_read;
        let kept = if all_kept { nodes.keys().collect() } else { reached(&nodes) };
        for digest in nodes.keys().filter(|digest| !kept.contains(digest)) {
            self.done.manifests += 1;
            if !self.rules.dry_run {
                let image = Image { repository: repository.clone(), digest: digest.clone() };
                delete_manifest(self.storage, &change, &image)?;
            }
        }
        let named: HashSet<&ContentDigest> = kept
            .iter()
            .filter_map(|digest| nodes.get(digest))
            .flat_map(|node| &node.blobs)
            .collect();
        for link in change.blobs()? {
            let stays =
                !all_read || is_busy || named.contains(&link.digest) || self.is_young(&link);
            if stays {
                self.needed.insert(link.digest);
                continue;
            }
            self.done.links += 1;
            if !self.rules.dry_run {
                change.unlink_blob(&link.digest)?;
            }
        }
        self.needed.extend(kept.into_iter().cloned());
        Ok(())
    }

    /// The manifests of a repository and what they lead to; and whether all could be read.
    fn nodes(
        &self,
        repository: &Repository,
        manifests: &[Aged],
    ) -> Result<(BTreeMap<ContentDigest, Node>, bool), StorageError> {
        let tagged = self.storage.tagged(repository)?;
        let mut all_read = true;
        let mut nodes = BTreeMap::new();
        for manifest in manifests {
            let digest = &manifest.digest;
            let submitted = read(self.storage, repository, digest);
            all_read &= submitted.is_some();
            let is_root = tagged.contains(digest) || self.is_young(manifest);
            let mut node = submitted.map(Node::of).unwrap_or_default();
            node.is_root = is_root;
            nodes.insert(digest.clone(), node);
        }
        Ok((nodes, all_read))
    }

    fn remove_blobs(
        &mut self,
        sweep: &Sweep<'_>,
        stop: &CancellationToken,
    ) -> Result<(), GarbageError> {
        sweep.each_blob(|blob| {
            if stop.is_cancelled() {
                return Err(GarbageError::Stopped);
            }
            if self.needed.contains(&blob.digest) || self.is_young(&blob) {
                return Ok(());
            }
            if self.rules.dry_run || sweep.remove_blob(&blob.digest)? {
                self.done.blobs += 1;
                self.done.bytes += blob.size;
            }
            Ok(())
        })
    }

    /// Whether something is too young to be garbage. What was made in the future is: the clock
    /// was wrong once.
    fn is_young(&self, thing: &Aged) -> bool {
        let age = self.now.duration_since(thing.modified).unwrap_or_default();
        age < self.rules.grace
    }
}

/// The manifests that roots lead to: their children, and what has one of them as its subject.
/// What has a subject that is not here may be about an image that is yet to come.
fn reached(nodes: &BTreeMap<ContentDigest, Node>) -> HashSet<&ContentDigest> {
    let is_root = |node: &Node| {
        node.is_root || node.subject.as_ref().is_some_and(|subject| !nodes.contains_key(subject))
    };
    let mut waiting: Vec<&ContentDigest> =
        nodes.iter().filter(|(_, node)| is_root(node)).map(|(digest, _)| digest).collect();
    let mut reached = HashSet::new();
    while let Some(digest) = waiting.pop() {
        if !reached.insert(digest) {
            continue;
        }
        let children = nodes.get(digest).into_iter().flat_map(|node| &node.children);
        waiting.extend(children.filter(|child| nodes.contains_key(child)));
        let about = nodes.iter().filter(|(_, node)| node.subject.as_ref() == Some(digest));
        waiting.extend(about.map(|(referrer, _)| referrer));
    }
    reached
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::digest::Algorithm;
    use super::super::storage::testing::{Fixture, fixture};
    use super::super::storage::{Referrer, StoredManifest};
    use super::*;
    use crate::image::manifest::media_type::OCI_MANIFEST;

    /// A collection long after everything was pushed.
    const LATER: Duration = Duration::from_secs(7200);
    const RULES: GarbageRules =
        GarbageRules { grace: Duration::from_secs(3600), untagged: false, dry_run: false };

    fn digest(text: &str) -> ContentDigest {
        ContentDigest::of(Algorithm::Sha256, text.as_bytes())
    }

    impl Fixture {
        fn blob(&self, text: &str) -> Value {
            let mut upload = self.storage.begin(text);
            upload.append(&[text.to_owned().into()]).unwrap();
            self.storage.commit(upload, &self.repository, &digest(text)).unwrap();
            json!({ "mediaType": "application/x", "digest": digest(text), "size": text.len() })
        }

        fn manifest(&self, layers: &[Value], subject: Option<&ContentDigest>) -> ContentDigest {
            let mut manifest = json!({
                "schemaVersion": 2, "config": self.blob("{}"), "layers": layers,
            });
            if let Some(subject) = subject {
                manifest["subject"] =
                    json!({ "mediaType": OCI_MANIFEST, "digest": subject, "size": 1 });
            }
            let text = manifest.to_string();
            self.put(&text)
        }

        fn put(&self, text: &str) -> ContentDigest {
            let parsed = Submitted::parse(text.as_bytes(), None).ok();
            let media_type = parsed.as_ref().map_or(OCI_MANIFEST, |parsed| &parsed.media_type);
            let manifest = StoredManifest {
                digest: digest(text),
                media_type: media_type.to_owned(),
                bytes: text.into(),
            };
            let subject = parsed.and_then(|parsed| parsed.subject);
            let referrer = subject.map(|subject| Referrer { subject, descriptor: b"{}".to_vec() });
            let change = self.storage.change(&self.repository);
            change.put_manifest(&manifest, &[], referrer.as_ref(), &[]).unwrap();
            manifest.digest
        }

        fn tag(&self, tag: &str, digest: &ContentDigest) {
            let reference = Reference::Digest(digest.clone());
            let manifest = self.storage.manifest(&self.repository, &reference).unwrap().unwrap();
            let change = self.storage.change(&self.repository);
            change.put_manifest(&manifest, &[], None, &[tag.parse().unwrap()]).unwrap();
        }

        fn collect(&self, rules: GarbageRules) -> Collected {
            let now = SystemTime::now() + LATER;
            collect(&self.storage, &rules, now, |_| false, &CancellationToken::new()).unwrap()
        }

        fn has(&self, text: &str) -> bool {
            self.storage.any_blob(&digest(text)).unwrap().is_some()
        }
    }

    #[test]
    fn what_a_manifest_names_stays_and_the_rest_goes() {
        let f = fixture();
        f.manifest(&[f.blob("layer")], None);
        f.blob("left over");
        let counted = f.collect(GarbageRules { dry_run: true, ..RULES });
        assert!(f.has("left over"));
        let expected = Collected { manifests: 0, links: 1, blobs: 1, bytes: 9 };
        assert_eq!((counted, f.collect(RULES)), (expected, expected));
        assert!(f.has("layer") && f.has("{}") && !f.has("left over"));
        assert_eq!(f.collect(RULES), Collected::default());
    }

    #[test]
    fn layers_that_need_not_be_here_stay_where_they_are() {
        let f = fixture();
        let mut layer = f.blob("foreign");
        layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
        f.manifest(&[layer], None);
        assert_eq!(f.collect(RULES), Collected::default());
    }

    #[test]
    fn what_is_young_or_being_uploaded_to_stays() {
        let f = fixture();
        f.blob("young");
        let (now, stop) = (SystemTime::now(), CancellationToken::new());
        let collect = |now, busy: bool| collect(&f.storage, &RULES, now, |_| busy, &stop).unwrap();
        assert_eq!(collect(now, false), Collected::default());
        assert_eq!(collect(now + LATER, true), Collected::default());
        assert_eq!(collect(now + LATER, false).blobs, 1);
    }

    #[test]
    fn a_deleted_image_leaves_its_blobs_to_the_images_that_share_them() {
        let f = fixture();
        let (shared, own) = (f.blob("shared"), f.blob("own"));
        f.manifest(std::slice::from_ref(&shared), None);
        let gone = f.manifest(&[shared, own], None);
        f.storage.change(&f.repository).delete_manifest(&gone, None).unwrap();
        f.collect(RULES);
        assert!(f.has("shared") && !f.has("own"));
    }

    #[test]
    fn untagged_manifests_go_only_if_wished_and_nothing_leads_to_them() {
        let f = fixture();
        let child = f.manifest(&[f.blob("child")], None);
        let index = json!({ "schemaVersion": 2, "manifests": [
            { "mediaType": OCI_MANIFEST, "digest": child, "size": 1 },
        ] });
        let index = f.put(&index.to_string());
        f.tag("latest", &index);
        let about = f.manifest(&[f.blob("signature")], Some(&index));
        f.manifest(&[f.blob("sbom of the signature")], Some(&about));
        f.manifest(&[f.blob("about one to come")], Some(&digest("to come")));
        let loose = f.manifest(&[f.blob("loose")], None);
        f.manifest(&[f.blob("about the loose")], Some(&loose));
        assert_eq!(f.collect(RULES), Collected::default());
        let collected = f.collect(GarbageRules { untagged: true, ..RULES });
        assert_eq!((collected.manifests, collected.blobs), (2, 4));
        for kept in ["child", "signature", "sbom of the signature", "about one to come"] {
            assert!(f.has(kept), "{kept}");
        }
        assert!(!f.has("loose") && !f.has("about the loose"));
    }

    #[test]
    fn a_manifest_that_cannot_be_read_keeps_everything_in_its_repository() {
        let f = fixture();
        f.put("not a manifest");
        f.manifest(&[], None);
        f.blob("may be needed");
        assert_eq!(f.collect(GarbageRules { untagged: true, ..RULES }), Collected::default());
        assert!(f.has("may be needed"));
    }

    #[test]
    fn what_is_given_to_a_repository_during_a_sweep_stays() {
        let f = fixture();
        f.blob("old");
        f.storage.change(&f.repository).unlink_blob(&digest("old")).unwrap();
        let sweep = f.storage.sweep().unwrap();
        assert!(f.storage.change(&f.repository).link_blob(&digest("old")).unwrap());
        assert!(!sweep.remove_blob(&digest("old")).unwrap());
        assert!(f.storage.sweep().is_none(), "one at a time");
        drop(sweep);
        assert!(f.has("old"));
    }

    #[test]
    fn what_a_sweep_removed_is_not_given_to_a_repository() {
        let f = fixture();
        f.blob("old");
        f.storage.change(&f.repository).unlink_blob(&digest("old")).unwrap();
        let sweep = f.storage.sweep().unwrap();
        assert!(sweep.remove_blob(&digest("old")).unwrap());
        assert!(!f.storage.change(&f.repository).link_blob(&digest("old")).unwrap());
    }
}
