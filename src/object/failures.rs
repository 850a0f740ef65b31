//! What need not be tried again at once.
//!
//! Problem: the kernel retries a failed large read page by page, and each retry would decode a broken stream up to its
//! break. Idea: where reading failed is believed for a while. A stream that breaks is lost up to the next restart point.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;

/// For how long a failure of an object is believed without looking again. Long enough that the kernel's page by page
/// retry does not decode a broken stream up to its break for each page, short enough that a repaired object is soon
/// noticed. (Wrong blocks of a stream that does not break are remembered by the image.)
pub const FAILURE_BELIEVED: Duration = Duration::from_secs(3);

/// Most places of one object that are remembered; beyond, the oldest is tried again.
const FAILURES_MAX: usize = 64;

/// The failures of one object.
#[derive(Default)]
pub(super) struct Failures(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// When the first of them was seen.
    since: Option<Instant>,
    lost: Vec<(Range<u64>, Error)>,
}

impl Failures {
    /// Why bytes at `offset` cannot be read, if that was found out.
    pub(super) fn believed_at(&self, offset: u64) -> Option<Error> {
        let known = self.lock();
        known.lost.iter().find(|(range, _)| range.contains(&offset)).map(|(_, error)| error.clone())
    }

    /// Where the damage begins that `offset` is lost by.
    pub(super) fn start_of(&self, offset: u64) -> Option<u64> {
        let known = self.lock();
        known.lost.iter().filter(|(range, _)| range.contains(&offset)).map(|(range, _)| range.start).min()
    }

    /// Remembers that nothing in `range` can be read.
    pub(super) fn add(&self, range: Range<u64>, error: &Error) {
        let mut known = self.lock();
        known.since.get_or_insert_with(Instant::now);
        if known.lost.iter().any(|(lost, _)| lost.start <= range.start && range.end <= lost.end) {
            return;
        }
        if known.lost.len() >= FAILURES_MAX {
            known.lost.remove(0);
        }
        known.lost.push((range, error.clone()));
    }

    /// Remembers that the object as a whole may not be what it was.
    pub(super) fn suspect(&self, error: &Error) {
        tracing::debug!("an object is suspect: {error}");
        self.lock().since.get_or_insert_with(Instant::now);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        *self.lock() = Known::default();
    }

    /// Whether it is time to look again.
    pub(super) fn are_old(&self) -> bool {
        self.lock().since.is_some_and(|since| since.elapsed() > FAILURE_BELIEVED)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_failure_is_believed_where_it_was() {
        let (failures, error) = (Failures::default(), Error::new(ErrorKind::Codec, "broken"));
        assert!(!failures.are_old());
        failures.add(10..20, &error);
        failures.suspect(&error);
        assert!(failures.believed_at(9).is_none() && failures.believed_at(20).is_none());
        assert_eq!(failures.believed_at(10).unwrap().kind(), ErrorKind::Codec);
        for start in 100..100 + FAILURES_MAX as u64 {
            failures.add(start..start + 1, &error);
        }
        assert!(failures.believed_at(10).is_none());
        failures.clear();
        assert!(failures.believed_at(100).is_none());
    }
}
