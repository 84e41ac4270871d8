//! `expected.json` of an edge image: what independent tools made of it.
//!
//! `malformed` says why the image is wrong (a strict reader refuses it, or shows nothing
//! wrong); `tree` is the majority of the tools, where a `null` is a field or an entry on which
//! they disagree and which is therefore not compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::{Fields, Tree};

/// What the tools agree on about one edge image.
pub struct Expected {
    /// Why the image is wrong, if it is.
    pub malformed: Option<String>,
    /// `tree` (all tools unpacked it), `error` (none did) or `mixed`.
    pub outcome: String,
    /// The tree, with the disputed parts open.
    pub tree: Tree,
}

#[derive(Deserialize)]
struct Document {
    malformed: Option<String>,
    outcome: String,
    #[serde(default)]
    oracles_ok: Vec<String>,
    /// Path, field, and what each tool says.
    #[serde(default)]
    disputed: Vec<(String, String, serde_json::Value)>,
    tree: BTreeMap<String, Option<Node>>,
}

/// `None` in a field: not listed; `Some(None)`: null, thus open.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    #[serde(rename = "type", default, deserialize_with = "listed")]
    kind: Listed<String>,
    #[serde(default, deserialize_with = "listed")]
    mode: Listed<String>,
    #[serde(default, deserialize_with = "listed")]
    uid: Listed<u64>,
    #[serde(default, deserialize_with = "listed")]
    gid: Listed<u64>,
    #[serde(default, deserialize_with = "listed")]
    mtime_ns: Listed<i128>,
    #[serde(default, deserialize_with = "listed")]
    size: Listed<u64>,
    #[serde(default, deserialize_with = "listed")]
    sha256: Listed<String>,
    #[serde(default, deserialize_with = "listed")]
    linktarget: Listed<String>,
    #[serde(default, deserialize_with = "listed")]
    rdev: Listed<[u32; 2]>,
    #[serde(default, deserialize_with = "listed")]
    nlink_group: Listed<String>,
    #[serde(default)]
    xattrs: BTreeMap<String, Option<String>>,
}

type Listed<T> = Option<Option<T>>;

fn listed<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Listed<T>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Expected {
    /// Reads the file.
    pub fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let document: Document = serde_json::from_slice(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut tree = Tree {
            entries: document
                .tree
                .into_iter()
                .map(|(path, node)| (path, node.map(Node::into_fields)))
                .collect(),
        };
        open_clocks(&mut tree, document.oracles_ok.len());
        // Whether the root is that of the last layer that lists it, or made anew by each layer,
        // is no question for a majority.
        for (_, field, _) in document.disputed.iter().filter(|(path, ..)| path == ".") {
            tree.open(".", field);
        }
        Self { malformed: document.malformed, outcome: document.outcome, tree }
    }
}

impl Node {
    fn into_fields(self) -> Fields {
        let mut fields = Fields::new();
        let mut set = |field: &str, value: Listed<String>| {
            if let Some(value) = value {
                fields.insert(field.to_owned(), value);
            }
        };
        set("type", self.kind);
        set("mode", self.mode);
        set("uid", text(self.uid));
        set("gid", text(self.gid));
        set("mtime_ns", text(self.mtime_ns));
        set("size", text(self.size));
        set("sha256", self.sha256);
        set("linktarget", self.linktarget);
        set("rdev", self.rdev.map(|rdev| rdev.map(|[major, minor]| format!("{major}:{minor}"))));
        set("nlink_group", self.nlink_group);
        for (name, value) in self.xattrs {
            set(&format!("xattr:{name}"), Some(value));
        }
        fields
    }
}

fn text<T: ToString>(value: Listed<T>) -> Listed<String> {
    value.map(|value| value.map(|value| value.to_string()))
}

/// A directory that no layer lists has the time at which the tool ran. With several tools that
/// shows as a dispute; with one it must be told from the root, which is never listed unless its
/// time is a round one, and from the mode that containers/storage gives to it.
fn open_clocks(tree: &mut Tree, tools: usize) {
    if tools > 1 {
        return;
    }
    let of_the_run = |fields: &Fields| {
        let time = fields.get("mtime_ns").and_then(Option::as_deref).unwrap_or_default();
        fields.get("type") == Some(&Some("dir".to_owned())) && !time.ends_with("000000000")
    };
    let open: Vec<String> = tree
        .entries
        .iter()
        .filter(|(_, fields)| fields.as_ref().is_some_and(of_the_run))
        .map(|(path, _)| path.clone())
        .collect();
    open.iter().for_each(|path| tree.open(path, "mtime_ns"));
    tree.open(".", "mtime_ns");
    tree.open(".", "mode");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{ "case": "x", "malformed": null, "outcome": "tree",
        "oracles_ok": ["overlay", "umoci"], "disputed": [],
        "tree": {
            ".": { "type": "dir", "mode": "0755", "uid": 0, "gid": 0, "mtime_ns": null },
            "null": { "type": "chr", "mode": "0666", "uid": 0, "gid": 0, "rdev": [1, 3],
                      "mtime_ns": -1500000000, "xattrs": { "user.a": "eA==" } },
            "open": null } }"#;

    #[test]
    fn nulls_are_open_and_the_rest_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("expected.json");
        fs::write(&path, TEXT).unwrap();
        let expected = Expected::read(&path);
        assert!(expected.malformed.is_none());
        assert_eq!(expected.tree.field("null", "rdev"), Some("1:3"));
        assert_eq!(expected.tree.field("null", "mtime_ns"), Some("-1500000000"));
        assert_eq!(expected.tree.field("null", "xattr:user.a"), Some("eA=="));
        let mut actual = expected.tree.clone();
        actual.entries.remove("open");
        actual
            .entries
            .get_mut(".")
            .unwrap()
            .as_mut()
            .unwrap()
            .insert("mtime_ns".to_owned(), Some("5".to_owned()));
        assert_eq!(actual.differences(&expected.tree), [""; 0]);
        actual
            .entries
            .get_mut("null")
            .unwrap()
            .as_mut()
            .unwrap()
            .insert("uid".to_owned(), Some("1".to_owned()));
        assert_eq!(actual.differences(&expected.tree), ["null: uid is 1, expected 0"]);
    }
}
