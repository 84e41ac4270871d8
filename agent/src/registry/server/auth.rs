//! Who may do what.
//!
//! Without users, everyone may pull, and push from where the [`PushPolicy`] says. With users (an
//! htpasswd file), a client proves who it is by its password, or by a token that it got for it
//! from `/token` ("Docker Registry v2 authentication"). Clients look at the answer of `/v2/` to
//! learn that; those without a password get an anonymous token there and pull with it.

mod tokens;
mod users;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};

use super::error::ApiError;
use super::listen::Peer;
use super::name::Repository;
use super::{PullPolicy, PushPolicy};
use crate::registry::Secret;
use tokens::Tokens;

pub use tokens::LIFETIME;
pub use users::{Users, UsersError};

/// The token of who has no password.
const ANONYMOUS: &str = "anonymous";

/// Decides what a request may do.
#[derive(Debug)]
pub struct Gate {
    pull: PullPolicy,
    push: PushPolicy,
    users: Option<Users>,
    tokens: Tokens,
    /// Whether connections are encrypted, for the address of the token service.
    tls: bool,
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Learn whether and how to show who it is.
    Ping,
    /// Read.
    Pull,
    /// Tell what a start has read: who may pull may start.
    Tell,
    /// Change.
    Push,
}

/// Who sent a request, as far as it was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Client {
    /// Someone.
    Anonymous,
    /// A user.
    User(String),
    /// Who showed a wrong password or an old token.
    Impostor,
    /// Who showed nothing.
    Unknown,
}

/// What an `Authorization` header holds.
#[derive(Debug)]
enum Shown {
    Nothing,
    Password(String, Secret),
    Token(String),
    Garbage,
}

impl Gate {
    /// A gate by these rules; `tls` says whether clients come by https.
    pub fn new(pull: PullPolicy, push: PushPolicy, users: Option<Users>, tls: bool) -> Self {
        Self { pull, push, users, tokens: Tokens::default(), tls }
    }

    /// Lets a request from `peer` about `repository` do `access`, or says why not.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] where the client can show who it is and has not;
    /// [`ApiError::PushDenied`] and [`ApiError::ReadOnly`] where that would not help.
    pub async fn admit(
        &self,
        peer: Peer,
        headers: &HeaderMap,
        access: Access,
        repository: Option<&Repository>,
    ) -> Result<(), ApiError> {
        if access == Access::Push && self.push == PushPolicy::None {
            return Err(ApiError::ReadOnly);
        }
        let Some(users) = &self.users else {
            return self.admit_anonymous(peer, headers, access);
        };
        let allowed = match (self.identify(users, headers).await, access) {
            (Client::User(_), _) => true,
            (Client::Impostor, _) | (Client::Unknown, Access::Ping) => false,
            (Client::Anonymous | Client::Unknown, Access::Push) => self.push.admits(peer, headers),
            (Client::Anonymous, Access::Ping)
            | (Client::Anonymous | Client::Unknown, Access::Pull | Access::Tell) => {
                self.pull == PullPolicy::Any
            }
        };
        if allowed { Ok(()) } else { Err(self.challenge(headers, repository)) }
    }

    /// A token for who shows a password, or for anyone where anyone may pull.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] for a wrong password.
    pub async fn token(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        let refused = || ApiError::Unauthorized { challenge: "Basic realm=\"undermount\"".into() };
        let Some(users) = &self.users else { return Ok(ANONYMOUS.to_owned()) };
        match self.identify(users, headers).await {
            Client::User(name) => Ok(self.tokens.issue(name)),
            Client::Unknown if self.pull == PullPolicy::Any => Ok(ANONYMOUS.to_owned()),
            _ => Err(refused()),
        }
    }

    fn admit_anonymous(
        &self,
        peer: Peer,
        headers: &HeaderMap,
        access: Access,
    ) -> Result<(), ApiError> {
        if access != Access::Push || self.push.admits(peer, headers) {
            Ok(())
        } else {
            Err(ApiError::PushDenied)
        }
    }

    async fn identify(&self, users: &Users, headers: &HeaderMap) -> Client {
        match shown(headers) {
            Shown::Nothing => Client::Unknown,
            Shown::Token(token) if token == ANONYMOUS => Client::Anonymous,
            Shown::Token(token) => self.tokens.user(&token).map_or(Client::Impostor, Client::User),
            // Some clients show an empty name where they have none to show.
            Shown::Password(name, _) if name.is_empty() => Client::Unknown,
            Shown::Password(name, password) => {
                let right = users.verify(&name, &password).await;
                if right { Client::User(name) } else { Client::Impostor }
            }
            Shown::Garbage => Client::Impostor,
        }
    }

    /// Tells the client where to get a token.
    fn challenge(&self, headers: &HeaderMap, repository: Option<&Repository>) -> ApiError {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let forwarded = text(header::HeaderName::from_static("x-forwarded-proto"));
        let scheme = match forwarded {
            Some("https") => "https",
            _ if self.tls => "https",
            _ => "http",
        };
        let host = text(header::HOST).filter(|host| is_host(host)).unwrap_or("localhost");
        let mut challenge =
            format!("Bearer realm=\"{scheme}://{host}/token\",service=\"undermount\"");
        if let Some(name) = repository {
            challenge.push_str(&format!(",scope=\"repository:{name}:pull,push\""));
        }
        ApiError::Unauthorized { challenge }
    }
}

/// What is sent back in a header must be harmless in one.
fn is_host(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':' | b'[' | b']'))
}

