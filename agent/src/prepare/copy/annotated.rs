//! Manifests that name the index of each layer, for podman since 5.1: it asks an additional layer
//! store by the digest in that annotation, where its elders ask by the digest of the layer.
//!
//! Config and layers are those of the original, so only the manifest is new, and where no store
//! runs it is pulled like any other. What belongs to the original (signatures, say) names it by
//! digest and does not belong to the new one.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Map, Value};
use undermount_fs::digest::Digest;

use super::docker;
use crate::image::media_type;
use crate::podman::TOC_ANNOTATIONS;
use crate::registry::client::RawManifest;

/// The annotation of a manifest that says of which one it was made.
const ORIGINAL: &str = "vnd.undermount.original";

/// Annotations of a layer with a table of contents of its own, two of which podman refuses.
const FOREIGN: &str = "io.github.containers.zstd-chunked.";

/// The image `original` with the digests of its layers' `trees`; `None` where it cannot be
/// written in OCI's form, or has no layers with a tree.
pub fn of_image(original: &RawManifest, trees: &HashMap<Digest, Digest>) -> Option<RawManifest> {
    let mut document = read(original)?;
    let mut named = 0;
    for layer in document.get_mut("layers")?.as_array_mut()? {
        let digest: Digest = layer.get("digest")?.as_str()?.parse().ok()?;
        let Some(tree) = trees.get(&digest) else { continue };
        let annotations = annotations_of(layer)?;
        annotations.retain(|name, _| !name.starts_with(FOREIGN));
        annotations.insert(TOC_ANNOTATIONS[0].to_owned(), tree.to_string().into());
        named += 1;
    }
    (named > 0).then(|| write(document, media_type::OCI_MANIFEST, original))?
}

/// The list `original` of the `images` that stand in place of others, by the digest of those;
/// `None` where it has none of them.
pub fn of_list(
    original: &RawManifest,
    images: &HashMap<Digest, RawManifest>,
) -> Option<RawManifest> {
    let mut document = read(original)?;
    let mut replaced = 0;
    for entry in document.get_mut("manifests")?.as_array_mut()? {
        let digest: Digest = entry.get("digest")?.as_str()?.parse().ok()?;
        let Some(image) = images.get(&digest) else { continue };
        let entry = entry.as_object_mut()?;
        entry.insert("mediaType".to_owned(), image.media_type.clone().into());
        entry.insert("digest".to_owned(), image.digest.to_string().into());
        entry.insert("size".to_owned(), image.bytes.len().into());
        replaced += 1;
    }
    (replaced > 0).then(|| write(document, media_type::OCI_INDEX, original))?
}

/// Whether `manifest` was made of `original`.
pub fn is_of(manifest: &RawManifest, original: &Digest) -> bool {
    let document = serde_json::from_slice::<Value>(&manifest.bytes).unwrap_or_default();
    document["annotations"][ORIGINAL].as_str() == Some(original.to_string().as_str())
}

fn read(original: &RawManifest) -> Option<Value> {
    let mut document = serde_json::from_slice(&original.bytes).ok()?;
    docker::rename_to_oci(&mut document).then_some(document)
}

fn write(mut document: Value, kind: &str, original: &RawManifest) -> Option<RawManifest> {
    document["mediaType"] = kind.into();
    let original = original.digest.to_string().into();
    annotations_of(&mut document)?.insert(ORIGINAL.to_owned(), original);
    let bytes = Bytes::from(document.to_string());
    let digest = Digest::of(&bytes);
    Some(RawManifest { bytes, media_type: kind.to_owned(), digest })
}

fn annotations_of(value: &mut Value) -> Option<&mut Map<String, Value>> {
    let annotations = value.as_object_mut()?.entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = Value::Object(Map::new());
    }
    annotations.as_object_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(document: &Value, kind: &str) -> RawManifest {
        let bytes = Bytes::from(document.to_string());
        let digest = Digest::of(&bytes);
        RawManifest { bytes, media_type: kind.to_owned(), digest }
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn image() -> RawManifest {
        let layer = |name: &str, annotations: Value| {
            json!({ "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "digest": digest(name), "size": 3, "annotations": annotations })
        };
        let foreign =
            json!({ "io.github.containers.zstd-chunked.manifest-checksum": "x", "a": "b" });
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type::DOCKER_MANIFEST,
            "config": { "mediaType": "application/vnd.docker.container.image.v1+json",
                        "digest": digest("config"), "size": 2 },
            "layers": [layer("one", Value::Null), layer("two", foreign), layer("none", Value::Null)],
        });
        raw(&document, media_type::DOCKER_MANIFEST)
    }

    fn trees() -> HashMap<Digest, Digest> {
        ["one", "two"].map(|name| (digest(name), digest(&format!("tree of {name}")))).into()
    }

    #[test]
    fn each_layer_with_an_index_names_it_and_all_else_stays() {
        let original = image();
        let annotated = of_image(&original, &trees()).unwrap();
        assert_eq!(annotated.media_type, media_type::OCI_MANIFEST);
        assert_eq!(annotated.digest, Digest::of(&annotated.bytes));
        assert!(is_of(&annotated, &original.digest) && !is_of(&original, &original.digest));
        let document: Value = serde_json::from_slice(&annotated.bytes).unwrap();
        let before: Value = serde_json::from_slice(&original.bytes).unwrap();
        let toc = |name: &str| digest(&format!("tree of {name}")).to_string();
        let layers = document["layers"].as_array().unwrap();
        assert_eq!(layers[0]["annotations"], json!({ (TOC_ANNOTATIONS[0]): toc("one") }));
        assert_eq!(layers[1]["annotations"], json!({ "a": "b", (TOC_ANNOTATIONS[0]): toc("two") }));
        assert_eq!(layers[2]["annotations"], Value::Null);
        for (place, layer) in layers.iter().enumerate() {
            assert_eq!(layer["digest"], before["layers"][place]["digest"]);
            assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
        }
        assert_eq!(document["config"]["digest"], before["config"]["digest"]);
        assert!(of_image(&original, &HashMap::new()).is_none());
    }

    #[test]
    fn a_list_names_the_images_that_name_their_indexes() {
        let original = image();
        let annotated = of_image(&original, &trees()).unwrap();
        let entry = |digest: Digest| {
            json!({ "mediaType": media_type::DOCKER_MANIFEST, "digest": digest, "size": 7,
                    "platform": { "architecture": "amd64", "os": "linux" } })
        };
        let entries = [entry(original.digest), entry(digest("other"))];
        let list = json!({ "schemaVersion": 2, "mediaType": media_type::DOCKER_LIST,
                           "manifests": entries });
        let list = raw(&list, media_type::DOCKER_LIST);
        let images = HashMap::from([(original.digest, annotated.clone())]);
        let document: Value =
            serde_json::from_slice(&of_list(&list, &images).unwrap().bytes).unwrap();
        let first = &document["manifests"][0];
        assert_eq!(first["digest"], annotated.digest.to_string());
        assert_eq!(first["size"], annotated.bytes.len());
        assert_eq!(first["platform"], entries[0]["platform"]);
        assert_eq!(document["manifests"][1]["digest"], entries[1]["digest"]);
        assert_eq!(document["mediaType"], media_type::OCI_INDEX);
        assert!(of_list(&list, &HashMap::new()).is_none());
    }
}
