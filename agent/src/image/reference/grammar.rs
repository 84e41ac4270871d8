//! What the parts of a name may be: hosts, path components and tags.

use std::net::Ipv6Addr;

/// Longest repository name, host included (OCI distribution-spec, "Pulling manifests").
pub(super) const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// What is wrong with a name; completes "`NAME` is not an image reference: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
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

/// A colon after the last slash begins the tag; one before it belongs to the host's port.
pub(super) fn split_tag(text: &str) -> (&str, Option<&str>) {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[path_start..].find(':') {
        Some(colon) => {
            let colon = path_start + colon;
            (&text[..colon], Some(&text[colon + 1..]))
        }
        None => (text, None),
    }
}

/// Whether docker and podman would take the first component for a registry.
pub(super) fn looks_like_host(text: &str) -> bool {
    text.contains(['.', ':']) || text.starts_with('[') || text.eq_ignore_ascii_case("localhost")
}

/// Checks `host[:port]` and gives it in lower case.
pub(super) fn check_host(text: &str) -> Result<String, Reason> {
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

/// Checks the part of a repository's name after the host.
pub(super) fn check_path(path: &str) -> Result<(), Reason> {
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

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}` (OCI distribution-spec, "Pulling manifests")
pub(super) fn check_tag(text: &str) -> Result<(), Reason> {
    let valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    if (1..=MAX_TAG).contains(&text.len())
        && text.bytes().all(valid)
        && !text.starts_with(['.', '-'])
    {
        return Ok(());
    }
    Err(Reason::Tag(text.to_owned()))
}
