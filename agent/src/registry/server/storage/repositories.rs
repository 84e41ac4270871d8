//! Repositories: manifests, tags and referrers. The manifest's link file is what makes a
//! manifest exist; what a crash leaves beside it is overwritten by the next push or ignored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::digest::ContentDigest;
use super::super::name::Repository;
use super::super::target::Reference;
use super::{Change, Storage, StorageError, durable};
use crate::image::reference::Tag;

/// A manifest as it is stored and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// What the bytes hash to, by the algorithm it was pushed under.
    pub digest: ContentDigest,
    /// What it was pushed as.
    pub media_type: String,
    /// The bytes, as they came.
    pub bytes: Vec<u8>,
}

/// That a manifest has another one as its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest that is referred to; it need not exist.
    pub subject: ContentDigest,
    /// The descriptor of the manifest that refers, as JSON.
    pub descriptor: Vec<u8>,
}

impl Storage {
    pub(super) fn repository_path(&self, repository: &Repository) -> PathBuf {
        self.root.join("repositories").join(repository.as_str())
    }

    fn manifest_link(&self, repository: &Repository, digest: &ContentDigest) -> PathBuf {
        self.repository_path(repository).join("_manifests").join(digest.file_name())
    }

    fn tag_path(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.repository_path(repository).join("_tags").join(tag.as_str())
    }

    fn referrers_path(&self, repository: &Repository, subject: &ContentDigest) -> PathBuf {
        self.repository_path(repository).join("_referrers").join(subject.file_name())
    }

    /// The digest that `reference` stands for, if the repository has such a manifest.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails or the tag is damaged.
    pub fn resolve(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<ContentDigest>, StorageError> {
        let digest = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => read_digest(&self.tag_path(repository, tag))?,
        };
        Ok(digest.filter(|digest| self.manifest_link(repository, digest).exists()))
    }

    /// The manifest that `reference` stands for, if the repository has it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails, or the bytes are no longer what was pushed.
    pub fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<StoredManifest>, StorageError> {
        let Some(digest) = self.resolve(repository, reference)? else { return Ok(None) };
        let Some(media_type) = durable::read(&self.manifest_link(repository, &digest))? else {
            return Ok(None);
        };
        let path = self.blob_path(&digest);
        let bytes = durable::read(&path)?.unwrap_or_default();
        let actual = ContentDigest::of(digest.algorithm(), &bytes);
        if actual != digest {
            let reason = format!("it hashes to {actual}");
            return Err(StorageError::Damaged { path, reason });
        }
        let media_type = String::from_utf8_lossy(&media_type).into_owned();
        Ok(Some(StoredManifest { digest, media_type, bytes }))
    }

    /// The size of the manifest in bytes, if the repository has it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn manifest_size(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<Option<u64>, StorageError> {
        if !self.manifest_link(repository, digest).exists() {
            return Ok(None);
        }
        Ok(self.any_blob(digest)?.map(|blob| blob.size))
    }

    /// The tags of `repository`, unsorted; `None` if nobody has ever pushed a manifest to it.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn tags(&self, repository: &Repository) -> Result<Option<Vec<String>>, StorageError> {
        let path = self.repository_path(repository);
        if !path.join("_manifests").exists() {
            return Ok(None);
        }
        let mut tags = durable::list(&path.join("_tags"))?;
        tags.retain(|name| name.parse::<Tag>().is_ok());
        Ok(Some(tags))
    }

    /// The manifests of `repository` that have a tag.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails or a tag is damaged.
    pub fn tagged(&self, repository: &Repository) -> Result<HashSet<ContentDigest>, StorageError> {
        let tags = self.repository_path(repository).join("_tags");
        let targets = durable::list(&tags)?.into_iter().map(|name| read_digest(&tags.join(name)));
        targets.filter_map(Result::transpose).collect()
    }

    /// The names of all repositories that have a manifest, unsorted.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
        self.find_repositories(has_manifests)
    }

    /// The names of the directories that `counts` accepts.
    pub(super) fn find_repositories(
        &self,
        counts: impl Fn(&Path) -> Result<bool, StorageError>,
    ) -> Result<Vec<Repository>, StorageError> {
        let mut found = Vec::new();
        let mut waiting = vec![(self.root.join("repositories"), String::new())];
        while let Some((path, name)) = waiting.pop() {
            for component in durable::list(&path)? {
                let child = path.join(&component);
                if component.starts_with('_') || !child.is_dir() {
                    continue;
                }
                let name = if name.is_empty() { component } else { format!("{name}/{component}") };
                if counts(&child)? {
                    found.extend(Repository::parse(&name));
                }
                waiting.push((child, name));
            }
        }
        Ok(found)
    }

    /// The manifests of `repository`.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn manifests(&self, repository: &Repository) -> Result<Vec<ContentDigest>, StorageError> {
        let names = durable::list(&self.repository_path(repository).join("_manifests"))?;
        Ok(names.iter().filter_map(|name| ContentDigest::from_file_name(name)).collect())
    }

    /// The descriptors, as JSON, of the manifests that have `subject` as their subject; ordered
    /// by digest.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &ContentDigest,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let dir = self.referrers_path(repository, subject);
        let mut names = durable::list(&dir)?;
        names.sort_unstable();
        let mut descriptors = Vec::with_capacity(names.len());
        for name in names {
            let Some(digest) = ContentDigest::from_file_name(&name) else { continue };
            if self.manifest_link(repository, &digest).exists() {
                descriptors.extend(durable::read(&dir.join(&name))?);
            }
        }
        Ok(descriptors)
    }
}

