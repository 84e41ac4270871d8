//! The layers of an image, one above the other. What goes wrong in one of them names it.

use std::sync::Arc;

use super::TreeError;
use crate::index::{IndexError, InodeFlags, InodeRecord, LayerTree};

/// The layers, 0 the lowest.
#[derive(Clone)]
pub(super) struct Stack(Arc<[Arc<LayerTree>]>);

/// An inode of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub layer: u16,
    pub inode: u32,
}

impl Stack {
    pub fn new(layers: Vec<Arc<LayerTree>>) -> Self {
        Self(layers.into())
    }

    /// All layers, the lowest first.
    pub fn trees(&self) -> &[Arc<LayerTree>] {
        &self.0
    }

    /// The layer with this number, which a [`Part`] or an entry of the image names.
    pub fn tree(&self, layer: u16) -> &LayerTree {
        &self.0[usize::from(layer)]
    }

    /// An error about the index of `layer`.
    pub fn failed(&self, layer: u16) -> impl Fn(IndexError) -> TreeError + use<> {
        let layer = self.tree(layer).header().layer;
        move |source| TreeError::Index { layer, source }
    }

    pub fn record(&self, part: Part) -> Result<InodeRecord, TreeError> {
        self.tree(part.layer).inode(part.inode).copied().map_err(self.failed(part.layer))
    }

    pub fn is_directory(&self, part: Part) -> Result<bool, TreeError> {
        Ok(self.record(part)?.is_directory())
    }

    /// Whether a directory hides what lower layers have at its path.
    pub fn is_opaque(&self, part: Part) -> Result<bool, TreeError> {
        Ok(self.record(part)?.flags.get() & InodeFlags::OPAQUE != 0)
    }

    /// Whether a directory has the metadata of the one below it.
    pub fn is_implicit(&self, part: Part) -> Result<bool, TreeError> {
        Ok(self.record(part)?.flags.get() & InodeFlags::IMPLICIT != 0)
    }

    /// The roots of the layers below `top` that are visible, the topmost first.
    pub fn roots(&self, top: u16) -> Vec<Part> {
        (0..top).rev().map(|layer| Part { layer, inode: 0 }).collect()
    }
}
