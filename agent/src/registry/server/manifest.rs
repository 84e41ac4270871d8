//! What the registry has to know of a manifest that is pushed: its type, what must be there
//! before it, and what it refers to. The bytes are stored as they came, whatever else they say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::ContentDigest;
use crate::image::manifest::media_type::{
    DOCKER_LIST, MANIFESTS, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use crate::image::manifest::without_parameters;

/// Media types of the configuration of what can be run, as opposed to an artifact.
const IMAGE_CONFIGS: [&str; 2] = [OCI_CONFIG, "application/vnd.docker.container.image.v1+json"];
/// Layers of these types need not be in a registry (image-spec, "Non-Distributable Layers").
const NOT_DISTRIBUTED: [&str; 4] = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// A manifest or index that keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// What it is stored and served as.
    pub media_type: String,
    /// The kind of artifact, for the referrers API.
    pub artifact_type: Option<String>,
    /// What it says of itself, for the referrers API.
    pub annotations: BTreeMap<String, String>,
    /// The manifest that it is about.
    pub subject: Option<ContentDigest>,
    /// What it consists of.
    pub content: Content,
}

/// The parts of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An image, or an artifact in the form of one.
    Image {
        /// The configuration.
        config: Part,
        /// The layers, lowest first.
        layers: Vec<Part>,
        /// Whether the layers are file systems to be run.
        runnable: bool,
    },
    /// Several manifests.
    Index {
        /// The manifests.
        manifests: Vec<Part>,
    },
}

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its name.
    pub digest: ContentDigest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why bytes are no manifest that the registry takes.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not the members that a manifest has.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A type that the registry does not store.
    #[error("`{0}` is not a type of manifest that is stored here")]
    MediaType(String),
    /// Content-Type and content contradict each other.
    #[error("the manifest was sent as `{header}` and says it is `{field}`")]
    OtherType {
        /// The Content-Type.
        header: String,
        /// The mediaType.
        field: String,
    },
    /// Members that together could be read as image and as index.
    #[error("the manifest is of type `{0}` and has members of another type")]
    Ambiguous(String),
    /// A member is missing.
    #[error("the manifest has no `{0}`")]
    Missing(&'static str),
    /// Another version of the schema.
    #[error("the manifest has schemaVersion {0}, only 2 is stored here")]
    Schema(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Part>,
    layers: Option<Vec<Part>>,
    manifests: Option<Vec<Part>>,
    subject: Option<Part>,
    annotations: Option<BTreeMap<String, String>>,
    /// Layers of schema 1.
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Submitted {
    /// Reads a manifest that was sent with the given Content-Type.
    ///
    /// # Errors
    /// [`ManifestError`] where it breaks a rule.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let members: Members = serde_json::from_slice(bytes)?;
        let media_type = type_of(&members, content_type)?;
        match members.schema_version {
            Some(2) => {}
            Some(other) => return Err(ManifestError::Schema(other)),
            None => return Err(ManifestError::Missing("schemaVersion")),
        }
        let artifact_type = members.artifact_type.clone().filter(|name| !name.is_empty());
        let subject = members.subject.as_ref().map(|subject| subject.digest.clone());
        let annotations = members.annotations.clone().unwrap_or_default();
        let content = Content::of(members, &media_type)?;
        let artifact_type = artifact_type.or_else(|| match &content {
            Content::Image { config, .. } => Some(config.media_type.clone()),
            Content::Index { .. } => None,
        });
        Ok(Self { media_type, artifact_type, annotations, subject, content })
    }

    /// Every blob that it names.
    pub fn named_blobs(&self) -> impl Iterator<Item = &Part> {
        let (config, layers) = match &self.content {
            Content::Image { config, layers, .. } => (Some(config), layers.as_slice()),
            Content::Index { .. } => (None, [].as_slice()),
        };
        config.into_iter().chain(layers)
    }

    /// The blobs that the repository must have before this manifest.
    pub fn blobs(&self) -> impl Iterator<Item = &Part> {
        self.named_blobs().filter(|part| !NOT_DISTRIBUTED.contains(&part.media_type.as_str()))
    }

    /// The manifests that the repository must have before this one.
    pub fn manifests(&self) -> &[Part] {
        match &self.content {
            Content::Image { .. } => &[],
            Content::Index { manifests } => manifests,
        }
    }

    /// The descriptor by which the referrers API names this manifest, as JSON.
    pub fn descriptor(&self, digest: &ContentDigest, size: u64) -> Vec<u8> {
        let descriptor = Descriptor {
            media_type: &self.media_type,
            digest,
            size,
            artifact_type: self.artifact_type.as_deref(),
            annotations: &self.annotations,
        };
        serde_json::to_vec(&descriptor).expect("text and numbers are always JSON")
    }
}

/// An entry of the answer of the referrers API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: &'a ContentDigest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Content {
    fn of(members: Members, media_type: &str) -> Result<Self, ManifestError> {
        let ambiguous = || ManifestError::Ambiguous(media_type.to_owned());
        if members.fs_layers.is_some() {
            return Err(ambiguous());
        }
        if matches!(media_type, OCI_INDEX | DOCKER_LIST) {
            if members.config.is_some() || members.layers.is_some() {
                return Err(ambiguous());
            }
            let manifests = members.manifests.ok_or(ManifestError::Missing("manifests"))?;
            return Ok(Self::Index { manifests });
        }
        if members.manifests.is_some() {
            return Err(ambiguous());
        }
        let config = members.config.ok_or(ManifestError::Missing("config"))?;
        let layers = members.layers.unwrap_or_default();
        let runnable = members.artifact_type.is_none_or(|name| name.is_empty())
            && IMAGE_CONFIGS.contains(&config.media_type.as_str());
        Ok(Self::Image { config, layers, runnable })
    }
}

