//! The seam to the registries: what a node reads when no other node has it.

use std::fmt;

use futures_util::future::BoxFuture;
use undermount_fs::source::{BlobStream, Scope, SourceError};

use super::wanted::Wanted;

/// A password or token. Nothing shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Password(String);

impl Password {
    /// Wraps `password`.
    pub fn new(password: String) -> Self {
        Self(password)
    }

    /// The text, for the request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The credential by which a node reads a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    /// The registry, `host[:port]`.
    pub registry: String,
    /// The user.
    pub user: String,
    /// The password.
    pub password: Password,
}

/// The registries, as this node reaches them by its own configuration and credentials.
///
/// A peer names a repository and a digest, never an address. So what is read for it is what the
/// node could read for itself, and the node hands it out only if its digest is right.
pub trait Origin: Send + Sync + 'static {
    /// Whether this node reads from the registry of `scope` for others: only from one that its
    /// configuration names, or that it has read from for itself. Otherwise a peer could make it
    /// send requests anywhere.
    fn reaches(&self, scope: &Scope) -> bool;

    /// The credential that reading in the name of `scope` takes; `None` where it takes none.
    fn login<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Option<Login>>;

    /// Reads the bytes of a piece from its byte `offset` on, unverified.
    fn read<'a>(
        &'a self,
        wanted: &'a Wanted,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>>;

    /// Notes that peers brought a piece of `bytes` bytes in the name of `scope`.
    fn brought(&self, scope: &Scope, bytes: u64);
}
