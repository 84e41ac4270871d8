//! What belongs to an image and where a registry without the referrers API keeps it.
//!
//! OCI distribution 1.1 lists artifacts by their subject. Older registries have no such list;
//! there clients keep one under the *fallback tag* `sha256-<hex>` of the subject, an OCI index.
//! Because such registries collect manifests that only an index names as garbage, the index
//! artifact gets a tag of its own too, `sha256-<hex>.undermount`, in the style of cosign's
//! `.sig`. Neither is a version of the image: see [`is_reserved_tag`].

use serde_json::{Value, json};
use undermount_fs::digest::Digest;

use super::manifest::{Descriptor, Document, ManifestError, media_type};
use super::reference::Tag;

/// Repeats the artifact type in the fallback index: `skopeo copy --all` drops the field.
pub const ARTIFACT_TYPE: &str = "io.undermount.artifact.type";

/// The tag under which registries without the referrers API list what belongs to `subject`.
pub fn fallback_tag(subject: &Digest) -> Tag {
    Tag::of_valid(format!("sha256-{}", subject.hex()))
}

/// The index artifact's own tag.
pub fn own_tag(subject: &Digest) -> Tag {
    Tag::of_valid(format!("sha256-{}.undermount", subject.hex()))
}

/// Whether a tag is one of [`own_tag`].
pub fn is_own_tag(tag: &str) -> bool {
    is_reserved_tag(tag) && tag.ends_with(".undermount")
}

/// Whether a tag belongs to a manifest (`sha256-<64 hex digits>` and anything after), so that
/// it is no version of an image and listings leave it out.
pub fn is_reserved_tag(tag: &str) -> bool {
    let hex = tag.strip_prefix("sha256-").and_then(|rest| rest.get(..64));
    hex.is_some_and(|hex| Digest::from_hex(hex).is_ok())
}

/// The artifact type of a listed referrer, wherever it is written.
pub fn artifact_type(referrer: &Descriptor) -> Option<&str> {
    let annotated = || referrer.annotations.get(ARTIFACT_TYPE).map(String::as_str);
    referrer.artifact_type.as_deref().filter(|kind| !kind.is_empty()).or_else(annotated)
}

/// What a list of referrers says of a manifest: its artifact type, or the type of its
/// configuration, and its annotations (distribution-spec, "Listing Referrers").
pub fn listed(manifest: &[u8], media_type: &str) -> Descriptor {
    let mut listed = Descriptor::of(media_type, manifest);
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let document: Value = serde_json::from_slice(manifest).unwrap_or_default();
    listed.artifact_type =
        text(&document["artifactType"]).or_else(|| text(&document["config"]["mediaType"]));
    let annotations = document["annotations"].as_object().into_iter().flatten();
    listed.annotations =
        annotations.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
    listed
}

