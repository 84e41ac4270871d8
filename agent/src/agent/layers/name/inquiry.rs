//! When the registry was asked what a name means, and whether to ask it again. Pure: the time is an
//! argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use undermount_fs::digest::Digest;

use super::super::plan::Refusal;

/// How long an answer of the registry, or its failure to give one, counts: the layers of one pull
/// share it.
const FRESH: Duration = Duration::from_secs(5);

/// The outcome of asking the registry lately.
#[derive(Debug, Default)]
pub struct Inquiry {
    /// When it was last asked, successfully or not.
    asked: Option<Instant>,
    /// When it failed after a long time, and why. A request that has waited meanwhile does not ask
    /// again.
    hung: Option<(Instant, Refusal)>,
    /// Layers that no image of the name had, and when the registry said so.
    missing: HashMap<Digest, Instant>,
    /// When indexes that are not here were last looked for.
    searched: Option<Instant>,
}

impl Inquiry {
    /// Whether the registry was asked within [`FRESH`], successfully or not.
    pub fn is_fresh(&self, now: Instant) -> bool {
        is_recent(self.asked, now)
    }

    /// Whether the registry may be asked.
    ///
    /// # Errors
    /// The [`Refusal`] after which others have just waited in vain.
    pub fn may_ask(&self, now: Instant) -> Result<(), Refusal> {
        match &self.hung {
            Some((at, refusal)) if is_recent(Some(*at), now) => Err(refusal.clone()),
            _ => Ok(()),
        }
    }

    /// Notes that the registry is being asked from `now` on.
    pub fn begin(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Notes the `outcome` of asking.
    pub fn end<T>(&mut self, now: Instant, outcome: &Result<T, Refusal>) {
        let took_long = !self.is_fresh(now);
        let failure = outcome.as_ref().err().filter(|_| took_long);
        self.hung = failure.map(|refusal| (now, refusal.clone()));
    }

    /// Whether the registry has just said that no image of the name has `layer`.
    pub fn is_missing(&self, layer: &Digest, now: Instant) -> bool {
        is_recent(self.missing.get(layer).copied(), now)
    }

    /// Notes that no image of the name has `layer`.
    pub fn note_missing(&mut self, layer: Digest, now: Instant) {
        self.missing.retain(|_, said| is_recent(Some(*said), now));
        self.missing.insert(layer, now);
    }

    /// Whether indexes that are not here have just been looked for.
    pub fn has_searched(&self, now: Instant) -> bool {
        is_recent(self.searched, now)
    }

    /// Notes that indexes were looked for.
    pub fn note_search(&mut self, now: Instant) {
        self.searched = Some(now);
    }
}

fn is_recent(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < FRESH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_a_while_whatever_it_was() {
        let (mut inquiry, now) = (Inquiry::default(), Instant::now());
        assert!(!inquiry.is_fresh(now) && !inquiry.has_searched(now));
        inquiry.begin(now);
        inquiry.end(now, &Err::<(), _>(Refusal::Late));
        assert!(inquiry.is_fresh(now) && inquiry.may_ask(now).is_ok(), "it failed at once");
        assert!(!inquiry.is_fresh(now + FRESH));
    }

    #[test]
    fn who_has_waited_for_a_silent_registry_does_not_ask_it_once_more() {
        let (mut inquiry, now) = (Inquiry::default(), Instant::now());
        let late = now + 2 * FRESH;
        inquiry.begin(now);
        inquiry.end(late, &Err::<(), _>(Refusal::Late));
        assert!(matches!(inquiry.may_ask(late), Err(Refusal::Late)));
        assert!(inquiry.may_ask(late + FRESH).is_ok());
        inquiry.begin(late + FRESH);
        inquiry.end(late + 3 * FRESH, &Ok(()));
        assert!(inquiry.may_ask(late + 3 * FRESH).is_ok(), "it has answered");
    }

    #[test]
    fn layers_that_nobody_has_are_forgotten() {
        let (mut inquiry, now) = (Inquiry::default(), Instant::now());
        let [first, second] = [b"1", b"2"].map(|name| Digest::of(name));
        inquiry.note_missing(first, now);
        assert!(inquiry.is_missing(&first, now) && !inquiry.is_missing(&second, now));
        inquiry.note_missing(second, now + FRESH);
        assert_eq!(inquiry.missing.len(), 1);
    }
}
