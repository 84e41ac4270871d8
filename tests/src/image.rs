//! Builds container images in memory: layers, config and manifest, right or wrong on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use undermount_fs::digest::Digest;

use crate::archive::{Archive, Member};
use crate::compression::Compression;

/// The media type of the manifests made here.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layer and what the manifest and the config are to claim about it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What the registry delivers; `None`: it does not have the blob.
    pub blob: Option<Bytes>,
    /// The claimed media type.
    pub media_type: String,
    /// The claimed digest of the blob.
    pub digest: Digest,
    /// The claimed size of the blob.
    pub size: u64,
    /// The claimed digest of the archive.
    pub diff_id: Digest,
}

impl Layer {
    /// A gzip layer of `members`.
    pub fn of(members: &[Member]) -> Self {
        Self::compressed(&Archive::of(members), Compression::Gzip)
    }

    /// A layer of the archive `tar`, compressed in one of the usual ways.
    pub fn compressed(tar: &[u8], compression: Compression) -> Self {
        Self::raw(compression.apply(tar), tar, compression.media_type())
    }

    /// A layer whose blob was made by hand.
    pub fn raw(blob: Vec<u8>, tar: &[u8], media_type: &str) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(&blob),
            size: blob.len() as u64,
            diff_id: Digest::of(tar),
            blob: Some(blob.into()),
        }
    }

    /// The descriptor in the manifest.
    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

/// An image: its manifest and the blobs under the digests by which it names them.
#[derive(Debug, Clone)]
pub struct Image {
    /// The bytes of the manifest.
    pub manifest: Bytes,
    /// Layers and config.
    pub blobs: BTreeMap<Digest, Bytes>,
}

impl Image {
    /// An image of gzip layers.
    pub fn of(layers: &[&[Member]]) -> Self {
        Self::from_layers(layers.iter().map(|members| Layer::of(members)).collect())
    }

    /// An image of ready layers.
    pub fn from_layers(layers: Vec<Layer>) -> Self {
        Self::with_labels(layers, &[])
    }

    /// An image of ready layers with labels in its config.
    pub fn with_labels(layers: Vec<Layer>, labels: &[(&str, &str)]) -> Self {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Labels": labels },
            "history": vec![json!({"created_by": "a test"}); layers.len()],
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
            },
        });
        Self::assemble(layers, &config)
    }

    /// An image of ready layers and any config.
    pub fn assemble(layers: Vec<Layer>, config: &Value) -> Self {
        let config = Bytes::from(config.to_string());
        let digest = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest, "size": config.len() },
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        let mut blobs: BTreeMap<Digest, Bytes> = layers
            .into_iter()
            .filter_map(|layer| layer.blob.map(|blob| (layer.digest, blob)))
            .collect();
        blobs.insert(digest, config);
        Self { manifest: manifest.to_string().into(), blobs }
    }

    /// The digest by which the manifest is addressed.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The descriptors of the layers: digest and size, lowest first.
    pub fn layers(&self) -> Vec<(Digest, u64)> {
        let manifest: Value = serde_json::from_slice(&self.manifest).expect("made here");
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        layers
            .iter()
            .map(|layer| {
                let digest = layer["digest"].as_str().and_then(|text| text.parse().ok());
                (digest.expect("a digest"), layer["size"].as_u64().expect("a size"))
            })
            .collect()
    }

    /// The sum of the claimed sizes of its layers, in bytes.
    pub fn compressed_size(&self) -> u64 {
        self.layers().iter().map(|(_, size)| size).sum()
    }

    /// Adds the image to an OCI layout, under the reference name `name`.
    pub fn write_layout(&self, directory: &Path, name: &str) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        for (digest, bytes) in self.blobs.iter().chain([(&self.digest(), &self.manifest)]) {
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
        }
        let path = directory.join("index.json");
        let mut index: Value = fs::read(&path)
            .map(|text| serde_json::from_slice(&text).unwrap())
            .unwrap_or_else(|_| json!({ "schemaVersion": 2, "manifests": [] }));
        index["manifests"].as_array_mut().unwrap().push(json!({
            "mediaType": MANIFEST,
            "digest": self.digest(),
            "size": self.manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": name },
        }));
        fs::write(path, index.to_string()).unwrap();
    }

    /// Reads the image `name` of an OCI layout. Blobs that are not there stay missing.
    pub fn read_layout(directory: &Path, name: &str) -> Self {
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |digest: &Value| {
            let digest: Digest = digest.as_str().unwrap().parse().unwrap();
            let path = directory.join("blobs/sha256").join(digest.hex());
            fs::read(path).ok().map(|bytes| (digest, Bytes::from(bytes)))
        };
        let index = parse(&fs::read(directory.join("index.json")).unwrap());
        let entry = index["manifests"].as_array().unwrap().iter().find(|entry| {
            entry["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(name)
        });
        let digest = &entry.unwrap_or_else(|| panic!("no image `{name}`"))["digest"];
        let (_, manifest) = blob(digest).expect("the manifest is there");
        let parsed = parse(&manifest);
        let layers = parsed["layers"].as_array().unwrap().iter();
        let blobs = layers
            .chain([&parsed["config"]])
            .filter_map(|descriptor| blob(&descriptor["digest"]))
            .collect();
        Self { manifest, blobs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_keeps_the_image_and_several_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let one = Image::of(&[&[Member::file("a", "1")], &[Member::file("b", "2")]]);
        let two = Image::of(&[&[Member::file("a", "1")]]);
        one.write_layout(directory.path(), "one");
        two.write_layout(directory.path(), "two");
        let read = Image::read_layout(directory.path(), "one");
        assert_eq!((read.digest(), read.blobs), (one.digest(), one.blobs.clone()));
        assert_eq!(one.layers().len(), 2);
        assert_eq!(one.layers()[0], two.layers()[0]);
    }
}
