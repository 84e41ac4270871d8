//! The owner of the cache: whether one runs, and how it fares.

use std::path::Path;
use std::time::Duration;

use undermount_fs::session::History;

use super::Finding;
use crate::control::{Control, ControlError, Failure, Runtime, Status};
use crate::host::patience::await_canonical;

/// How long an agent may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(10);
const CHECK: &str = "agent";

pub(super) async fn examine(cache: &Path) -> Finding {
    let Some(canonical) = await_canonical(PATIENCE, cache).await else {
        return Finding::broken(
            CHECK,
            format!("cannot be looked for: {} does not answer", cache.display()),
            "see what the file system of the cache waits for",
        );
    };
    let status = async { Control::new(Runtime::of(&canonical))?.status().await };
    match tokio::time::timeout(PATIENCE, status).await {
        Ok(status) => judge(status),
        Err(_) => Finding::broken(
            CHECK,
            format!("does not answer within {} seconds", PATIENCE.as_secs()),
            "send the outcome of `undermount bugreport`, then `systemctl restart undermount-agent`",
        ),
    }
}

fn judge(status: Result<Status, ControlError>) -> Finding {
    match status {
        Err(ControlError::NoOwner { .. }) => Finding::warning(
            CHECK,
            "does not run",
            "run `systemctl enable --now undermount-agent`, unless this is no node",
        ),
        Err(error) => Finding::broken(
            CHECK,
            Failure::of(&error).in_words(),
            "run this as root, and see `journalctl -u undermount-agent`",
        ),
        Ok(status) if has_died(&status) => Finding::warning(
            CHECK,
            format!("its worker had to be replaced, {} times in all", status.restarts),
            "see `journalctl -u undermount-agent` for what happened to it",
        ),
        Ok(status) => {
            let mut troubles = status.mounts.iter().filter_map(|mount| mount.trouble.as_ref());
            match troubles.next() {
                Some(trouble) => Finding::warning(
                    CHECK,
                    format!("an image does not become local: {trouble}"),
                    "see `undermount status`",
                ),
                None => Finding::ok(CHECK, in_words(&status)),
            }
        }
    }
}

fn in_words(status: &Status) -> String {
    let mounts = status.mounts.len();
    let images = status.store.iter().flat_map(|store| &store.images);
    let used = images.filter(|image| image.layers_in_use > 0).count();
    match status.store {
        Some(_) => format!("runs, {mounts} images mounted, podman uses {used}"),
        None => format!("runs, {mounts} images mounted"),
    }
}

/// Whether the last worker that was replaced did not go of its own accord, as for an upgrade.
fn has_died(status: &Status) -> bool {
    let last = status.last_exit.as_deref().unwrap_or_default();
    status.restarts > 0 && !last.ends_with("exit status: 0") && last != History::HANDED_OVER
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn an_agent_that_lost_workers_is_warned_of_and_one_that_was_upgraded_is_not() {
        assert_eq!(judge(Ok(Status::default())).state, State::Ok);
        let after = |last_exit: &str| {
            judge(Ok(Status {
                restarts: 3,
                last_exit: Some(last_exit.into()),
                ..Status::default()
            }))
        };
        assert_eq!(after("the worker ended with exit status: 0").state, State::Ok);
        assert_eq!(after(History::HANDED_OVER).state, State::Ok);
        assert_eq!(after(History::KEEPER_LOST).state, State::Warning);
        let finding = after("the worker was ended by SIGSEGV");
        assert_eq!(finding.state, State::Warning);
        assert!(finding.found.contains("3 times"), "{}", finding.found);
    }
}
