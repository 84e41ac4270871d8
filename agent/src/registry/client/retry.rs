//! How often an operation is tried, and how long in between.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{Fault, Message};

/// The budget of one operation. A deadline of the caller ends it earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first one.
    pub retries: usize,
    /// The first pause; each further one is twice as long, plus jitter.
    pub first_pause: Duration,
    /// The longest pause of our own.
    pub longest_pause: Duration,
    /// The longest pause that a registry may ask for; beyond it the operation fails at once.
    pub longest_retry_after: Duration,
}

impl Default for RetryPolicy {
    /// Four retries within about five seconds; up to two minutes where the registry says so.
    fn default() -> Self {
        Self {
            retries: 4,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            longest_retry_after: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    pub(super) fn budget(&self) -> Budget {
        Budget { policy: *self, pauses: self.pauses() }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .with_max_times(self.retries)
            .with_jitter()
            .build()
    }
}

/// What is left of a policy.
pub(super) struct Budget {
    policy: RetryPolicy,
    pauses: ExponentialBackoff,
}

impl Budget {
    /// The pause before trying again after `fault`; `None` where that makes no sense, or not
    /// before `deadline`.
    pub fn pause(&mut self, fault: &Fault, deadline: Option<Instant>) -> Option<Duration> {
        if !fault.is_transient() {
            return None;
        }
        let asked = fault.retry_after().unwrap_or_default();
        if asked > self.policy.longest_retry_after {
            return None;
        }
        let pause = self.pauses.next()?.max(asked);
        let late = deadline.is_some_and(|deadline| Instant::now() + pause >= deadline);
        (!late).then_some(pause)
    }

    /// Starts anew, after progress.
    pub fn refill(&mut self) {
        self.pauses = self.policy.pauses();
    }
}

/// Tries `attempt` within the policy's budget and until `deadline`.
pub(super) async fn retry<T, F>(
    policy: &RetryPolicy,
    deadline: Option<Instant>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut budget = policy.budget();
    let mut last = Message::default();
    loop {
        let fault = match before(deadline, attempt()).await {
            None => return Err(Fault::Deadline(last)),
            Some(Ok(done)) => return Ok(done),
            Some(Err(fault)) => fault,
        };
        let Some(pause) = budget.pause(&fault, deadline) else { return Err(fault) };
        last = Message(fault.in_words());
        tracing::debug!(%last, ?pause, "retrying");
        sleep(pause).await;
    }
}

/// The output of `future`, or `None` where the deadline passes first.
pub(super) async fn before<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        retries: 4,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        longest_retry_after: Duration::from_millis(500),
    };

    fn busy(retry_after: u64) -> Fault {
        Fault::Busy {
            status: StatusCode::TOO_MANY_REQUESTS,
            retry_after: Some(Duration::from_millis(retry_after)),
            message: Message::default(),
        }
    }

    async fn attempts(deadline: Option<u64>, fault: impl Fn() -> Fault) -> (u32, Fault) {
        let mut count = 0;
        let deadline = deadline.map(|left| Instant::now() + Duration::from_millis(left));
        let outcome = retry(&POLICY, deadline, || {
            count += 1;
            let fault = fault();
            async { Err::<(), _>(fault) }
        });
        let fault = outcome.await.unwrap_err();
        (count, fault)
    }

    #[tokio::test]
    async fn transient_faults_are_retried_within_the_budget() {
        let (count, fault) = attempts(None, || Fault::Stalled { received: 0, seconds: 1 }).await;
        assert_eq!((count, fault.is_transient()), (5, true));
        let (count, _) = attempts(None, || Fault::NoCredentials).await;
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn retry_after_is_waited_for_up_to_a_limit() {
        let start = Instant::now();
        let (count, _) = attempts(None, || busy(50)).await;
        assert_eq!(count, 5);
        assert!(start.elapsed() >= Duration::from_millis(200));
        let (count, _) = attempts(None, || busy(501)).await;
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn no_pause_goes_beyond_the_deadline() {
        let (count, fault) = attempts(Some(300), || busy(400)).await;
        assert_eq!(count, 1);
        assert!(matches!(fault, Fault::Busy { .. }));
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_ends_at_the_deadline_and_tells_what_happened_before() {
        let mut first = true;
        let deadline = Some(Instant::now() + Duration::from_millis(200));
        let outcome = retry(&POLICY, deadline, || {
            let fail = std::mem::take(&mut first);
            async move {
                if fail {
                    return Err::<(), _>(busy(0));
                }
                std::future::pending().await
            }
        });
        let message = outcome.await.unwrap_err().to_string();
        assert!(message.starts_with("not done in time: the registry is busy (429"), "{message}");
    }
}
