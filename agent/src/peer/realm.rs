//! Who may have a piece: all members of the cluster, or those with the credential that it takes to
//! pull it.
//!
//! ```text
//! this node fetches  -> of(scope): the realm under which it keeps the piece
//! this node asks     -> ticket(scope, asked node)
//! another node asks  -> admit(scope, asker, ticket): the realm in which to look
//! ```
//!
//! Knowing a digest does not suffice. A node that has a credential for a repository treats what it
//! reads from there as private to the holders of the same credential: it hands that out for a
//! [`Ticket`] only, and keeps it apart from everything else, so that a request for the same digest
//! in the name of another repository finds nothing. A node without the credential does not have
//! such pieces, and cannot check the ticket: it refuses, and the asker goes elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::OnceCell;
use undermount_fs::source::Scope;

use super::keys::{ClusterKeys, ScopeKey, Ticket, TicketError};
use super::member::MemberId;
use super::origin::{Login, Origin};
use crate::blocking::blocking;

/// How long a ticket of this node is good.
const TICKET_LIFE: Duration = Duration::from_secs(600);

/// Those who may have a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Realm {
    /// Every member of the cluster.
    Public,
    /// The holders of one credential, which has this name.
    Private([u8; 16]),
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Private(name) => name.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// A text that does not name a realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRealm;

impl FromStr for Realm {
    type Err = BadRealm;

    fn from_str(text: &str) -> Result<Self, BadRealm> {
        if text == "public" {
            return Ok(Self::Public);
        }
        // A member id is spelled the same way: 32 hex digits.
        let name: MemberId = text.parse().map_err(|_| BadRealm)?;
        Ok(Self::Private(*name.as_bytes()))
    }
}

/// Why a peer may not have what it asks for (403).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It shows no ticket.
    #[error("this repository is private: a scope ticket is needed")]
    NoTicket,
    /// Its ticket is not good.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It shows a ticket for a repository of which this node has no credential.
    #[error("this node has no credential for the repository")]
    NoCredential,
}

/// Decides realms by the credentials of this node.
pub struct Realms {
    keys: ClusterKeys,
    own: MemberId,
    origin: Arc<dyn Origin>,
    /// The keys that were derived. That is slow by intent, so it is done once, even if several wait
    /// for it.
    derived: Mutex<HashMap<Login, Arc<OnceCell<ScopeKey>>>>,
}

impl fmt::Debug for Realms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realms").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Realms {
    /// The realms of the node `own`, whose credentials `origin` knows.
    pub fn new(keys: ClusterKeys, own: MemberId, origin: Arc<dyn Origin>) -> Self {
        Self { keys, own, origin, derived: Mutex::default() }
    }

    /// The realm of what this node fetches in the name of `scope`. Slow the first time.
    pub async fn of(&self, scope: &Scope) -> Realm {
        match self.scope_key(scope).await {
            None => Realm::Public,
            Some(key) => Realm::Private(key.name()),
        }
    }

    /// The ticket to show to `asked`; `None` where this node has no credential for the repository.
    pub async fn ticket(&self, scope: &Scope, asked: MemberId, now: SystemTime) -> Option<Ticket> {
        let key = self.scope_key(scope).await?;
        Some(Ticket::issue(&self.keys, &key, self.own, asked, now + TICKET_LIFE))
    }

    /// The realm that `asker`, which shows `ticket`, is admitted to.
    ///
    /// # Errors
    /// [`Denied`] where it may have nothing in the name of `scope`.
    pub async fn admit(
        &self,
        scope: &Scope,
        asker: MemberId,
        ticket: Option<&str>,
        now: SystemTime,
    ) -> Result<Realm, Denied> {
        let Some(key) = self.scope_key(scope).await else {
            return if ticket.is_some() { Err(Denied::NoCredential) } else { Ok(Realm::Public) };
        };
        let ticket: Ticket = ticket.ok_or(Denied::NoTicket)?.parse()?;
        ticket.check(&self.keys, &key, asker, self.own, now)?;
        Ok(Realm::Private(key.name()))
    }

    async fn scope_key(&self, scope: &Scope) -> Option<ScopeKey> {
        let login = self.origin.login(scope).await?;
        let cell = self.derived().entry(login.clone()).or_default().clone();
        Some(cell.get_or_init(|| derive(login)).await.clone())
    }

    fn derived(&self) -> MutexGuard<'_, HashMap<Login, Arc<OnceCell<ScopeKey>>>> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Derives the key of those who have this credential, on a thread that may block.
async fn derive(login: Login) -> ScopeKey {
    let derive = move || ScopeKey::derive(&login.registry, &login.user, login.password.expose());
    blocking(derive).await
}
