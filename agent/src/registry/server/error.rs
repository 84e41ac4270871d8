//! Refusals as the distribution-spec has them: the one place that chooses HTTP statuses and
//! error codes.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::digest::{ContentDigest, ParseContentDigestError};
use super::garbage::GarbageError;
use super::manifest::ManifestError;
use super::name::Repository;
use super::storage::{CommitError, StorageError};
use super::target::ParseTargetError;
use super::upload::{BeginError, ReceiveError, SessionId};
use crate::image::reference::ReferenceError;

/// When a client that asked for too much should ask again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was not answered as it wished.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The path names nothing.
    #[error(transparent)]
    Target(#[from] ParseTargetError),
    /// No manifest can have such a tag.
    #[error(transparent)]
    NoSuchTag(ReferenceError),
    /// A parameter is malformed.
    #[error("the parameter `{name}` is malformed: `{value}`")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// What was sent.
        value: String,
    },
    /// A digest is malformed.
    #[error(transparent)]
    Digest(#[from] ParseContentDigestError),
    /// There is no such repository.
    #[error("the registry has no repository `{0}`")]
    RepositoryUnknown(Repository),
    /// There is no such manifest.
    #[error("repository `{repository}` has no manifest `{reference}`")]
    ManifestUnknown {
        /// Where it was looked for.
        repository: Repository,
        /// What was looked for.
        reference: String,
    },
    /// There is no such blob.
    #[error("repository `{repository}` has no blob {digest}")]
    BlobUnknown {
        /// Where it was looked for.
        repository: Repository,
        /// What was looked for.
        digest: ContentDigest,
    },
    /// There is no such upload.
    #[error("there is no upload `{0}`: it ended, was cancelled or timed out")]
    UploadUnknown(SessionId),
    /// The range of a download lies beyond the blob.
    #[error("the blob has {0} bytes and none in this range")]
    Range(u64),
    /// A chunk does not begin where the upload stands.
    #[error("the upload stands at byte {len}, the chunk is `{chunk}`")]
    ChunkOutOfOrder {
        /// Where the upload can be continued.
        location: String,
        /// How many bytes it has.
        len: u64,
        /// The Content-Range that was sent.
        chunk: String,
    },
    /// A chunk is longer or shorter than it said.
    #[error("the chunk should have {expected} bytes and has {actual}")]
    ChunkSize {
        /// Bytes by its Content-Range.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// An upload could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// A body could not be taken in.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The uploaded bytes did not become a blob.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest is another one than its digest says.
    #[error("the manifest hashes to {actual}, not to {expected}")]
    ManifestDigest {
        /// The digest in the path.
        expected: ContentDigest,
        /// The digest of the bytes.
        actual: ContentDigest,
    },
    /// The manifest is too large.
    #[error("the manifest is larger than {0} bytes")]
    ManifestSize(usize),
    /// What the manifest consists of was not pushed before it.
    #[error("repository `{repository}` lacks {}, which the manifest names", list(missing))]
    ManifestBlobsUnknown {
        /// Where they were looked for.
        repository: Repository,
        /// What is missing.
        missing: Vec<ContentDigest>,
    },
    /// A descriptor contradicts the blob that it names.
    #[error("the manifest gives {digest} {claimed} bytes, it has {actual}")]
    DescriptorSize {
        /// The blob or manifest.
        digest: ContentDigest,
        /// Its size by the descriptor.
        claimed: u64,
        /// Its size.
        actual: u64,
    },
    /// The client has to show who it is.
    #[error("log in for this")]
    Unauthorized {
        /// How.
        challenge: String,
    },
    /// The client reads as much as it may at a time.
    #[error("this client reads {0} blobs at a time already: ask again later")]
    TooManyReads(usize),
    /// Profiles are read one at a time, and others were first for too long.
    #[error("the registry reads too many profiles of starts already: ask again later")]
    TooManyProfiles,
    /// Garbage could not be collected.
    #[error(transparent)]
    Garbage(#[from] GarbageError),
    /// A profile of a start cannot be used.
    #[error("{0}")]
    Profile(String),
    /// Profiles are not taken.
    #[error("this registry takes no profiles of starts")]
    NoProfiles,
    /// Who pushes has to be authorised, and this client is not.
    #[error(
        "this registry takes pushes from its own host only (its --push and --htpasswd say who else)"
    )]
    PushDenied,
    /// Nobody can push.
    #[error("this registry is read-only")]
    ReadOnly,
    /// The path has no such method.
    #[error("{0} is not supported here")]
    Method(Method),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ApiError {
    /// The status and the code of the distribution-spec.
    fn classify(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Target(error) => classify_target(error),
            Self::Parameter { .. } => (S::BAD_REQUEST, "UNSUPPORTED"),
            Self::Method(_) | Self::ReadOnly => (S::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Digest(_) | Self::ManifestDigest { .. } => (S::BAD_REQUEST, "DIGEST_INVALID"),
            Self::RepositoryUnknown(_) => (S::NOT_FOUND, "NAME_UNKNOWN"),
            Self::ManifestUnknown { .. } | Self::NoSuchTag(_) => (S::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::BlobUnknown { .. } => (S::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::UploadUnknown(_) => (S::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::Range(_) => (S::RANGE_NOT_SATISFIABLE, "UNSUPPORTED"),
            Self::ChunkOutOfOrder { .. } => (S::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::ChunkSize { .. } | Self::DescriptorSize { .. } => {
                (S::BAD_REQUEST, "SIZE_INVALID")
            }
            Self::Begin(BeginError::TooMany)
            | Self::TooManyReads(_)
            | Self::TooManyProfiles
            | Self::Garbage(GarbageError::Busy) => (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Garbage(GarbageError::Stopped) => (S::SERVICE_UNAVAILABLE, "UNKNOWN"),
            Self::Receive(error) => classify_receive(error),
            Self::Commit(CommitError::WrongDigest { .. }) => (S::BAD_REQUEST, "DIGEST_INVALID"),
            Self::Manifest(_) => (S::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::Profile(_) => (S::BAD_REQUEST, "UNSUPPORTED"),
            Self::NoProfiles => (S::NOT_FOUND, "UNSUPPORTED"),
            Self::ManifestSize(_) => (S::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID"),
            Self::ManifestBlobsUnknown { .. } => (S::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::Unauthorized { .. } => (S::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::PushDenied => (S::FORBIDDEN, "DENIED"),
            Self::Commit(CommitError::Storage(_))
            | Self::Garbage(GarbageError::Storage(_))
            | Self::Storage(_) => (S::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }

    /// What a program may want to know beside the code.
    fn detail(&self) -> Value {
        match self {
            Self::BlobUnknown { digest, .. } | Self::DescriptorSize { digest, .. } => {
                json!({ "digest": digest })
            }
            Self::ManifestUnknown { repository, reference } => {
                json!({ "name": repository.as_str(), "reference": reference })
            }
            Self::RepositoryUnknown(repository) => json!({ "name": repository.as_str() }),
            _ => Value::Null,
        }
    }

    /// The `errors` of the body: one, or one for each missing blob.
    fn entries(&self, code: &str) -> Vec<Value> {
        if let Self::ManifestBlobsUnknown { missing, .. } = self {
            let entry = |digest: &ContentDigest| {
                let message = format!("{digest} was not pushed before the manifest");
                json!({ "code": code, "message": message, "detail": { "digest": digest } })
            };
            return missing.iter().map(entry).collect();
        }
        vec![json!({ "code": code, "message": self.to_string(), "detail": self.detail() })]
    }

    /// Headers that tell the client how to go on.
    fn headers(&self) -> Vec<(HeaderName, String)> {
        match self {
            Self::Unauthorized { challenge } => {
                vec![(header::WWW_AUTHENTICATE, challenge.clone())]
            }
            Self::TooManyReads(_) | Self::TooManyProfiles | Self::Garbage(GarbageError::Busy) => {
                vec![(header::RETRY_AFTER, RETRY_AFTER.as_secs().to_string())]
            }
            Self::Range(size) => vec![(header::CONTENT_RANGE, format!("bytes */{size}"))],
            Self::ChunkOutOfOrder { location, len, .. } => vec![
                (header::LOCATION, location.clone()),
                (header::RANGE, format!("0-{}", len.saturating_sub(1))),
            ],
            _ => Vec::new(),
        }
    }
}

fn classify_target(error: &ParseTargetError) -> (StatusCode, &'static str) {
    match error {
        ParseTargetError::Path(_) => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        ParseTargetError::Repository(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        ParseTargetError::Tag(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        ParseTargetError::Digest(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        ParseTargetError::Session(_) => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
    }
}

fn classify_receive(error: &ReceiveError) -> (StatusCode, &'static str) {
    match error {
        ReceiveError::TooLong(_) => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
        ReceiveError::Broken(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
        ReceiveError::Stalled => (StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID"),
        ReceiveError::Late(_) => (StatusCode::REQUEST_TIMEOUT, "MANIFEST_INVALID"),
        ReceiveError::Storage(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    }
}

fn list(digests: &[ContentDigest]) -> String {
    let words: Vec<String> = digests.iter().map(ToString::to_string).collect();
    words.join(", ")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.classify();
        if status.is_server_error() {
            tracing::error!(error = &self as &dyn std::error::Error, "request failed");
        }
        let entries = self.entries(code);
        let mut response = (status, Json(json!({ "errors": entries }))).into_response();
        for (name, value) in self.headers() {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

#[cfg(test)]
mod tests;
