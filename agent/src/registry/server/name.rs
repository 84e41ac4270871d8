//! Names of repositories as a registry sees them: without its own host. Parsed once at the
//! edge: what has this type can be used in a path.

use std::fmt;

use crate::image::reference::is_repository_path;

/// The name of a repository (distribution-spec, "Pulling manifests"). No component of it can
/// begin with `_` or be `.` or `..`, so that it is safe as a path beside the registry's own
/// `_blobs`, `_manifests` and so on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(Box<str>);

impl Repository {
    /// The repository called `text`, or `None` if that is no name of one.
    pub fn parse(text: &str) -> Option<Self> {
        is_repository_path(text).then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification_are_taken() {
        for name in
            ["a", "library/debian", "tripleomaster/openstack-nova-api", "a.b/c_d/e__f/g---h/0"]
        {
            assert!(Repository::parse(name).is_some(), "{name}");
        }
    }

    #[test]
    fn path_tricks_are_no_names() {
        let long = "a".repeat(256);
        for name in [
            "", "/", "a//b", "/a", "a/", ".", "..", "a/../b", "a/.b", "_blobs", "a/_tags", "A",
            "a..b", "a.-b", "a___b", "a\0", "a b", "a\\b", "ä", "-a", "a-", &long,
        ] {
            assert!(Repository::parse(name).is_none(), "{name}");
        }
    }
}
