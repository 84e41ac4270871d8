//! Manifests, indexes and configurations of images (OCI image-spec 1.1, docker schema 2).
//!
//! They are read tolerantly, because real tools write `null` for empty lists, leave out
//! `mediaType` and add fields, and are passed on as the bytes they came in: nothing here is
//! ever serialised again in place of what was read.

mod config;
mod error;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use undermount_fs::digest::Digest;

use super::platform::Platform;

pub use self::config::{ImageConfig, MAX_CONFIG};
pub use self::error::ManifestError;

/// Media types, each written once.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// The blob `{}` where a manifest needs a configuration and has none.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// Artifact type of Undermount's index of an image.
    pub const UNDERMOUNT_INDEX: &str = "application/vnd.undermount.index.v1";
    /// The tree of one layer, zstd-compressed.
    pub const UNDERMOUNT_TREE: &str = "application/vnd.undermount.index.tree.v1+zstd";
    /// The spans of one layer: table and windows, read by Range.
    pub const UNDERMOUNT_SPANS: &str = "application/vnd.undermount.index.spans.v1";
    /// A start-up pack or an update pack.
    pub const UNDERMOUNT_PACK: &str = "application/vnd.undermount.pack.v1";
    /// The tree of one layer as a difference to another one.
    pub const UNDERMOUNT_PATCH: &str = "application/vnd.undermount.index.patch.v1+zstd";

    /// Everything that [`super::Document::parse`] reads, for the `Accept` header. A registry may
    /// serve a manifest only to who names its exact type.
    pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// Largest manifest that is read, in bytes: the limit of common registries.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Most layers of an image; overlayfs stops at 500.
pub const MAX_LAYERS: usize = 1000;

/// Names a blob or manifest: its type, digest and size (OCI image-spec, "descriptor").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of the bytes.
    #[serde(default)]
    pub media_type: String,
    /// The artifact type of the manifest that this names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The digest of the bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// The platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text by key.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Where else the bytes are ("foreign" layers).
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// The descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// The descriptor of `size` bytes that hash to `digest`.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            artifact_type: None,
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }
}

/// An image manifest, or an artifact in the shape of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The type of the document: its own, else the one it was served with, else OCI's.
    #[serde(default)]
    pub media_type: String,
    /// What kind of artifact this is, if it is one.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one belongs to.
    #[serde(default)]
    pub subject: Option<Descriptor>,
    /// Free text by key.
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// An OCI index or docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The type of the document: its own, else the one it was served with, else OCI's.
    #[serde(default)]
    pub media_type: String,
    /// What it lists. Entries in a digest algorithm that is not known here are left out.
    #[serde(default, deserialize_with = "readable")]
    pub manifests: Vec<Descriptor>,
}

/// What lies under a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image or artifact.
    Manifest(Box<Manifest>),
    /// A list of them.
    Index(Index),
}

/// The few fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

impl Kind {
    fn of_media_type(text: &str) -> Option<Self> {
        match text {
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(Self::Manifest),
            media_type::OCI_INDEX | media_type::DOCKER_LIST => Some(Self::Index),
            _ => None,
        }
    }
}

impl Document {
    /// Reads a manifest or index. What it is follows from its own `mediaType`, else from the
    /// `content_type` it was served with, else from its fields; documents that clients could
    /// take for either are refused.
    ///
    /// # Errors
    /// [`ManifestError`] for anything else, schema 1 included.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let what = "manifest";
        if bytes.len() > MAX_MANIFEST {
            let size = bytes.len();
            return Err(ManifestError::TooLarge { what, size, limit: MAX_MANIFEST });
        }
        let outline: Outline =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })?;
        let (kind, media_type) = outline.kind(content_type)?;
        match kind {
            Kind::Manifest => {
                let mut manifest: Manifest = serde_json::from_slice(bytes)
                    .map_err(|source| ManifestError::Json { what, source })?;
                manifest.media_type = media_type;
                match manifest.layers.len() {
                    0..=MAX_LAYERS => Ok(Self::Manifest(Box::new(manifest))),
                    layers => Err(ManifestError::TooManyLayers(layers)),
                }
            }
            Kind::Index => {
                let mut index: Index = serde_json::from_slice(bytes)
                    .map_err(|source| ManifestError::Json { what: "index", source })?;
                index.media_type = media_type;
                Ok(Self::Index(index))
            }
        }
    }

    /// The media type: its own, else the one it was served with, else OCI's.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(manifest) => &manifest.media_type,
            Self::Index(index) => &index.media_type,
        }
    }

    /// The manifest, where this is one.
    ///
    /// # Errors
    /// [`ManifestError::Kind`] for an index.
    pub fn into_manifest(self) -> Result<Manifest, ManifestError> {
        match self {
            Self::Manifest(manifest) => Ok(*manifest),
            Self::Index(_) => Err(ManifestError::Kind { expected: "image", found: "index" }),
        }
    }

    /// The index, where this is one.
    ///
    /// # Errors
    /// [`ManifestError::Kind`] for an image.
    pub fn into_index(self) -> Result<Index, ManifestError> {
        match self {
            Self::Index(index) => Ok(index),
            Self::Manifest(_) => Err(ManifestError::Kind { expected: "index", found: "image" }),
        }
    }
}