/// What the manifest is: by its Content-Type, its own word, or its members.
fn type_of(members: &Members, content_type: Option<&str>) -> Result<String, ManifestError> {
    let header = content_type
        .map(without_parameters)
        .filter(|value| !value.is_empty() && *value != "application/octet-stream");
    let field = members.media_type.as_deref().filter(|field| !field.is_empty());
    let media_type = match (header, field) {
        (Some(header), Some(field)) if header != field => {
            let (header, field) = (header.to_owned(), field.to_owned());
            return Err(ManifestError::OtherType { header, field });
        }
        (Some(named), _) | (None, Some(named)) => named,
        (None, None) if members.manifests.is_some() => OCI_INDEX,
        (None, None) => OCI_MANIFEST,
    };
    if MANIFESTS.contains(&media_type) {
        Ok(media_type.to_owned())
    } else {
        Err(ManifestError::MediaType(media_type.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::digest::Algorithm;
    use super::*;

    fn digest(text: &str) -> ContentDigest {
        ContentDigest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn part(media_type: &str, text: &str) -> Value {
        json!({"mediaType": media_type, "digest": digest(text), "size": text.len()})
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": part(IMAGE_CONFIGS[0], "config"),
            "layers": [part("application/vnd.oci.image.layer.v1.tar+gzip", "layer")],
        })
    }

    fn parse(manifest: &Value, content_type: Option<&str>) -> Result<Submitted, ManifestError> {
        Submitted::parse(manifest.to_string().as_bytes(), content_type)
    }

    #[test]
    fn an_image_needs_its_config_and_layers() {
        let submitted = parse(&image(), Some(OCI_MANIFEST)).unwrap();
        let needed: Vec<_> = submitted.blobs().map(|part| part.digest.clone()).collect();
        assert_eq!(needed, [digest("config"), digest("layer")]);
        assert!(matches!(submitted.content, Content::Image { runnable: true, .. }));
    }

    #[test]
    fn layers_that_are_not_distributed_need_not_be_there() {
        let mut manifest = image();
        manifest["layers"][0] = part(NOT_DISTRIBUTED[1], "elsewhere");
        let submitted = parse(&manifest, None).unwrap();
        assert_eq!(submitted.blobs().count(), 1);
    }

    #[test]
    fn an_artifact_is_described_by_its_type_and_annotations() {
        let mut manifest = image();
        manifest["artifactType"] = json!("application/vnd.example");
        manifest["annotations"] = json!({"key": "value"});
        manifest["subject"] = part(OCI_MANIFEST, "subject");
        let submitted = parse(&manifest, None).unwrap();
        assert!(matches!(submitted.content, Content::Image { runnable: false, .. }));
        assert_eq!(submitted.subject, Some(digest("subject")));
        let descriptor: Value =
            serde_json::from_slice(&submitted.descriptor(&digest("m"), 9)).unwrap();
        assert_eq!(
            descriptor,
            json!({
                "mediaType": OCI_MANIFEST, "digest": digest("m"), "size": 9,
                "artifactType": "application/vnd.example", "annotations": {"key": "value"},
            })
        );
    }

    #[test]
    fn without_an_artifact_type_that_of_the_config_counts() {
        let mut manifest = image();
        manifest["config"] = part("application/vnd.example.config", "config");
        let submitted = parse(&manifest, None).unwrap();
        assert_eq!(submitted.artifact_type.as_deref(), Some("application/vnd.example.config"));
    }

    #[test]
    fn an_index_may_be_empty_and_null_is_no_member() {
        let index = json!({"schemaVersion": 2, "manifests": [], "layers": null});
        let submitted = parse(&index, None).unwrap();
        assert_eq!(submitted.media_type, OCI_INDEX);
        assert_eq!(submitted.artifact_type, None);
        assert!(submitted.manifests().is_empty());
    }

    #[test]
    fn content_type_parameters_do_not_matter() {
        let content_type = format!("{OCI_MANIFEST}; charset=utf-8");
        assert_eq!(parse(&image(), Some(&content_type)).unwrap().media_type, OCI_MANIFEST);
    }

    #[test]
    fn manifests_that_break_a_rule_are_refused_by_name() {
        let with = |name: &str, value: Value| {
            let mut manifest = image();
            manifest[name] = value;
            manifest
        };
        for (manifest, content_type, words) in [
            (json!([]), None, "cannot be read"),
            (json!({"schemaVersion": 2}), None, "no `config`"),
            (with("schemaVersion", json!(1)), None, "schemaVersion 1"),
            (with("schemaVersion", Value::Null), None, "no `schemaVersion`"),
            (with("mediaType", json!("text/plain")), None, "`text/plain` is not a type"),
            (image(), Some(OCI_INDEX), "was sent as"),
            (with("manifests", json!([])), None, "another type"),
            (with("fsLayers", json!([])), None, "another type"),
            (with("layers", json!([{"digest": "sha256:bad", "size": 1}])), None, "sha256:bad"),
            (with("layers", json!([{"digest": digest("a"), "size": -1}])), None, "-1"),
        ] {
            let error = parse(&manifest, content_type).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_member_that_occurs_twice_is_refused() {
        let twice = image().to_string().replacen('{', "{\"mediaType\":\"x\",", 1);
        assert!(Submitted::parse(twice.as_bytes(), None).is_err());
    }
}
