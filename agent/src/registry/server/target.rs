//! Paths of the distribution API to what they name (distribution-spec, "Endpoints").
//!
//! ```text
//! /v2/                                    Base
//! /v2/_catalog                            Catalog
//! /v2/<name>/tags/list                    Tags
//! /v2/<name>/manifests/<tag or digest>    Manifest
//! /v2/<name>/referrers/<digest>           Referrers
//! /v2/<name>/_undermount/profiles/<digest> Profiles, an extension
//! /v2/<name>/blobs/<digest>               Blob
//! /v2/<name>/blobs/uploads[/]             Uploads
//! /v2/<name>/blobs/uploads/<session>      Upload
//! ```
//!
//! Repository names hold slashes, so a path is read from its end.

use super::digest::{ContentDigest, ParseContentDigestError};
use super::name::Repository;
use super::upload::SessionId;
use crate::image::reference::{ReferenceError, Tag};

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The API itself.
    Base,
    /// The list of repositories.
    Catalog,
    /// The tags of a repository.
    Tags(Repository),
    /// A manifest.
    Manifest(Repository, Reference),
    /// The manifests that have the one of this digest as their subject.
    Referrers(Repository, ContentDigest),
    /// What starts of the image with this digest read.
    Profiles(Repository, ContentDigest),
    /// A blob.
    Blob(Repository, ContentDigest),
    /// The place where uploads begin.
    Uploads(Repository),
    /// An upload that has begun.
    Upload(Repository, SessionId),
}

/// How a manifest is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By a name that can move.
    Tag(Tag),
    /// By its content.
    Digest(ContentDigest),
}

/// Why a path names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTargetError {
    /// Not a path of the API.
    #[error("`{0}` is not a path of the distribution API")]
    Path(String),
    /// The repository part is malformed.
    #[error("`{0}` is not a repository name")]
    Repository(String),
    /// The reference is neither tag nor digest.
    #[error(transparent)]
    Tag(#[from] ReferenceError),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] ParseContentDigestError),
    /// The upload session is none that this registry gave out.
    #[error("`{0}` is not an upload session")]
    Session(String),
}

impl Target {
    /// Reads the path of a request, percent-encoded as it came.
    ///
    /// # Errors
    /// [`ParseTargetError`] says which part is wrong.
    pub fn parse(path: &str) -> Result<Self, ParseTargetError> {
        let unknown = || ParseTargetError::Path(path.to_owned());
        let decoded = percent_decode(path).ok_or_else(unknown)?;
        let rest = match decoded.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some("/_catalog") => return Ok(Self::Catalog),
            Some(rest) => rest.strip_prefix('/').ok_or_else(unknown)?,
            None => return Err(unknown()),
        };
        let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            return Self::upload(name, last);
        }
        let (name, kind) = front.rsplit_once('/').ok_or_else(unknown)?;
        match (kind, last) {
            ("tags", "list") => Ok(Self::Tags(repository(name)?)),
            ("manifests", _) => Ok(Self::Manifest(repository(name)?, Reference::parse(last)?)),
            ("referrers", _) => Ok(Self::Referrers(repository(name)?, last.parse()?)),
            ("profiles", _) => {
                let name = name.strip_suffix("/_undermount").ok_or_else(unknown)?;
                Ok(Self::Profiles(repository(name)?, last.parse()?))
            }
            ("blobs", "uploads") => Ok(Self::Uploads(repository(name)?)),
            ("blobs", _) => Ok(Self::Blob(repository(name)?, last.parse()?)),
            _ => Err(unknown()),
        }
    }

    /// The repository that it is in.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Referrers(name, _)
            | Self::Profiles(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _) => Some(name),
        }
    }

    fn upload(name: &str, session: &str) -> Result<Self, ParseTargetError> {
        let name = repository(name)?;
        if session.is_empty() {
            return Ok(Self::Uploads(name));
        }
        let id = SessionId::parse(session);
        id.map(|id| Self::Upload(name, id))
            .ok_or_else(|| ParseTargetError::Session(session.to_owned()))
    }
}

