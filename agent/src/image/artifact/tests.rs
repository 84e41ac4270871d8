//! The format, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn subject() -> Descriptor {
    let mut subject = Descriptor::of(media_type::DOCKER_MANIFEST, b"image");
    subject.annotations.insert("not".into(), "copied".into());
    subject
}

fn blobs(name: &str) -> LayerBlobs {
    LayerBlobs {
        layer: Digest::of(name.as_bytes()),
        tree: Bytes::from(format!("tree of {name} ").repeat(100)),
        spans: Bytes::from(format!("spans of {name}")),
    }
}

fn built() -> Artifact {
    Artifact::build(&subject(), &[blobs("b"), blobs("a"), blobs("b")]).unwrap()
}

fn parse_changed(change: impl FnOnce(&mut Value)) -> Result<Vec<LayerEntry>, String> {
    let mut manifest: Value = serde_json::from_slice(&built().manifest).unwrap();
    change(&mut manifest);
    parse(manifest.to_string().as_bytes(), &subject().digest).map_err(|e| e.to_string())
}

#[test]
fn what_was_built_is_read_back_layer_by_layer() {
    let artifact = built();
    assert_eq!(artifact.descriptor.digest, Digest::of(&artifact.manifest));
    assert_eq!(artifact.blobs.len(), 5, "config, and two per distinct layer");
    let entries = parse(&artifact.manifest, &subject().digest).unwrap();
    for (entry, name) in entries.iter().zip(["b", "a"]) {
        let expected = blobs(name);
        let bytes = |wanted: &Descriptor| {
            let found = artifact.blobs.iter().find(|(blob, _)| blob == wanted).unwrap();
            assert_eq!(Digest::of(&found.1), wanted.digest);
            assert_eq!(found.1.len() as u64, wanted.size);
            found.1.clone()
        };
        assert_eq!(entry.layer, expected.layer);
        assert_eq!(bytes(&entry.spans), expected.spans);
        let tree = entry.unpack_tree(&bytes(&entry.tree_blob)).unwrap();
        assert_eq!(tree.bytes(), &expected.tree);
    }
    assert_eq!(entries.len(), 2);
}

#[test]
fn the_format_is_pinned() {
    let layer = LayerBlobs { layer: Digest::of(b"l"), tree: "t".into(), spans: "s".into() };
    let artifact = Artifact::build(&subject(), &[layer]).unwrap();
    let manifest: Value = serde_json::from_slice(&artifact.manifest).unwrap();
    let layer = Digest::of(b"l");
    let tree = artifact.blobs[1].0.clone();
    let expected = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.undermount.index.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
        },
        "layers": [{
            "mediaType": "application/vnd.undermount.index.tree.v1+zstd",
            "digest": tree.digest,
            "size": tree.size,
            "annotations": {
                "io.undermount.layer": layer,
                "io.undermount.tree": Digest::of(b"t"),
                "io.undermount.tree.size": "1",
            },
        }, {
            "mediaType": "application/vnd.undermount.index.spans.v1",
            "digest": Digest::of(b"s"),
            "size": 1,
            "annotations": {"io.undermount.layer": layer},
        }],
        "subject": {
            "mediaType": media_type::DOCKER_MANIFEST,
            "digest": Digest::of(b"image"),
            "size": 5,
        },
    });
    assert_eq!(manifest, expected);
    assert_eq!(built().manifest, built().manifest, "same input, same bytes");
}

#[test]
fn an_image_without_layers_has_an_artifact_without_entries() {
    let artifact = Artifact::build(&subject(), &[]).unwrap();
    assert_eq!(parse(&artifact.manifest, &subject().digest).unwrap(), []);
}

#[test]
fn anything_else_is_refused_with_the_reason() {
    let other = Digest::of(b"other image");
    assert!(matches!(parse(&built().manifest, &other), Err(ArtifactError::Subject { .. })));
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 9] = [
        (|m| m["artifactType"] = json!("application/x"), "`application/x`"),
        (|m| m["subject"] = Value::Null, "no image"),
        (|m| m["layers"][0]["annotations"] = Value::Null, "io.undermount.layer"),
        (|m| m["layers"][0]["annotations"][TREE] = json!("sha256:1"), "io.undermount.tree"),
        (|m| m["layers"][0]["annotations"][TREE_SIZE] = json!("-1"), "io.undermount.tree.size"),
        (|m| m["layers"][0]["annotations"][TREE_SIZE] = json!("2000000000"), "2000000000 bytes"),
        (|m| drop(m["layers"].as_array_mut().unwrap().remove(1)), "exactly one tree"),
        (|m| m["layers"][2] = m["layers"][0].clone(), "exactly one tree"),
        (|m| m["manifests"] = json!([]), "ambiguous"),
    ];
    for (change, part) in changes {
        let message = parse_changed(change).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
    let with_more = parse_changed(|manifest| {
        manifest["layers"][0]["mediaType"] = json!("application/vnd.undermount.pack.v9");
        manifest["layers"][1]["mediaType"] = json!("application/vnd.undermount.pack.v9");
    });
    assert_eq!(with_more.unwrap().len(), 1, "types of later versions are left alone");
}

#[test]
fn a_tree_that_is_not_the_named_one_is_refused() {
    let artifact = built();
    let mut entry = parse(&artifact.manifest, &subject().digest).unwrap().remove(0);
    let blob = artifact.blobs[1].1.clone();
    let message = |entry: &LayerEntry, blob: &[u8]| {
        let error = entry.unpack_tree(blob).unwrap_err().to_string();
        assert!(error.contains(&entry.layer.to_string()), "{error}");
        error
    };
    assert!(message(&entry, b"no zstd").contains("damaged"));
    assert!(message(&entry, &blob[..blob.len() - 3]).contains("damaged"));
    entry.tree_size -= 1;
    assert!(message(&entry, &blob).contains("other than"));
    entry.tree_size += 1;
    entry.tree = Digest::of(b"another");
    assert!(message(&entry, &blob).contains("not what the artifact names"));
}

proptest! {
    #[test]
    fn no_damage_to_an_artifact_panics(at in 0usize..1200, byte: u8) {
        let mut manifest = built().manifest.to_vec();
        if let Some(target) = manifest.get_mut(at) {
            *target = byte;
        }
        let _ = parse(&manifest, &subject().digest);
    }
}

#[test]
fn regression_a_tree_that_no_layer_of_its_size_has_is_not_plausible() {
    let entry = |tree_size: u64, packed: u64| {
        let mut entry = blobs("a").pack().unwrap().entry;
        (entry.tree_size, entry.tree_blob.size) = (tree_size, packed);
        entry
    };
    let (kib, mib) = (1 << 10, 1 << 20);
    for (tree, packed, layer, plausible) in [
        (mib, 100 * kib, 100, true),
        (100 * mib, 10 * mib, mib, true),
        (1024 * mib, 50 * kib, 20 * kib, false),
        (300 * mib, 10 * kib, mib, false),
        (mib, mib + 100, mib, true),
        (mib, 600 * mib, mib, false),
        (MAX_TREE, u64::MAX, u64::MAX, false),
    ] {
        assert_eq!(entry(tree, packed).is_plausible(layer), plausible, "{tree} {packed} {layer}");
    }
}

#[test]
fn regression_the_trees_of_an_image_are_bounded_together() {
    let message = parse_changed(|manifest| {
        manifest["layers"][0]["annotations"][TREE_SIZE] = json!("600000000");
        manifest["layers"][2]["annotations"][TREE_SIZE] = json!("600000000");
    });
    assert!(message.unwrap_err().contains("have 1200000000 bytes together"));
}
