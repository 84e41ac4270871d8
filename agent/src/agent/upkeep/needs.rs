//! What images need of the cache.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};

use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, Layer};
use undermount_fs::index::{IndexError, LayerTree};
use undermount_fs::object::{ObjectKey, Pins};
use undermount_fs::view::View;

use super::Recorded;
use crate::agent::images::Images;
use crate::agent::layers::LayerShelf;
use crate::image::{Document, Manifest};

/// Disks keep files in blocks of this size.
const BLOCK: u64 = 4096;

/// What some images need of the cache.
#[derive(Debug, Default)]
pub struct Needs {
    /// Their file contents, with the bytes that each takes on disk.
    pub objects: HashMap<ObjectKey, u64>,
    /// Manifests, configs, trees and spans.
    pub blobs: HashSet<Digest>,
    /// Layers.
    pub layers: HashSet<Digest>,
    /// What should be here to tell what else is needed, and is not.
    pub unknown: Vec<Unknown>,
}

/// A blob without which nobody can tell what is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// The manifest of an image of which all was fetched once, or which just cannot be read.
    Manifest(Digest),
    /// The index of this layer.
    Index(Digest),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(manifest) => write!(f, "the manifest {manifest}"),
            Self::Index(layer) => write!(f, "the index of layer {layer}"),
        }
    }
}

impl Needs {
    /// What `recorded` images and `shown` layers need, as far as it is known here.
    pub fn of(images: &Images, recorded: &[Recorded], shown: &Shown) -> Self {
        let mut needs = Self::default();
        for layer in &shown.unused {
            needs.blobs.insert(layer.tree_digest());
        }
        for layer in &shown.used {
            needs.layers.insert(layer.digest());
            needs.add_tree(&layer.tree);
            needs.blobs.insert(layer.tree_digest());
        }
        for image in recorded {
            needs.blobs.insert(image.manifest);
            needs.add_image(images, image);
        }
        needs
    }

    /// Bytes that the file contents take on disk.
    pub fn object_bytes(&self) -> u64 {
        self.objects.values().sum()
    }

    fn add_image(&mut self, images: &Images, image: &Recorded) {
        let Some(manifest) = manifest(images, &image.manifest) else {
            if image.complete || images.filler().blobs().has(&image.manifest) {
                self.unknown.push(Unknown::Manifest(image.manifest));
            }
            return;
        };
        self.blobs.insert(manifest.config.digest);
        for layer in &manifest.layers {
            self.add_layer(images, layer.digest);
        }
    }

    fn add_layer(&mut self, images: &Images, layer: Digest) {
        if !self.layers.insert(layer) {
            return;
        }
        let Some(record) = images.cache().layer(&layer) else { return };
        self.blobs.insert(record.tree);
        match images.kept_tree(&layer) {
            Some(tree) => self.add_tree(&tree),
            None => self.unknown.push(Unknown::Index(layer)),
        }
    }

    /// Adds what a layer needs beside its tree.
    pub fn add_tree(&mut self, tree: &LayerTree) {
        let header = tree.header();
        self.blobs.extend([header.spans, header.span_table]);
        if self.add_contents(tree).is_err() {
            self.unknown.push(Unknown::Index(header.layer));
        }
    }

    fn add_contents(&mut self, tree: &LayerTree) -> Result<(), IndexError> {
        for content in Content::all(tree) {
            let (_, content) = content?;
            self.objects.insert(content.key, content.size.next_multiple_of(BLOCK));
        }
        Ok(())
    }
}

/// The images of which all was fetched once.
pub fn complete(images: &Images) -> Vec<Recorded> {
    let records = images.cache().references().into_iter().filter(|record| record.complete);
    records.filter_map(Recorded::of).collect()
}

/// The manifest with this digest, if it is here.
pub fn manifest(images: &Images, digest: &Digest) -> Option<Manifest> {
    let bytes = images.filler().blobs().get(digest)?;
    match Document::parse(bytes.bytes(), None).ok()? {
        Document::Manifest(manifest) => Some(*manifest),
        Document::Index(_) => None,
    }
}

