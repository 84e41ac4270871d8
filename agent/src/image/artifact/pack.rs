//! The packs of an index artifact: contents that are worth fetching together.
//!
//! ```text
//!   pack      as it is, its parts are read by Range      application/vnd.undermount.pack.v1
//!     io.undermount.pack            `start`, or `update <digest of the predecessor's manifest>`
//!     io.undermount.pack.head       digest of the head: what is read first
//!     io.undermount.pack.head.size  its bytes
//!     io.undermount.pack.origin     `registry` or `prepare`: made without being asked for
//! ```
//!
//! An artifact has at most one start-up pack, and an update pack per predecessor. Packs are a help
//! and not a need: one that is malformed is left out, and readers that know none ignore them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use undermount_fs::digest::{Digest, ParseDigestError};
use undermount_fs::fill::PackBlob;
use undermount_fs::pack::Packed;
use undermount_fs::source::Scope;

use super::patch::{TreePatch, patches};
use super::{ArtifactError, manifest_with, parse};
use crate::image::manifest::{Descriptor, Document, media_type};

/// What the pack is for.
pub const PACK: &str = "io.undermount.pack";
/// The digest of its head.
pub const HEAD: &str = "io.undermount.pack.head";
/// The bytes of its head.
pub const HEAD_SIZE: &str = "io.undermount.pack.head.size";
/// Who has made it by himself.
pub const ORIGIN: &str = "io.undermount.pack.origin";

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

/// On whose account a pack was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody wanted this one. It stays until somebody wants another one.
    ByHand,
    /// A registry made it of what nodes told.
    Registry,
    /// `prepare` made it of the profiles that were at hand.
    Prepare,
}

impl Origin {
    /// Whether nobody chose the pack, so that a registry which knows better may replace it.
    pub fn is_automatic(self) -> bool {
        self != Self::ByHand
    }

    /// What stands in the annotation; nothing for what was made by hand.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::ByHand => None,
            Self::Registry => Some("registry"),
            Self::Prepare => Some("prepare"),
        }
    }

    /// Makers that this version does not know are somebody else.
    fn of(word: Option<&String>) -> Self {
        let is_it = |origin: &Self| origin.word() == word.map(String::as_str);
        [Self::Registry, Self::Prepare].into_iter().find(is_it).unwrap_or(Self::ByHand)
    }
}

/// Where a pack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackEntry {
    /// What it is for.
    pub purpose: Purpose,
    /// Who has made it.
    pub origin: Origin,
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
    /// Where `packed`, which `origin` has made for `purpose`, will be.
    pub fn of(purpose: Purpose, origin: Origin, packed: &Packed) -> Self {
        let Packed { digest: blob, size, head, head_size, .. } = *packed;
        Self { purpose, origin, blob, size, head, head_size }
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
        let origin = self.origin.word().map(|word| (ORIGIN.to_owned(), word.to_owned()));
        descriptor.annotations.extend(origin);
        descriptor
    }

    fn read(blob: &Descriptor) -> Option<Self> {
        let annotation = |key: &str| blob.annotations.get(key);
        Some(Self {
            purpose: annotation(PACK)?.parse().ok()?,
            origin: Origin::of(annotation(ORIGIN)),
            blob: blob.digest,
            size: blob.size,
            head: annotation(HEAD)?.parse().ok()?,
            head_size: annotation(HEAD_SIZE)?.parse().ok()?,
        })
    }
}

/// The packs in the manifest of an index artifact. Of several for one purpose, which nobody makes,
/// the first counts.
pub fn packs(manifest: &[u8]) -> Vec<PackEntry> {
    let manifest = Document::parse(manifest, None).and_then(Document::into_manifest);
    let layers = manifest.map(|manifest| manifest.layers).unwrap_or_default();
    let is_pack = |blob: &&Descriptor| blob.media_type == media_type::UNDERMOUNT_PACK;
    let mut seen = HashSet::new();
    let packs = layers.iter().filter(is_pack).filter_map(PackEntry::read);
    packs.filter(|pack| seen.insert(pack.purpose)).collect()
}

/// The manifest of an index artifact of image `subject` with `pack` and the patches that come with
/// it added, in the place of others for the same purpose; and what names it.
///
/// # Errors
/// [`ArtifactError`] where `manifest` is not that of an index artifact of the image.
pub fn with_pack(
    manifest: &[u8],
    subject: &Digest,
    pack: PackEntry,
    with: Vec<TreePatch>,
) -> Result<(Descriptor, Bytes), ArtifactError> {
    let (mut packs, mut patches) = (packs(manifest), patches(manifest));
    packs.retain(|other| other.purpose != pack.purpose);
    patches.retain(|other| Purpose::Update(other.predecessor) != pack.purpose);
    patches.extend(with);
    packs.push(pack);
    packs.sort_by_key(|pack| pack.purpose);
    patches.sort_by_key(|patch| (patch.predecessor, patch.layer));
    with_parts(manifest, subject, &packs, &patches)
}

