//! On whose behalf the bytes of a layer are asked for.
//!
//! Images share layers, and each image is fetched on behalf of a repository of its own, its scope.
//! A repository that is deleted, or whose credential has expired, must not take the layers of other
//! images with it: what cannot be had on behalf of one repository is asked for on behalf of the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{FillError, Filler, Layer};
use crate::digest::Verified;
use crate::source::{Piece, PieceRequest, Priority, Scope, SourceError};

/// Scopes that are remembered of a layer.
const MOST: usize = 8;
/// Scopes of one registry that a request tries: where two fail, the registry is at fault, and a third
/// is of no use.
const OF_A_REGISTRY: usize = 2;

/// The scopes of a layer, never none, the one to begin with first.
pub(super) struct Scopes(Mutex<Vec<Scope>>);

impl Scopes {
    pub fn new(scope: Scope) -> Self {
        Self(Mutex::new(vec![scope]))
    }

    pub fn first(&self) -> Scope {
        self.lock()[0].clone()
    }

    /// Makes `scope` the first one.
    pub fn prefer(&self, scope: &Scope) {
        let mut scopes = self.lock();
        if scopes[0] == *scope {
            return;
        }
        scopes.retain(|known| known != scope);
        scopes.insert(0, scope.clone());
        scopes.truncate(MOST);
    }

    /// Those that a request tries, in order.
    fn to_try(&self) -> Vec<Scope> {
        let mut chosen: Vec<Scope> = Vec::new();
        for scope in self.lock().iter() {
            if chosen.iter().filter(|one| one.host() == scope.host()).count() < OF_A_REGISTRY {
                chosen.push(scope.clone());
            }
        }
        chosen
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Scope>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many registries `scopes` are of: each has an equal share of the time.
fn registries(scopes: &[Scope]) -> u32 {
    let is_first = |(place, scope): &(usize, &Scope)| {
        !scopes[..*place].iter().any(|before| before.host() == scope.host())
    };
    scopes.iter().enumerate().filter(is_first).count() as u32
}

impl Layer {
    /// Makes `attempt` on behalf of one scope after the other, each with its share of `patience`, until
    /// one succeeds.
    ///
    /// # Errors
    /// The first error, unless it says that the layer does not exist and a later one that its
    /// registry is away: then the layer may still come, and the later one counts.
    pub(super) async fn on_any_behalf<T, F>(
        &self,
        patience: Duration,
        attempt: impl Fn(Scope, Duration) -> F,
    ) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let (scopes, end) = (self.scopes.to_try(), Instant::now() + patience);
        let mut failed = None;
        for (turn, scope) in scopes.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            if turn > 0 && left.is_zero() {
                break;
            }
            let share = left / registries(&scopes[turn..]);
            match attempt(scope.clone(), share).await {
                Ok(done) => {
                    if turn > 0 {
                        tracing::info!(layer = %self.digest(), %scope,
                            "fetched on behalf of another repository");
                        self.prefer(scope);
                    }
                    return Ok(done);
                }
                Err(error) => failed = Some(self.telling(failed, error)),
            }
        }
        Err(failed.expect("a layer has a scope"))
    }

    /// Which of two errors says more about whether the layer can be had.
    fn telling(&self, first: Option<SourceError>, second: SourceError) -> SourceError {
        match first {
            // What is not the layer itself, its spans, can be done without: there the first counts.
            Some(SourceError::NotFound { blob, .. })
                if blob == self.digest() && second.may_pass() =>
            {
                second
            }
            Some(first) => first,
            None => second,
        }
    }
}

impl Filler {
    /// Asks the source for `pieces`, on behalf of each scope of the layer in turn, within `patience`.
    pub(super) async fn ask(
        &self,
        layer: &Layer,
        pieces: Vec<Piece>,
        priority: Priority,
        patience: Duration,
    ) -> Result<Vec<Verified>, FillError> {
        let attempt = |scope, share| {
            let (pieces, deadline) = (pieces.clone(), Instant::now() + share);
            self.fetch_measured(PieceRequest { scope, pieces, priority, deadline })
        };
        Ok(layer.on_any_behalf(patience, attempt).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(names: &[&str]) -> Scopes {
        let scopes = Scopes::new(Scope::new(names[0]));
        names[1..].iter().for_each(|name| scopes.prefer(&Scope::new(name)));
        scopes
    }

    fn tried(scopes: &Scopes) -> Vec<String> {
        scopes.to_try().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_latest_scope_is_the_first_and_two_of_a_registry_are_tried() {
        let known = scopes(&["r:1/a", "r:2/a", "r:1/b", "r:1/c"]);
        assert_eq!(known.first(), Scope::new("r:1/c"));
        assert_eq!(tried(&known), ["r:1/c", "r:1/b", "r:2/a"]);
        known.prefer(&Scope::new("r:1/a"));
        assert_eq!(tried(&known), ["r:1/a", "r:1/c", "r:2/a"]);
        assert_eq!(registries(&known.to_try()), 2);
    }

    #[test]
    fn scopes_are_forgotten_beyond_a_number() {
        let names: Vec<String> = (0..20).map(|number| format!("r:{number}/a")).collect();
        let known = scopes(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(tried(&known).len(), MOST);
        assert_eq!(tried(&known)[0], "r:19/a");
    }
}
