//! What the tree lists: the tags of each image, and the images.

use std::fs;
use std::path::Path;

use serde_json::json;
use undermount_fs::digest::Digest;

use super::{ImageServe, ImageServeError, type_map, write, write_error, write_if_changed};
use crate::image::{Repository, referrers};
use crate::prepare::copy::blob_file::TEMPORARY;

impl ImageServe {
    /// Writes the list of the tags of `image` and the list of images anew.
    pub(super) fn rebuild_lists(&self, image: &Repository) -> Result<(), ImageServeError> {
        let _rebuilding = self.lists.lock().expect("no panic while it is held");
        self.replace_links(image)?;
        if self.directory(image, "manifests").is_dir() {
            let mut tags = self.tags(image);
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

    /// The tags of `image`, those that belong to manifests included.
    pub fn tags(&self, image: &Repository) -> Vec<String> {
        let tag = |name: String| match name.strip_suffix(".type-map") {
            Some(tag) => Some(tag.to_owned()),
            None => self.linked(image, &name).is_some().then_some(name),
        };
        let mut tags: Vec<_> =
            names(&self.directory(image, "manifests")).into_iter().filter_map(tag).collect();
        tags.sort();
        tags.dedup();
        tags
    }

    /// The manifest that `tag` means where it is a link to the directory of a manifest: the
    /// original made such tags before it made type maps.
    pub(super) fn linked(&self, image: &Repository, tag: &str) -> Option<Digest> {
        let target = fs::read_link(self.directory(image, "manifests").join(tag)).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    /// Writes type maps for the tags that are links, and removes the links. Where a tag is both,
    /// its type map is the newer.
    pub(super) fn replace_links(&self, image: &Repository) -> Result<(), ImageServeError> {
        for tag in names(&self.directory(image, "manifests")) {
            let linked = self.linked(image, &tag);
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
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with(TEMPORARY));
    names.sort();
    names
}

/// Images are directories with blobs, manifests and tags.
fn find_images(directory: &Path, name: &str, found: &mut Vec<String>) {
    let children = names(directory);
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