impl Reference {
    /// Reads a tag or a digest; tags hold no colon.
    ///
    /// # Errors
    /// [`ParseTargetError`] where it is neither.
    pub fn parse(text: &str) -> Result<Self, ParseTargetError> {
        if text.contains(':') {
            return Ok(Self::Digest(text.parse()?));
        }
        Ok(Self::Tag(text.parse()?))
    }
}

fn repository(name: &str) -> Result<Repository, ParseTargetError> {
    Repository::parse(name).ok_or_else(|| ParseTargetError::Repository(name.to_owned()))
}

/// Decodes `%xx`, which some clients send for the colon of a digest. `None` where an escape is
/// malformed or the outcome is not UTF-8.
pub fn percent_decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        decoded.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn name(text: &str) -> Repository {
        Repository::parse(text).unwrap()
    }

    #[test]
    fn every_path_of_the_api_is_read() {
        let digest: ContentDigest = format!("sha256:{HEX}").parse().unwrap();
        let session = SessionId::parse("0123456789abcdef0123456789abcdef").unwrap();
        let tag = Reference::Tag("latest".parse().unwrap());
        for (path, target) in [
            ("/v2".to_owned(), Target::Base),
            ("/v2/".to_owned(), Target::Base),
            ("/v2/_catalog".to_owned(), Target::Catalog),
            ("/v2/a/b/tags/list".to_owned(), Target::Tags(name("a/b"))),
            ("/v2/a/manifests/latest".to_owned(), Target::Manifest(name("a"), tag)),
            (
                format!("/v2/a/b/c/manifests/sha256:{HEX}"),
                Target::Manifest(name("a/b/c"), Reference::Digest(digest.clone())),
            ),
            (format!("/v2/a/blobs/sha256:{HEX}"), Target::Blob(name("a"), digest.clone())),
            (format!("/v2/a/blobs/sha256%3a{HEX}"), Target::Blob(name("a"), digest.clone())),
            (
                format!("/v2/a/b/_undermount/profiles/sha256:{HEX}"),
                Target::Profiles(name("a/b"), digest.clone()),
            ),
            (format!("/v2/a/referrers/sha256:{HEX}"), Target::Referrers(name("a"), digest)),
            ("/v2/a/blobs/uploads".to_owned(), Target::Uploads(name("a"))),
            ("/v2/a/blobs/uploads/".to_owned(), Target::Uploads(name("a"))),
            (
                "/v2/a/blobs/uploads/0123456789abcdef0123456789abcdef".to_owned(),
                Target::Upload(name("a"), session),
            ),
        ] {
            assert_eq!(Target::parse(&path), Ok(target), "{path}");
        }
    }

    #[test]
    fn words_of_the_api_may_be_parts_of_a_name() {
        assert_eq!(
            Target::parse("/v2/blobs/uploads/tags/list"),
            Ok(Target::Tags(name("blobs/uploads")))
        );
        assert_eq!(
            Target::parse("/v2/a/manifests/tags/list"),
            Ok(Target::Tags(name("a/manifests")))
        );
    }

    #[test]
    fn tricks_are_refused() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v2x/",
            "/v2//",
            "/v2/a",
            "/v2/a/b",
            "/v2/../a/tags/list",
            "/v2/a/../../x/tags/list",
            "/v2/a/%2e%2e/b/tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/_blobs/tags/list",
            "/v2/A/tags/list",
            "/v2/tags/list",
            "/v2/a//tags/list",
            "/v2/a/manifests/",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%00",
            "/v2/a/blobs/latest",
            "/v2/a/profiles/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/v2/_undermount/profiles/latest",
            "/v2/a/_undermount/profiles/latest",
            "/v2/a/manifests/sha256:baddigeststring",
            "/v2/a/blobs/uploads/../../x",
            "/v2/a/blobs/uploads/0123",
            "/v2/a/tags/list/",
            "/v2/a/tags/%zz",
            "/v2/%ff/tags/list",
        ] {
            assert!(Target::parse(path).is_err(), "{path}");
        }
    }
}
