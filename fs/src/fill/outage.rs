//! Reads while a source is out: how long they wait, and what the log says of it.
//!
//! ```text
//! just failed? -- attempt -- bytes -------------------------------------> answer
//!     |              ^    `- error that may pass -- "wait", time left --.
//!     |              `------------- pause <-----------------------------'
//!     `-> EIO                                    `- "eio", or no time left --> EIO
//! ```
//!
//! An attempt has retries of its own, in the source, which get over a lost connection. A registry
//! that is restarted is out for longer than they last.
//!
//! While a repository does not deliver, every read of its images fails or waits: that is told
//! once, with who is to blame, and once more when it is over.

mod aftermath;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;

pub(super) use self::aftermath::Aftermath;
use super::{Content, FillError, Filler, IngestError, Layer};
use crate::source::{Scope, SourceError};
use crate::trail;

/// The first pause after an attempt that failed; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest one: a registry that is back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What becomes of a read whose bytes cannot be fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOutage {
    /// It waits, and tries again, until its time is over; then it fails with EIO.
    #[default]
    Wait,
    /// It fails with EIO as soon as the source has failed, retries of the source included.
    Eio,
}

/// How long a read waits for bytes that must be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The time after which it fails with EIO, whatever happens.
    pub timeout: Duration,
    /// What becomes of it when the source fails before.
    pub on_outage: OnOutage,
}

impl From<Duration> for Patience {
    /// Waits for as long as `timeout`.
    fn from(timeout: Duration) -> Self {
        Self { timeout, on_outage: OnOutage::Wait }
    }
}

/// A repository that does not deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: Instant,
    /// Who is to blame and how, in words.
    pub reason: String,
    /// Reads that failed with EIO meanwhile.
    pub failed: u64,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { since, reason, failed } = self;
        let seconds = since.elapsed().as_secs();
        write!(f, "nothing was delivered for {seconds} s, {failed} reads failed: {reason}")
    }
}

/// The repositories that do not deliver at present.
#[derive(Default)]
pub struct Outages {
    /// How many there are: as a rule none, so that a read that was answered need not lock.
    count: AtomicUsize,
    known: Mutex<HashMap<Scope, Outage>>,
}

impl Outages {
    /// The outage of the images in the repository `scope`.
    pub fn of(&self, scope: &Scope) -> Option<Outage> {
        self.known().get(scope).cloned()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Scope, Outage>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an attempt failed; the first one is told.
    fn begin(&self, scope: &Scope, error: &SourceError, on_outage: OnOutage) {
        let mut known = self.known();
        if known.contains_key(scope) {
            return;
        }
        let reason = error.to_string();
        tracing::warn!(image = %scope, culprit = error.culprit(), error = %reason, ?on_outage,
            "the image's bytes cannot be fetched: reads of what is not here wait or fail");
        known.insert(scope.clone(), Outage { since: Instant::now(), reason, failed: 0 });
        self.count.store(known.len(), Ordering::Release);
    }

    /// Counts a read that failed.
    fn count_failure(&self, scope: &Scope) {
        if let Some(outage) = self.known().get_mut(scope) {
            outage.failed += 1;
        }
    }

    /// Notes that bytes arrived.
    fn end(&self, scope: &Scope) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut known = self.known();
        if let Some(outage) = known.remove(scope) {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(image = %scope, seconds, failed_reads = outage.failed,
                "the image's bytes arrive again");
        }
        self.count.store(known.len(), Ordering::Release);
    }
}

impl FillError {
    /// What the source said, if it is the one that failed.
    pub fn outage(&self) -> Option<&SourceError> {
        match self {
            Self::Source(error)
            | Self::Window { source: error, .. }
            | Self::Ingest(IngestError::Source(error)) => Some(error),
            _ => None,
        }
    }
}

impl Filler {
    /// The repositories that do not deliver.
    pub fn outages(&self) -> &Outages {
        &self.outages
    }

    /// Reads as [`Self::read`] does, for a caller that waits as long as [`Patience`] says. What
    /// was begun goes on when its time is over, so that the next reader finds more of it here.
    ///
    /// # Errors
    /// [`FillError`] where the bytes cannot be had in time or are not what the index says.
    pub async fn read_patiently(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        content: &Arc<Content>,
        range: Range<u64>,
    ) -> Result<Bytes, FillError> {
        if let Some(error) = self.aftermath.of(Instant::now(), &content.key, &range) {
            return Err(error);
        }
        let attempt = || {
            let (filler, layer, content) = (self.clone(), layer.clone(), content.clone());
            let range = range.clone();
            async move { filler.read(&layer, &content, range).await }
        };
        let scope = layer.scope();
        let late = SourceError::Deadline { origin: scope.host().to_owned(), blob: layer.digest() };
        let outcome = persist(&self.outages, &scope, self.patience, late, attempt).await;
        if let Err(error) = &outcome
            && error.outage().is_some()
        {
            self.aftermath.note(Instant::now(), content.key, range, error);
        }
        outcome
    }
}

