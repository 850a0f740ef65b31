//! What was lost so far.
//!
//! Problem: a reader retries, the kernel asks page by page, and `dd` reads on; the log must tell of a lost block once,
//! and `metadata.json` must tell how much is lost. Idea: a set of lost ranges; what is in it was logged.
//!
//! Invariants: the ranges are sorted and disjoint, and at most [`RANGES_MAX`]; a range that is read after all (the store
//! was only away, or somebody repaired it) leaves the set.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::types::BackupId;

/// Most ranges remembered. A wholly lost object is one range; a store with more scattered damage than this needs
/// `restore` with a loss map, not a list in JSON.
const RANGES_MAX: usize = 4096;

/// Damage seen so far in one image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Damage {
    /// How many blocks could not be served.
    pub blocks: u64,
    /// Lost ranges of the image, in bytes, sorted, disjoint; at most the first few thousand.
    pub ranges: Vec<Range<u64>>,
    /// How many blocks were served from another backup's copy.
    pub healed_blocks: u64,
}

#[derive(Default)]
pub(super) struct DamageLog {
    any: AtomicBool,
    lost: Mutex<Lost>,
}

#[derive(Default)]
struct Lost {
    /// Start of a lost block -> its end. One entry a block, merged only when shown.
    blocks: BTreeMap<u64, u64>,
    overflowed: u64,
}

impl DamageLog {
    /// A block could not be served.
    pub(super) fn lost(&self, backup: &BackupId, range: &Range<u64>, error: &Error) {
        if !error.kind().is_damage() {
            tracing::warn!(%backup, offset = range.start, length = range.end - range.start, "cannot read: {error}");
            return;
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.covers(range) {
            return;
        }
        if lost.blocks.len() >= RANGES_MAX {
            lost.overflowed += 1;
            return;
        }
        lost.blocks.insert(range.start, range.end);
        self.any.store(true, Ordering::Relaxed);
        drop(lost);
        tracing::error!(%backup, offset = range.start, length = range.end - range.start, "lost: {error}");
    }

    /// A range was served.
    pub(super) fn read(&self, range: &Range<u64>) {
        if self.any.load(Ordering::Relaxed) {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            // The ranges are disjoint, so only those that begin in the range are looked at, and the one before: this is asked for
            // every block that is read.
            let touched = lost.blocks.range(..range.end).rev().take_while(|&(_, &end)| end > range.start);
            let touched: Vec<_> = touched.map(|(&start, &end)| (start, end)).collect();
            for (start, end) in touched {
                lost.blocks.remove(&start);
                // What lies around it may be lost still.
                if start < range.start {
                    lost.blocks.insert(start, range.start);
                }
                if end > range.end {
                    lost.blocks.insert(range.end, end);
                }
            }
            if lost.blocks.is_empty() {
                self.any.store(false, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn seen(&self) -> Damage {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (&start, &end) in &lost.blocks {
            match ranges.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        Damage { blocks: lost.blocks.len() as u64 + lost.overflowed, ranges, healed_blocks: 0 }
    }
}

impl Lost {
    fn covers(&self, range: &Range<u64>) -> bool {
        self.blocks.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn lost_blocks_merge_and_come_back() {
        let (log, id) = (DamageLog::default(), BackupId::parse("b").unwrap());
        let mismatch = Error::new(ErrorKind::HashMismatch, "x");
        for range in [0..10, 10..20, 40..50, 10..20, 12..15] {
            log.lost(&id, &range, &mismatch);
        }
        assert_eq!(log.seen(), Damage { blocks: 3, ranges: vec![0..20, 40..50], healed_blocks: 0 });
        log.read(&(0..10));
        assert_eq!(log.seen(), Damage { blocks: 2, ranges: vec![10..20, 40..50], healed_blocks: 0 });
        log.lost(&id, &(60..70), &Error::new(ErrorKind::StoreIo, "away"));
        assert_eq!(log.seen().blocks, 2);
        log.read(&(15..45));
        assert_eq!(log.seen().ranges, [10..15, 45..50]);
        log.read(&(0..100));
        assert_eq!(log.seen(), Damage::default());
    }

    #[test]
    fn the_list_is_bounded_and_the_count_goes_on() {
        let (log, id) = (DamageLog::default(), BackupId::parse("b").unwrap());
        let mismatch = Error::new(ErrorKind::HashMismatch, "x");
        for i in 0..RANGES_MAX as u64 + 5 {
            log.lost(&id, &(i * 2..i * 2 + 1), &mismatch);
        }
        assert_eq!((log.seen().blocks, log.seen().ranges.len()), (RANGES_MAX as u64 + 5, RANGES_MAX));
    }
}
