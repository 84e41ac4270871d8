//! How much of an image is here.

use std::collections::HashSet;
use std::sync::Arc;

use undermount_fs::fill::{Content, Layer};
use undermount_fs::index::{IndexError, LayerTree};
use undermount_fs::object::{ObjectKey, Store};

use super::{Images, Ready, distinct};
use crate::blocking::blocking;

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
    /// How much of `ready` is here. Every file is looked at, on a thread that nobody waits for.
    pub async fn extent(self: &Arc<Self>, ready: &Arc<Ready>) -> Extent {
        let (images, ready) = (self.clone(), ready.clone());
        blocking(move || images.measure(&ready)).await
    }

    fn measure(&self, ready: &Ready) -> Extent {
        let mut extent = Extent::default();
        for layer in distinct(&ready.layers) {
            let header = layer.tree.header();
            let content = header.content_size.get();
            let missing = self.missing_bytes(&layer).unwrap_or(content);
            extent.compressed += header.layer_size.get();
            extent.content += content;
            extent.local += content.saturating_sub(missing);
        }
        extent
    }

    /// Bytes of the distinct contents of `layer` that are not here.
    pub(super) fn missing_bytes(&self, layer: &Layer) -> Result<u64, IndexError> {
        missing_bytes(&self.cache.store, &layer.tree, &mut HashSet::new())
    }
}

/// Bytes of the contents of a layer that `store` does not have complete, each counted once; those
/// that are `seen` already count nothing.
///
/// # Errors
/// [`IndexError`] where the index of the layer is damaged.
pub fn missing_bytes(
    store: &Store,
    tree: &LayerTree,
    seen: &mut HashSet<ObjectKey>,
) -> Result<u64, IndexError> {
    let mut missing = 0;
    for content in Content::all(tree) {
        let (_, content) = content?;
        if seen.insert(content.key) && !content.is_stored(store) {
            missing += content.size;
        }
    }
    Ok(missing)
}
