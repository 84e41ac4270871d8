//! What the tree lists: the tags of each image, and the images.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;
use undermount_fs::digest::Digest;

use super::{
    ImageServe, ImageServeError, if_there, type_map, write, write_error, write_if_changed,
};
use crate::image::{Repository, referrers};
use crate::prepare::copy::blob_file::TEMPORARY;

impl ImageServe {
    /// Writes the list of the tags of `image` and the list of images anew.
    pub(super) fn rebuild_lists(&self, image: &Repository) -> Result<(), ImageServeError> {
        let _rebuilding = self.lists.lock().expect("no panic while it is held");
        self.replace_links(image)?;
        if self.directory(image, "manifests").is_dir() {
            let mut tags = self.read_tags(image)?;
            // Nodes know where to look for indexes; to everybody else they are no images.
            tags.retain(|tag| !referrers::is_own_tag(tag));
            let list = json!({"name": image.path(), "tags": tags}).to_string();
            write_if_changed(&self.directory(image, "tags").join("list"), list.as_bytes())?;
        }
        let catalog = json!({"repositories": self.repositories()}).to_string();
        write_if_changed(&self.v2.join("_catalog"), catalog.as_bytes()).map(drop)
    }

    /// The paths of the images in the tree.
    pub fn repositories(&self) -> Vec<String> {
        let mut repositories = Vec::new();
        find_images(&self.v2, "", &mut repositories);
        repositories
    }

    /// The tags of `image`, those that belong to manifests included; none where they cannot be
    /// read.
    pub fn tags(&self, image: &Repository) -> Vec<String> {
        self.read_tags(image).unwrap_or_else(|error| {
            tracing::warn!(%image, error = &error as &dyn std::error::Error, "its tags are unknown");
            Vec::new()
        })
    }

    /// The tags of `image`, those that belong to manifests included.
    pub(super) fn read_tags(&self, image: &Repository) -> Result<Vec<String>, ImageServeError> {
        let mut tags = Vec::new();
        for name in names(&self.directory(image, "manifests"))? {
            match name.strip_suffix(".type-map") {
                Some(tag) => tags.push(tag.to_owned()),
                None if self.linked(image, &name)?.is_some() => tags.push(name),
                None => {}
            }
        }
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    /// The manifest that `tag` means where it is a link to the directory of a manifest: the
    /// original made such tags before it made type maps.
    pub(super) fn linked(
        &self,
        image: &Repository,
        tag: &str,
    ) -> Result<Option<Digest>, ImageServeError> {
        let path = self.directory(image, "manifests").join(tag);
        let target = match fs::read_link(&path) {
            // It is no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => None,
            read => if_there(&path, read)?,
        };
        let name = target.as_deref().and_then(|target| target.file_name()?.to_str());
        Ok(name.and_then(|name| name.parse().ok()))
    }

    /// Writes type maps for the tags that are links, and removes the links. Where a tag is both,
    /// its type map is the newer.
    pub(super) fn replace_links(&self, image: &Repository) -> Result<(), ImageServeError> {
        for tag in names(&self.directory(image, "manifests"))? {
            let linked = self.linked(image, &tag)?;
            let Some(raw) = linked.and_then(|digest| self.manifest(image, &digest)) else {
                continue;
            };
            let map = self.type_map(image, &tag);
            if !map.exists() {
                write(&map, type_map(&tag, &[&raw]).as_bytes())?;
            }
            let link = self.directory(image, "manifests").join(&tag);
            fs::remove_file(&link).map_err(|source| write_error(&link, source))?;
        }
        Ok(())
    }
}

/// The manifests that a type map names, the default first.
pub fn digests_of(type_map: &str) -> impl Iterator<Item = Digest> {
    type_map.lines().filter_map(|line| {
        let name = line.strip_prefix("URI: ")?.strip_suffix("/index.json")?;
        name.parse().ok()
    })
}

/// The names in a directory, sorted; none where it does not exist.
pub fn names(directory: &Path) -> Result<Vec<String>, ImageServeError> {
    let read = |directory| {
        let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
        paths.collect::<io::Result<Vec<_>>>()
    };
    let found = if_there(directory, read(directory))?.unwrap_or_default();
    let mut names: Vec<_> = found.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| !name.starts_with(TEMPORARY));
    names.sort();
    Ok(names)
}

/// Images are directories with blobs, manifests and tags.
fn find_images(directory: &Path, name: &str, found: &mut Vec<String>) {
    // What cannot be read is missing from the list until it can.
    let children = names(directory).unwrap_or_default();
    let has = |kind: &str| children.iter().any(|child| child == kind);
    if has("blobs") && has("manifests") && has("tags") {
        found.push(name.to_owned());
    }
    for child in
        children.iter().filter(|child| !matches!(child.as_str(), "blobs" | "manifests" | "tags"))
    {
        let path = directory.join(child);
        if path.is_dir() {
            let name = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
            find_images(&path, &name, found);
        }
    }
}