/// The layers that a view shows.
#[derive(Clone, Default)]
pub struct Shown {
    /// Those of mounted images, and those that podman uses.
    pub used: Vec<Arc<Layer>>,
    /// Those that podman has removed. They stay in the view as long as the kernel knows them; their
    /// contents need not stay in the cache.
    pub unused: Vec<Arc<Layer>>,
}

impl From<Vec<Arc<Layer>>> for Shown {
    /// All of them used.
    fn from(used: Vec<Arc<Layer>>) -> Self {
        Self { used, unused: Vec::new() }
    }
}

impl Shown {
    /// Those of `view`, in an agent whose cache is at `cache`.
    pub fn of(view: &View, cache: &Path) -> Self {
        let all = view.layers();
        let Some(by_podman) = LayerShelf::used_layers(cache) else {
            return all.into();
        };
        let of_images: HashSet<Digest> =
            view.layers_of_images().iter().map(|layer| layer.tree_digest()).collect();
        let is_used = |layer: &Arc<Layer>| {
            let tree = layer.tree_digest();
            let names = [tree, layer.digest()];
            of_images.contains(&tree) || names.iter().any(|name| by_podman.contains(name))
        };
        let (used, unused) = all.into_iter().partition(is_used);
        Self { used, unused }
    }
}

/// Keeps the store from dropping what mounted and complete images need.
pub struct Pinned {
    images: Weak<Images>,
    view: Weak<View>,
}

impl Pinned {
    /// For the images of a cache, of which `view` shows those that are mounted.
    pub fn new(images: &Arc<Images>, view: &Arc<View>) -> Self {
        Self { images: Arc::downgrade(images), view: Arc::downgrade(view) }
    }
}

impl Pins for Pinned {
    fn keys(&self) -> HashSet<ObjectKey> {
        let Some(images) = self.images.upgrade() else { return HashSet::new() };
        let cache = images.cache().root();
        let shown = self.view.upgrade().map(|view| Shown::of(&view, cache)).unwrap_or_default();
        Needs::of(&images, &complete(&images), &shown).objects.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use undermount_fs::tree::ImageTree;
    use undermount_fs::view::{LayerView, NewImage, SlotTable};

    use super::*;
    use crate::agent::testing::{images, layer};

    #[test]
    fn regression_what_podman_has_removed_is_shown_and_needs_no_contents() {
        let cache = tempfile::tempdir().unwrap();
        let images = images(cache.path());
        let view = View::new(images.filler().clone());
        let mut slots = SlotTable::open(&cache.path().join("slots")).unwrap();
        let [removed, used, mounted] =
            ["removed", "used", "mounted"].map(|it| layer(&[(it, None)]));
        for layer in [&removed, &used, &mounted] {
            let shown = LayerView::with_whiteouts(layer.clone(), None).unwrap();
            view.add_layer(shown, &mut slots).unwrap();
        }
        let tree = ImageTree::merge(vec![mounted.tree.clone()]).unwrap();
        let manifest = Digest::of(b"manifest");
        view.add_image(NewImage { manifest, tree, layers: vec![mounted.clone()] }, &mut slots)
            .unwrap();
        let record = serde_json::json!({
            "reference": "r", "manifests": [], "uses": { used.digest().to_string(): 1 },
        });
        let path = cache.path().join("podman/r.json");
        std::fs::create_dir(cache.path().join("podman")).unwrap();
        std::fs::write(&path, record.to_string()).unwrap();

        let shown = Shown::of(&view, cache.path());
        let trees = |layers: &[Arc<Layer>]| -> HashSet<Digest> {
            layers.iter().map(|layer| layer.tree_digest()).collect()
        };
        assert_eq!(trees(&shown.used), [used.tree_digest(), mounted.tree_digest()].into());
        assert_eq!(trees(&shown.unused), [removed.tree_digest()].into());
        let needs = Needs::of(&images, &[], &shown);
        assert!(needs.blobs.contains(&removed.tree_digest()), "the next worker shows it again");
        assert!(!needs.layers.contains(&removed.digest()));

        std::fs::write(&path, "{").unwrap();
        assert_eq!(Shown::of(&view, cache.path()).used.len(), 3, "nobody knows what podman uses");
    }
}
