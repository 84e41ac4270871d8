//! The patches of an index artifact: trees as differences to those of the image's predecessor.
//!
//! ```text
//!   patch     zstd, the base being its prefix      application/vnd.undermount.index.patch.v1+zstd
//!     io.undermount.layer           digest of the layer blob whose tree it gives
//!     io.undermount.pack            `update <digest of the predecessor's manifest>`
//!     io.undermount.patch.base      digest of the predecessor's tree that it takes, uncompressed
//! ```
//!
//! Patches come with the update pack for the same predecessor and are replaced with it. As packs,
//! they are a help and not a need: what a patch gives is held against the tree's digest, and a
//! reader without the base, or with a patch that is wrong, fetches the whole tree.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};

use bytes::Bytes;
use undermount_fs::digest::{Digest, Verified};

use super::pack::{PACK, Purpose};
use super::{LAYER, LayerEntry, TREE_LEVEL};
use crate::image::manifest::{Descriptor, Document, media_type};

/// The digest of the tree that a patch takes.
pub const BASE: &str = "io.undermount.patch.base";

/// Larger trees have no patches, in bytes: both are in memory at once, in the encoder's window
/// (2^27 bytes, what any decoder takes) and in the decoder.
const TREE_MAX: usize = 1 << 26;
/// Patches are made once and fetched by every node that updates.
const LEVEL: i32 = 19;
/// A patch that is not this much smaller than the tree is none.
const WORTH: u64 = 2;

/// How to get one tree from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreePatch {
    /// The digest of the manifest of the image that has the base.
    pub predecessor: Digest,
    /// The digest of the layer blob whose tree it gives.
    pub layer: Digest,
    /// The digest of the tree that it takes.
    pub base: Digest,
    /// The blob.
    pub blob: Digest,
    /// Its bytes.
    pub size: u64,
}

impl TreePatch {
    /// The patch that turns `base`, a tree of the image `predecessor`, into the tree of `layer`,
    /// and its bytes. `None` where it is not worth it.
    ///
    /// # Errors
    /// Where zstd fails.
    pub fn make(
        predecessor: Digest,
        base: &[u8],
        layer: Digest,
        tree: &[u8],
    ) -> io::Result<Option<(Self, Bytes)>> {
        if base.len().max(tree.len()) > TREE_MAX {
            return Ok(None);
        }
        let patch = compress(base, tree)?;
        let whole = zstd::bulk::compress(tree, TREE_LEVEL)?.len() as u64;
        let (size, blob) = (patch.len() as u64, Digest::of(&patch));
        let made = Self { predecessor, layer, base: Digest::of(base), blob, size };
        Ok((size.saturating_mul(WORTH) <= whole).then(|| (made, patch.into())))
    }

    /// The tree of `entry` out of `patch`, the bytes of the blob, and `base`. Memory grows with
    /// what comes out and not with what is claimed.
    ///
    /// # Errors
    /// Where the patch is damaged, takes another base or gives another tree.
    pub fn apply(patch: &[u8], base: &[u8], entry: &LayerEntry) -> io::Result<Verified> {
        let mut tree = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_ref_prefix(patch, base)?;
        decoder.take(entry.tree_size.saturating_add(1)).read_to_end(&mut tree)?;
        Verified::check(tree.into(), &entry.tree).map_err(io::Error::other)
    }

    /// Whether the trees are of a size that patches are made for, that of the base being
    /// `base_size` bytes: what is larger was made by somebody else, and would take memory.
    pub fn is_bounded(&self, entry: &LayerEntry, base_size: u64) -> bool {
        self.size.max(entry.tree_size).max(base_size) <= TREE_MAX as u64
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type::UNDERMOUNT_PATCH, self.blob, self.size);
        descriptor.annotations = BTreeMap::from([
            (LAYER.to_owned(), self.layer.to_string()),
            (PACK.to_owned(), Purpose::Update(self.predecessor).to_string()),
            (BASE.to_owned(), self.base.to_string()),
        ]);
        descriptor
    }

    fn read(blob: &Descriptor) -> Option<Self> {
        if blob.media_type != media_type::UNDERMOUNT_PATCH {
            return None;
        }
        let annotation = |key: &str| blob.annotations.get(key);
        let Purpose::Update(predecessor) = annotation(PACK)?.parse().ok()? else { return None };
        Some(Self {
            predecessor,
            layer: annotation(LAYER)?.parse().ok()?,
            base: annotation(BASE)?.parse().ok()?,
            blob: blob.digest,
            size: blob.size,
        })
    }
}

/// The patches in the manifest of an index artifact.
pub fn patches(manifest: &[u8]) -> Vec<TreePatch> {
    let manifest = Document::parse(manifest, None).and_then(Document::into_manifest);
    let layers = manifest.map(|manifest| manifest.layers).unwrap_or_default();
    layers.iter().filter_map(TreePatch::read).collect()
}

