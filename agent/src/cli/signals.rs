//! Ctrl-C and SIGTERM as a cancellation.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGINT or SIGTERM. The second one ends the process at
/// once, for those who do not want to wait for a graceful end.
///
/// # Errors
/// Where the handlers cannot be installed.
pub fn cancelled_by_signals() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => libc::SIGINT,
                _ = terminate.recv() => libc::SIGTERM,
            }
        };
        next().await;
        cancelled.cancel();
        let signal = next().await;
        std::process::exit(128 + signal);
    });
    Ok(token)
}
