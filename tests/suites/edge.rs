//! The edges of the formats: images that real tools make seldom, and images that only an
//! attacker makes.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use undermount_tests::archive::{self, Member};
use undermount_tests::edge::{Verdict, cases};
use undermount_tests::image::Image;
use undermount_tests::model::Model;
use undermount_tests::node::{self, Node, is_mounted};
use undermount_tests::origin::Origin;
use undermount_tests::requirement::lacking;
use undermount_tests::tree::{Expected, Tree};

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

/// Mounts images one after the other on one node and collects what is wrong with them.
struct Gallery {
    origin: Origin,
    node: Node,
    wrong: Vec<String>,
}

impl Gallery {
    fn new() -> Self {
        Self { origin: Origin::new(), node: Node::new(), wrong: Vec::new() }
    }

    /// The image must mount and show `expected`.
    fn expect_tree(&mut self, name: &str, image: Image, expected: &Tree) {
        match self.show(name, image) {
            Ok(tree) => self.compare(name, &tree, expected),
            Err(refusal) => self.wrong.push(format!("{name}: refused: {refusal}")),
        }
    }

    /// The image must be refused with a sentence, or show nothing but parts of `right`.
    fn expect_nothing_wrong(&mut self, name: &str, image: Image, right: Option<&Tree>) {
        match (self.show(name, image), right) {
            (Err(refusal), _) if refusal.contains("error: ") => println!("{name}: {refusal}"),
            (Err(refusal), _) => self.wrong.push(format!("{name}: no sentence: {refusal}")),
            (Ok(tree), Some(right)) => {
                let mut right = right.clone();
                right.entries.retain(|path, _| tree.entries.contains_key(path));
                self.compare(name, &tree, &right);
            }
            (Ok(_), None) => self.wrong.push(format!("{name}: mounted")),
        }
    }

    /// Its tree, or the words of the refusal, behind which nothing may be left mounted.
    fn show(&mut self, name: &str, image: Image) -> Result<Tree, String> {
        let repository = format!("edge/case{}", self.origin.requests().len());
        let reference = self.origin.add(&repository, image);
        let directory = self.node.directory(&repository);
        let outcome = self.node.try_mount(&reference, &directory);
        if !outcome.status.success() {
            assert!(!is_mounted(&directory), "{name}: refused, but mounted");
            return Err(outcome.refusal().trim_end().to_owned());
        }
        let tree = Tree::read(&directory);
        self.node.umount(&directory);
        tree.map_err(|error| format!("error: {error}"))
    }

    fn compare(&mut self, name: &str, tree: &Tree, expected: &Tree) {
        let found = tree.differences(expected);
        self.wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }

    fn verdict(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

#[test]
fn every_right_edge_image_mounts_as_it_unpacks() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut gallery = Gallery::new();
    for case in cases() {
        if let Verdict::Tree(tree) = &case.verdict {
            gallery.expect_tree(&case.name, case.image, tree);
        }
    }
    gallery.verdict();
}

#[test]
fn every_wrong_edge_image_is_refused_or_shows_nothing_wrong() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut gallery = Gallery::new();
    for case in cases() {
        if let Verdict::Malformed(_, right) = &case.verdict {
            gallery.expect_nothing_wrong(&case.name, case.image, Some(right));
        }
    }
    gallery.verdict();
}

#[test]
fn the_shared_edge_images_mount_as_independent_tools_unpack_them() {
    if lacking(node::NEEDS) {
        return;
    }
    let mut gallery = Gallery::new();
    for (name, path) in shared() {
        let expected = Expected::read(&path.join("expected.json"));
        let image = Image::read_layout(&path, "edge");
        match (&expected.malformed, expected.outcome.as_str()) {
            (Some(_), "error") => gallery.expect_nothing_wrong(&name, image, None),
            (Some(_), _) => gallery.expect_nothing_wrong(&name, image, Some(&expected.tree)),
            (None, "error") => gallery.expect_nothing_wrong(&name, image, None),
            (None, _) => gallery.expect_tree(&name, image, &expected.tree),
        }
    }
    gallery.verdict();
}
