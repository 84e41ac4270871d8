//! Work that goes on by itself: on threads where it may block, or in tasks that outlive who
//! waits for them.
//!
//! The few threads of the runtime drive reads and give the worker's sign of life: a keeper kills a
//! worker that is silent for half a minute, and a busy disk may hold up one fsync for as long. So
//! what waits for a disk to write, looks at many files, or computes on whole trees and packs goes
//! through [`blocking`]. Reading one small file of the cache does not need to. Calls that may wait
//! for our own mounts have a deadline besides (`agent/src/agent/owner/kernel.rs`).

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// Runs `work` where it may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    outcome(tokio::task::spawn_blocking(work).await).await
}

/// What a task came to. A panic in it goes on in the caller.
pub async fn outcome<T>(joined: Result<T, JoinError>) -> T {
    match joined.map_err(JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => resume_unwind(panic),
        // Only a runtime that is shutting down cuts a task short, and it drops the one that
        // waits here as well.
        Err(Err(_)) => std::future::pending().await,
    }
}
