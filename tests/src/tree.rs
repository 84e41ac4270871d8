//! A directory tree as data: what two ways of unpacking an image are compared by.
//!
//! Every file is a map from field to text, so that trees from different origins (a mount, a
//! directory, an `expected.json`) compare alike and differences read well. A field or a whole
//! entry may be *open*: it then equals everything.
//!
//! | field | of | text |
//! |---|---|---|
//! | `type` | all | file, dir, symlink, chr, blk, fifo, sock |
//! | `mode` | all | permission bits, octal: `0755` |
//! | `uid`, `gid`, `mtime_ns` | all | decimal |
//! | `size`, `sha256` | file | |
//! | `linktarget` | symlink | percent-encoded |
//! | `rdev` | chr, blk | `major:minor` |
//! | `nlink_group` | hard links | the first path of the group |
//! | `xattr:<name>` | all | base64 |
//!
//! Paths are relative, percent-encoded outside `0x21..=0x7e`; the root is `.`.

mod expected;
mod read;

use std::collections::{BTreeMap, BTreeSet};

pub use expected::Expected;

/// The fields of one file; `None` is open.
pub type Fields = BTreeMap<String, Option<String>>;

/// A tree: path to fields; an entry of `None` may or may not exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// Every entry by its encoded path.
    pub entries: BTreeMap<String, Option<Fields>>,
}

impl Tree {
    /// Makes the field of one entry equal everything.
    pub fn open(&mut self, path: &str, field: &str) {
        if let Some(Some(fields)) = self.entries.get_mut(path) {
            fields.insert(field.to_owned(), None);
        }
    }

    /// Marks the paths of each group as names of one file.
    pub fn group(&mut self, groups: impl Iterator<Item = Vec<String>>) {
        for mut paths in groups.filter(|paths| paths.len() > 1) {
            paths.sort();
            for path in &paths {
                if let Some(Some(fields)) = self.entries.get_mut(path) {
                    fields.insert("nlink_group".to_owned(), paths.first().cloned());
                }
            }
        }
    }

    /// Removes the entry `path` and everything below it.
    pub fn prune(&mut self, path: &str) {
        let below = format!("{path}/");
        self.entries.retain(|other, _| other != path && !other.starts_with(&below));
    }

    /// A field of one entry, where it is known.
    pub fn field(&self, path: &str, field: &str) -> Option<&str> {
        self.entries.get(path)?.as_ref()?.get(field)?.as_deref()
    }

    /// What distinguishes `self` from `expected`, one line per field or entry.
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, fields) in &expected.entries {
            match (self.entries.get(path), fields) {
                (None, Some(_)) => found.push(format!("{path}: missing")),
                (Some(Some(own)), Some(fields)) => compare(path, own, fields, &mut found),
                _ => {}
            }
        }
        let surplus = self.entries.iter().filter(|(path, _)| !expected.entries.contains_key(*path));
        found.extend(
            surplus.filter(|(_, own)| own.is_some()).map(|(path, _)| format!("{path}: unexpected")),
        );
        found
    }

    /// Panics with the first differences, if there are any.
    #[track_caller]
    pub fn assert_equals(&self, expected: &Self) {
        let found = self.differences(expected);
        assert!(
            found.is_empty(),
            "{} differences:\n{}",
            found.len(),
            found.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n")
        );
    }
}

/// Adds the fields in which `own` is not what `expected` says.
fn compare(path: &str, own: &Fields, expected: &Fields, found: &mut Vec<String>) {
    let names: BTreeSet<&String> = own.keys().chain(expected.keys()).collect();
    for name in names {
        let (own, expected) = (own.get(name), expected.get(name));
        if own == Some(&None) || expected == Some(&None) || own == expected {
            continue;
        }
        let text = |value: Option<&Option<String>>| {
            value.and_then(Option::as_deref).unwrap_or("none").to_owned()
        };
        found.push(format!("{path}: {name} is {}, expected {}", text(own), text(expected)));
    }
}

/// Percent-encodes what is not a visible ASCII character, and `%`.
pub fn encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| match byte {
            0x21..=0x7e if *byte != b'%' => char::from(*byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, &[(&str, &str)])]) -> Tree {
        let fields = |fields: &[(&str, &str)]| {
            fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
                .collect()
        };
        Tree {
            entries: entries
                .iter()
                .map(|(path, own)| ((*path).to_owned(), Some(fields(own))))
                .collect(),
        }
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let one = tree(&[("a", &[("mode", "0644"), ("size", "3")]), ("b", &[]), ("d/x", &[])]);
        let two = tree(&[("a", &[("mode", "0600"), ("xattr:user.x", "eA==")]), ("c", &[])]);
        assert_eq!(
            one.differences(&two),
            [
                "a: mode is 0644, expected 0600",
                "a: size is 3, expected none",
                "a: xattr:user.x is none, expected eA==",
                "c: missing",
                "b: unexpected",
                "d/x: unexpected",
            ]
        );
        assert_eq!(one.differences(&one), [""; 0]);
    }

    #[test]
    fn open_fields_and_entries_equal_everything() {
        let mut one = tree(&[("a", &[("mode", "0644")]), ("b", &[("size", "1")])]);
        let mut two = tree(&[("a", &[("mode", "0600")])]);
        two.open("a", "mode");
        two.entries.insert("b".to_owned(), None);
        assert_eq!(one.differences(&two), [""; 0]);
        one.prune("b");
        assert_eq!(one.differences(&two), [""; 0]);
    }

    #[test]
    fn odd_bytes_are_encoded() {
        assert_eq!(encode(b"a b%\xff/~"), "a%20b%25%FF/~");
    }
}
