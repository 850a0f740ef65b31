//! Who reads what: pure bookkeeping, no I/O.
//!
//! Each group (the ranges of one object) is read in order, for a compressed stream only goes forward. A thread prefers a
//! group that nobody has touched; when there is none it helps where most is left, but not more than a few to a group:
//! they take turns at the one decoder, and what they ask for must stay close together.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Read at once. Small enough that threads on one group stay close together.
const WINDOW_BYTES: u64 = 4 << 20;

/// Most threads on one group: one decodes, one hashes, one writes.
pub(super) const GROUP_THREADS_MAX: usize = 4;

/// The ranges of an image that are still to be read.
pub(super) struct Plan {
    groups: Mutex<Vec<Group>>,
}

struct Group {
    ranges: VecDeque<Range<u64>>,
    left_bytes: u64,
    threads: usize,
}

impl Plan {
    pub(super) fn new(groups: Vec<Vec<Range<u64>>>) -> Self {
        let group = |ranges: Vec<Range<u64>>| Group {
            left_bytes: ranges.iter().map(|range| range.end - range.start).sum(),
            ranges: ranges.into(),
            threads: 0,
        };
        let mut groups: Vec<_> = groups.into_iter().map(group).collect();
        // The largest are begun first, so that none is left over at the end. Taken from the back.
        groups.reverse();
        groups.sort_by_key(|group| group.left_bytes); // of equal ones, the first in the chain is begun first
        Self { groups: Mutex::new(groups) }
    }

    /// The next range for a thread that is at `group`; `None` when nothing is left for it.
    pub(super) fn next(&self, group: &mut Option<usize>) -> Option<Range<u64>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if group.is_none_or(|at| groups[at].ranges.is_empty()) {
                if let Some(left) = group.take() {
                    groups[left].threads -= 1;
                }
                while groups.last().is_some_and(|last| last.ranges.is_empty() && last.threads == 0) {
                    groups.pop();
                }
                let chosen = choose(&groups)?;
                groups[chosen].threads += 1;
                *group = Some(chosen);
            }
            let at = (*group)?;
            let Some(range) = groups[at].ranges.front_mut() else { continue };
            let taken = range.start..window_end(range);
            range.start = taken.end;
            if range.start == range.end {
                groups[at].ranges.pop_front();
            }
            groups[at].left_bytes -= taken.end - taken.start;
            return Some(taken);
        }
    }
}

/// The last untouched group, else the one with most left that has room for one more thread.
fn choose(groups: &[Group]) -> Option<usize> {
    let open = || groups.iter().enumerate().filter(|(_, group)| !group.ranges.is_empty());
    let untouched = open().rfind(|(_, group)| group.threads == 0);
    let helpful = || open().filter(|(_, g)| g.threads < GROUP_THREADS_MAX).max_by_key(|(_, g)| g.left_bytes);
    untouched.or_else(helpful).map(|(index, _)| index)
}

/// A range cut at multiples of the window.
pub(super) fn windows(range: Range<u64>) -> impl Iterator<Item = Range<u64>> + Clone {
    let mut left = range;
    std::iter::from_fn(move || {
        if left.start >= left.end {
            return None;
        }
        let window = left.start..window_end(&left);
        left.start = window.end;
        Some(window)
    })
}

fn window_end(range: &Range<u64>) -> u64 {
    ((range.start / WINDOW_BYTES + 1) * WINDOW_BYTES).min(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_planned_once_and_groups_go_forward() {
        let mib = 1 << 20;
        let groups = vec![vec![0..10, 20..3 * mib], vec![10..20], vec![3 * mib..9 * mib + 5]];
        for threads in [1, 2, 5] {
            let plan = Plan::new(groups.clone());
            let mut at = vec![None; threads];
            let mut taken = Vec::new();
            loop {
                let round: Vec<_> = at.iter_mut().filter_map(|group| plan.next(group)).collect();
                if round.is_empty() {
                    break;
                }
                taken.extend(round);
            }
            for group in &groups {
                let inside =
                    |range: &&Range<u64>| group.iter().any(|g| g.start <= range.start && range.end <= g.end);
                let starts: Vec<_> = taken.iter().filter(inside).map(|range| range.start).collect();
                assert!(starts.is_sorted(), "{starts:?}");
            }
            taken.sort_by_key(|range| range.start);
            assert!(taken.iter().all(|range| range.end - range.start <= WINDOW_BYTES));
            assert!(taken.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((taken[0].start, taken[taken.len() - 1].end), (0, 9 * mib + 5));
        }
    }

    #[test]
    fn windows_are_cut_at_multiples() {
        let cut: Vec<_> = windows(5..2 * WINDOW_BYTES + 1).collect();
        let expected =
            [5..WINDOW_BYTES, WINDOW_BYTES..2 * WINDOW_BYTES, 2 * WINDOW_BYTES..2 * WINDOW_BYTES + 1];
        assert_eq!(cut, expected);
        assert_eq!(windows(3..3).count(), 0);
    }
}
