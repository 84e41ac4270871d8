//! The share that the calling thread has of a processor.

use std::io;

/// The smallest share that setpriority(2) knows: what nobody else wants.
pub const LEAST: i32 = 19;
/// The share of everybody.
pub const ORDINARY: i32 = 0;

/// Gives the calling thread the share that goes with the nice value `nice`.
///
/// # Errors
/// Those of setpriority(2): a larger share than before takes CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only; 0 stands for the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
