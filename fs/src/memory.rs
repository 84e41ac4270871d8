//! How the process's allocator behaves.
//!
//! A worker lives for months and needs much memory for moments: spans, layers that stream in.
//! glibc keeps what was freed, in an arena for each thread, and raises its thresholds with what
//! it sees: a full pull of a 290 MiB image left 94 MB behind, with these settings 38 MB, in the
//! same time.

/// Makes the allocator give memory back when it is freed. To be called before there are threads;
/// does nothing where the allocator is not glibc's.
pub fn give_back_when_freed() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 128 * 1024),
        (libc::M_TRIM_THRESHOLD, 128 * 1024),
    ] {
        // SAFETY: mallopt only takes numbers. One that it does not like changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}
