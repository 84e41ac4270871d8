//! OCI manifests as docker's schema 2: for destinations, or habits, that want nothing else.

use bytes::Bytes;
use serde_json::Value;

use crate::image::media_type;
use crate::registry::client::RawManifest;
use undermount_fs::digest::Digest;

/// OCI's media types and docker's for the same bytes.
const TYPES: [(&str, &str); 5] = [
    (media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST),
    (media_type::OCI_INDEX, media_type::DOCKER_LIST),
    (media_type::OCI_CONFIG, "application/vnd.docker.container.image.v1+json"),
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
    ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"),
];

/// The manifest in docker's form; as it is where it has that form or is no JSON. A manifest with
/// parts that docker knows no type for (zstd layers) stays OCI's.
pub fn convert(manifest: RawManifest) -> RawManifest {
    if manifest.media_type != media_type::OCI_MANIFEST {
        return manifest;
    }
    let Ok(mut document) = serde_json::from_slice::<Value>(&manifest.bytes) else {
        return manifest;
    };
    document["mediaType"] = media_type::OCI_MANIFEST.into();
    if !rename(&mut document, |(_, docker)| docker) {
        return manifest;
    }
    let bytes = Bytes::from(document.to_string());
    let digest = Digest::of(&bytes);
    RawManifest { bytes, media_type: media_type::DOCKER_MANIFEST.to_owned(), digest }
}

/// Gives everything in `document` OCI's types; false where something has a type without a
/// counterpart.
pub fn rename_to_oci(document: &mut Value) -> bool {
    rename(document, |(oci, _)| oci)
}

/// Types that docker has not are OCI's in either form.
fn is_oci(kind: &str) -> bool {
    kind.starts_with("application/vnd.oci.")
}

/// Renames all media types below `value` as `choose` says of a pair in [`TYPES`]; false where
/// there is one without a counterpart.
fn rename(value: &mut Value, choose: fn((&'static str, &'static str)) -> &'static str) -> bool {
    match value {
        Value::Object(fields) => fields.iter_mut().all(|(key, value)| match value {
            Value::String(kind) if key == "mediaType" => {
                let known = TYPES.into_iter().find(|(oci, docker)| kind == oci || kind == docker);
                match known.map(choose) {
                    Some(chosen) => *kind = chosen.to_owned(),
                    None => return is_oci(kind) && is_oci(choose(TYPES[0])),
                }
                true
            }
            other => rename(other, choose),
        }),
        Value::Array(items) => items.iter_mut().all(|item| rename(item, choose)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layer: &str) -> RawManifest {
        let bytes = Bytes::from(format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{}"}},"layers":[{{"mediaType":"{layer}"}}]}}"#,
            media_type::OCI_CONFIG
        ));
        let digest = Digest::of(&bytes);
        RawManifest { bytes, media_type: media_type::OCI_MANIFEST.to_owned(), digest }
    }

    #[test]
    fn every_type_is_renamed_or_none() {
        let converted = convert(manifest("application/vnd.oci.image.layer.v1.tar+gzip"));
        let text = String::from_utf8_lossy(&converted.bytes).into_owned();
        assert_eq!(converted.media_type, media_type::DOCKER_MANIFEST);
        assert_eq!(converted.digest, Digest::of(&converted.bytes));
        assert!(!text.contains("vnd.oci") && text.contains("rootfs.diff.tar.gzip"), "{text}");
        let zstd = manifest("application/vnd.oci.image.layer.v1.tar+zstd");
        assert_eq!(convert(zstd.clone()).bytes, zstd.bytes);
    }
}
