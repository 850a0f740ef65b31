//! Which parts of an object have been decoded with their restart points noted.
//!
//! Problem: parts come in any order, and some get lost again: a saved point turns out to be damaged, or there was no memory
//! for points while a part was decoded. With one number "known up to here", one gap in front would make all that is behind it
//! unknown. Idea: a sorted list of ranges. A file holds the first of them only.
//!
//! Invariants: sorted, disjoint, no two touch; bounded. What falls out of the bound is explored again.

use std::ops::Range;

/// Most ranges that are told apart; beyond, the furthest is given up. Gaps are rare, so this is plenty.
const RANGES_MAX: usize = 256;

/// Parts of an object, in plain bytes.
#[derive(Clone, Default, Debug)]
pub(super) struct Known(Vec<Range<u64>>);

impl Known {
    /// Up to where all is known, from the object's start.
    pub(super) fn prefix(&self) -> u64 {
        self.0.first().filter(|first| first.start == 0).map_or(0, |first| first.end)
    }

    /// Adds a part.
    pub(super) fn add(&mut self, part: Range<u64>) {
        if part.start >= part.end {
            return;
        }
        let from = self.0.partition_point(|known| known.end < part.start);
        let to = self.0.partition_point(|known| known.start <= part.end);
        let touched = &self.0[from..to];
        let start = touched.first().map_or(part.start, |first| first.start.min(part.start));
        let end = touched.last().map_or(part.end, |last| last.end.max(part.end));
        self.0.splice(from..to, std::iter::once(start..end));
        self.0.truncate(RANGES_MAX);
    }

    /// Takes a part away.
    pub(super) fn remove(&mut self, part: Range<u64>) {
        if part.start >= part.end {
            return;
        }
        let left = self
            .0
            .iter()
            .flat_map(|known| [known.start..known.end.min(part.start), known.start.max(part.end)..known.end]);
        self.0 = left.filter(|known| known.start < known.end).take(RANGES_MAX).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set_of_bytes() {
        let (mut known, mut model) = (Known::default(), [false; 64]);
        let mut seed = 7u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..5000 {
            let start = below(64);
            let part = start..start + below(65 - start);
            let adds = below(2) == 0;
            model[part.start as usize..part.end as usize].fill(adds);
            if adds {
                known.add(part);
            } else {
                known.remove(part);
            }
            let prefix = model.iter().take_while(|is_known| **is_known).count();
            assert_eq!(known.prefix(), prefix as u64, "{known:?}");
            let mut bytes = [false; 64];
            known.0.iter().for_each(|range| bytes[range.start as usize..range.end as usize].fill(true));
            assert_eq!(bytes, model);
            assert!(known.0.windows(2).all(|two| two[0].end < two[1].start), "{known:?}");
        }
    }

    #[test]
    fn it_is_bounded() {
        let mut known = Known::default();
        (0..10_000).for_each(|n| known.add(2 * n..2 * n + 1));
        assert_eq!((known.0.len(), known.prefix()), (RANGES_MAX, 1));
    }
}
