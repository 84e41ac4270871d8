//! The configuration of an image (OCI image-spec, "config"; docker's is alike).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use undermount_fs::digest::Digest;

use super::{Descriptor, Manifest, ManifestError, or_default};
use crate::image::platform::Platform;

/// Largest image configuration that is read, in bytes.
pub const MAX_CONFIG: usize = 16 << 20;

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
    // Not flattened: that would read all other fields too, which may hold what only Go reads.
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
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
        let ConfigFile { os, architecture, variant, rootfs, config } = file;
        let platform = Platform { os, architecture, variant };
        Ok(Self { platform, diff_ids: rootfs.diff_ids, labels: config.labels, raw })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::image::manifest::Document;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn manifest(layers: usize) -> Manifest {
        let layer = json!({"mediaType": "l", "digest": digest("l"), "size": 1});
        let config = json!({"digest": digest("c"), "size": 2});
        let image = json!({"schemaVersion": 2, "config": config, "layers": vec![layer; layers]});
        let document = Document::parse(image.to_string().as_bytes(), None);
        document.unwrap().into_manifest().unwrap()
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
        assert_eq!(config.layers(&manifest(1)).unwrap()[0].1, &digest("a"));
        let message = config.layers(&manifest(2)).unwrap_err().to_string();
        assert!(message.contains("2 layers") && message.contains("1 DiffIDs"), "{message}");
    }
}
