//! What images need of the cache.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, Layer};
use undermount_fs::index::{IndexError, LayerTree};
use undermount_fs::object::{ObjectKey, Pins};
use undermount_fs::view::View;

use super::Recorded;
use crate::agent::images::Images;
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
    /// Layers whose index should be here and is not: what they need is not known.
    pub unknown: Vec<Digest>,
}

impl Needs {
    /// What `recorded` images and `shown` layers need, as far as it is known here.
    pub fn of(images: &Images, recorded: &[Recorded], shown: &[Arc<Layer>]) -> Self {
        let mut needs = Self::default();
        for layer in shown {
            needs.layers.insert(layer.digest());
            needs.add_tree(&layer.tree);
            needs.blobs.insert(layer.tree_digest());
        }
        for image in recorded {
            needs.blobs.insert(image.manifest);
            let Some(manifest) = manifest(images, &image.manifest) else { continue };
            needs.blobs.insert(manifest.config.digest);
            for layer in &manifest.layers {
                needs.add_layer(images, layer.digest);
            }
        }
        needs
    }

    /// Bytes that the file contents take on disk.
    pub fn object_bytes(&self) -> u64 {
        self.objects.values().sum()
    }

    fn add_layer(&mut self, images: &Images, layer: Digest) {
        if !self.layers.insert(layer) {
            return;
        }
        let Some(record) = images.cache().layer(&layer) else { return };
        self.blobs.insert(record.tree);
        let Some(tree) = images.kept_tree(&layer) else { return self.unknown.push(layer) };
        self.add_tree(&tree);
    }

    /// Adds what a layer needs beside its tree.
    pub fn add_tree(&mut self, tree: &LayerTree) {
        let header = tree.header();
        self.blobs.extend([header.spans, header.span_table]);
        if self.add_contents(tree).is_err() {
            self.unknown.push(header.layer);
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
    let recorded = records.filter_map(|record| {
        Some(Recorded { reference: record.reference.parse().ok()?, manifest: record.manifest })
    });
    recorded.collect()
}

/// The manifest with this digest, if it is here.
pub fn manifest(images: &Images, digest: &Digest) -> Option<Manifest> {
    let bytes = images.filler().blobs().get(digest)?;
    match Document::parse(bytes.bytes(), None).ok()? {
        Document::Manifest(manifest) => Some(*manifest),
        Document::Index(_) => None,
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
        let shown = self.view.upgrade().map(|view| view.layers()).unwrap_or_default();
        Needs::of(&images, &complete(&images), &shown).objects.into_keys().collect()
    }
}
