//! Tokens: random names for users who have shown their password. They are known to this
//! process only; after a restart clients ask for new ones.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::random::hex;

/// How long a token is good.
pub const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// So many are good at once; more push out those that end first.
const MAX: usize = 10_000;

/// The tokens that are good.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, Grant>>);

struct Grant {
    user: String,
    end: Instant,
}

impl Tokens {
    /// A new token for `user`.
    pub fn issue(&self, user: String) -> String {
        let (token, now) = (hex::<32>(), Instant::now());
        let mut grants = self.grants();
        grants.retain(|_, grant| grant.end > now);
        if grants.len() >= MAX {
            let first = grants.iter().min_by_key(|(_, grant)| grant.end);
            if let Some(first) = first.map(|(token, _)| token.clone()) {
                grants.remove(&first);
            }
        }
        grants.insert(token.clone(), Grant { user, end: now + LIFETIME });
        token
    }

    /// The user that `token` stands for, while it is good.
    pub fn user(&self, token: &str) -> Option<String> {
        let grants = self.grants();
        grants.get(token).filter(|grant| grant.end > Instant::now()).map(|grant| grant.user.clone())
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<String, Grant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.grants().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_stand_for_their_user() {
        let tokens = Tokens::default();
        let (one, two) = (tokens.issue("alice".into()), tokens.issue("bob".into()));
        assert_ne!(one, two);
        assert_eq!(tokens.user(&one).as_deref(), Some("alice"));
        assert_eq!(tokens.user("other"), None);
        assert_eq!(format!("{tokens:?}"), "Tokens(2)");
    }

    #[test]
    fn a_token_ends() {
        let tokens = Tokens::default();
        let token = tokens.issue("alice".into());
        tokens.grants().get_mut(&token).unwrap().end = Instant::now();
        assert_eq!(tokens.user(&token), None);
    }
}
