//! What can go wrong between us and a registry: which thing ([`Subject`]) and how ([`Fault`]).

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use undermount_fs::digest::{Digest, WrongDigest};

use crate::image::{ManifestError, Reference, Repository};

use super::certificates::CertificateError;
use super::credentials::CredentialError;
use super::registries_conf::RegistriesConfError;

/// A failed operation: the thing it was about, and what happened.
#[derive(Debug)]
pub struct RegistryError {
    /// What was wanted, with registry and repository.
    pub subject: Box<Subject>,
    /// What went wrong.
    pub fault: Fault,
}

/// What an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The registry as a whole, `host[:port]`.
    Registry(String),
    /// A manifest, by tag or digest.
    Manifest(Reference),
    /// A blob of a repository.
    Blob(Repository, Digest),
    /// An upload to a repository.
    Upload(Repository),
    /// The tags of a repository.
    Tags(Repository),
    /// What belongs to a manifest of a repository.
    Referrers(Repository, Digest),
    /// A blob in a file of this host.
    File(PathBuf, Digest),
}

/// How an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection, or it broke before an answer came.
    #[error("the registry cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// Something answers at the port, and not in TLS.
    #[error("the registry does not speak TLS; allow plain HTTP for it if that is intended")]
    NotTls(#[source] reqwest::Error),
    /// Nothing listens at the port.
    #[error("the registry cannot be reached: connection refused")]
    Refused,
    /// The connection broke within an answer.
    #[error("the connection broke after {received} bytes")]
    Broken {
        /// Bytes of the answer that came.
        received: u64,
        /// The cause.
        source: reqwest::Error,
    },
    /// The HTTP client could not be set up, for lack of CA certificates for instance.
    #[error("the HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
    /// Certificates for this registry that cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// Credentials are wanted, and none are configured for this repository.
    #[error("the registry wants credentials and none are configured for it (basic auth)")]
    NoCredentials,
    /// The credentials, or what they may do, are not enough.
    #[error("the registry refuses access{with}: {message}")]
    Unauthorized {
        /// ` with the credentials of …`, or nothing.
        with: String,
        /// The registry's words.
        message: String,
    },
    /// Files with credentials that cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The token service does not do its part.
    #[error("the token service {realm} {reason}")]
    TokenService {
        /// Its address.
        realm: String,
        /// What it does wrong.
        reason: String,
        /// Whether it may do better later.
        transient: bool,
    },
    /// A registries.conf that cannot be used.
    #[error(transparent)]
    Registries(Arc<RegistriesConfError>),
    /// The operator does not want it.
    #[error("registries.conf blocks it")]
    Blocked,
    /// It is not there.
    #[error("not found{0}")]
    NotFound(Message),
    /// Too many requests, or out of service for a while.
    #[error("the registry is busy ({status}){message}")]
    Busy {
        /// 429 or 503.
        status: StatusCode,
        /// How long the registry asks us to wait.
        retry_after: Option<Duration>,
        /// The registry's words.
        message: Message,
    },
    /// Any other status that is no success.
    #[error("the registry answers {status}{message}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The registry's words.
        message: Message,
    },
    /// Fewer bytes than there should be.
    #[error("the registry sent {received} bytes of {expected}")]
    Short {
        /// Bytes that came.
        received: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// Another size than the manifest says.
    #[error("the registry has {found} bytes, expected {expected}")]
    Size {
        /// What the registry has, in words.
        found: String,
        /// What the manifest says.
        expected: u64,
    },
    /// Other bytes.
    #[error("wrong bytes: {0}")]
    WrongDigest(WrongDigest),
    /// Another part of the blob than was asked for.
    #[error("asked for {asked}, the registry sent `{sent}`")]
    WrongRange {
        /// The Range header.
        asked: String,
        /// The Content-Range header.
        sent: String,
    },
    /// Bytes that were compressed on the way although nobody asked for it.
    #[error("the answer is encoded with `{0}`, which changes its bytes; does a proxy compress?")]
    Encoded(String),
    /// Bytes come too slowly, or none at all.
    #[error("stalled: {received} bytes in {seconds} seconds")]
    Stalled {
        /// Bytes in this time.
        received: u64,
        /// Time that was spent waiting.
        seconds: u64,
    },
    /// The caller's deadline passed.
    #[error("not done in time{0}")]
    Deadline(Message),
    /// More than is taken in.
    #[error("the answer is longer than the {0} bytes that are allowed")]
    TooLarge(u64),
    /// A manifest or configuration that cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Bytes that are what was asked for and cannot be used nevertheless.
    #[error("unusable{0}")]
    Unusable(Message),
    /// A file of this host that cannot be read.
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    /// An answer that breaks the distribution-spec.
    #[error("the registry's answer makes no sense: {0}")]
    Protocol(String),
}