/// The fallback index with `artifact` in it; `None` where `existing` already says so. Our own
/// index artifact takes the place of an earlier one. What other clients wrote stays as it is.
///
/// # Errors
/// [`ManifestError`] where `existing` is something else than an index.
pub fn list_in_fallback(
    existing: Option<&[u8]>,
    artifact: &Descriptor,
) -> Result<Option<Vec<u8>>, ManifestError> {
    let mut index = match existing {
        Some(bytes) => {
            Document::parse(bytes, Some(media_type::OCI_INDEX))?.into_index()?;
            serde_json::from_slice(bytes)
                .map_err(|source| ManifestError::Json { what: "index", source })?
        }
        None => json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX}),
    };
    let mut listed = artifact.clone();
    if let Some(kind) = &artifact.artifact_type {
        listed.annotations.insert(ARTIFACT_TYPE.to_owned(), kind.clone());
    }
    let mut entries = match index.get_mut("manifests").map(Value::take) {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    };
    let replaced = |entry: &Value| {
        serde_json::from_value::<Descriptor>(entry.clone()).is_ok_and(|entry| {
            let is_index = artifact_type(&entry) == Some(media_type::UNDERMOUNT_INDEX);
            entry.digest == listed.digest
                || is_index && artifact_type(&listed) == artifact_type(&entry)
        })
    };
    let wanted = serde_json::to_value(&listed).expect("strings and numbers become JSON");
    let before: Vec<&Value> = entries.iter().filter(|entry| replaced(entry)).collect();
    if before == [&wanted] {
        return Ok(None);
    }
    entries.retain(|entry| !replaced(entry));
    entries.push(wanted);
    index["manifests"] = Value::Array(entries);
    Ok(Some(index.to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(name: &str) -> Descriptor {
        let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, name.as_bytes());
        descriptor.artifact_type = Some(media_type::UNDERMOUNT_INDEX.into());
        descriptor
    }

    fn digests(index: &[u8]) -> Vec<Digest> {
        let index = Document::parse(index, None).unwrap().into_index().unwrap();
        index.manifests.iter().map(|entry| entry.digest).collect()
    }

    #[test]
    fn tags_are_derived_from_the_subject_and_reserved() {
        let subject = Digest::of(b"image");
        let fallback = fallback_tag(&subject);
        assert_eq!(fallback.as_str().len(), 71);
        assert_eq!(own_tag(&subject).as_str(), format!("{fallback}.undermount"));
        for (tag, reserved) in [
            (fallback.as_str(), true),
            (own_tag(&subject).as_str(), true),
            (&format!("{fallback}.sig"), true),
            (&fallback.as_str()[..70], false),
            ("sha256-ü", false),
            ("latest", false),
            (&fallback.as_str().to_uppercase(), false),
        ] {
            assert_eq!(is_reserved_tag(tag), reserved, "{tag}");
        }
    }

    #[test]
    fn the_fallback_index_lists_an_artifact_once_and_its_newest_version_only() {
        let first = list_in_fallback(None, &artifact("1")).unwrap().unwrap();
        assert_eq!(digests(&first), [artifact("1").digest]);
        assert_eq!(list_in_fallback(Some(&first), &artifact("1")).unwrap(), None);
        let second = list_in_fallback(Some(&first), &artifact("2")).unwrap().unwrap();
        assert_eq!(digests(&second), [artifact("2").digest]);
    }

    #[test]
    fn what_others_listed_stays_with_all_its_fields() {
        let signature = json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"sig"), "size": 3,
            "artifactType": "application/vnd.dev.cosign.artifact.sig.v1+json", "data": "AAAA",
        });
        let unknown = json!({"digest": "sha512:00", "size": 1});
        let existing = json!({"schemaVersion": 2, "manifests": [signature, unknown], "x": 1});
        let updated = list_in_fallback(Some(existing.to_string().as_bytes()), &artifact("1"));
        let updated: Value = serde_json::from_slice(&updated.unwrap().unwrap()).unwrap();
        assert_eq!(updated["manifests"][0], signature);
        assert_eq!(updated["manifests"][1], unknown);
        assert_eq!(updated["x"], 1);
        assert_eq!(
            updated["manifests"][2]["annotations"][ARTIFACT_TYPE],
            media_type::UNDERMOUNT_INDEX
        );
    }

    #[test]
    fn the_type_is_found_where_the_field_was_dropped() {
        let index = list_in_fallback(None, &artifact("1")).unwrap().unwrap();
        let index = Document::parse(&index, None).unwrap().into_index().unwrap();
        let mut entry = index.manifests[0].clone();
        entry.artifact_type = None;
        assert_eq!(artifact_type(&entry), Some(media_type::UNDERMOUNT_INDEX));
    }

    #[test]
    fn something_else_under_the_fallback_tag_is_not_overwritten() {
        let image = json!({"schemaVersion": 2, "config": artifact("c"), "layers": []});
        assert!(list_in_fallback(Some(image.to_string().as_bytes()), &artifact("1")).is_err());
        assert!(list_in_fallback(Some(b"<html>"), &artifact("1")).is_err());
    }
}
