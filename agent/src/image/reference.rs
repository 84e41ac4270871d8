//! Names of images: `host[:port]/path[:tag][@digest]`.
//!
//! What people type is normalised once, by the rules that docker and podman share
//! (`nginx` is `docker.io/library/nginx:latest`); afterwards a [`Repository`] always has a host
//! and a valid path, so that it can be put into a URL, a file name or a scope as it is.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use undermount_fs::digest::Digest;
use undermount_fs::source::Scope;

/// The registry that names without a host mean.
pub const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, host included (OCI distribution-spec, "Pulling manifests").
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// Text that names no image; says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("it is empty")]
    Empty,
    #[error("leave out the transport `{0}`")]
    Transport(String),
    #[error("`{0}` is not a registry host (name, IPv4 address or [IPv6 address])")]
    Host(String),
    #[error("`{0}` is not a port (1 to 65535)")]
    Port(String),
    #[error("the repository is missing after the registry host")]
    NoPath,
    #[error("an empty path component (two slashes, or a slash at an end)")]
    EmptyComponent,
    #[error("path component `{0}` has upper-case letters; repository names are lower-case")]
    UpperCase(String),
    #[error("path component `{0}` may hold a-z, 0-9 and, between those, `.`, `_`, `__` or dashes")]
    Component(String),
    #[error("the repository name is longer than {MAX_REPOSITORY} characters")]
    TooLong,
    #[error(
        "tag `{0}` may hold letters, digits, `_`, `.` and `-`, must not begin with `.` or `-`, and has at most {MAX_TAG} characters"
    )]
    Tag(String),
    #[error("`{0}` is not a digest this program knows (sha256: and 64 lower-case hex digits)")]
    Digest(String),
    #[error("a tag or digest where only a repository is wanted")]
    NotJustRepository,
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

/// A colon after the last slash begins the tag; one before it belongs to the host's port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[path_start..].find(':') {
        Some(colon) => {
            let colon = path_start + colon;
            (&text[..colon], Some(&text[colon + 1..]))
        }
        None => (text, None),
    }
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

/// Whether docker and podman would take the first component for a registry.
fn looks_like_host(text: &str) -> bool {
    text.contains(['.', ':']) || text.starts_with('[') || text.eq_ignore_ascii_case("localhost")
}

/// Checks `host[:port]` and gives it in lower case.
fn check_host(text: &str) -> Result<String, Reason> {
    let wrong = || Reason::Host(text.to_owned());
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or_else(wrong)?),
            };
            (None, port)
        }
        None => match text.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(text), None),
        },
    };
    if let Some(port) = port {
        check_port(port)?;
    }
    if name.is_some_and(|name| !name.split('.').all(is_host_label)) {
        return Err(wrong());
    }
    Ok(text.to_ascii_lowercase())
}

fn check_port(text: &str) -> Result<(), Reason> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(1..) if digits => Ok(()),
        _ => Err(Reason::Port(text.to_owned())),
    }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_path(path: &str) -> Result<(), Reason> {
    path.split('/').try_for_each(|component| {
        if component.is_empty() {
            return Err(Reason::EmptyComponent);
        }
        if is_component(component) {
            return Ok(());
        }
        if is_component(&component.to_ascii_lowercase()) {
            return Err(Reason::UpperCase(component.to_owned()));
        }
        Err(Reason::Component(component.to_owned()))
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(word) || !text.ends_with(word) {
        return false;
    }
    text.split(word).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|c| c == b'-')
    })
}

