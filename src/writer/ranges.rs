//! Which ranges of the source must be read.
//!
//! Problem: asking the file system for holes again and again is slow where it must look at every page to find the end of
//! the data (tmpfs). Idea: remember the answers that were given last; neighbours ask about the same one.
//!
//! Besides, where somebody else knows what changed, only the blocks that this touches need reading.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::source::Source;
use super::source::changed::Changed;
use crate::error::Result;

/// How many answers are remembered: more than there are threads that ask about places of their own.
const REMEMBERED_MAX: usize = 64;

/// Tells holes from data.
pub(super) struct Ranges<'a> {
    source: &'a dyn Source,
    /// For offsets in `from..data.end`, the next data is `data` (empty, at the end of the source: none). Oldest first.
    known: Mutex<Vec<Known>>,
}

#[derive(Clone)]
struct Known {
    from: u64,
    data: Range<u64>,
}

impl<'a> Ranges<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, known: Mutex::default() }
    }

    /// Whether all of `range` is a hole, which need not be read.
    pub(super) fn is_hole(&self, range: &Range<u64>) -> Result<bool> {
        Ok(self.next_data(range.start)?.start >= range.end)
    }

    /// The holes in `range`, as far as they are whole pieces of `piece_bytes`, counted from its start; one may end with it.
    pub(super) fn holes(&self, range: &Range<u64>, piece_bytes: u64) -> Result<VecDeque<Range<u64>>> {
        let mut holes = VecDeque::new();
        let mut at = range.start;
        while at < range.end {
            let data = self.next_data(at)?;
            let pieces_before = |offset: u64| (offset - range.start) / piece_bytes * piece_bytes;
            let is_last = data.start >= range.end;
            let end = if is_last { range.end } else { range.start + pieces_before(data.start) };
            if end > at {
                holes.push_back(at..end);
            }
            at = if is_last { end } else { range.start + pieces_before(data.end - 1) + piece_bytes };
        }
        Ok(holes)
    }

    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().rev().find(|known| (known.from..known.data.end).contains(&offset)).cloned();
        drop(known);
        if let Some(known) = found {
            return Ok(known.data.start.max(offset)..known.data.end);
        }
        let len = self.source.len_bytes();
        let data = self.source.next_data(offset)?.unwrap_or(len..len);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.remove(0);
        }
        known.push(Known { from: offset, data: data.clone() });
        Ok(data)
    }
}

/// The whole blocks of `range`, which begins at one, that a list of changes touches; sorted, and apart from each other. The
/// volume's last block is always one: it may have become longer or shorter, which no list tells.
pub(super) fn listed_blocks(
    listed: &Changed,
    range: &Range<u64>,
    block_bytes: u64,
    len_bytes: u64,
) -> Vec<Range<u64>> {
    let mut blocks = Vec::new();
    let mut at = range.start;
    while let Some(changed) = listed.next(at).filter(|changed| changed.start < range.end) {
        let start = changed.start - changed.start % block_bytes;
        let end = changed.end.next_multiple_of(block_bytes).min(range.end);
        join(&mut blocks, start..end);
        at = end;
    }
    if range.end == len_bytes && at < range.end {
        let last = (len_bytes - 1) / block_bytes * block_bytes;
        join(&mut blocks, last..len_bytes);
    }
    blocks
}

/// Adds a range that begins at or behind the end of the last one.
pub(super) fn join(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Data in 10..20 and 30..35 of 50 bytes.
    struct Islands(AtomicU64);

    impl Source for Islands {
        fn name(&self) -> &str {
            "islands"
        }
        fn len_bytes(&self) -> u64 {
            50
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            unreachable!("nothing is read")
        }
        fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let data = [10..20, 30..35].into_iter().find(|data| data.end > offset);
            Ok(data.map(|data| data.start.max(offset)..data.end))
        }
        fn check_len(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn holes_are_whole_pieces_without_data() {
        let source = Islands(AtomicU64::new(0));
        let ranges = Ranges::new(&source);
        for start in 0..50u64 {
            for end in start + 1..=50 {
                for piece in 1..20u64 {
                    let mut expected: VecDeque<Range<u64>> = VecDeque::new();
                    for at in (start..end).step_by(piece as usize) {
                        let piece_end = end.min(at + piece);
                        if (at..piece_end).any(|at| (10..20).contains(&at) || (30..35).contains(&at)) {
                            continue;
                        }
                        match expected.back_mut() {
                            Some(last) if last.end == at => last.end = piece_end,
                            _ => expected.push_back(at..piece_end),
                        }
                    }
                    let holes = ranges.holes(&(start..end), piece).unwrap();
                    assert_eq!(holes, expected, "{start}..{end} by {piece}");
                }
            }
        }
    }

    #[test]
    fn holes_are_told_as_the_source_tells_them() {
        let source = Islands(AtomicU64::new(0));
        let ranges = Ranges::new(&source);
        for _ in 0..2 {
            for start in 0..50u64 {
                for end in start + 1..=50 {
                    let is_hole = (start..end).all(|at| !(10..20).contains(&at) && !(30..35).contains(&at));
                    assert_eq!(ranges.is_hole(&(start..end)).unwrap(), is_hole, "{start}..{end}");
                }
            }
        }
        assert_eq!(source.0.load(Ordering::Relaxed), 3, "each answer is asked for once");
    }
    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn listed_blocks_are_those_that_a_change_touches() {
        const BLOCK: u64 = 4;
        let lists = [
            vec![],
            vec![0..1],
            vec![3..5],
            vec![0..4, 8..9, 10..13, 15..16],
            vec![1..2, 5..6, 30..42],
            vec![0..42],
            vec![41..42],
        ];
        for list in lists {
            let text: Vec<_> = list
                .iter()
                .map(|r| format!(r#"{{"offset":{},"length":{},"exists":"true"}}"#, r.start, r.end - r.start))
                .collect();
            let changed = Changed::parse(format!("[{}]", text.join(",")).as_bytes(), 42).unwrap();
            for range in [0..16, 16..32, 32..42, 8..42] {
                let found = listed_blocks(&changed, &range, BLOCK, 42);
                for block in (range.start..range.end).step_by(BLOCK as usize) {
                    let end = range.end.min(block + BLOCK);
                    let is_listed = list.iter().any(|r| r.start < end && r.end > block) || end == 42;
                    assert_eq!(
                        found.iter().any(|r| r.contains(&block)),
                        is_listed,
                        "{list:?} {range:?} {block}"
                    );
                }
                assert!(found.iter().all(|r| r.start >= range.start && r.end <= range.end && !r.is_empty()));
                assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "{found:?}");
            }
        }
    }
}
