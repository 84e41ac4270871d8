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
    if !rename(&mut document) {
        return manifest;
    }
    let bytes = Bytes::from(document.to_string());
    let digest = Digest::of(&bytes);
    RawManifest { bytes, media_type: media_type::DOCKER_MANIFEST.to_owned(), digest }
}

/// Renames all media types below `value`; false where there is one without a counterpart.
fn rename(value: &mut Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter_mut().all(|(key, value)| match value {
            Value::String(kind) if key == "mediaType" => {
                let known = TYPES.iter().find(|(oci, docker)| kind == oci || kind == docker);
                known.map(|(_, docker)| *kind = (*docker).to_owned()).is_some()
            }
            other => rename(other),
        }),
        Value::Array(items) => items.iter_mut().all(rename),
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
