//! Names of repositories and tags (distribution-spec, "Pulling manifests"). Parsed once at the
//! edge: what has one of these types can be used in a path.

use std::fmt;

/// The longest repository name; with the host name, the specification allows 255 characters.
const MAX_REPOSITORY: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// The name of a repository: components of `[a-z0-9]+` joined by `.`, `_`, `__` or dashes, and
/// slashes between them. No component can begin with `_` or be `.` or `..`, so that it is safe
/// as a path beside the registry's own `_blobs`, `_manifests` and so on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(Box<str>);

/// The name of a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

impl Repository {
    /// The repository called `text`, or `None` if that is no name of one.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() <= MAX_REPOSITORY && text.split('/').all(is_component);
        valid.then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// The tag called `text`, or `None` if that is no name of one.
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.bytes().next()?;
        let valid = text.len() <= MAX_TAG
            && (first.is_ascii_alphanumeric() || first == b'_')
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'));
        valid.then(|| Self(text.into()))
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

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators_fit = text
        .split(word)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || is_dashes(separator));
    text.starts_with(word) && text.ends_with(word) && separators_fit
}

fn is_dashes(separator: &str) -> bool {
    separator.bytes().all(|c| c == b'-')
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
        for tag in ["latest", "_x", "17.1-20240101.1", "A", "sha256-0123.index"] {
            assert!(Tag::parse(tag).is_some(), "{tag}");
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
        for tag in ["", ".", "..", ".a", "-a", "a/b", "a b", "a\0", &long[..129], "sha256:a"] {
            assert!(Tag::parse(tag).is_none(), "{tag}");
        }
    }
}
