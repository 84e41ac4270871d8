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
    for layer in &predecessor.layers {
        known.extend(keys(layer)?);
    }
    let mut units = Vec::new();
    for layer in &image.layers {
        for content in contents(layer) {
            let (inode, content) = content?;
            if known.insert(content.key) {
                let layer = layer.digest();
                let named = |number| UnitName { layer, inode, number: number as u32 };
                units.extend(content.all_units().map(named));
            }
        }
    }
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
    contents(layer).map(|content| content.map(|(_, one)| one.key)).collect()
}

/// The contents of a layer with their inodes, in the order of the tar.
fn contents(layer: &Layer) -> impl Iterator<Item = Result<(u32, Content), PackerError>> + use<'_> {
    let damaged = |source| PackerError::Index { layer: layer.digest(), source };
    Content::all(&layer.tree).map(move |content| content.map_err(damaged))
}
