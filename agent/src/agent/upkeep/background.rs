//! Work that must disturb nobody: on a thread of its own, with the least share of the processor
//! and of the disk.

use undermount_fs::share::{LEAST, set_nice};

use super::UpkeepError;

/// `ioprio_set(2)`: for this thread, only when the disk is otherwise idle.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;

/// Runs `work` and waits for it.
///
/// # Errors
/// [`UpkeepError::Interrupted`] where the work did not come to its end.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpkeepError> {
    let (sender, outcome) = tokio::sync::oneshot::channel();
    let worker = move || {
        yield_to_others();
        // Who asked may have gone away.
        let _ = sender.send(work());
    };
    let thread = std::thread::Builder::new().name("upkeep".into()).spawn(worker);
    thread.map_err(|_| UpkeepError::Interrupted)?;
    outcome.await.map_err(|_| UpkeepError::Interrupted)
}

fn yield_to_others() {
    // Where it is not granted, the work is only less polite.
    let _ = set_nice(LEAST);
    // SAFETY: the call takes numbers; 0 means the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE) };
}
