//! The clock and the limits of processes.

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;

/// Descriptors that an agent with a warm cache may hold, with some to spare.
const DESCRIPTORS: u64 = 4096;

pub(super) fn clock() -> Finding {
    // SAFETY: a zeroed timex with no modes asks and changes nothing; it outlives the call.
    let state = unsafe { libc::adjtimex(&mut std::mem::zeroed()) };
    judge_clock(state != libc::TIME_ERROR && state >= 0)
}

fn judge_clock(synchronised: bool) -> Finding {
    const CHECK: &str = "clock";
    if synchronised {
        return Finding::ok(CHECK, "synchronised");
    }
    let advice = "start chrony or another time service: certificates and tokens have dates";
    Finding::warning(CHECK, "not synchronised", advice)
}

pub(super) fn descriptors() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    judge_descriptors(limit)
}

fn judge_descriptors(limit: u64) -> Finding {
    const CHECK: &str = "limits";
    let found = format!("{limit} open files for a process");
    if limit >= DESCRIPTORS {
        return Finding::ok(CHECK, found);
    }
    let advice = format!("raise the hard limit (`ulimit -Hn`, LimitNOFILE=) to {DESCRIPTORS}");
    Finding::warning(CHECK, found, advice)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_clock_of_its_own_and_few_descriptors_are_warned_of() {
        assert_eq!(judge_clock(true).state, State::Ok);
        assert!(judge_clock(false).advice.unwrap().contains("chrony"));
        assert_eq!(judge_descriptors(20_000).state, State::Ok);
        assert!(judge_descriptors(1024).advice.unwrap().contains("LimitNOFILE"));
    }
}
