//! Manifests, indexes and configurations of images (OCI image-spec 1.1, docker schema 2).
//!
//! They are read tolerantly, because real tools write `null` for empty lists, leave out
//! `mediaType` and add fields, and are passed on as the bytes they came in: nothing here is
//! ever serialised again in place of what was read.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use undermount_fs::digest::Digest;

use super::platform::Platform;

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

    /// Everything that [`super::Document::parse`] reads, for the `Accept` header. A registry may
    /// serve a manifest only to who names its exact type.
    pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// Largest manifest that is read, in bytes: the limit of common registries.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Largest image configuration that is read, in bytes.
pub const MAX_CONFIG: usize = 16 << 20;
/// Most layers of an image; overlayfs stops at 500.
pub const MAX_LAYERS: usize = 1000;

/// Bytes that are not a manifest, index or configuration that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("{what} is malformed: {source}")]
    Json {
        /// `manifest`, `index` or `image configuration`.
        what: &'static str,
        /// Where and how.
        source: serde_json::Error,
    },
    /// More bytes than are read.
    #[error("{what} has {size} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// `manifest` or `image configuration`.
        what: &'static str,
        /// Bytes it has.
        size: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// More layers than any runtime can mount.
    #[error("the image has {0} layers, more than the {MAX_LAYERS} that are allowed")]
    TooManyLayers(usize),
    /// A type that is read by no part of this program.
    #[error("manifests of type `{0}` are not supported")]
    Unsupported(String),
    /// It can be read as a manifest and as an index, which clients would take differently.
    #[error("ambiguous manifest: it has the fields of both an image and an index")]
    Ambiguous,
    /// An index where an image is wanted, or the reverse.
    #[error("expected an {expected}, found an {found}")]
    Kind {
        /// What the caller wants.
        expected: &'static str,
        /// What the bytes are.
        found: &'static str,
    },
    /// An OCI artifact, such as a signature or a chart, where an image is wanted.
    #[error("this is an artifact of type `{0}`, not a container image")]
    Artifact(String),
    /// No image of an index runs on the platform.
    #[error("no image for {wanted}; there are: {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms of the index.
        offered: String,
    },
    /// Layers and DiffIDs do not belong together.
    #[error("the manifest has {layers} layers, the configuration {diff_ids} DiffIDs")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// DiffIDs of the configuration.
        diff_ids: usize,
    },
}

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
        let config = self.config.media_type.as_str();
        let image_config = matches!(
            config,
            "" | media_type::OCI_CONFIG | "application/vnd.docker.container.image.v1+json"
        );
        match &self.artifact_type {
            Some(kind) if !kind.is_empty() => Err(ManifestError::Artifact(kind.clone())),
            _ if !image_config => Err(ManifestError::Artifact(config.to_owned())),
            _ => Ok(()),
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
        let names: Vec<String> = self
            .images()
            .map(|entry| entry.platform.as_ref().map_or("(none)".into(), Platform::to_string))
            .collect();
        if names.is_empty() { "none at all".into() } else { names.join(", ") }
    }
}

impl Descriptor {
    /// Whether an index lists this as an image, and not as an artifact or build attestation.
    fn is_image(&self) -> bool {
        let known = Kind::of_media_type(&self.media_type) == Some(Kind::Manifest);
        let artifact = self
            .artifact_type
            .as_deref()
            .is_some_and(|kind| !kind.is_empty() && kind != media_type::OCI_CONFIG);
        let attestation = self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        known && !artifact && !attestation
    }
}

/// What is needed of an image's configuration, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The platform that the image was made for.
    pub platform: Platform,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// `config.Labels`.
    pub labels: BTreeMap<String, String>,
    /// The bytes that were read.
    pub raw: Bytes,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RootFs,
    #[serde(default, deserialize_with = "or_default")]
    config: RunConfig,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
struct RunConfig {
    #[serde(default, rename = "Labels", deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Reads an image configuration (OCI image-spec, "config"; docker's is alike).
    ///
    /// # Errors
    /// [`ManifestError`] where it is too large or malformed.
    pub fn parse(raw: Bytes) -> Result<Self, ManifestError> {
        let what = "image configuration";
        if raw.len() > MAX_CONFIG {
            return Err(ManifestError::TooLarge { what, size: raw.len(), limit: MAX_CONFIG });
        }
        let file: ConfigFile =
            serde_json::from_slice(&raw).map_err(|source| ManifestError::Json { what, source })?;
        let (diff_ids, labels) = (file.rootfs.diff_ids, file.config.labels);
        Ok(Self { platform: file.platform, diff_ids, labels, raw })
    }