fn check_tag(text: &str) -> Result<(), Reason> {
    let valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    if (1..=MAX_TAG).contains(&text.len())
        && text.bytes().all(valid)
        && !text.starts_with(['.', '-'])
    {
        return Ok(());
    }
    Err(Reason::Tag(text.to_owned()))
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_normalised_as_docker_and_podman_do() {
        let digest = format!("sha256:{HEX}");
        for (typed, canonical) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("kolla/nova-api", "docker.io/kolla/nova-api:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/nova", "localhost/nova:latest".to_owned()),
            ("localhost:5000/nova", "localhost:5000/nova:latest".to_owned()),
            ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1".to_owned()),
            ("Quay.IO/a:V1", "quay.io/a:V1".to_owned()),
            ("127.0.0.1:8787/t/x", "127.0.0.1:8787/t/x:latest".to_owned()),
            ("[::1]:5000/t/x:a", "[::1]:5000/t/x:a".to_owned()),
            ("[fe80::1]/x", "[fe80::1]/x:latest".to_owned()),
            (&format!("quay.io/a@{digest}"), format!("quay.io/a@{digest}")),
            (&format!("quay.io/a:t@{digest}"), format!("quay.io/a:t@{digest}")),
            (
                "undercloud.ctlplane:8787/a__b/c---d.e_f",
                "undercloud.ctlplane:8787/a__b/c---d.e_f:latest".to_owned(),
            ),
        ] {
            let parsed: Reference = typed.parse().unwrap();
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(canonical.parse::<Reference>().unwrap(), parsed);
        }
    }

    #[test]
    fn a_reference_has_parts() {
        let reference: Reference = format!("[::1]:5000/a/b:t@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.repository().host(), "[::1]:5000");
        assert_eq!(reference.repository().path(), "a/b");
        assert_eq!(reference.repository().scope().as_str(), "[::1]:5000/a/b");
        assert_eq!(reference.tag().unwrap().as_str(), "t");
        assert_eq!(reference.identifier(), format!("sha256:{HEX}"));
        assert_eq!("quay.io/a:t".parse::<Reference>().unwrap().identifier(), "t");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let long = format!("quay.io/{}", "a/".repeat(130) + "a");
        let long_tag = format!("quay.io/a:{}", "t".repeat(129));
        for (text, part) in [
            ("", "empty"),
            ("docker://quay.io/a", "`docker://`"),
            ("quay.io/", "missing after the registry host"),
            ("10.0.0.1", "missing after the registry host"),
            ("quay.io//a", "empty path component"),
            ("quay.io/a/", "empty path component"),
            ("/a", "empty path component"),
            ("quay.io/Nova", "`Nova` has upper-case"),
            ("Nova", "`Nova` has upper-case"),
            ("quay.io/a..b", "`a..b`"),
            ("quay.io/_a", "`_a`"),
            ("quay.io/a b", "`a b`"),
            ("quay.io/../etc", "`..`"),
            ("quay.io:0/a", "`0` is not a port"),
            ("quay.io:65536/a", "`65536` is not a port"),
            ("quay.io:+80/a", "`+80` is not a port"),
            ("quay.io:/a", "`` is not a port"),
            ("-x.io/a", "`-x.io` is not a registry host"),
            ("[::1/a", "`[::1` is not a registry host"),
            ("[::g]/a", "`[::g]` is not a registry host"),
            ("[::1]5000/a", "is not a registry host"),
            ("quay.io/a:", "tag ``"),
            ("quay.io/a:.b", "tag `.b`"),
            ("quay.io/a:b:c", "tag `b:c`"),
            ("quay.io/a@sha256:12", "`sha256:12` is not a digest"),
            ("quay.io/a@sha512:12", "`sha512:12` is not a digest"),
            ("quay.io/ü", "`ü`"),
            (&long, "longer than 255"),
            (&long_tag, "at most 128"),
        ] {
            let message = text.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn a_repository_has_neither_tag_nor_digest() {
        assert_eq!("nova".parse::<Repository>().unwrap().as_str(), "docker.io/library/nova");
        assert_eq!(Repository::new("h:1", "a/b").unwrap().as_str(), "h:1/a/b");
        assert!(Repository::new("h", "a").is_err(), "would be read as docker.io/h/a");
        for text in ["quay.io/a:b".to_owned(), format!("quay.io/a@sha256:{HEX}")] {
            let message = text.parse::<Repository>().unwrap_err().to_string();
            assert!(message.contains("only a repository"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_parses_to_itself(
            text in r"(([a-z0-9]{1,4}\.[a-z]{2,3}|localhost|\[::[0-9a-f]{1,4}\])(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}(/[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,6})?(@sha256:[0-9a-f]{64})?"
        ) {
            let parsed: Reference = text.parse().unwrap();
            prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed.clone());
            let repository = parsed.repository();
            prop_assert_eq!(&repository.as_str().parse::<Repository>().unwrap(), repository);
            prop_assert_eq!(&Repository::new(repository.host(), repository.path()).unwrap(), repository);
        }

        #[test]
        fn no_text_panics_and_whatever_parses_round_trips(text in "[a-zA-Z0-9:/@._ü\\[\\]-]{0,40}") {
            if let Ok(parsed) = text.parse::<Reference>() {
                prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed);
            }
        }
    }
}
