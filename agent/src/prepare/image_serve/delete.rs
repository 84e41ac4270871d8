//! Deleting a tag, and with it whatever only it needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use undermount_fs::digest::Digest;

use super::lists::{digests_of, names};
use super::{ImageServe, ImageServeError, if_there, write_error};
use crate::image::{Document, Repository, Tag, referrers};

/// What the tags that stay need.
struct Needed {
    manifests: BTreeSet<Digest>,
    /// Nothing where a manifest is not understood, which may need any.
    blobs: Option<BTreeSet<String>>,
    /// Tags of manifests that are needed no more.
    strays: Vec<String>,
}

impl ImageServe {
    /// Deletes `tag`, and the manifests and blobs that no other tag of the image needs; with the
    /// last tag the image. What belongs to a manifest goes with it. False where there is no such
    /// tag.
    ///
    /// # Errors
    /// [`ImageServeError::Read`] where it cannot be told what the other tags need: then all stays.
    /// [`ImageServeError::Write`] where something cannot be removed.
    pub fn delete(&self, image: &Repository, tag: &Tag) -> Result<bool, ImageServeError> {
        self.replace_links(image)?;
        let mut tags = self.read_tags(image)?;
        let Some(at) = tags.iter().position(|other| other == tag.as_str()) else {
            return Ok(false);
        };
        tags.remove(at);
        // All is read before anything is removed.
        let needed = self.needed(image, tags)?;
        self.remove_tag(image, tag.as_str())?;
        self.sweep(image, &needed)?;
        self.rebuild_lists(image)?;
        Ok(true)
    }

    /// Removes a tag: its type map, and the link where it still is one.
    fn remove_tag(&self, image: &Repository, tag: &str) -> Result<(), ImageServeError> {
        let map = self.type_map(image, tag);
        gone(fs::remove_file(&map), &map)?;
        let link = self.directory(image, "manifests").join(tag);
        match self.linked(image, tag)? {
            Some(_) => gone(fs::remove_file(&link), &link),
            None => Ok(()),
        }
    }

    /// Removes what no tag of the image needs.
    fn sweep(&self, image: &Repository, needed: &Needed) -> Result<(), ImageServeError> {
        for tag in &needed.strays {
            self.remove_tag(image, tag)?;
        }
        let is_needed =
            |name: &str| name.parse().is_ok_and(|digest| needed.manifests.contains(&digest));
        for kind in ["manifests", "referrers"] {
            let directory = self.directory(image, kind);
            for name in names(&directory)? {
                if name.starts_with("sha256:") && !is_needed(&name) {
                    let path = directory.join(name);
                    fs::remove_dir_all(&path).map_err(|source| write_error(&path, source))?;
                }
            }
        }
        if let Some(blobs) = &needed.blobs {
            self.keep_blobs(image, blobs)?;
        }
        match names(&self.directory(image, "manifests"))?.is_empty() {
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
        for name in names(&directory)? {
            if !blobs.contains(name.trim_end_matches(".gz")) {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
            }
        }
        Ok(())
    }

    /// Removes an image, and not those whose names begin with its name.
    fn remove(&self, image: &Repository) -> Result<(), ImageServeError> {
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

    /// What `tags` need: the manifests that they name, the children of lists, what belongs to any
    /// of them, and the blobs of all. Tags that belong to a manifest (`sha256-...`) keep nothing,
    /// and go with it.
    fn needed(&self, image: &Repository, tags: Vec<String>) -> Result<Needed, ImageServeError> {
        let mut todo = Vec::new();
        let mut reserved = Vec::new();
        for tag in tags {
            let meant = self.meant_by(image, &tag)?;
            match referrers::is_reserved_tag(&tag) {
                true => reserved.push((tag, meant)),
                false => todo.extend(meant),
            }
        }
        let (mut manifests, mut blobs) = (BTreeSet::new(), Some(BTreeSet::new()));
        while let Some(digest) = todo.pop() {
            if !manifests.insert(digest) {
                continue;
            }
            let uses = self.uses_of(image, &digest)?;
            todo.extend(uses.children);
            match (&mut blobs, uses.blobs) {
                (Some(all), Some(more)) => all.extend(more),
                _ => blobs = None,
            }
            let belonging = self.read_referrers(image, &digest)?;
            todo.extend(belonging.iter().map(|referrer| referrer.digest));
            let prefix = referrers::fallback_tag(&digest);
            let own = reserved.iter().filter(|(tag, _)| tag.starts_with(prefix.as_str()));
            todo.extend(own.flat_map(|(_, meant)| meant));
        }
        reserved.retain(|(_, meant)| !meant.iter().any(|digest| manifests.contains(digest)));
        let strays = reserved.into_iter().map(|(tag, _)| tag).collect();
        Ok(Needed { manifests, blobs, strays })
    }

    /// The manifests that `tag` names.
    fn meant_by(&self, image: &Repository, tag: &str) -> Result<Vec<Digest>, ImageServeError> {
        let path = self.type_map(image, tag);
        match if_there(&path, fs::read_to_string(&path))? {
            Some(map) => Ok(digests_of(&map).collect()),
            None => Ok(self.linked(image, tag)?.into_iter().collect()),
        }
    }

    /// What the manifest `digest` names. One that is not there names nothing.
    fn uses_of(&self, image: &Repository, digest: &Digest) -> Result<Uses, ImageServeError> {
        let directory = self.manifest_path(image, digest);
        let path = directory.join("index.json");
        let nothing = Uses { children: Vec::new(), blobs: Some(BTreeSet::new()) };
        let Some(bytes) = if_there(&path, fs::read(&path))? else {
            let blobs = (!directory.exists()).then(BTreeSet::new);
            return Ok(Uses { blobs, ..nothing });
        };
        Ok(match Document::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) => {
                let all = std::iter::once(&manifest.config).chain(&manifest.layers);
                let blobs = all.map(|blob| blob.digest.to_string()).collect();
                Uses { blobs: Some(blobs), ..nothing }
            }
            Ok(Document::Index(index)) => {
                let children = index.manifests.iter().map(|child| child.digest).collect();
                Uses { children, ..nothing }
            }
            Err(_) => Uses { blobs: None, ..nothing },
        })
    }
}

/// What a manifest names.
struct Uses {
    children: Vec<Digest>,
    /// Nothing where the manifest is not understood, as those of Docker's schema 1 are not.
    blobs: Option<BTreeSet<String>>,
}

/// What was to be removed is not there.
fn gone(removed: io::Result<()>, path: &Path) -> Result<(), ImageServeError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(path, error)),
        _ => Ok(()),
    }
}
