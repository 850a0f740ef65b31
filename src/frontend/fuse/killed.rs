//! Which of those that wait for an answer were killed.
//!
//! Problem: whoever waits for the kernel's answer to a lookup or an open cannot die before it comes, and a store that hangs lets it wait for as
//! long as its timeout. The kernel tells file systems of signals with FUSE_INTERRUPT, which fuser answers by itself with ENOSYS. Idea: a
//! request says who asks, and /proc says of each thread which signals are pending; one that was killed has SIGKILL among
//! them, whichever signal it was that the kernel takes for its end.
//!
//! Invariant: a thread that waits for an answer exists until it comes, so its number is nobody else's; nothing is done to anybody but that the
//! answer comes early, which one that was killed never sees.

use std::fs;

/// SIGKILL in a mask of signals.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Most threads looked at once: more than those that serve have requests of.
pub(super) const ASKED_MAX: usize = 256;

/// Those of `threads` that were killed and have not ended.
pub(super) fn among(threads: &[u32]) -> Vec<u32> {
    let is_killed = |thread: &&u32| {
        // One that is gone waits for nothing.
        fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| has_kill_pending(&status))
    };
    threads.iter().filter(is_killed).copied().collect()
}

fn has_kill_pending(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & KILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_killed_has_that_signal_pending() {
        let status =
            |mask: &str| format!("Name:\tcat\nThreads:\t1\nSigPnd:\t{mask}\nShdPnd:\tffffffffffffffff\n");
        assert!(has_kill_pending(&status("0000000000000100")));
        assert!(has_kill_pending(&status("0000000000004102")));
        assert!(!has_kill_pending(&status("0000000000004002")));
        assert!(!has_kill_pending("") && !has_kill_pending(&status("none")));
    }

    #[test]
    fn who_lives_and_who_is_gone_was_not_killed() {
        assert_eq!(among(&[std::process::id(), 0, u32::MAX]), [0; 0]);
    }
}
