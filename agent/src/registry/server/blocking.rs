//! Work that blocks, off the threads that serve connections.

use std::panic::resume_unwind;

/// Runs `work` where it may block. A panic in it goes on in the caller.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only a runtime that is shutting down does not start the work, and it drops the
            // task that waits here as well.
            Err(_) => std::future::pending().await,
        },
    }
}
