//! How much of an image is here.

use std::collections::HashSet;

use undermount_fs::fill::{Content, Layer};
use undermount_fs::index::{IndexError, LayerTree};

use super::{Images, Ready, distinct};
use crate::agent::cache::Cache;

/// How much of an image is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the compressed layers, each counted once.
    pub compressed: u64,
    /// Bytes of all distinct file contents.
    pub content: u64,
    /// Bytes of them that are here.
    pub local: u64,
}

impl Images {
    /// How much of `ready` is here. Looks at every file.
    pub fn extent(&self, ready: &Ready) -> Extent {
        let mut extent = Extent::default();
        for layer in distinct(&ready.layers) {
            let header = layer.tree.header();
            let content = header.content_size.get();
            let missing = missing_bytes(&self.cache, &layer).unwrap_or(content);
            extent.compressed += header.layer_size.get();
            extent.content += content;
            extent.local += content.saturating_sub(missing);
        }
        extent
    }
}

/// Bytes of the distinct contents of a layer that the store does not have complete.
pub(super) fn missing_bytes(cache: &Cache, layer: &Layer) -> Result<u64, IndexError> {
    let tree: &LayerTree = &layer.tree;
    let mut seen = HashSet::new();
    let mut missing = 0;
    for number in tree.order() {
        let Some(content) = Content::of(tree, tree.inode(number.get())?)? else { continue };
        if seen.insert(content.key) && !content.is_stored(&cache.store) {
            missing += content.size;
        }
    }
    Ok(missing)
}
