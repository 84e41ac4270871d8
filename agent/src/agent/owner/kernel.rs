//! Calls to the kernel that may wait for our own mounts, and so for ourselves.

use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;

use super::OwnerError;

/// How long a call may take that waits for nobody but this process.
const WITHIN: Duration = Duration::from_secs(20);

/// Why a call has no outcome.
#[derive(Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It takes too long; it may come back later.
    Late,
    /// The process is shutting down.
    Interrupted,
}

impl Unanswered {
    /// The error of a call for the mount point `dir`.
    pub fn at(self, dir: &Path) -> OwnerError {
        match self {
            Self::Late => OwnerError::Kernel { dir: dir.to_owned(), within: WITHIN },
            Self::Interrupted => OwnerError::Interrupted,
        }
    }
}

/// Makes `call` on a thread that nobody else needs, and waits for it. Where it comes back after
/// that, or where its caller has gone away meanwhile, its outcome goes to `late`.
pub async fn in_time<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Result<T, Unanswered> {
    within(WITHIN, call, late).await
}

async fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Result<T, Unanswered> {
    let (sender, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        if let Err(unwanted) = sender.send(call()) {
            late(unwanted);
        }
    });
    match tokio::time::timeout(limit, outcome).await {
        Ok(outcome) => outcome.map_err(|_| Unanswered::Interrupted),
        Err(_) => Err(Unanswered::Late),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn regression_what_comes_back_too_late_is_handed_on() {
        let (answer, kernel) = mpsc::channel();
        let (undo, undone) = mpsc::channel();
        let call = move || kernel.recv().unwrap();
        let late = move |outcome| undo.send(outcome).unwrap();
        let outcome = within(Duration::from_millis(1), call, late).await;
        assert_eq!(outcome, Err(Unanswered::Late));
        answer.send("mounted").unwrap();
        assert_eq!(undone.recv(), Ok("mounted"));
    }

    #[tokio::test]
    async fn what_comes_back_in_time_is_the_callers() {
        assert_eq!(within(WITHIN, || 1, |_| panic!("nobody undoes it")).await, Ok(1));
    }
}
