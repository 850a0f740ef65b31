//! Calls of a store that last as long as they last.
//!
//! Problem: a call that reads may be left behind when the store does not answer; one that writes may not, because it may still take
//! place. So whoever writes waits, and nobody sees for what. Idea: such a call is noted as long as it lasts, and somebody who does
//! not wait himself looks for the oldest, tells of it, and ends the process when he is told to.
//!
//! Invariant: nothing but looking is done under the lock, so noting never waits for a store.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

static UNDER_WAY: Mutex<Calls> = Mutex::new(Calls { last: 0, calls: Vec::new() });

struct Calls {
    last: u64,
    /// In the order in which they began.
    calls: Vec<Call>,
}

/// A call that is under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    /// No two have the same.
    pub(crate) number: u64,
    /// Since when.
    pub(crate) since: Instant,
    /// What for, as in "waiting for".
    pub(crate) what: String,
}

/// Notes a call; it has returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting(u64);

impl Waiting {
    pub(crate) fn begin(what: impl Display) -> Self {
        // Before the lock is taken.
        let (since, what) = (Instant::now(), what.to_string());
        let mut under_way = lock();
        under_way.last += 1;
        let number = under_way.last;
        under_way.calls.push(Call { number, since, what });
        Self(number)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock().calls.retain(|call| call.number != self.0);
    }
}

/// The oldest of those that are under way.
pub(crate) fn oldest() -> Option<Call> {
    lock().calls.iter().min_by_key(|call| call.since).cloned()
}

fn lock() -> MutexGuard<'static, Calls> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_noted_while_it_lasts() {
        // Other tests' calls may be under way as well.
        let is_noted = |what: &str| lock().calls.iter().any(|call| call.what == what);
        let first = Waiting::begin("the first");
        let second = Waiting::begin("the second");
        assert!(is_noted("the first") && is_noted("the second"));
        assert!(oldest().unwrap().since <= lock().calls[0].since);
        drop(first);
        assert!(!is_noted("the first") && is_noted("the second"));
        drop(second);
        assert!(!is_noted("the second"));
    }
}
