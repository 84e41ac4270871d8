//! What an image has and its predecessor lacks: contents, and trees as patches.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::fill::{Content, Layer};
use undermount_fs::object::ObjectKey;
use undermount_fs::pack::{Profile, UnitName};

use super::PackerError;
use crate::agent::images::Ready;
use crate::image::artifact::patch::TreePatch;

/// The units of `image` whose contents `predecessor` lacks, in the order of the layers.
pub(super) fn difference(image: &Ready, predecessor: &Ready) -> Result<Profile, PackerError> {
    let mut known = HashSet::new();
    each_content(predecessor, |_, _, content| {
        known.insert(content.key);
    })?;
    let mut units = Vec::new();
    each_content(image, |layer, inode, content| {
        if known.insert(content.key) {
            let named = |number| UnitName { layer, inode, number: number as u32 };
            units.extend(content.all_units().map(named));
        }
    })?;
    Ok(Profile::new(units))
}

/// Patches that give the trees of `image` from those of `predecessor`, with their bytes: one for each
/// layer that the predecessor lacks, based on that of its layers which shares the most contents.
pub(super) fn patches(
    image: &Ready,
    predecessor: &Ready,
) -> Result<Vec<(TreePatch, Bytes)>, PackerError> {
    let known: HashSet<Digest> =
        predecessor.layers.iter().map(|layer| layer.tree_digest()).collect();
    let holders = holders(predecessor)?;
    let mut made = BTreeMap::new();
    for layer in image.layers.iter().filter(|layer| !known.contains(&layer.tree_digest())) {
        let Some(base) = nearest(layer, &holders)? else { continue };
        let (digest, base, tree) = (layer.digest(), base.tree.bytes(), layer.tree.bytes());
        let patch = TreePatch::make(predecessor.image.digest, base, digest, tree)
            .map_err(|source| PackerError::Patch { layer: digest, source })?;
        made.extend(patch.map(|patch| (digest, patch)));
    }
    Ok(made.into_values().collect())
}

/// The layers of an image that have each content.
type Holders = HashMap<ObjectKey, Vec<Arc<Layer>>>;

fn holders(image: &Ready) -> Result<Holders, PackerError> {
    let mut holders = Holders::new();
    for layer in &image.layers {
        for key in keys(layer)? {
            holders.entry(key).or_default().push(layer.clone());
        }
    }
    Ok(holders)
}

/// The one of the `holders` that shares the most contents with `layer`.
fn nearest(layer: &Layer, holders: &Holders) -> Result<Option<Arc<Layer>>, PackerError> {
    let mut shared: BTreeMap<Digest, (usize, &Arc<Layer>)> = BTreeMap::new();
    for holder in keys(layer)?.iter().filter_map(|key| holders.get(key)).flatten() {
        shared.entry(holder.digest()).or_insert((0, holder)).0 += 1;
    }
    let most = shared.into_values().max_by_key(|(count, _)| *count);
    Ok(most.map(|(_, holder)| holder.clone()))
}

fn keys(layer: &Layer) -> Result<HashSet<ObjectKey>, PackerError> {
    let contents = Content::all(&layer.tree).map(|content| content.map(|(_, one)| one.key));
    let damaged = |source| PackerError::Index { layer: layer.digest(), source };
    contents.collect::<Result<_, _>>().map_err(damaged)
}

/// Calls `each` with every content of the layers of an image, in the order of the tars.
fn each_content(
    image: &Ready,
    mut each: impl FnMut(Digest, u32, &Content),
) -> Result<(), PackerError> {
    for layer in &image.layers {
        let digest = layer.digest();
        for content in Content::all(&layer.tree) {
            let (inode, content) =
                content.map_err(|source| PackerError::Index { layer: digest, source })?;
            each(digest, inode, &content);
        }
    }
    Ok(())
}
