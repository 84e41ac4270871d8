//! The index builder on the edge images: what can be told from an index without a mount.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::Write as _;
use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::Value;
use undermount_fs::digest::Digest;
use undermount_fs::index::{LayerTree, SpanTable};
use undermount_fs::layer::{Indexer, LayerError, LayerIndex};
use undermount_tests::edge::{Case, Verdict, cases};

/// Indexes a blob that arrives in pieces of `size`.
fn index(blob: &[u8], size: usize) -> Result<LayerIndex, LayerError> {
    let mut indexer = Indexer::new();
    for chunk in blob.chunks(size) {
        // The indexer hangs up on a layer that it has refused; `finish` says why.
        if indexer.write_all(chunk).is_err() {
            break;
        }
    }
    indexer.finish()
}

fn all() -> &'static [Case] {
    static CASES: LazyLock<Vec<Case>> = LazyLock::new(cases);
    &CASES
}

/// What the config of the image says about its archives.
fn diff_ids(case: &Case) -> Vec<Digest> {
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let digest = parse(&case.image.manifest)["config"]["digest"].as_str().unwrap().parse().unwrap();
    let config = parse(&case.image.blobs[&digest]);
    serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap()
}

/// The layers that the registry has.
fn blobs(case: &Case) -> Vec<Bytes> {
    let layers = case.image.layers();
    layers.iter().filter_map(|(digest, _)| case.image.blobs.get(digest).cloned()).collect()
}

#[test]
fn every_right_layer_has_one_index_and_the_claimed_diff_id_however_it_arrives() {
    let mut wrong = Vec::new();
    for case in all().iter().filter(|case| matches!(case.verdict, Verdict::Tree(_))) {
        for (blob, diff_id) in blobs(case).iter().zip(diff_ids(case)) {
            match [1 << 20, 4_093].map(|size| index(blob, size)) {
                [Ok(one), Ok(two)] if one == two && one.diff_id == diff_id => {}
                [Ok(one), Ok(two)] if one == two => wrong.push(format!("{}: DiffID", case.name)),
                [Ok(_), Ok(_)] => wrong.push(format!("{}: two indexes", case.name)),
                [Err(error), _] | [_, Err(error)] => wrong.push(format!("{}: {error}", case.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A rule for indexes of strangers that a right index breaks would have every node build its own.
#[test]
fn every_index_passes_what_indexes_of_strangers_are_held_to() {
    let mut wrong = Vec::new();
    for case in all() {
        for index in blobs(case).iter().filter_map(|blob| index(blob, 1 << 20).ok()) {
            let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
            let spans = SpanTable::new(index.spans.to_vec().into());
            wrong.extend(tree.check().err().map(|error| format!("{}: {error}", case.name)));
            match spans.map(|table| table.end().1) {
                Ok(end) if end == index.uncompressed_size => {}
                Ok(end) => wrong.push(format!("{}: spans end at {end}", case.name)),
                Err(error) => wrong.push(format!("{}: {error}", case.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damaged_streams_and_archives_are_refused_by_a_sentence() {
    let mut wrong = Vec::new();
    for case in all() {
        let Verdict::Malformed(reason, _) = case.verdict else { continue };
        // The other reasons concern what the manifest says about the layer.
        if !reason.contains("damaged") {
            continue;
        }
        for blob in blobs(case) {
            match index(&blob, 1 << 16) {
                Ok(_) => wrong.push(format!("{}: accepted", case.name)),
                Err(error) if error.to_string().len() < 10 => wrong.push(format!("{error}")),
                Err(error) => println!("{}: {error}", case.name),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
