//! Images in a view: a merged tree whose files lie in the slots of their layers.
//!
//! ```text
//! add_image: slots of the layers, slot of the image -> share layers -> name below /images
//! LOOKUP in a directory of the image -> ImageTree::find -> directory: slot of the image
//!                                                          file:      slot of its layer
//! ```

use std::io;
use std::sync::{Arc, PoisonError};

use super::contents::{Directories, Shown, Slot, directory_attr};
use super::{Attr, NodeId, SlotName, SlotTable, View, ViewError};
use crate::digest::Digest;
use crate::fill::Layer;
use crate::index::Xattr;
use crate::tree::{ImageTree, Target};

/// An image to be shown.
pub struct NewImage {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its merged tree.
    pub tree: ImageTree,
    /// Its layers, the lowest first, as in the tree.
    pub layers: Vec<Arc<Layer>>,
}

impl NewImage {
    /// The name below `/images`, see [`image_name`].
    pub fn name(&self) -> Digest {
        image_name(&self.manifest, self.layers.iter().map(|layer| layer.tree_digest()))
    }
}

/// The name of an image below `/images`: the digest of its manifest and of the `trees` of its
/// layers, the lowest first. An image whose index was found to be wrong, and was built anew, gets
/// another name: the kernel caches for good what it was told of the first.
pub fn image_name(manifest: &Digest, trees: impl IntoIterator<Item = Digest>) -> Digest {
    let mut shown = manifest.as_bytes().to_vec();
    trees.into_iter().for_each(|tree| shown.extend(tree.as_bytes()));
    Digest::of(&shown)
}

impl View {
    /// Shows an image, and returns its name. Layers that are shown already are shared.
    ///
    /// # Errors
    /// Those of [`SlotTable::slot`].
    pub fn add_image(&self, image: NewImage, slots: &mut SlotTable) -> io::Result<Digest> {
        let name = image.name();
        let NewImage { tree, layers, .. } = image;
        let layer_slots: Vec<u32> = layers
            .iter()
            .map(|layer| slots.slot(SlotName::layer(layer)))
            .collect::<io::Result<_>>()?;
        let slot = slots.slot(SlotName::Image { name })?;
        // Made before the view is locked, since every look-up waits for that lock.
        let shown: Vec<Shown> = layers
            .into_iter()
            .zip(0..)
            .map(|(layer, place)| Shown { layer, extra_links: Arc::new(tree.extra_links(place)) })
            .collect();
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        let shared = layer_slots
            .into_iter()
            .zip(shown)
            .map(|(slot, shown)| (slot, contents.share_layer(slot, shown)))
            .collect();
        contents.put(slot, Slot::Tree(Arc::new(Image { tree, layers: shared })));
        contents.images.insert(name.hex(), slot);
        Ok(name)
    }

    /// Stops showing the image with this name. Open files stay readable while something else shows
    /// their layers.
    pub fn remove_image(&self, name: &Digest) {
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = contents.images.remove(&name.hex()) else { return };
        contents.put(slot, Slot::Empty);
        contents.drop_unused_layers();
    }
}

/// An image in a view.
struct Image {
    tree: ImageTree,
    layers: Vec<(u32, Shown)>,
}

impl Image {
    /// The number of a directory.
    fn number(&self, node: NodeId) -> Result<u32, ViewError> {
        node.number()
            .filter(|&number| self.tree.has_directory(number))
            .ok_or(ViewError::Stale(node))
    }

    /// The attributes of what an entry of `directory` stands for.
    fn target_attr(&self, directory: NodeId, target: Target) -> Result<Attr, ViewError> {
        match target {
            Target::Directory(number) => self.attr(NodeId::new(directory.slot(), number)),
            Target::Leaf { layer, inode } => {
                let layer = self.layers.get(usize::from(layer));
                let (slot, shown) = layer.ok_or(ViewError::Stale(directory))?;
                shown.attr(*slot, inode)
            }
        }
    }
}

impl Directories for Image {
    fn attr(&self, directory: NodeId) -> Result<Attr, ViewError> {
        let number = self.number(directory)?;
        let (_, inode) = self.tree.metadata(number).ok_or(ViewError::Stale(directory))?;
        let nlink = self.tree.links(number).ok_or(ViewError::Stale(directory))?;
        Ok(directory_attr(directory, inode, nlink))
    }

    fn find(&self, directory: NodeId, name: &[u8]) -> Result<Option<Attr>, ViewError> {
        let target = self.tree.find(self.number(directory)?, name);
        target.map(|target| self.target_attr(directory, target)).transpose()
    }

    fn list(
        &self,
        directory: NodeId,
        skip: usize,
        emit: &mut dyn FnMut(&[u8], Attr) -> bool,
    ) -> Result<(), ViewError> {
        for (name, target) in self.tree.list(self.number(directory)?, skip) {
            if emit(name, self.target_attr(directory, target)?) {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, directory: NodeId) -> Result<NodeId, ViewError> {
        match self.number(directory)? {
            0 => Ok(NodeId::IMAGES),
            number => {
                let parent = self.tree.parent(number).ok_or(ViewError::Stale(directory))?;
                Ok(NodeId::new(directory.slot(), parent))
            }
        }
    }

    fn xattrs(&self, directory: NodeId) -> Result<Vec<Xattr<'_>>, ViewError> {
        let metadata = self.tree.metadata(self.number(directory)?);
        let (tree, inode) = metadata.ok_or(ViewError::Stale(directory))?;
        let layer = tree.header().layer;
        tree.xattrs(inode).map_err(|source| ViewError::Index { layer, source })
    }

    fn layers(&self) -> Vec<u32> {
        self.layers.iter().map(|(slot, _)| *slot).collect()
    }
}
