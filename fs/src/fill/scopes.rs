//! In whose names the bytes of a layer are asked for.
//!
//! Images share layers, and are fetched in names of their own. A repository that is deleted, or
//! whose credential has expired, must not take the layers of other images with it: what cannot be
//! had in the name of one is asked for in the name of the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{FillError, Filler, Layer};
use crate::digest::Verified;
use crate::source::{Piece, PieceRequest, Priority, Scope};

/// Names that are known of a layer.
const MOST: usize = 8;
/// Names in one registry that a request tries: where it is down, a third one is of no use.
const OF_A_REGISTRY: usize = 2;

/// The names, the one to begin with first.
pub(super) struct Scopes(Mutex<Vec<Scope>>);

impl Scopes {
    pub fn new(scope: Scope) -> Self {
        Self(Mutex::new(vec![scope]))
    }

    pub fn first(&self) -> Scope {
        self.lock()[0].clone()
    }

    /// Has `scope` be the first one.
    pub fn prefer(&self, scope: &Scope) {
        let mut scopes = self.lock();
        if scopes[0] == *scope {
            return;
        }
        scopes.retain(|known| known != scope);
        scopes.insert(0, scope.clone());
        scopes.truncate(MOST);
    }

    /// Those to try, in order.
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

/// Registries among `scopes`: each of them has its share of the time.
fn registries(scopes: &[Scope]) -> u32 {
    let is_first = |(place, scope): &(usize, &Scope)| {
        !scopes[..*place].iter().any(|before| before.host() == scope.host())
    };
    scopes.iter().enumerate().filter(is_first).count() as u32
}

impl Filler {
    /// Asks for `pieces` in one name after the other, within `patience`; the error is the first.
    pub(super) async fn ask(
        &self,
        layer: &Layer,
        pieces: Vec<Piece>,
        priority: Priority,
        patience: Duration,
    ) -> Result<Vec<Verified>, FillError> {
        let (scopes, end) = (layer.scopes.to_try(), Instant::now() + patience);
        let mut failed = None;
        for (turn, scope) in scopes.iter().enumerate() {
            let asked = Instant::now();
            let share = end.saturating_duration_since(asked) / registries(&scopes[turn..]).max(1);
            let (scope, pieces, deadline) = (scope.clone(), pieces.clone(), asked + share);
            let request = PieceRequest { scope: scope.clone(), pieces, priority, deadline };
            match self.source.fetch(request).await {
                Ok(fetched) => {
                    let bytes = fetched.iter().map(|piece| piece.bytes().len() as u64).sum();
                    self.gauge.note(bytes, asked.elapsed());
                    if turn > 0 {
                        tracing::info!(layer = %layer.digest(), %scope, "fetched in another name");
                        layer.prefer(&scope);
                    }
                    return Ok(fetched);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("a layer has a name").into())
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
    fn the_latest_name_is_the_first_and_two_of_a_registry_are_tried() {
        let known = scopes(&["r:1/a", "r:2/a", "r:1/b", "r:1/c"]);
        assert_eq!(known.first(), Scope::new("r:1/c"));
        assert_eq!(tried(&known), ["r:1/c", "r:1/b", "r:2/a"]);
        known.prefer(&Scope::new("r:1/a"));
        assert_eq!(tried(&known), ["r:1/a", "r:1/c", "r:2/a"]);
        assert_eq!(registries(&known.to_try()), 2);
    }

    #[test]
    fn names_are_forgotten_beyond_a_number() {
        let names: Vec<String> = (0..20).map(|number| format!("r:{number}/a")).collect();
        let known = scopes(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(tried(&known).len(), MOST);
        assert_eq!(tried(&known)[0], "r:19/a");
    }
}
