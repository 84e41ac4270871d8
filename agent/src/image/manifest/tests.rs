//! What is read as a manifest, what is refused, and which image of an index is taken.

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
    let list = json!({"schemaVersion": 2, "manifests": null, "mediaType": media_type::OCI_INDEX});
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
    assert!(selected(&others[..2], "linux/amd64").unwrap_err().contains("none at all"));
    assert!(selected(&others, "linux/amd64").unwrap_err().contains("another index"));
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
    manifest.config.media_type = media_type::OCI_CONFIG.into();
    assert!(manifest.check_is_image().is_ok(), "it can be run, whatever else it is");
}

/// Go reads them, and with it every engine.
#[test]
fn regression_fields_of_a_configuration_that_nobody_needs_may_hold_anything() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for odd in ["1e999", &deep, r#""\ud800""#] {
        let text = format!(r#"{{"os": "linux", "architecture": null, "author": {odd}}}"#);
        assert_eq!(ImageConfig::parse(text.into()).unwrap().platform.os, "linux");
    }
    let text = &b"{\"os\": \"linux\", \"author\": \"Jos\xe9\"}"[..];
    assert_eq!(ImageConfig::parse(text.into()).unwrap().platform.os, "linux");
}

#[test]
fn regression_an_entry_without_a_type_is_an_image() {
    let mut untyped = entry(Some("linux/amd64"));
    untyped.media_type = String::new();
    assert_eq!(selected(&[untyped], "linux/amd64"), Ok(digest("linux/amd64")));
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