fn shown(headers: &HeaderMap) -> Shown {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Shown::Nothing };
    let Some((scheme, rest)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else {
        return Shown::Garbage;
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return Shown::Token(rest.trim().to_owned());
    }
    let decoded = STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((name, password)) if scheme.eq_ignore_ascii_case("basic") => {
            Shown::Password(name.to_owned(), Secret::new(password))
        }
        _ => Shown::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Fixture {
        _file: tempfile::NamedTempFile,
        gate: Gate,
    }

    fn gate(pull: PullPolicy, push: PushPolicy) -> Fixture {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hash = bcrypt::hash("wonder", 4).unwrap();
        fs::write(file.path(), format!("alice:{hash}\n")).unwrap();
        let users = Users::read(file.path()).unwrap();
        Fixture { _file: file, gate: Gate::new(pull, push, Some(users), false) }
    }

    fn basic(pair: &str) -> HeaderMap {
        authorization(&format!("Basic {}", STANDARD.encode(pair)))
    }

    fn authorization(value: &str) -> HeaderMap {
        HeaderMap::from_iter([
            (header::AUTHORIZATION, value.parse().unwrap()),
            (header::HOST, "registry:8787".parse().unwrap()),
        ])
    }

    fn far() -> Peer {
        Peer::new("192.0.2.1:1".parse().unwrap(), None)
    }

    fn near() -> Peer {
        Peer::new("127.0.0.1:1".parse().unwrap(), None)
    }

    async fn may(gate: &Gate, peer: Peer, headers: &HeaderMap, access: Access) -> bool {
        gate.admit(peer, headers, access, None).await.is_ok()
    }

    #[tokio::test]
    async fn without_users_the_address_decides() {
        let gate = Gate::new(PullPolicy::Any, PushPolicy::OwnHost, None, false);
        let nothing = HeaderMap::new();
        for access in [Access::Ping, Access::Pull, Access::Tell] {
            assert!(may(&gate, far(), &nothing, access).await);
        }
        assert!(may(&gate, near(), &nothing, Access::Push).await);
        let error = gate.admit(far(), &nothing, Access::Push, None).await.unwrap_err();
        assert!(matches!(error, ApiError::PushDenied));
    }

    #[tokio::test]
    async fn users_push_and_everyone_pulls() {
        let f = gate(PullPolicy::Any, PushPolicy::Users);
        let (nothing, alice) = (HeaderMap::new(), basic("alice:wonder"));
        assert!(may(&f.gate, far(), &alice, Access::Push).await);
        assert!(may(&f.gate, far(), &nothing, Access::Pull).await);
        assert!(!may(&f.gate, near(), &nothing, Access::Push).await);
        assert!(!may(&f.gate, far(), &nothing, Access::Ping).await, "else nobody would log in");
        assert!(may(&f.gate, far(), &basic(":"), Access::Pull).await);
        for wrong in ["alice:wrong", "bob:wonder", "alice:"] {
            assert!(!may(&f.gate, far(), &basic(wrong), Access::Pull).await, "{wrong}");
        }
        assert!(!may(&f.gate, far(), &authorization("Digest x"), Access::Pull).await);
    }

    #[tokio::test]
    async fn where_only_users_pull_nobody_else_gets_a_token() {
        let f = gate(PullPolicy::Users, PushPolicy::Users);
        assert!(!may(&f.gate, near(), &HeaderMap::new(), Access::Pull).await);
        assert!(!may(&f.gate, near(), &HeaderMap::new(), Access::Tell).await);
        assert!(!may(&f.gate, near(), &authorization("Bearer anonymous"), Access::Pull).await);
        assert!(f.gate.token(&HeaderMap::new()).await.is_err());
        assert!(f.gate.token(&basic("alice:wrong")).await.is_err());
        assert!(f.gate.token(&basic("alice:wonder")).await.is_ok());
    }

    #[tokio::test]
    async fn a_token_stands_for_its_password() {
        let f = gate(PullPolicy::Any, PushPolicy::Users);
        let token = f.gate.token(&basic("alice:wonder")).await.unwrap();
        let bearer = authorization(&format!("Bearer {token}"));
        assert!(may(&f.gate, far(), &bearer, Access::Push).await);
        assert!(!may(&f.gate, far(), &authorization("Bearer stolen"), Access::Pull).await);
        let token = f.gate.token(&HeaderMap::new()).await.unwrap();
        let bearer = authorization(&format!("Bearer {token}"));
        assert!(may(&f.gate, far(), &bearer, Access::Ping).await);
        assert!(!may(&f.gate, far(), &bearer, Access::Push).await);
    }

    #[tokio::test]
    async fn a_read_only_registry_is_so_for_users_too() {
        let f = gate(PullPolicy::Any, PushPolicy::None);
        let error = f.gate.admit(near(), &basic("alice:wonder"), Access::Push, None).await;
        assert!(matches!(error, Err(ApiError::ReadOnly)));
    }

    #[tokio::test]
    async fn the_challenge_says_where_tokens_are() {
        let f = gate(PullPolicy::Any, PushPolicy::Users);
        let repository = Repository::parse("a/b").unwrap();
        let headers = HeaderMap::from_iter([
            (header::HOST, "registry:8787".parse().unwrap()),
            ("x-forwarded-proto".parse().unwrap(), "https".parse().unwrap()),
        ]);
        let error = f.gate.admit(far(), &headers, Access::Push, Some(&repository)).await;
        let Err(ApiError::Unauthorized { challenge }) = error else { panic!("{error:?}") };
        assert_eq!(
            challenge,
            "Bearer realm=\"https://registry:8787/token\",service=\"undermount\",\
             scope=\"repository:a/b:pull,push\""
        );
    }
}
