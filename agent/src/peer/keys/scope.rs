//! Who may have pieces of private repositories: whoever could pull them from the registry.
//!
//! Knowing a digest must not suffice. Nodes with the same credential for a registry derive the same
//! [`ScopeKey`] from it, without a server. A node that asks shows a [`Ticket`] that only a holder
//! of that key and of the cluster key can issue:
//!
//! ```text
//! scope key = PBKDF2-HMAC-SHA256(credential, salt: registry)      slow: once for each credential
//! ticket    = EXPIRY:HMAC("scope" of the cluster key, scope key, holder, asked node, EXPIRY)
//! ```
//!
//! The slow part makes each guess at a credential expensive even for members of the cluster; the
//! cluster key keeps everybody else from guessing at all. It does not enter the slow part, so a
//! rotation need not repeat it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, pbkdf2};

use super::{ClusterKeys, Derived};
use crate::peer::member::MemberId;

/// Rounds of PBKDF2 (RFC 8018): about a third of a second of one core.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");

/// The longest life of a ticket that is accepted, whoever issued it.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// Proof of the credential for a registry. Secret: nothing shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ScopeKey([u8; 32]);

impl ScopeKey {
    /// Derives the key of those who can log in at `registry` (`host[:port]`) with this name and
    /// password or token. Blocks for a third of a second: keep the key.
    pub fn derive(registry: &str, username: &str, password: &str) -> Self {
        let salt = [b"undermount scope v1\0", registry.as_bytes()].concat();
        // A name holds no NUL, so what is before the first one is the name.
        let credential = [username.as_bytes(), b"\0", password.as_bytes()].concat();
        let mut key = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, &credential, &mut key);
        Self(key)
    }

    /// The name of the key where others see it; it says nothing about the key.
    pub fn name(&self) -> [u8; 16] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), b"name");
        tag.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes")
    }
}

impl fmt::Debug for ScopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Proof that its holder has the credential of a scope, for one asked node, until it expires. As
/// text it is the value of a header.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    expires: u64,
    mac: [u8; 32],
}

/// Why a ticket is not accepted (403).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The text is not a ticket.
    #[error("this is no scope ticket")]
    Malformed,
    /// It has expired.
    #[error("the scope ticket has expired")]
    Expired,
    /// It is good for longer than any ticket is.
    #[error("the scope ticket is good for too long: is a clock wrong?")]
    TooLong,
    /// It was issued for another scope, holder or node, or by somebody without the credential.
    #[error("the scope ticket is for another scope or another node")]
    Wrong,
}

impl Ticket {
    /// Issues the ticket with which `holder` may ask `asked` for what is in this scope, until
    /// `expires` (at most an hour ahead).
    pub fn issue(
        keys: &ClusterKeys,
        scope: &ScopeKey,
        holder: MemberId,
        asked: MemberId,
        expires: SystemTime,
    ) -> Self {
        let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ring = keys.ring();
        let tag = hmac::sign(&ring.used().scope, &message(scope, holder, asked, expires));
        Self { expires, mac: tag.as_ref().try_into().expect("SHA-256 has 32 bytes") }
    }

