//! Sorted ranges, as many as fit.
//!
//! Of too many, neighbours become one together with what lies between. Whoever repairs compares again, so that costs reading, and
//! nothing that was right is written.

use std::ops::Range;

/// Most ranges held, 16 bytes each.
const RANGES_MAX: usize = 1 << 18;

/// The first gap that is given up when there are too many, in bytes; doubled until they fit.
const GAP_BYTES_MIN: u64 = 64 << 10;

/// Sorted, disjoint ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    ranges: Vec<Range<u64>>,
    gap_bytes: u64,
}

impl Ranges {
    /// Adds a range that begins where the last one ended, or behind.
    pub(super) fn push(&mut self, range: Range<u64>) {
        self.push_bounded(range, RANGES_MAX);
    }

    fn push_bounded(&mut self, range: Range<u64>, ranges_max: usize) {
        match self.ranges.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(self.gap_bytes) => {
                last.end = last.end.max(range.end);
            }
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > ranges_max {
            self.gap_bytes = (self.gap_bytes * 2).max(GAP_BYTES_MIN);
            let gap_bytes = self.gap_bytes;
            self.ranges.dedup_by(|next, kept| {
                let joins = next.start <= kept.end.saturating_add(gap_bytes);
                if joins {
                    kept.end = kept.end.max(next.end);
                }
                joins
            });
        }
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in them.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_ranges_become_fewer_and_lose_nothing() {
        // Ten heaps, far apart.
        let start = |n: u64| n * 100_000 + ((n / 100) << 40);
        let mut ranges = Ranges::default();
        for n in 0..1000 {
            ranges.push_bounded(start(n)..start(n) + 10, 50);
            assert!(ranges.ranges.len() <= 50);
        }
        for n in 0..1000 {
            assert!(ranges.iter().any(|range| range.start <= start(n) && start(n) + 10 <= range.end));
        }
        assert!(ranges.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        assert!(ranges.ranges.len() >= 10 && ranges.bytes() < 1 << 40);
    }

    #[test]
    fn few_ranges_stay_as_they_are() {
        let mut ranges = Ranges::default();
        for range in [0..10, 10..20, 30..40] {
            ranges.push(range);
        }
        assert_eq!(ranges.iter().cloned().collect::<Vec<_>>(), [0..20, 30..40]);
        assert_eq!(ranges.bytes(), 30);
    }
}
