//! Which decoder gave which bytes, and which noted which point.
//!
//! Problem: when bytes turn out to be wrong and are right the second time, the decoder that gave them read something else than
//! the object, and the points that it noted from there on may lead astray. Idea: each decoder's way through an object is a
//! *pass* with a number; points carry it, and the latest reads are remembered with theirs.
//!
//! Invariant: bounded; what is forgotten here is found out later, by the digests of what a wrong point leads to.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Reads that are remembered. Bytes are looked at again right after they were read, so this is for many threads at once.
const READS_MAX: usize = 256;

/// One decoder's way through an object. A pass that began at a point of another one is greater than that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Pass(u64);

impl Pass {
    /// None: points that the metadata tells.
    pub(super) const GIVEN: Self = Self(0);

    /// All of an earlier run, and of other processes: points that came from a file.
    pub(super) const EARLIER: Self = Self(1);

    /// One that is not any other.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(2);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The latest reads of one object.
#[derive(Default)]
pub(super) struct Passes(Mutex<VecDeque<(Range<u64>, Pass)>>);

impl Passes {
    /// Remembers that a pass gave the bytes of `range`.
    pub(super) fn note(&self, range: Range<u64>, pass: Pass) {
        let mut reads = self.lock();
        // A sequential reader is one entry.
        let before = reads.iter().rposition(|(last, of)| *of == pass && last.end == range.start);
        let start = before.and_then(|at| reads.remove(at)).map_or(range.start, |(last, _)| last.start);
        if reads.len() >= READS_MAX {
            reads.pop_front();
        }
        reads.push_back((start..range.end, pass));
    }

    /// The pass that gave some of `range` last.
    pub(super) fn latest_over(&self, range: &Range<u64>) -> Option<Pass> {
        let reads = self.lock();
        let is_over = |(read, _): &&(Range<u64>, Pass)| read.start < range.end && range.start < read.end;
        reads.iter().rfind(is_over).map(|(_, pass)| *pass)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Range<u64>, Pass)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_reads_are_told_apart() {
        let (passes, one, other) = (Passes::default(), Pass::new(), Pass::new());
        passes.note(0..10, one);
        passes.note(5..20, other);
        passes.note(10..30, one);
        assert_eq!(passes.latest_over(&(7..8)), Some(one), "its latest read continues an earlier one");
        passes.note(6..8, other);
        assert_eq!(passes.latest_over(&(7..8)), Some(other));
        assert_eq!(passes.latest_over(&(20..99)), Some(one));
        assert_eq!(passes.latest_over(&(30..99)), None);
        (0..READS_MAX as u64).for_each(|n| passes.note(100 * n + 1000..100 * n + 1001, other));
        assert_eq!(passes.latest_over(&(0..99)), None);
    }
}
