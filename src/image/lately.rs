//! Blocks that could not be had a moment ago.
//!
//! Problem: after a failed large read the kernel asks page by page, and each try at a wrong block decodes its object up
//! to it again, which takes seconds deep inside a stream. Idea: the failure of a block is believed for a while, the longer
//! the longer it took to find out.
//!
//! Invariants: only failures that the object's bytes are to blame for are believed, never those of the store; at most
//! [`BLOCKS_MAX`] blocks are remembered.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::error::{Error, ErrorKind};
use crate::object::FAILURE_BELIEVED;
use crate::types::BlockIndex;

/// Most blocks remembered. Each costs its message, some 500 bytes.
const BLOCKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// A failure is believed for this many times as long as it took to find out, so that damage takes a small share of a
/// reader's time.
const BELIEVED_SHARE: u32 = 8;

/// And never longer than this, so that a repaired object is noticed.
const BELIEVED_MAX: Duration = Duration::from_secs(120);

pub(super) struct LostLately {
    any: AtomicBool,
    blocks: Mutex<LruCache<BlockIndex, (Error, Instant)>>,
}

impl LostLately {
    pub(super) fn new() -> Self {
        Self { any: AtomicBool::new(false), blocks: Mutex::new(LruCache::new(BLOCKS_MAX)) }
    }

    /// Why the block cannot be had, if that was found a moment ago.
    pub(super) fn get(&self, block: BlockIndex) -> Option<Error> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        match blocks.get(&block) {
            Some((error, until)) if Instant::now() < *until => Some(error.clone()),
            Some(_) => {
                blocks.pop(&block);
                None
            }
            None => None,
        }
    }

    /// The block is to be tried again at once.
    pub(super) fn forget(&self, block: BlockIndex) {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).pop(&block);
    }

    /// The block could not be had, which took `took` to find out.
    pub(super) fn note(&self, block: BlockIndex, error: &Error, took: Duration) {
        if !matches!(error.kind(), ErrorKind::HashMismatch | ErrorKind::Codec | ErrorKind::Truncated) {
            return;
        }
        let believed = took.saturating_mul(BELIEVED_SHARE).clamp(FAILURE_BELIEVED, BELIEVED_MAX);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.put(block, (error.clone(), Instant::now() + believed));
        self.any.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_believed_and_a_failing_store_is_not() {
        let lost = LostLately::new();
        for (block, kind) in
            [(1, ErrorKind::HashMismatch), (2, ErrorKind::StoreIo), (3, ErrorKind::Truncated)]
        {
            lost.note(BlockIndex(block), &Error::new(kind, "x"), Duration::ZERO);
        }
        let known = [0, 1, 2, 3].map(|block| lost.get(BlockIndex(block)).is_some());
        assert_eq!(known, [false, true, false, true]);
        for block in 10..10 + 2 * BLOCKS_MAX.get() as u64 {
            lost.note(BlockIndex(block), &Error::new(ErrorKind::Codec, "x"), Duration::ZERO);
        }
        assert!(lost.get(BlockIndex(1)).is_none());
        assert_eq!(lost.blocks.lock().unwrap().len(), BLOCKS_MAX.get());
    }
}
