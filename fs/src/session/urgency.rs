//! The threads that take requests run before ordinary ones.
//!
//! Whoever opens a file of a mount waits for them, so their turn should come at once, however
//! busy the machine is with starting containers. They never wait for the network, and a request
//! takes them microseconds: they cannot keep others from running for long. Should one ever spin,
//! the kernel leaves 5 % of the processor to others, and the keeper replaces the worker.

use std::io;

/// The lowest of the realtime priorities: above all ordinary threads, below those of anybody who
/// asked for more.
const PRIORITY: i32 = 1;
/// Where realtime is not to be had (some control groups), the share of the processor that comes
/// closest.
const NICE: i32 = -15;

/// Raises the calling thread, and with it all threads that it starts from now on.
pub(super) fn raise() {
    let Err(refused) = take_turns_first() else { return };
    tracing::debug!(error = %refused, "no realtime priority for the threads that take requests");
    // SAFETY: the call takes numbers only; 0 stands for the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the threads that take requests stay ordinary ones");
    }
}

fn take_turns_first() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameters live through the call, which only reads them; 0 stands for the
    // calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