impl Outline {
    /// What the document is, and its media type.
    fn kind(&self, content_type: Option<&str>) -> Result<(Kind, String), ManifestError> {
        if self.schema_version == Some(1) || self.fs_layers.is_some() {
            return Err(ManifestError::Unsupported("docker schema 1".into()));
        }
        let index_fields = self.manifests.is_some();
        let image_fields = self.config.is_some() || self.layers.is_some();
        let own = self.media_type.as_deref().filter(|own| !own.is_empty());
        let served = content_type.map(without_parameters);
        let by_fields = match (index_fields, image_fields) {
            (true, _) => media_type::OCI_INDEX,
            (_, true) => media_type::OCI_MANIFEST,
            _ => served.unwrap_or("unknown"),
        };
        let name = own
            .or(served.filter(|served| Kind::of_media_type(served).is_some()))
            .unwrap_or(by_fields);
        match Kind::of_media_type(name) {
            Some(Kind::Index) if image_fields => Err(ManifestError::Ambiguous),
            Some(Kind::Manifest) if index_fields => Err(ManifestError::Ambiguous),
            Some(kind) => Ok((kind, name.to_owned())),
            None => Err(ManifestError::Unsupported(name.to_owned())),
        }
    }
}

/// `application/json` of `application/json; charset=utf-8`.
pub fn without_parameters(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

impl Manifest {
    /// Refuses artifacts (signatures, charts, indexes), which have no root file system.
    ///
    /// # Errors
    /// [`ManifestError::Artifact`] with its type.
    pub fn check_is_image(&self) -> Result<(), ManifestError> {
        let kind = self.artifact_type.as_deref().filter(|kind| !kind.is_empty());
        match (self.config.media_type.as_str(), kind) {
            // Whatever else it claims to be, it can be run.
            (media_type::OCI_CONFIG | "application/vnd.docker.container.image.v1+json", _)
            | ("", None) => Ok(()),
            (config, kind) => Err(ManifestError::Artifact(kind.unwrap_or(config).to_owned())),
        }
    }
}

impl Index {
    /// The image that runs on `platform`: the best match, and among equals the first. An index
    /// that names no platform at all and lists one image means that one.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`] with what there is.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let images = || self.images();
        let suits = |entry: &&Descriptor| {
            entry.platform.as_ref().and_then(|offer| platform.suits(offer)).unwrap_or(0)
        };
        // `max_by_key` keeps the last of equals, so look from the end.
        let best = images().rev().max_by_key(suits).filter(|best| suits(best) > 0);
        if let Some(best) = best {
            return Ok(best);
        }
        let mut unnamed = images().filter(|entry| entry.platform.is_none());
        match (unnamed.next(), unnamed.next(), images().count()) {
            (Some(only), None, 1) => Ok(only),
            _ => Err(ManifestError::NoPlatform {
                wanted: platform.clone(),
                offered: self.platforms(),
            }),
        }
    }

    /// The images that it lists, as opposed to artifacts and attestations.
    pub fn images(&self) -> impl DoubleEndedIterator<Item = &Descriptor> {
        self.manifests.iter().filter(|entry| entry.is_image())
    }

    fn platforms(&self) -> String {
        let mut names: Vec<String> = self
            .images()
            .map(|entry| entry.platform.as_ref().map_or("(none)".into(), Platform::to_string))
            .collect();
        let is_index =
            |entry: &Descriptor| Kind::of_media_type(&entry.media_type) == Some(Kind::Index);
        if self.manifests.iter().any(is_index) {
            names.push("another index, which is not looked into".into());
        }
        if names.is_empty() { "none at all".into() } else { names.join(", ") }
    }
}

impl Descriptor {
    /// Whether an index lists this as an image, and not as an artifact or build attestation.
    fn is_image(&self) -> bool {
        let kind = Kind::of_media_type(&self.media_type);
        let known = kind == Some(Kind::Manifest) || self.media_type.is_empty();
        let artifact = self
            .artifact_type
            .as_deref()
            .is_some_and(|kind| !kind.is_empty() && kind != media_type::OCI_CONFIG);
        let attestation = self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        known && !artifact && !attestation
    }
}

/// `null` is what Go writes for an empty list or map.
pub(in crate::image) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The entries of a list that can be read: an index may list what only others understand.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Descriptor>, D::Error> {
    let entries: Vec<serde_json::Value> = or_default(deserializer)?;
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

#[cfg(test)]
mod tests;
