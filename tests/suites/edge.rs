//! The edges of the formats: images that real tools make seldom, and images that only an
//! attacker makes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use undermount_tests::archive::{self, Member};
use undermount_tests::image::Image;
use undermount_tests::model::Model;
use undermount_tests::tree::Expected;

/// The folder of edge images that lies outside the repository, if there is one:
/// `<case>/{index.json,blobs,expected.json}`.
fn shared() -> Vec<(String, PathBuf)> {
    let Some(folder) = std::env::var_os("UNDERMOUNT_EDGE_IMAGES") else { return Vec::new() };
    let mut cases: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    cases.sort();
    cases
}

fn inflate(blob: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = Vec::new();
    if blob.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::Decoder::new(blob)?.read_to_end(&mut tar)?;
    } else if blob.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar)?;
    } else {
        tar = blob.to_vec();
    }
    Ok(tar)
}

/// What the `tar` crate does not read: sparse files of PAX, and attributes with newlines.
fn is_beyond_the_tar_crate(name: &str) -> bool {
    ["sparse", "xattrs"].iter().any(|kind| name.starts_with(kind))
}

#[test]
fn the_model_agrees_with_what_independent_tools_made_of_the_shared_images() {
    let mut wrong = Vec::new();
    for (name, path) in shared() {
        let expected = Expected::read(&path.join("expected.json"));
        let agreed = expected.malformed.is_none() && expected.outcome == "tree";
        if !agreed || is_beyond_the_tar_crate(&name) {
            continue;
        }
        let image = Image::read_layout(&path, "edge");
        let layers: Vec<Vec<Member>> = image
            .layers()
            .iter()
            .map(|(digest, _)| archive::read(&inflate(&image.blobs[digest]).unwrap()).unwrap())
            .collect();
        let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
        let found = Model::tree_of(&layers).differences(&expected.tree);
        wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
