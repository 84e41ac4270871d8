//! Names of images: `host[:port]/path[:tag][@digest]`.
//!
//! What people type is normalised once, by the rules that docker and podman share
//! (`nginx` is `docker.io/library/nginx:latest`); afterwards a [`Repository`] always has a host
//! and a valid path, so that it can be put into a URL, a file name or a scope as it is.

mod grammar;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use undermount_fs::digest::Digest;
use undermount_fs::source::Scope;

use self::grammar::{
    MAX_REPOSITORY, Reason, check_host, check_path, check_tag, looks_like_host, split_tag,
};

/// The registry that names without a host mean.
pub const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// Text that names no image; says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: Reason,
}

/// A repository: `host[:port]/path`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// `host[:port]/path`
    name: String,
    /// Length of `host[:port]` in `name`.
    host_len: usize,
}

/// A tag that is valid in a URL and on every registry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// An image: a repository and a tag, a digest, or both (the digest then decides).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: Repository,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Repository {
    /// The repository `path` on registry `host[:port]`.
    ///
    /// # Errors
    /// [`ReferenceError`] where either is malformed. Nothing is normalised here: the host must
    /// be one that is recognisable as such (a dot, a port, `localhost` or brackets).
    pub fn new(host: &str, path: &str) -> Result<Self, ReferenceError> {
        let text = format!("{host}/{path}");
        let error = |reason| ReferenceError { text: text.clone(), reason };
        if !looks_like_host(host) {
            return Err(error(Reason::Host(host.to_owned())));
        }
        Self::from_parts(host, path).map_err(error)
    }

    fn from_parts(host: &str, path: &str) -> Result<Self, Reason> {
        let host = check_host(host)?;
        check_path(path)?;
        let name = format!("{host}/{path}");
        if name.len() > MAX_REPOSITORY {
            return Err(Reason::TooLong);
        }
        Ok(Self { name, host_len: host.len() })
    }

    /// `host[:port]` of the registry, lower-case; an IPv6 host keeps its brackets.
    pub fn host(&self) -> &str {
        &self.name[..self.host_len]
    }

    /// The path below the host, as it stands in URLs after `/v2/`.
    pub fn path(&self) -> &str {
        &self.name[self.host_len + 1..]
    }

    /// `host[:port]/path`.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The name that fetches are made in.
    pub fn scope(&self) -> Scope {
        Scope::new(&self.name)
    }

    /// The image with `tag` in this repository.
    pub fn tagged(&self, tag: Tag) -> Reference {
        Reference { repository: self.clone(), tag: Some(tag), digest: None }
    }

    /// The manifest `digest` in this repository.
    pub fn at(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

/// Whether `text` can name a repository of a registry: the part of its name after the host.
pub fn is_repository_path(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY && check_path(text).is_ok()
}

impl Tag {
    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `tag` from the characters that are known to be valid.
    pub(crate) fn of_valid(text: String) -> Self {
        debug_assert!(check_tag(&text).is_ok(), "{text}");
        Self(text)
    }
}

impl Reference {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag, `latest` where neither a tag nor a digest was written.
    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// The digest of the manifest, where one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The last part of the manifest's URL: the digest where there is one, else the tag.
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.0.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository and tag, pinned to `digest`.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: Tag) -> Self {
        self.repository.tagged(tag)
    }
}

fn parse(text: &str) -> Result<Reference, Reason> {
    if text.is_empty() {
        return Err(Reason::Empty);
    }
    if let Some(at) = text.find("://") {
        return Err(Reason::Transport(text[..at + 3].to_owned()));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let parsed = digest.parse().map_err(|_| Reason::Digest(digest.to_owned()))?;
            (rest, Some(parsed))
        }
        None => (text, None),
    };
    let (rest, tag) = split_tag(rest);
    let tag = tag.map(|tag| check_tag(tag).map(|()| Tag(tag.to_owned()))).transpose()?;
    let tag = match (&tag, &digest) {
        (None, None) => Some(Tag(DEFAULT_TAG.to_owned())),
        _ => tag,
    };
    Ok(Reference { repository: parse_repository(rest)?, tag, digest })
}

fn parse_repository(text: &str) -> Result<Repository, Reason> {
    let (host, path) = match text.split_once('/') {
        Some((host, path)) if looks_like_host(host) => (host, path),
        None if text.starts_with('[') || text.parse::<Ipv4Addr>().is_ok() => {
            return Err(Reason::NoPath);
        }
        _ => (DEFAULT_HOST, text),
    };
    if path.is_empty() && host != DEFAULT_HOST {
        return Err(Reason::NoPath);
    }
    let host = if host.eq_ignore_ascii_case("index.docker.io") { DEFAULT_HOST } else { host };
    if host.eq_ignore_ascii_case(DEFAULT_HOST) && !path.contains('/') && !path.is_empty() {
        return Repository::from_parts(host, &format!("library/{path}"));
    }
    Repository::from_parts(host, path)
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { text: text.to_owned(), reason })
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// Normalises like [`Reference`]; a tag or digest is refused.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |reason| ReferenceError { text: text.to_owned(), reason };
        let reference: Reference = text.parse()?;
        if text.contains('@') || split_tag(text).1.is_some() {
            return Err(error(Reason::NotJustRepository));
        }
        Ok(reference.repository)
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        check_tag(text).map_err(|reason| ReferenceError { text: text.to_owned(), reason })?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    /// The canonical form, which parses to the same reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.repository, f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
