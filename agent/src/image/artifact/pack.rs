//! The packs of an index artifact: contents that are worth fetching together.
//!
//! ```text
//!   pack      as it is, its parts are read by Range      application/vnd.undermount.pack.v1
//!     io.undermount.pack            `start`, or `update <digest of the predecessor's manifest>`
//!     io.undermount.pack.head       digest of the head: what is read first
//!     io.undermount.pack.head.size  its bytes
//! ```
//!
//! An artifact has at most one start-up pack, and an update pack per predecessor. Packs are a help
//! and not a need: one that is malformed is left out, and readers that know none ignore them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use undermount_fs::digest::{Digest, ParseDigestError};
use undermount_fs::fill::PackBlob;
use undermount_fs::pack::Packed;
use undermount_fs::source::Scope;

use super::{ArtifactError, manifest_with_packs, parse};
use crate::image::manifest::{Descriptor, Document, media_type};

/// What the pack is for.
pub const PACK: &str = "io.undermount.pack";
/// The digest of its head.
pub const HEAD: &str = "io.undermount.pack.head";
/// The bytes of its head.
pub const HEAD_SIZE: &str = "io.undermount.pack.head.size";

/// What a pack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// What a container of the image reads first.
    Start,
    /// What the image has and its predecessor, the image with this manifest, has not.
    Update(Digest),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Update(predecessor) => write!(f, "update {predecessor}"),
        }
    }
}

impl FromStr for Purpose {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        match text.strip_prefix("update ") {
            None if text == "start" => Ok(Self::Start),
            predecessor => predecessor.unwrap_or_default().parse().map(Self::Update),
        }
    }
}

/// Where a pack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackEntry {
    /// What it is for.
    pub purpose: Purpose,
    /// The blob.
    pub blob: Digest,
    /// Its bytes.
    pub size: u64,
    /// The digest of its head.
    pub head: Digest,
    /// The bytes of its head.
    pub head_size: u64,
}

impl PackEntry {
    /// Where `packed`, which is for `purpose`, will be.
    pub fn of(purpose: Purpose, packed: &Packed) -> Self {
        let Packed { digest: blob, size, head, head_size, .. } = *packed;
        Self { purpose, blob, size, head, head_size }
    }

    /// The pack as it is fetched in the name of `scope`.
    pub fn in_scope(&self, scope: Scope) -> PackBlob {
        let Self { blob, size, head, head_size, .. } = *self;
        PackBlob { scope, digest: blob, size, head_size, head }
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type::UNDERMOUNT_PACK, self.blob, self.size);
        descriptor.annotations = BTreeMap::from([
            (PACK.to_owned(), self.purpose.to_string()),
            (HEAD.to_owned(), self.head.to_string()),
            (HEAD_SIZE.to_owned(), self.head_size.to_string()),
        ]);
        descriptor
    }

    fn read(blob: &Descriptor) -> Option<Self> {
        let annotation = |key: &str| blob.annotations.get(key);
        Some(Self {
            purpose: annotation(PACK)?.parse().ok()?,
            blob: blob.digest,
            size: blob.size,
            head: annotation(HEAD)?.parse().ok()?,
            head_size: annotation(HEAD_SIZE)?.parse().ok()?,
        })
    }
}

/// The packs in the manifest of an index artifact.
pub fn packs(manifest: &[u8]) -> Vec<PackEntry> {
    let manifest = Document::parse(manifest, None).and_then(Document::into_manifest);
    let layers = manifest.map(|manifest| manifest.layers).unwrap_or_default();
    let is_pack = |blob: &&Descriptor| blob.media_type == media_type::UNDERMOUNT_PACK;
    layers.iter().filter(is_pack).filter_map(PackEntry::read).collect()
}

/// The manifest of an index artifact of image `subject` with `pack` added, in the place of
/// another one for the same purpose; and what names it.
///
/// # Errors
/// [`ArtifactError`] where `manifest` is not that of an index artifact of the image.
pub fn with_pack(
    manifest: &[u8],
    subject: &Digest,
    pack: PackEntry,
) -> Result<(Descriptor, Bytes), ArtifactError> {
    let layers = parse(manifest, subject)?;
    let mut packs = packs(manifest);
    packs.retain(|other| other.purpose != pack.purpose);
    packs.push(pack);
    packs.sort_by_key(|pack| pack.purpose);
    let document = Document::parse(manifest, None)?.into_manifest()?;
    let subject = document.subject.as_ref().ok_or_else(|| ArtifactError::Subject {
        expected: *subject,
        found: "no image".to_owned(),
    })?;
    Ok(manifest_with_packs(subject, &layers, &packs))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::{Artifact, LayerBlobs};
    use super::*;

    fn artifact() -> Artifact {
        let subject = Descriptor::of(media_type::OCI_MANIFEST, b"image");
        let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
        Artifact::build(&subject, &[layer]).unwrap()
    }

    fn pack(purpose: Purpose, content: &[u8]) -> PackEntry {
        let blob = Digest::of(content);
        PackEntry { purpose, blob, size: 100, head: Digest::of(b"head"), head_size: 70 }
    }

    #[test]
    fn purposes_are_written_and_read() {
        let update = Purpose::Update(Digest::of(b"before"));
        for purpose in [Purpose::Start, update] {
            assert_eq!(purpose.to_string().parse::<Purpose>().unwrap(), purpose);
        }
        for text in ["", "begin", "update", "update sha256:1"] {
            assert!(text.parse::<Purpose>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pack_is_added_beside_the_layers_and_replaces_the_one_before() {
        let artifact = artifact();
        let subject = artifact.subject;
        assert_eq!(packs(&artifact.manifest), []);
        let update = pack(Purpose::Update(Digest::of(b"before")), b"update");
        let (_, manifest) = with_pack(&artifact.manifest, &subject, update.clone()).unwrap();
        let first = pack(Purpose::Start, b"first");
        let (_, manifest) = with_pack(&manifest, &subject, first).unwrap();
        let second = pack(Purpose::Start, b"second");
        let (descriptor, manifest) = with_pack(&manifest, &subject, second.clone()).unwrap();
        assert_eq!(packs(&manifest), [second, update]);
        assert_eq!(
            parse(&manifest, &subject).unwrap(),
            parse(&artifact.manifest, &subject).unwrap()
        );
        assert_eq!(descriptor.digest, Digest::of(&manifest));
        assert_eq!(descriptor.artifact_type, artifact.descriptor.artifact_type);
    }

    #[test]
    fn malformed_packs_are_left_out() {
        let artifact = artifact();
        let start = pack(Purpose::Start, b"start");
        let (_, manifest) = with_pack(&artifact.manifest, &artifact.subject, start).unwrap();
        for key in [PACK, HEAD, HEAD_SIZE] {
            let mut json: Value = serde_json::from_slice(&manifest).unwrap();
            json["layers"][2]["annotations"][key] = "rubbish".into();
            let manifest = json.to_string();
            assert_eq!(packs(manifest.as_bytes()), [], "{key}");
            assert_eq!(parse(manifest.as_bytes(), &artifact.subject).unwrap().len(), 1);
        }
        assert_eq!(packs(b"rubbish"), []);
    }
}