impl Change<'_> {
    /// Stores `manifest`, whose `blobs` the repository has, and points `tags` to it. All of it
    /// lasts when this returns.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn put_manifest(
        &self,
        manifest: &StoredManifest,
        blobs: &[ContentDigest],
        referrer: Option<&Referrer>,
        tags: &[Tag],
    ) -> Result<(), StorageError> {
        let (storage, repository) = (self.storage, self.repository);
        self.sync_blobs(blobs)?;
        storage.put_blob(&manifest.digest, &manifest.bytes)?;
        if let Some(referrer) = referrer {
            let dir = storage.referrers_path(repository, &referrer.subject);
            storage.dirs.write(&dir.join(manifest.digest.file_name()), &referrer.descriptor)?;
        }
        let link = storage.manifest_link(repository, &manifest.digest);
        storage.dirs.write(&link, manifest.media_type.as_bytes())?;
        for tag in tags {
            let path = storage.tag_path(repository, tag);
            storage.dirs.write(&path, manifest.digest.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Removes a manifest with its tags and its entry as a referrer of `subject`; says whether
    /// it was there.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn delete_manifest(
        &self,
        digest: &ContentDigest,
        subject: Option<&ContentDigest>,
    ) -> Result<bool, StorageError> {
        let (storage, repository) = (self.storage, self.repository);
        let tags = storage.repository_path(repository).join("_tags");
        for name in durable::list(&tags)? {
            let path = tags.join(name);
            if read_digest(&path).is_ok_and(|target| target.as_ref() == Some(digest)) {
                durable::remove(&path)?;
            }
        }
        let existed = durable::remove(&storage.manifest_link(repository, digest))?;
        if let Some(subject) = subject {
            let dir = storage.referrers_path(repository, subject);
            durable::remove(&dir.join(digest.file_name()))?;
        }
        Ok(existed)
    }

    /// Removes a tag, not what it points to; says whether it was there.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn delete_tag(&self, tag: &Tag) -> Result<bool, StorageError> {
        durable::remove(&self.storage.tag_path(self.repository, tag))
    }
}

fn has_manifests(repository: &Path) -> Result<bool, StorageError> {
    Ok(!durable::list(&repository.join("_manifests"))?.is_empty())
}