    /// The layers of `manifest`, lowest first, each with the digest of its uncompressed bytes.
    ///
    /// # Errors
    /// [`ManifestError::LayerCount`] where manifest and configuration disagree.
    pub fn layers<'a>(
        &'a self,
        manifest: &'a Manifest,
    ) -> Result<Vec<(&'a Descriptor, &'a Digest)>, ManifestError> {
        let (layers, diff_ids) = (manifest.layers.len(), self.diff_ids.len());
        if layers != diff_ids {
            return Err(ManifestError::LayerCount { layers, diff_ids });
        }
        Ok(manifest.layers.iter().zip(&self.diff_ids).collect())
    }
}

/// `null` is what Go writes for an empty list or map.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
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
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn parse(value: &serde_json::Value) -> Result<Document, ManifestError> {
        Document::parse(value.to_string().as_bytes(), None)
    }

    fn image(layers: usize) -> serde_json::Value {
        let layer = json!({"mediaType": "l", "digest": digest("l"), "size": 1});
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": media_type::OCI_CONFIG, "digest": digest("c"), "size": 2},
            "layers": vec![layer; layers],
        })
    }

    fn entry(platform: Option<&str>) -> Descriptor {
        let name = platform.unwrap_or("none");
        let mut entry = Descriptor::new(media_type::OCI_MANIFEST, digest(name), 1);
        entry.platform = platform.map(|platform| platform.parse().unwrap());
        entry
    }

    fn selected(entries: &[Descriptor], wanted: &str) -> Result<Digest, String> {
        let index = Index { media_type: String::new(), manifests: entries.to_vec() };
        let wanted = wanted.parse().unwrap();
        index.select(&wanted).map(|entry| entry.digest).map_err(|error| error.to_string())
    }

    #[test]
    fn the_kind_follows_from_type_content_type_and_fields_in_this_order() {
        let mut typed = image(1);
        typed["mediaType"] = json!(media_type::DOCKER_MANIFEST);
        let list =
            json!({"schemaVersion": 2, "manifests": null, "mediaType": media_type::OCI_INDEX});
        let bare = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse(&typed), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        assert!(matches!(parse(&image(0)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(&list), Ok(Document::Index(i)) if i.manifests.is_empty()));
        assert!(matches!(parse(&bare), Ok(Document::Index(_))));
        let by_header = json!({"schemaVersion": 2}).to_string();
        let header = format!("{}; charset=utf-8", media_type::DOCKER_LIST);
        let document = Document::parse(by_header.as_bytes(), Some(&header)).unwrap();
        assert_eq!(document.media_type(), media_type::DOCKER_LIST);
        assert_eq!(parse(&typed).unwrap().media_type(), media_type::DOCKER_MANIFEST);
        assert_eq!(parse(&image(0)).unwrap().media_type(), media_type::OCI_MANIFEST);
        assert!(document.into_index().is_ok());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason() {
        let mut both = image(1);
        both["manifests"] = json!([]);
        let mut strange = image(1);
        strange["mediaType"] = json!("application/x");
        let mut negative = image(1);
        negative["layers"][0]["size"] = json!(-1);
        let mut sha512 = image(1);
        sha512["layers"][0]["digest"] = json!("sha512:00");
        for (document, part) in [
            (json!([]), "malformed"),
            (json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
            (json!({"schemaVersion": 2}), "unknown"),
            (json!({"schemaVersion": 2, "layers": []}), "config"),
            (both, "ambiguous"),
            (strange, "application/x"),
            (negative, "malformed"),
            (sha512, "sha512:00"),
            (image(MAX_LAYERS + 1), "1001 layers"),
        ] {
            let message = parse(&document).unwrap_err().to_string();
            assert!(message.contains(part), "{document}: {message}");
        }
        let large = vec![b' '; MAX_MANIFEST + 1];
        assert!(matches!(Document::parse(&large, None), Err(ManifestError::TooLarge { .. })));
    }

    #[test]
    fn fields_may_be_null_or_unknown() {
        let document = json!({
            "schemaVersion": 2, "layers": null, "annotations": null, "subject": null, "new": {},
            "config": {"digest": digest("c"), "size": 2, "annotations": null, "urls": null},
        });
        let manifest = parse(&document).unwrap().into_manifest().unwrap();
        assert!(manifest.layers.is_empty() && manifest.subject.is_none());
        let config = ImageConfig::parse("{\"config\":null,\"rootfs\":null}".into()).unwrap();
        assert!(config.labels.is_empty() && config.diff_ids.is_empty());
    }

    #[test]
    fn index_entries_that_cannot_be_read_do_not_hide_the_others() {
        let good = entry(Some("linux/amd64"));
        let document = json!({"manifests": [{"digest": "sha512:00", "size": 1}, good]});
        assert_eq!(parse(&document).unwrap().into_index().unwrap().manifests, [good]);
    }

    #[test]
    fn the_best_match_for_a_platform_is_selected() {
        let entries =
            ["linux/arm/v5", "linux/arm/v6", "linux/amd64/v3", "linux/amd64", "linux/amd64/v1"]
                .map(|platform| entry(Some(platform)));
        assert_eq!(selected(&entries, "linux/arm"), Ok(digest("linux/arm/v6")));
        assert_eq!(selected(&entries, "linux/amd64"), Ok(digest("linux/amd64")));
        assert_eq!(selected(&entries, "linux/amd64/v3"), Ok(digest("linux/amd64/v3")));
        let message = selected(&entries, "linux/s390x").unwrap_err();
        assert!(message.contains("no image for linux/s390x"), "{message}");
        assert!(message.contains("linux/arm/v5, linux/arm/v6"), "{message}");
    }

    #[test]
    fn attestations_artifacts_and_nested_indexes_are_not_selected() {
        let mut attestation = entry(Some("linux/amd64"));
        attestation.annotations.insert("vnd.docker.reference.type".into(), "x".into());
        let mut artifact = entry(None);
        artifact.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
        let mut nested = entry(Some("linux/amd64"));
        nested.media_type = media_type::OCI_INDEX.into();
        let others = [attestation, artifact, nested];
        assert!(selected(&others, "linux/amd64").unwrap_err().contains("none at all"));
        let with_image = [&others[..], &[entry(None)]].concat();
        assert_eq!(selected(&with_image, "linux/amd64"), Ok(digest("none")));
        let two = [entry(None), entry(None)];
        assert!(selected(&two, "linux/amd64").is_err(), "which of the two is not said");
    }

    #[test]
    fn artifacts_are_not_images() {
        let mut manifest = parse(&image(1)).unwrap().into_manifest().unwrap();
        assert!(manifest.check_is_image().is_ok());
        manifest.config.media_type = "application/vnd.cncf.helm.config.v1+json".into();
        assert!(manifest.check_is_image().unwrap_err().to_string().contains("helm"));
        manifest.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
        assert!(manifest.check_is_image().unwrap_err().to_string().contains("undermount"));
    }

    #[test]
    fn a_configuration_gives_platform_diff_ids_and_labels() {
        let raw = json!({
            "os": "linux", "architecture": "arm64", "variant": "v8", "history": [],
            "rootfs": {"type": "layers", "diff_ids": [digest("a")]},
            "config": {"Labels": {"release": "1.2"}, "Env": null},
        });
        let raw = Bytes::from(raw.to_string());
        let config = ImageConfig::parse(raw.clone()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64/v8");
        assert_eq!(config.labels["release"], "1.2");
        assert_eq!(config.raw, raw);
        let manifest = |layers| parse(&image(layers)).unwrap().into_manifest().unwrap();
        assert_eq!(config.layers(&manifest(1)).unwrap()[0].1, &digest("a"));
        let message = config.layers(&manifest(2)).unwrap_err().to_string();
        assert!(message.contains("2 layers") && message.contains("1 DiffIDs"), "{message}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes, None);
            let _ = ImageConfig::parse(bytes.into());
        }

        #[test]
        fn no_damage_to_a_manifest_panics(at in 0usize..200, byte: u8) {
            let mut bytes = image(2).to_string().into_bytes();
            if let Some(target) = bytes.get_mut(at) {
                *target = byte;
            }
            let _ = Document::parse(&bytes, Some(media_type::OCI_MANIFEST));
        }
    }
}
