//! Looks that may never come back, because what they look at hangs.
//!
//! Each has a thread of its own, which is left behind in that case and ends with the process. (A
//! blocking task of tokio would be waited for when its runtime ends.)

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

/// What `look` returns, if it does within `patience`.
pub fn wait<T: Send + 'static>(
    patience: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // Who has lost patience hears nothing any more.
    std::thread::spawn(move || drop(sender.send(look())));
    receiver.recv_timeout(patience).ok()
}

/// The same for a task, which other tasks do not wait for either.
pub async fn await_look<T: Send + 'static>(
    patience: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || drop(sender.send(look())));
    tokio::time::timeout(patience, receiver).await.ok()?.ok()
}

/// `path` without symbolic links, or as it is where it does not exist; nothing where its file system
/// does not answer within `patience`.
pub async fn await_canonical(patience: Duration, path: &Path) -> Option<PathBuf> {
    let path = path.to_owned();
    await_look(patience, move || path.canonicalize().unwrap_or(path)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_does_not_come_back_is_left_behind() {
        assert_eq!(wait(LONG, || 1), Some(1));
        assert_eq!(await_look(LONG, || 1).await, Some(1));
        assert_eq!(wait(SHORT, || std::thread::sleep(LONG)), None);
        assert_eq!(await_look(SHORT, || std::thread::sleep(LONG)).await, None);
    }
}