fn read_digest(path: &Path) -> Result<Option<ContentDigest>, StorageError> {
    let Some(content) = durable::read(path)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&content);
    text.parse().map(Some).map_err(|error| StorageError::Damaged {
        path: path.to_owned(),
        reason: format!("{error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::digest::Algorithm;
    use super::super::testing::{Fixture, fixture};
    use super::*;

    fn manifest(text: &str) -> StoredManifest {
        StoredManifest {
            digest: ContentDigest::of(Algorithm::Sha256, text.as_bytes()),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            bytes: text.into(),
        }
    }

    fn tag(name: &str) -> Tag {
        name.parse().unwrap()
    }

    impl Fixture {
        fn keep(&self, manifest: &StoredManifest, referrer: Option<&Referrer>, tags: &[Tag]) {
            self.change().put_manifest(manifest, &[], referrer, tags).unwrap();
        }

        fn change(&self) -> Change<'_> {
            self.storage.change(&self.repository)
        }

        fn get(&self, reference: Reference) -> Option<StoredManifest> {
            self.storage.manifest(&self.repository, &reference).unwrap()
        }
    }

    #[test]
    fn a_manifest_comes_back_by_tag_and_digest() {
        let f = fixture();
        let first = manifest("one");
        f.keep(&first, None, &[tag("latest"), tag("v1")]);
        assert_eq!(f.get(Reference::Tag(tag("v1"))), Some(first.clone()));
        assert_eq!(f.get(Reference::Digest(first.digest.clone())), Some(first));
        assert_eq!(f.get(Reference::Tag(tag("v2"))), None);
        let other = Repository::parse("a").unwrap();
        assert_eq!(f.storage.manifest(&other, &Reference::Tag(tag("v1"))).unwrap(), None);
    }

    #[test]
    fn a_tag_moves_and_the_manifest_it_left_stays() {
        let f = fixture();
        let (one, two) = (manifest("one"), manifest("two"));
        f.keep(&one, None, &[tag("latest")]);
        f.keep(&two, None, &[tag("latest")]);
        assert_eq!(f.get(Reference::Tag(tag("latest"))), Some(two));
        assert!(f.get(Reference::Digest(one.digest)).is_some());
    }

    #[test]
    fn deleting_a_manifest_takes_its_tags_and_no_others() {
        let f = fixture();
        let (one, two) = (manifest("one"), manifest("two"));
        f.keep(&one, None, &[tag("a"), tag("b")]);
        f.keep(&two, None, &[tag("c")]);
        assert!(f.change().delete_manifest(&one.digest, None).unwrap());
        assert!(!f.change().delete_manifest(&one.digest, None).unwrap());
        assert_eq!(f.storage.tags(&f.repository).unwrap().unwrap(), ["c"]);
        assert_eq!(f.get(Reference::Digest(one.digest)), None);
        assert!(f.change().delete_manifest(&two.digest, None).unwrap());
        assert_eq!(f.storage.tags(&f.repository).unwrap(), Some(vec![]));
    }

    #[test]
    fn deleting_a_tag_keeps_the_manifest() {
        let f = fixture();
        let one = manifest("one");
        f.keep(&one, None, &[tag("a")]);
        assert!(f.change().delete_tag(&tag("a")).unwrap());
        assert!(!f.change().delete_tag(&tag("a")).unwrap());
        assert!(f.get(Reference::Digest(one.digest)).is_some());
        assert_eq!(f.storage.tags(&f.repository).unwrap(), Some(vec![]));
    }

    #[test]
    fn referrers_are_listed_while_their_manifests_exist() {
        let f = fixture();
        let subject = manifest("image").digest;
        let (one, two) = (manifest("one"), manifest("two"));
        for (manifest, descriptor) in [(&one, "1"), (&two, "2")] {
            let referrer = Referrer { subject: subject.clone(), descriptor: descriptor.into() };
            f.keep(manifest, Some(&referrer), &[]);
        }
        assert_eq!(f.storage.referrers(&f.repository, &subject).unwrap().len(), 2);
        fs::remove_file(f.storage.manifest_link(&f.repository, &one.digest)).unwrap();
        assert_eq!(f.storage.referrers(&f.repository, &subject).unwrap(), [b"2"]);
        f.change().delete_manifest(&two.digest, Some(&subject)).unwrap();
        assert!(f.storage.referrers(&f.repository, &subject).unwrap().is_empty());
    }

    #[test]
    fn only_repositories_with_a_manifest_exist() {
        let f = fixture();
        let digest = ContentDigest::of(Algorithm::Sha256, b"");
        let empty = Repository::parse("empty").unwrap();
        f.storage.commit(f.storage.begin("session"), &empty, &digest).unwrap();
        assert_eq!(f.storage.tags(&empty).unwrap(), None);
        f.keep(&manifest("one"), None, &[]);
        assert_eq!(f.storage.repositories().unwrap(), [f.repository]);
    }

    #[test]
    fn a_blob_belongs_to_the_repositories_that_were_given_it() {
        let f = fixture();
        let digest = ContentDigest::of(Algorithm::Sha256, b"");
        assert!(!f.change().link_blob(&digest).unwrap(), "nobody pushed it");
        let other = Repository::parse("other").unwrap();
        f.storage.commit(f.storage.begin("session"), &other, &digest).unwrap();
        assert!(f.storage.blob(&f.repository, &digest).unwrap().is_none());
        assert!(f.change().link_blob(&digest).unwrap());
        assert_eq!(f.storage.blob(&f.repository, &digest).unwrap().unwrap().size, 0);
        assert!(f.change().unlink_blob(&digest).unwrap());
        assert!(f.storage.blob(&f.repository, &digest).unwrap().is_none());
    }

    #[test]
    fn an_altered_manifest_is_never_served() {
        let f = fixture();
        let one = manifest("one");
        f.keep(&one, None, &[]);
        fs::write(f.storage.blob_path(&one.digest), "two").unwrap();
        let error = f.storage.manifest(&f.repository, &Reference::Digest(one.digest)).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    }
}
