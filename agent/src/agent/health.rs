//! What keeps a worker fit to serve: signs of life for its keeper, and room for open files.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use undermount_fs::session::Pulse;
use undermount_fs::session::worker::Worker;

/// How often the keeper is told that all is well.
const BEAT: Duration = Duration::from_secs(2);

/// A thread that takes requests and has been at one for this long is stuck: it never waits for
/// the network, and no disk that is worth its name takes so long for a megabyte.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Descriptors that a worker has use for: objects that are kept open, and connections.
const DESCRIPTORS: u64 = 65_536;

/// Below this, objects are opened again and again, or cannot be opened at all.
const FEW_DESCRIPTORS: u64 = 4096;

/// Tells the keeper that all is well for as long as it is. Runs among the tasks that fetch, so
/// that it falls silent where these do not get on either.
pub async fn beat(worker: Arc<Worker>, pulse: Arc<Pulse>) {
    loop {
        tokio::time::sleep(BEAT).await;
        if pulse.is_stuck(STUCK_AFTER) {
            tracing::error!("a request is stuck: the keeper will replace this process");
            return;
        }
        if worker.alive().is_err() {
            // The keeper is gone, or stopped; whoever waits for its farewell hears of that.
            tracing::debug!("cannot give a sign of life");
        }
    }
}

/// Allows as many open files as the system lets this process have, up to [`DESCRIPTORS`].
pub fn raise_descriptor_limit() {
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let wanted = hard.min(DESCRIPTORS).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
        Ok::<_, nix::Error>(wanted)
    };
    match raise() {
        Ok(limit) if limit >= FEW_DESCRIPTORS => {}
        Ok(limit) => tracing::warn!(limit, "few files can be open at a time (RLIMIT_NOFILE)"),
        Err(errno) => tracing::warn!(%errno, "cannot raise the number of open files"),
    }
}
