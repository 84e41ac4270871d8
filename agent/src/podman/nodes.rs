//! Which node of the store has which number, for as long as its mount lives.
//!
//! A file in the runtime directory, one line a directory, appended before the number is used:
//!
//! ```text
//! reference <reference>                   directory 1
//! layer <number of its reference> <key>   directory 2
//! ...
//! ```
//!
//! A nodeid is the number of the directory times eight, and a small number for what is in it. A
//! worker that takes over the mount reads the file back, since a request that it finds waiting
//! names nodes that its predecessor has numbered.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use undermount_fs::digest::Digest;
use undermount_fs::line_log::LineLog;

use super::key::LayerKey;
use crate::image::Reference;

/// The number of the root, as FUSE wants it.
const ROOT: u64 = 1;
/// Nodes of a directory: itself and what is in it.
const PER_DIRECTORY: u64 = 8;
/// Directories that a store may have. Nobody needs as many.
const DIRECTORIES_MAX: usize = 1 << 20;

/// A file of a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The link to the layer's files.
    Diff,
    /// What podman wants to know.
    Info,
    /// The compressed bytes.
    Blob,
}

impl Part {
    pub(super) const ALL: [(&'static str, Self); 3] =
        [("diff", Self::Diff), ("info", Self::Info), ("blob", Self::Blob)];

    fn number(self) -> u64 {
        match self {
            Self::Diff => 1,
            Self::Info => 2,
            Self::Blob => 3,
        }
    }
}

/// What a nodeid stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// The root.
    Root,
    /// The directory of an image.
    Reference(Reference),
    /// The directory of a layer.
    Layer(LayerKey),
    /// A file of a layer.
    Part(LayerKey, Part),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Directory {
    Reference(Reference),
    Layer { parent: u64, key: LayerKey },
}

/// The directories of a store and their numbers.
pub struct NodeTable {
    log: LineLog,
    /// Directory `n` is at `n - 1`.
    directories: Vec<Directory>,
    numbers: HashMap<Directory, u64>,
}

impl NodeTable {
    /// Opens the table at `path`, or makes an empty one.
    ///
    /// # Errors
    /// Those of reading, and `InvalidData` for lines that are none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (log, lines) = LineLog::open(path)?;
        let mut table = Self { log, directories: Vec::new(), numbers: HashMap::new() };
        for line in lines.lines() {
            let directory = table.parse(line).ok_or_else(|| {
                let message = format!("{}: `{line}` is not a directory", path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            table.push(directory);
        }
        Ok(table)
    }

    fn parse(&self, line: &str) -> Option<Directory> {
        let mut words = line.split(' ');
        let directory = match (words.next()?, words.next()?, words.next()) {
            ("reference", reference, None) => Directory::Reference(reference.parse().ok()?),
            ("layer", parent, Some(digest)) => {
                let parent = parent.parse().ok()?;
                let reference = self.reference(parent)?.clone();
                Directory::Layer {
                    parent,
                    key: LayerKey { reference, digest: digest.parse().ok()? },
                }
            }
            _ => return None,
        };
        words.next().is_none().then_some(directory)
    }

    fn push(&mut self, directory: Directory) -> u64 {
        self.directories.push(directory.clone());
        let number = self.directories.len() as u64;
        self.numbers.insert(directory, number);
        number
    }

    fn directory(&self, number: u64) -> Option<&Directory> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.directories.get(index)
    }

    fn reference(&self, number: u64) -> Option<&Reference> {
        match self.directory(number)? {
            Directory::Reference(reference) => Some(reference),
            Directory::Layer { .. } => None,
        }
    }

    /// The nodeid of a directory, which is numbered if it is new.
    fn number(&mut self, directory: Directory) -> io::Result<u64> {
        if let Some(number) = self.numbers.get(&directory) {
            return Ok(number * PER_DIRECTORY);
        }
        if self.directories.len() >= DIRECTORIES_MAX {
            return Err(io::Error::other("the store has too many directories"));
        }
        let line = match &directory {
            Directory::Reference(reference) => format!("reference {reference}"),
            Directory::Layer { parent, key } => format!("layer {parent} {}", key.digest),
        };
        self.log.append(&line)?;
        Ok(self.push(directory) * PER_DIRECTORY)
    }

    /// The nodeid of the directory of an image.
    pub(super) fn of_reference(&mut self, reference: Reference) -> io::Result<u64> {
        self.number(Directory::Reference(reference))
    }

    /// The nodeid of the directory of a layer.
    pub(super) fn of_layer(&mut self, key: LayerKey) -> io::Result<u64> {
        let parent = self.of_reference(key.reference.clone())? / PER_DIRECTORY;
        self.number(Directory::Layer { parent, key })
    }

    /// What `id` stands for; `None` if it was never handed out.
    pub(super) fn node(&self, id: u64) -> Option<Node> {
        if id == ROOT {
            return Some(Node::Root);
        }
        let part = id % PER_DIRECTORY;
        match self.directory(id / PER_DIRECTORY)? {
            Directory::Reference(reference) if part == 0 => {
                Some(Node::Reference(reference.clone()))
            }
            Directory::Reference(_) => None,
            Directory::Layer { key, .. } if part == 0 => Some(Node::Layer(key.clone())),
            Directory::Layer { key, .. } => {
                let (_, part) = Part::ALL.into_iter().find(|(_, other)| other.number() == part)?;
                Some(Node::Part(key.clone(), part))
            }
        }
    }

    /// The references that were looked up so far, with their nodeids.
    pub(super) fn references(&self) -> Vec<(Reference, u64)> {
        let numbered = self.directories.iter().zip(1..);
        let reference = |(directory, number): (&Directory, u64)| match directory {
            Directory::Reference(reference) => Some((reference.clone(), number * PER_DIRECTORY)),
            Directory::Layer { .. } => None,
        };
        numbered.filter_map(reference).collect()
    }

    /// The layers of `reference` that were looked up so far, with their nodeids.
    pub(super) fn layers(&self, reference: &Reference) -> Vec<(Digest, u64)> {
        let numbered = self.directories.iter().zip(1..);
        let layer = |(directory, number): (&Directory, u64)| match directory {
            Directory::Layer { key, .. } if key.reference == *reference => {
                Some((key.digest, number * PER_DIRECTORY))
            }
            _ => None,
        };
        numbered.filter_map(layer).collect()
    }
}

/// The nodeid of a file in the directory `layer`.
pub(super) fn part_id(layer: u64, part: Part) -> u64 {
    layer + part.number()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digest: &[u8]) -> LayerKey {
        let reference = "localhost:5000/a:1".parse().unwrap();
        LayerKey { reference, digest: Digest::of(digest) }
    }

    #[test]
    fn numbers_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes");
        let mut table = NodeTable::open(&path).unwrap();
        let (one, two) = (key(b"1"), key(b"2"));
        let ids = [table.of_layer(one.clone()).unwrap(), table.of_layer(two.clone()).unwrap()];
        let reference = table.of_reference(one.reference.clone()).unwrap();
        drop(table);
        let mut table = NodeTable::open(&path).unwrap();
        assert_eq!(table.node(reference), Some(Node::Reference(one.reference.clone())));
        assert_eq!(table.node(ids[0]), Some(Node::Layer(one.clone())));
        assert_eq!(
            table.node(part_id(ids[1], Part::Info)),
            Some(Node::Part(two.clone(), Part::Info))
        );
        assert_eq!(table.of_layer(two.clone()).unwrap(), ids[1]);
        assert_eq!(table.layers(&one.reference), [(one.digest, ids[0]), (two.digest, ids[1])]);
        assert_eq!(table.references(), [(one.reference, reference)]);
    }

    #[test]
    fn ids_that_were_never_handed_out_stand_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut table = NodeTable::open(&directory.path().join("nodes")).unwrap();
        let layer = table.of_layer(key(b"1")).unwrap();
        let reference = table.of_reference(key(b"1").reference).unwrap();
        for id in [0, 2, 7, reference + 1, layer + 4, layer + 7, layer + 8, u64::MAX] {
            assert_eq!(table.node(id), None, "{id}");
        }
        assert_eq!(table.node(ROOT), Some(Node::Root));
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes");
        for text in ["layer 1 sha256:00\n", "reference A B\n", "other\n", "reference a/..\n"] {
            std::fs::write(&path, text).unwrap();
            let error = NodeTable::open(&path).err().unwrap();
            assert!(error.to_string().contains("is not a directory"), "{error}");
        }
    }
}
