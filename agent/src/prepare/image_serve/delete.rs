//! Deleting a tag, and with it whatever only it needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use undermount_fs::digest::Digest;

use super::lists::{digests_of, names};
use super::{ImageServe, ImageServeError, write_error};
use crate::image::{Document, Repository, Tag, referrers};

impl ImageServe {
    /// Deletes `tag`, and the manifests and blobs that no other tag of the image needs; with the
    /// last tag the image. What belongs to a manifest goes with it. False where there is no such
    /// tag.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn delete(&self, image: &Repository, tag: &Tag) -> Result<bool, ImageServeError> {
        self.replace_links(image)?;
        let map = self.type_map(image, tag.as_str());
        match fs::remove_file(&map) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed.map_err(|source| write_error(&map, source))?,
        }
        self.sweep(image)?;
        self.rebuild_lists(image)?;
        Ok(true)
    }

    /// Removes what no tag of the image needs.
    fn sweep(&self, image: &Repository) -> Result<(), ImageServeError> {
        let needed = self.needed_manifests(image)?;
        let blobs: Option<Vec<_>> =
            needed.iter().map(|digest| self.blobs_of(image, digest)).collect();
        let is_needed = |name: &str| name.parse().is_ok_and(|digest| needed.contains(&digest));
        for kind in ["manifests", "referrers"] {
            let directory = self.directory(image, kind);
            for name in names(&directory) {
                if name.starts_with("sha256:") && !is_needed(&name) {
                    let path = directory.join(name);
                    fs::remove_dir_all(&path).map_err(|source| write_error(&path, source))?;
                }
            }
        }
        // What one of them needs may be any blob.
        if let Some(blobs) = blobs {
            self.keep_blobs(image, &blobs.into_iter().flatten().collect())?;
        }
        match names(&self.directory(image, "manifests")).is_empty() {
            true => self.remove(image),
            false => Ok(()),
        }
    }

    /// Removes the blobs that are not among `blobs`.
    fn keep_blobs(
        &self,
        image: &Repository,
        blobs: &BTreeSet<String>,
    ) -> Result<(), ImageServeError> {
        let directory = self.directory(image, "blobs");
        for name in names(&directory) {
            if !blobs.contains(name.trim_end_matches(".gz")) {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
            }
        }
        Ok(())
    }

    /// Removes an image, and not those whose names begin with its name.
    fn remove(&self, image: &Repository) -> Result<(), ImageServeError> {
        let gone = |removed: io::Result<()>, path: &Path| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(path, error)),
            _ => Ok(()),
        };
        for kind in ["blobs", "referrers", "tags", "manifests"] {
            let path = self.directory(image, kind);
            gone(fs::remove_dir_all(&path), &path)?;
        }
        let path = self.v2.join(image.path());
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => gone(removed, &path),
        }
    }

    /// The manifests that tags name, the children of lists, and what belongs to any of them.
    /// Tags that belong to a manifest (`sha256-...`) keep nothing, and go with it.
    fn needed_manifests(&self, image: &Repository) -> Result<BTreeSet<Digest>, ImageServeError> {
        let (reserved, versions): (Vec<_>, Vec<_>) =
            self.tags(image).into_iter().partition(|tag| referrers::is_reserved_tag(tag));
        let mut todo: Vec<Digest> =
            versions.iter().flat_map(|tag| self.meant_by(image, tag)).collect();
        let mut needed = BTreeSet::new();
        while let Some(digest) = todo.pop() {
            if !needed.insert(digest) {
                continue;
            }
            todo.extend(self.children_of(image, &digest));
            todo.extend(self.referrers(image, &digest).iter().map(|referrer| referrer.digest));
            let prefix = referrers::fallback_tag(&digest);
            let own = reserved.iter().filter(|tag| tag.starts_with(prefix.as_str()));
            todo.extend(own.flat_map(|tag| self.meant_by(image, tag)));
        }
        for tag in reserved {
            if !self.meant_by(image, &tag).iter().any(|digest| needed.contains(digest)) {
                let map = self.type_map(image, &tag);
                fs::remove_file(&map).map_err(|source| write_error(&map, source))?;
            }
        }
        Ok(needed)
    }

    /// The manifests that the type map of `tag` names.
    fn meant_by(&self, image: &Repository, tag: &str) -> Vec<Digest> {
        let map = fs::read_to_string(self.type_map(image, tag)).unwrap_or_default();
        digests_of(&map).collect()
    }

    fn document(&self, image: &Repository, digest: &Digest) -> Option<Document> {
        let bytes = fs::read(self.manifest_path(image, digest).join("index.json")).ok()?;
        Document::parse(&bytes, None).ok()
    }

    fn children_of(&self, image: &Repository, digest: &Digest) -> Vec<Digest> {
        match self.document(image, digest) {
            Some(Document::Index(index)) => {
                index.manifests.iter().map(|child| child.digest).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The blobs of a manifest, or nothing where it is there and cannot be understood, as those
    /// of Docker's schema 1 cannot.
    fn blobs_of(&self, image: &Repository, digest: &Digest) -> Option<Vec<String>> {
        match self.document(image, digest) {
            Some(Document::Manifest(manifest)) => {
                let all = std::iter::once(&manifest.config).chain(&manifest.layers);
                Some(all.map(|blob| blob.digest.to_string()).collect())
            }
            Some(Document::Index(_)) => Some(Vec::new()),
            None => (!self.manifest_path(image, digest).exists()).then(Vec::new),
        }
    }
}