/// The same without the pack for `purpose` and the patches that came with it.
///
/// # Errors
/// As [`with_pack`].
pub fn without_pack(
    manifest: &[u8],
    subject: &Digest,
    purpose: Purpose,
) -> Result<(Descriptor, Bytes), ArtifactError> {
    let (mut packs, mut patches) = (packs(manifest), patches(manifest));
    packs.retain(|pack| pack.purpose != purpose);
    patches.retain(|patch| Purpose::Update(patch.predecessor) != purpose);
    with_parts(manifest, subject, &packs, &patches)
}

fn with_parts(
    manifest: &[u8],
    subject: &Digest,
    packs: &[PackEntry],
    patches: &[TreePatch],
) -> Result<(Descriptor, Bytes), ArtifactError> {
    let layers = parse(manifest, subject)?;
    let document = Document::parse(manifest, None)?.into_manifest()?;
    let subject = document.subject.as_ref().ok_or_else(|| ArtifactError::Subject {
        expected: *subject,
        found: "no image".to_owned(),
    })?;
    Ok(manifest_with(subject, &layers, packs, patches))
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
        let (blob, head, origin) = (Digest::of(content), Digest::of(b"head"), Origin::ByHand);
        PackEntry { purpose, origin, blob, size: 100, head, head_size: 70 }
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
        let (_, manifest) =
            with_pack(&artifact.manifest, &subject, update.clone(), vec![]).unwrap();
        let first = pack(Purpose::Start, b"first");
        let (_, manifest) = with_pack(&manifest, &subject, first, vec![]).unwrap();
        let second = pack(Purpose::Start, b"second");
        let (descriptor, manifest) =
            with_pack(&manifest, &subject, second.clone(), vec![]).unwrap();
        assert_eq!(packs(&manifest), [second, update]);
        assert_eq!(
            parse(&manifest, &subject).unwrap(),
            parse(&artifact.manifest, &subject).unwrap()
        );
        assert_eq!(descriptor.digest, Digest::of(&manifest));
        assert_eq!(descriptor.artifact_type, artifact.descriptor.artifact_type);
    }

    #[test]
    fn a_pack_is_taken_away_and_the_others_stay() {
        let Artifact { subject, manifest: bare, .. } = artifact();
        let update = pack(Purpose::Update(Digest::of(b"before")), b"update");
        let (_, updated) = with_pack(&bare, &subject, update, vec![]).unwrap();
        let (_, both) =
            with_pack(&updated, &subject, pack(Purpose::Start, b"start"), vec![]).unwrap();
        let (_, manifest) = without_pack(&both, &subject, Purpose::Start).unwrap();
        assert_eq!(manifest, updated);
        let update = Purpose::Update(Digest::of(b"before"));
        assert_eq!(without_pack(&manifest, &subject, update).unwrap().1, bare);
    }

    #[test]
    fn who_made_a_pack_without_being_asked_says_so() {
        let Artifact { subject, manifest: bare, .. } = artifact();
        for (origin, word) in [
            (Origin::ByHand, None),
            (Origin::Registry, Some("registry")),
            (Origin::Prepare, Some("prepare")),
        ] {
            let start = PackEntry { origin, ..pack(Purpose::Start, b"start") };
            let (_, manifest) = with_pack(&bare, &subject, start.clone(), vec![]).unwrap();
            let json: Value = serde_json::from_slice(&manifest).unwrap();
            assert_eq!(json["layers"][2]["annotations"][ORIGIN].as_str(), word);
            assert_eq!(packs(&manifest), [start]);
            assert_eq!(origin.is_automatic(), word.is_some());
        }
        assert_eq!(Origin::of(Some(&"a later version".to_owned())), Origin::ByHand);
    }

    #[test]
    fn regression_a_purpose_has_one_pack_whatever_the_artifact_says() {
        let artifact = artifact();
        let start = pack(Purpose::Start, b"start");
        let (_, manifest) =
            with_pack(&artifact.manifest, &artifact.subject, start.clone(), vec![]).unwrap();
        let mut json: Value = serde_json::from_slice(&manifest).unwrap();
        let blobs = json["layers"].as_array_mut().unwrap();
        let last = blobs.last().unwrap().clone();
        blobs.extend(std::iter::repeat_n(last, 100));
        assert_eq!(packs(json.to_string().as_bytes()), [start]);
    }

    #[test]
    fn malformed_packs_are_left_out() {
        let artifact = artifact();
        let start = pack(Purpose::Start, b"start");
        let (_, manifest) =
            with_pack(&artifact.manifest, &artifact.subject, start, vec![]).unwrap();
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
