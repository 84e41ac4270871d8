//! Edge images, built here: one or more for every kind that real tools or attackers make.
//!
//! | part | what is odd |
//! |---|---|
//! | `headers` | how one tar member is spelt |
//! | `dialects` | what single writers made of the headers |
//! | `sparse` | how a file's holes are spelt |
//! | `stacks` | what layers do to each other |
//! | `streams` | how the archive is compressed and ends |
//! | `wrong` | everything that must be refused |

mod dialects;
mod headers;
mod sparse;
mod stacks;
mod streams;
mod wrong;

use crate::archive::{Archive, Member};
use crate::compression::Compression;
use crate::image::{Image, Layer};
use crate::model::Model;
use crate::tree::Tree;

/// An image and what must become of it.
pub struct Case {
    /// Says what is odd about it; unique.
    pub name: String,
    /// The image.
    pub image: Image,
    /// What a mount must show.
    pub verdict: Verdict,
}

/// What must become of an edge image.
pub enum Verdict {
    /// It mounts, and this is its tree.
    Tree(Tree),
    /// It is wrong, for this reason: refused, or nothing wrong of it is ever shown, which is
    /// to say that every file that can be read is one of these.
    Malformed(&'static str, Tree),
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut cases = headers::cases();
    cases.extend(dialects::cases());
    cases.extend(sparse::cases());
    cases.extend(stacks::cases());
    cases.extend(streams::cases());
    cases.extend(wrong::cases());
    cases
}

impl Case {
    /// A right image of gzip layers with PAX headers, judged by the model.
    fn layers(name: &str, layers: &[&[Member]]) -> Self {
        Self {
            name: name.to_owned(),
            image: Image::of(layers),
            verdict: Verdict::Tree(Model::tree_of(layers)),
        }
    }

    /// A right image of one layer whose archive was made by hand to mean `members`.
    fn archive(name: &str, tar: &[u8], members: &[Member]) -> Self {
        Self::layer(name, Layer::compressed(tar, Compression::Gzip), members)
    }

    /// A right image of one layer that was made by hand to mean `members`.
    fn layer(name: &str, layer: Layer, members: &[Member]) -> Self {
        Self {
            name: name.to_owned(),
            image: Image::from_layers(vec![layer]),
            verdict: Verdict::Tree(Model::tree_of(&[members])),
        }
    }

    /// Says what a file holds that is too large for the model.
    fn override_content(&mut self, path: &str, size: u64, sha256: &str) {
        let Verdict::Tree(tree) = &mut self.verdict else { unreachable!("a right image") };
        let fields = tree.entries.get_mut(path).and_then(Option::as_mut).expect("just made");
        fields.insert("size".to_owned(), Some(size.to_string()));
        fields.insert("sha256".to_owned(), Some(sha256.to_owned()));
    }

    /// A wrong image of one gzip layer, of which no more than `members` may be seen.
    fn malformed(name: &str, reason: &'static str, tar: &[u8], members: &[Member]) -> Self {
        let layer = Layer::compressed(tar, Compression::Gzip);
        Self::malformed_layers(name, reason, vec![layer], members)
    }

    /// A wrong image of any layers, of which no more than `members` may be seen.
    fn malformed_layers(
        name: &str,
        reason: &'static str,
        layers: Vec<Layer>,
        members: &[Member],
    ) -> Self {
        Self {
            name: name.to_owned(),
            image: Image::from_layers(layers),
            verdict: Verdict::Malformed(reason, Model::tree_of(&[members])),
        }
    }
}

/// Some files of some size: enough to need several deflate blocks and spans.
fn content() -> Vec<Member> {
    use crate::archive::noise;
    vec![
        Member::dir("d"),
        Member::file("d/noise", noise(3, 230_000)),
        Member::file("d/text", "all work and no play\n".repeat(9_000)),
        Member::file("d/small", "small"),
        Member::file("d/mixed", [noise(4, 50_000), vec![0; 700_000], noise(5, 9)].concat()),
        Member::symlink("d/link", "text"),
        Member::file("last", noise(6, 5)),
    ]
}

/// The archive of [`content`].
fn content_archive() -> Vec<u8> {
    Archive::of(&content())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let cases = cases();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }
}