    /// Checks at `asked` that `holder` may have what is in this scope, as of `now`. The holder must
    /// be the member that has signed the request.
    ///
    /// # Errors
    /// [`TicketError`] where it may not.
    pub fn check(
        &self,
        keys: &ClusterKeys,
        scope: &ScopeKey,
        holder: MemberId,
        asked: MemberId,
        now: SystemTime,
    ) -> Result<(), TicketError> {
        let message = message(scope, holder, asked, self.expires);
        let proves = |key: &Derived| hmac::verify(&key.scope, &message, &self.mac).is_ok();
        if !keys.ring().accepted().any(proves) {
            return Err(TicketError::Wrong);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = Duration::from_secs(self.expires);
        if expires < now {
            return Err(TicketError::Expired);
        }
        if expires > now + MAX_LIFE { Err(TicketError::TooLong) } else { Ok(()) }
    }
}

fn message(scope: &ScopeKey, holder: MemberId, asked: MemberId, expires: u64) -> Vec<u8> {
    [&scope.0[..], holder.as_bytes(), asked.as_bytes(), &expires.to_be_bytes()].concat()
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.expires, URL_SAFE_NO_PAD.encode(self.mac))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(until {})", self.expires)
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let (expires, mac) = text.split_once(':').ok_or(TicketError::Malformed)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| TicketError::Malformed)?;
        Ok(Self {
            expires: expires.parse().map_err(|_| TicketError::Malformed)?,
            mac: mac.try_into().map_err(|_| TicketError::Malformed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::keys;
    use super::super::{KeyFile, SecretKey};
    use super::*;

    const HOLDER: MemberId = MemberId::from_bytes([7; 16]);
    const ASKED: MemberId = MemberId::from_bytes([9; 16]);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn soon() -> SystemTime {
        now() + Duration::from_secs(60)
    }

    #[test]
    fn the_same_credential_is_the_same_scope_on_every_node() {
        let scope = ScopeKey::derive("r.example:5000", "user", "password");
        assert!(scope == ScopeKey::derive("r.example:5000", "user", "password"));
        for (registry, user, password) in [
            ("s.example:5000", "user", "password"),
            ("r.example:5000", "use", "rpassword"),
            ("r.example:5000", "user", "Password"),
        ] {
            assert!(scope != ScopeKey::derive(registry, user, password), "{registry} {user}");
        }
    }

    #[test]
    fn a_ticket_admits_its_holder_to_one_scope_at_one_node() {
        let (scope, other) = (ScopeKey([1; 32]), ScopeKey([2; 32]));
        let text = Ticket::issue(&keys(1), &scope, HOLDER, ASKED, soon()).to_string();
        let ticket: Ticket = text.parse().unwrap();
        assert_eq!(ticket.check(&keys(1), &scope, HOLDER, ASKED, now()), Ok(()));
        for (keys, scope, holder, asked) in [
            (keys(2), &scope, HOLDER, ASKED),
            (keys(1), &other, HOLDER, ASKED),
            (keys(1), &scope, ASKED, ASKED),
            (keys(1), &scope, HOLDER, HOLDER),
        ] {
            let refused = ticket.check(&keys, scope, holder, asked, now());
            assert_eq!(refused, Err(TicketError::Wrong));
        }
    }

    #[test]
    fn a_ticket_ends() {
        let (keys, scope) = (keys(1), ScopeKey([1; 32]));
        let check = |expires, now| {
            Ticket::issue(&keys, &scope, HOLDER, ASKED, expires)
                .check(&keys, &scope, HOLDER, ASKED, now)
        };
        assert_eq!(check(soon(), soon()), Ok(()));
        assert_eq!(check(soon(), soon() + Duration::from_secs(1)), Err(TicketError::Expired));
        assert_eq!(check(now() + MAX_LIFE * 2, now()), Err(TicketError::TooLong));
        let mut longer = Ticket::issue(&keys, &scope, HOLDER, ASKED, soon());
        longer.expires += 60;
        assert_eq!(longer.check(&keys, &scope, HOLDER, ASKED, now()), Err(TicketError::Wrong));
    }

    #[test]
    fn tickets_cross_a_rotation() {
        let scope = ScopeKey([1; 32]);
        let mut file = KeyFile::single(SecretKey::from_bytes([1; 32]));
        let (holder, asked) = (ClusterKeys::new(&file), ClusterKeys::new(&file));
        for _ in 0..3 {
            file.rotate(SecretKey::from_bytes([2; 32]));
            asked.replace(&file);
            let ticket = Ticket::issue(&holder, &scope, HOLDER, ASKED, soon());
            assert_eq!(ticket.check(&asked, &scope, HOLDER, ASKED, now()), Ok(()));
            holder.replace(&file);
        }
    }

    #[test]
    fn a_text_that_is_no_ticket_is_refused() {
        let fitting = URL_SAFE_NO_PAD.encode([0; 32]);
        let long = URL_SAFE_NO_PAD.encode([0; 33]);
        for text in [
            String::new(),
            ":".to_owned(),
            format!(":{fitting}"),
            format!("x:{fitting}"),
            format!("1:{long}"),
            format!("1:{fitting}="),
        ] {
            assert_eq!(text.parse::<Ticket>(), Err(TicketError::Malformed), "{text}");
        }
        assert!(format!("1:{fitting}").parse::<Ticket>().is_ok());
    }
}
