//! The names of the store: references in base64, digests of layers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use undermount_fs::digest::Digest;

use crate::image::Reference;

/// A layer as podman asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerKey {
    /// The name of the image, before any mirror is applied to it.
    pub reference: Reference,
    /// The digest of the layer's blob, or the one in its table-of-contents annotation.
    pub digest: Digest,
}

/// The directory of `reference` in the store.
pub fn store_name(reference: &Reference) -> String {
    STANDARD.encode(reference.to_string())
}

/// The reference whose directory is called `name`.
pub(super) fn parse_store_name(name: &[u8]) -> Option<Reference> {
    let text = String::from_utf8(STANDARD.decode(name).ok()?).ok()?;
    let reference: Reference = text.parse().ok()?;
    // One directory for each image: other spellings of a name are not podman's.
    (store_name(&reference).as_bytes() == name).then_some(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_podman_makes_of_references() {
        let digest = Digest::of(b"manifest");
        for text in [
            "docker.io/library/alpine:3.19".to_owned(),
            "10.213.7.1:5790/rootfs:esgz".to_owned(),
            format!("localhost:5000/a/b@{digest}"),
        ] {
            let reference = parse_store_name(STANDARD.encode(&text).as_bytes());
            assert_eq!(reference.map(|reference| reference.to_string()), Some(text));
        }
    }

    #[test]
    fn other_names_are_none() {
        for name in ["", "lost+found", "YWxwaW5l", "bG9jYWxob3N0L2E6Yg", "!", "Lg=="] {
            assert_eq!(parse_store_name(name.as_bytes()), None, "{name}");
        }
    }
}
