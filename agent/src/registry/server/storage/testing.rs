//! An empty storage for unit tests.

use tempfile::TempDir;

use super::super::name::Repository;
use super::Storage;

/// A storage in a directory that goes with it.
pub struct Fixture {
    _root: TempDir,
    /// The storage.
    pub storage: Storage,
    /// A name in it.
    pub repository: Repository,
}

/// An empty one.
pub fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let storage = Storage::open(root.path()).unwrap();
    Fixture { _root: root, storage, repository: Repository::parse("a/b").unwrap() }
}
