//! The seam to the registries: what a node reads when nobody in the cluster has it.

use std::fmt;

use futures_util::future::BoxFuture;
use undermount_fs::source::{BlobStream, Scope, SourceError};

use super::wanted::Wanted;

/// A password or token. Nothing shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Password(String);

impl Password {
    /// This one.
    pub fn new(password: String) -> Self {
        Self(password)
    }

    /// What it is.
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
/// A peer names a repository and a digest, never an address: what is read for it is what the node
/// could read for itself, and it hands it out only where its digest is right.
pub trait Origin: Send + Sync + 'static {
    /// Whether this node reads from the registry of `scope` for others: one that its
    /// configuration names, or that it has read from for itself. Otherwise a peer could have it
    /// send requests to anywhere.
    fn reaches(&self, scope: &Scope) -> bool;

    /// The credential that reading in the name of `scope` takes; `None` where it takes none.
    fn login<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Option<Login>>;

    /// The bytes of a piece from byte `offset` of it on, unverified.
    fn read<'a>(
        &'a self,
        wanted: &'a Wanted,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>>;

    /// Peers brought a piece of so many bytes in the name of `scope`.
    fn brought(&self, scope: &Scope, bytes: u64);
}