/// Repeats `attempt` for as long as `patience` says; `late` is the error of one that takes too
/// long.
async fn persist<T: Send + 'static, F>(
    outages: &Outages,
    scope: &Scope,
    patience: Patience,
    late: SourceError,
    attempt: impl Fn() -> F,
) -> Result<T, FillError>
where
    F: Future<Output = Result<T, FillError>> + Send + 'static,
{
    let end = tokio::time::Instant::now() + patience.timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = tokio::spawn(trail::follow(attempt()).in_current_span());
        let outcome = match tokio::time::timeout_at(end, attempt).await {
            Ok(Ok((outcome, waited))) => {
                trail::join(&waited);
                outcome
            }
            Ok(Err(_)) => Err(FillError::Interrupted),
            Err(_) => Err(FillError::Source(late.clone())),
        };
        let Some(error) = outcome.as_ref().err() else {
            outages.end(scope);
            return outcome;
        };
        let Some(cause) = error.outage() else { return outcome };
        outages.begin(scope, cause, patience.on_outage);
        let again = patience.on_outage == OnOutage::Wait && cause.may_pass();
        if !again || tokio::time::Instant::now() + pause >= end {
            outages.count_failure(scope);
            return outcome;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::digest::Digest;

    fn blob() -> Digest {
        Digest::of(b"blob")
    }

    fn down() -> FillError {
        let (origin, reason) = ("registry".to_owned(), "refused".to_owned());
        SourceError::Unavailable { origin, reason }.into()
    }

    fn late() -> SourceError {
        SourceError::Deadline { origin: "registry".to_owned(), blob: blob() }
    }

    fn scope() -> Scope {
        Scope::new("registry/image")
    }

    type Outcome = Result<u32, FillError>;

    /// What becomes of a read whose attempts end like this, the last one again and again; and how
    /// many there were.
    async fn read(outages: &Outages, patience: Patience, outcomes: Vec<Outcome>) -> (Outcome, u32) {
        let script = Arc::new(Mutex::new((VecDeque::from(outcomes), 0)));
        let attempt = || {
            let script = script.clone();
            async move {
                let mut script = script.lock().unwrap();
                script.1 += 1;
                let next = script.0.pop_front().expect("one is left");
                if script.0.is_empty() {
                    script.0.push_back(next.clone());
                }
                next
            }
        };
        let outcome = persist(outages, &scope(), patience, late(), attempt).await;
        let count = script.lock().unwrap().1;
        (outcome, count)
    }

    #[tokio::test]
    async fn a_read_waits_for_a_source_that_comes_back_in_time() {
        let outages = Outages::default();
        let patience = Patience::from(Duration::from_secs(60));
        let script = vec![Err(down()), Err(late().into()), Ok(7)];
        let (outcome, attempts) = read(&outages, patience, script).await;
        assert_eq!((outcome.unwrap(), attempts), (7, 3));
        assert_eq!(outages.of(&scope()), None);
    }

    #[tokio::test]
    async fn a_read_gives_up_when_its_time_is_over() {
        let (outages, limit) = (Outages::default(), FIRST_PAUSE * 2);
        let (outcome, attempts) = read(&outages, limit.into(), vec![Err(down())]).await;
        assert_eq!((outcome.is_err(), attempts), (true, 2));
        let (outcome, attempts) = read(&outages, limit.into(), vec![Err(down())]).await;
        assert_eq!((outcome.is_err(), attempts), (true, 2));
        let outage = outages.of(&scope()).unwrap();
        assert_eq!((outage.failed, outage.reason.as_str()), (2, "registry: refused"));
    }

    #[tokio::test]
    async fn by_the_other_policy_a_read_fails_with_its_source() {
        let outages = Outages::default();
        let patience = Patience { timeout: Duration::from_secs(60), on_outage: OnOutage::Eio };
        let (outcome, attempts) = read(&outages, patience, vec![Err(down()), Ok(7)]).await;
        assert_eq!((outcome.is_err(), attempts), (true, 1));
        let (outcome, _) = read(&outages, patience, vec![Ok(7)]).await;
        assert_eq!((outcome.is_ok(), outages.of(&scope())), (true, None));
    }

    #[tokio::test]
    async fn what_waiting_does_not_mend_fails_at_once() {
        let outages = Outages::default();
        let patience = Patience::from(Duration::from_secs(60));
        let gone = SourceError::NotFound { origin: "registry".to_owned(), blob: blob() };
        let (outcome, attempts) = read(&outages, patience, vec![Err(gone.into())]).await;
        assert_eq!((outcome.is_err(), attempts), (true, 1));
        let reason = "a file is shorter than its size".to_owned();
        let damaged = FillError::Index { layer: blob(), reason };
        let (outcome, attempts) = read(&outages, patience, vec![Err(damaged)]).await;
        assert_eq!((outcome.is_err(), attempts), (true, 1));
    }

    #[tokio::test]
    async fn an_attempt_that_never_ends_is_given_up() {
        let outages = Outages::default();
        let patience = Patience::from(Duration::from_millis(20));
        let endless = std::future::pending::<Outcome>;
        let outcome = persist(&outages, &scope(), patience, late(), endless).await;
        assert!(matches!(outcome, Err(FillError::Source(SourceError::Deadline { .. }))));
    }
}