/// The registry's or an earlier error's words, `: …`, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message(pub String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl Fault {
    /// What a request that got no answer met with.
    pub(super) fn of_request(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if is_refused(&error) {
            return Self::Refused;
        }
        match tls_error(&error) {
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls(error),
            _ => Self::Unreachable(error),
        }
    }

    /// Whether this came out of a TLS handshake, and not before or instead of one.
    pub fn is_from_tls(&self) -> bool {
        matches!(self, Self::Unreachable(error) if tls_error(error).is_some())
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            // Waiting does not mend a certificate.
            Self::Unreachable(error) => tls_error(error).is_none() && !error.is_redirect(),
            Self::Refused
            | Self::Broken { .. }
            | Self::Busy { .. }
            | Self::Short { .. }
            | Self::WrongDigest(_)
            | Self::WrongRange { .. }
            | Self::Stalled { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::TokenService { transient, .. } => *transient,
            _ => false,
        }
    }

    /// How long the registry asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The fault as an error about `subject`.
    pub fn of(self, subject: &Subject) -> RegistryError {
        RegistryError { subject: Box::new(subject.clone()), fault: self }
    }

    /// The fault and its causes in one line.
    pub fn in_words(&self) -> String {
        chain(self)
    }
}

impl RegistryError {
    /// Whether the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.fault, Fault::NotFound(_))
    }

    /// The error and its causes in one line.
    pub fn in_words(&self) -> String {
        chain(self)
    }
}

/// An error and its causes, separated by colons.
fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.ends_with(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

/// The causes of `error`, those included that `io::Error` wraps and its `source` leaves out.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| {
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => cause.source(),
        }
    })
}

/// The TLS error among the causes of `error`.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Whether nothing listens at the port.
fn is_refused(error: &reqwest::Error) -> bool {
    let mut io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.any(|io| io.kind() == ErrorKind::ConnectionRefused)
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.fault)
    }
}

impl Error for RegistryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(host) => write!(f, "registry {host}"),
            Self::Manifest(reference) => write!(f, "image {reference}"),
            Self::Blob(repository, digest) => write!(f, "blob {digest} of {repository}"),
            Self::Upload(repository) => write!(f, "upload to {repository}"),
            Self::Tags(repository) => write!(f, "tags of {repository}"),
            Self::Referrers(repository, digest) => {
                write!(f, "referrers of {digest} in {repository}")
            }
            Self::File(path, digest) => write!(f, "blob {digest} in {}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_registry_repository_and_thing() {
        let repository: Repository = "127.0.0.1:5000/a/b".parse().unwrap();
        let digest = Digest::of(b"blob");
        let subject = Subject::Blob(repository.clone(), digest);
        let error = Fault::Short { received: 3, expected: 9 }.of(&subject);
        let expected =
            format!("blob {digest} of 127.0.0.1:5000/a/b: the registry sent 3 bytes of 9");
        assert_eq!(error.to_string(), expected);
        let subject = Subject::Manifest("quay.io/a:t".parse().unwrap());
        let fault = Fault::NotFound(Message("MANIFEST_UNKNOWN: manifest unknown".into()));
        assert_eq!(
            fault.of(&subject).to_string(),
            "image quay.io/a:t: not found: MANIFEST_UNKNOWN: manifest unknown"
        );
    }

    #[test]
    fn causes_are_told_once() {
        let json = serde_json::from_str::<u8>("x").unwrap_err().to_string();
        let source = serde_json::from_str::<u8>("x").unwrap_err();
        let fault = Fault::Manifest(ManifestError::Json { what: "manifest", source });
        assert_eq!(fault.in_words(), format!("manifest is malformed: {json}"));
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        let status = |code: u16| Fault::Status {
            status: StatusCode::from_u16(code).unwrap(),
            message: Message::default(),
        };
        for (fault, transient) in [
            (status(500), true),
            (status(501), false),
            (status(400), false),
            (status(408), true),
            (Fault::NotFound(Message::default()), false),
            (Fault::NoCredentials, false),
            (Fault::Stalled { received: 0, seconds: 1 }, true),
        ] {
            assert_eq!(fault.is_transient(), transient, "{fault}");
        }
    }
}
