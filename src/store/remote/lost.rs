//! What a store has just failed to give.
//!
//! Problem: the kernel asks again, page by page, for what could not be read, others wait for the same bytes, and each of them would try the store
//! for as long as it may be tried. Idea: what was tried until the deadline and given up is believed to be lost for a moment.
//!
//! Invariants: lost are the bytes that were asked for and no others, or a whole object that could not be opened; nothing longer than [`BELIEVED`]; at
//! most [`LOST_MAX`] ranges are remembered.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::types::ObjectName;

/// For how long: the kernel is through with asking again by then, and a store that gives the bytes again is soon asked.
const BELIEVED: Duration = Duration::from_secs(3);

/// Ranges remembered. Each takes some 300 bytes.
const LOST_MAX: usize = 256;

/// An object, which cannot be opened.
pub(super) const WHOLE: Range<u64> = 0..u64::MAX;

/// What a store has failed to give, the latest last.
#[derive(Default)]
pub(super) struct Lost(Mutex<VecDeque<One>>);

struct One {
    name: ObjectName,
    range: Range<u64>,
    error: Error,
    since: Instant,
}

impl Lost {
    /// Why bytes of `range` cannot be had, if some of them were given up a moment ago.
    pub(super) fn error_in(&self, name: &ObjectName, range: &Range<u64>, now: Instant) -> Option<Error> {
        let mut all = self.lock();
        while all.front().is_some_and(|one| now.duration_since(one.since) > BELIEVED) {
            all.pop_front();
        }
        // An object of which only a part is lost is opened.
        let is_part = |one: &Range<u64>| one.start < range.end && range.start < one.end && *range != WHOLE;
        let is_in = |one: &&One| one.name == *name && (one.range == WHOLE || is_part(&one.range));
        all.iter().find(is_in).map(|one| one.error.clone())
    }

    /// Bytes of `range` were given up.
    pub(super) fn add(&self, name: &ObjectName, range: Range<u64>, error: &Error, now: Instant) {
        let mut all = self.lock();
        if all.len() >= LOST_MAX {
            all.pop_front();
        }
        all.push_back(One { name: name.clone(), range, error: error.clone(), since: now });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<One>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn name(name: &str) -> ObjectName {
        ObjectName::parse(name).unwrap()
    }

    #[test]
    fn what_was_given_up_is_lost_for_a_moment() {
        let (lost, error) = (Lost::default(), Error::new(ErrorKind::StoreIo, "given up"));
        let mut now = Instant::now();
        lost.add(&name("a"), 10..20, &error, now);
        let is_lost = |of: &str, range: Range<u64>, now| lost.error_in(&name(of), &range, now).is_some();
        assert!(is_lost("a", 0..11, now) && is_lost("a", 19..30, now) && !is_lost("a", WHOLE, now));
        assert!(!is_lost("a", 0..10, now) && !is_lost("a", 20..30, now) && !is_lost("b", 10..20, now));
        now += BELIEVED / 2;
        lost.add(&name("b"), WHOLE, &error, now);
        now += BELIEVED / 2 + Duration::from_millis(1);
        assert!(!is_lost("a", 10..20, now) && is_lost("b", 7..8, now) && is_lost("b", WHOLE, now));
        now += BELIEVED;
        assert!(!is_lost("b", WHOLE, now));
        let most = LOST_MAX as u64;
        (0..2 * most).for_each(|at| lost.add(&name("c"), at..at + 1, &error, now));
        assert!(!is_lost("c", 0..most, now) && is_lost("c", most..most + 1, now));
    }
}