fn compress(base: &[u8], tree: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), LEVEL, base)?;
    // The window reaches from the end of the tree to the beginning of the base.
    let reach = (base.len() + tree.len()).next_power_of_two().trailing_zeros();
    encoder.window_log(reach.clamp(10, 27))?;
    encoder.set_pledged_src_size(Some(tree.len() as u64))?;
    encoder.write_all(tree)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::pack::{Origin, PackEntry, packs, with_pack, without_pack};
    use super::super::{Artifact, LayerBlobs};
    use super::*;

    /// Something like a tree: records that differ in each and are hard to compress.
    fn tree(changed: u64) -> Vec<u8> {
        let record = |number: u64| *Digest::of(&number.to_le_bytes()).as_bytes();
        let (kept, added) = ((0..2000).map(record), (10_000..10_000 + changed).map(record));
        kept.chain(added).flatten().collect()
    }

    fn entry(tree: &[u8]) -> LayerEntry {
        let layer = Digest::of(b"layer");
        LayerBlobs { layer, tree: tree.to_vec().into(), spans: "s".into() }.pack().unwrap().entry
    }

    fn made(base: &[u8], tree: &[u8]) -> Option<(TreePatch, Bytes)> {
        TreePatch::make(Digest::of(b"before"), base, Digest::of(b"layer"), tree).unwrap()
    }

    #[test]
    fn a_patch_gives_the_tree_out_of_its_base_and_is_small() {
        let (base, tree) = (tree(0), tree(10));
        let (patch, bytes) = made(&base, &tree).unwrap();
        assert!(bytes.len() < 1000, "{} bytes for ten new records of 32", bytes.len());
        assert_eq!((patch.size, patch.blob), (bytes.len() as u64, Digest::of(&bytes)));
        assert_eq!(patch.base, Digest::of(&base));
        let entry = entry(&tree);
        assert!(patch.is_bounded(&entry, TREE_MAX as u64));
        assert!(!patch.is_bounded(&entry, TREE_MAX as u64 + 1), "the base is in memory as well");
        assert_eq!(TreePatch::apply(&bytes, &base, &entry).unwrap().bytes(), &tree[..]);
    }

    #[test]
    fn a_patch_that_saves_little_is_none() {
        assert_eq!(made(b"something else", &tree(10)), None);
        assert_eq!(made(&vec![0; TREE_MAX + 1], b"tree"), None);
    }

    #[test]
    fn what_a_patch_gives_is_the_tree_or_an_error() {
        let (base, tree) = (tree(0), tree(10));
        let (_, bytes) = made(&base, &tree).unwrap();
        let entry = entry(&tree);
        let refused = |patch: &[u8], base: &[u8]| TreePatch::apply(patch, base, &entry).is_err();
        assert!(refused(b"no zstd", &base));
        assert!(refused(&bytes[..bytes.len() - 3], &base));
        assert!(refused(&bytes, b"another base"));
        let (_, another) = made(&base, &self::tree(11)).unwrap();
        assert!(refused(&another, &base));
        // A gigabyte of zeros is not unpacked.
        let endless = zstd::encode_all(io::repeat(0).take(1 << 30), 1).unwrap();
        assert!(refused(&endless, &base));
    }

    #[test]
    fn patches_come_with_their_pack_and_are_replaced_with_it() {
        let subject = Descriptor::of(media_type::OCI_MANIFEST, b"image");
        let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
        let artifact = Artifact::build(&subject, &[layer]).unwrap();
        let digest = Digest::of;
        let patch = |predecessor: &[u8], blob: &[u8]| TreePatch {
            predecessor: digest(predecessor),
            layer: digest(b"l"),
            base: digest(b"base"),
            blob: digest(blob),
            size: 9,
        };
        let pack = |purpose| PackEntry {
            purpose,
            origin: Origin::ByHand,
            blob: digest(b"pack"),
            size: 100,
            head: digest(b"head"),
            head_size: 70,
        };
        let of = |predecessor: &[u8]| pack(Purpose::Update(digest(predecessor)));
        let add = |manifest: &[u8], pack, patches| {
            with_pack(manifest, &subject.digest, pack, patches).unwrap().1
        };
        let manifest = add(&artifact.manifest, of(b"1"), vec![patch(b"1", b"first")]);
        let manifest = add(&manifest, of(b"2"), vec![patch(b"2", b"other")]);
        let manifest = add(&manifest, of(b"1"), vec![patch(b"1", b"second")]);
        let manifest = add(&manifest, pack(Purpose::Start), vec![]);
        let mut found = patches(&manifest);
        found.sort_by_key(|patch| patch.predecessor != digest(b"1"));
        assert_eq!(found, [patch(b"1", b"second"), patch(b"2", b"other")]);
        assert_eq!(packs(&manifest).len(), 3);
        let update = Purpose::Update(digest(b"1"));
        let (_, without) = without_pack(&manifest, &subject.digest, update).unwrap();
        assert_eq!(patches(&without), [patch(b"2", b"other")], "they go with their pack");
        let mut json: Value = serde_json::from_slice(&manifest).unwrap();
        for blob in json["layers"].as_array_mut().unwrap() {
            blob["annotations"][BASE] = "rubbish".into();
        }
        assert_eq!(patches(json.to_string().as_bytes()), [], "malformed ones are left out");
    }
}
