//! The digests of an image's blocks, for whoever compares images without reading them.
//!
//! Invariant: nothing here reads an object, so a volume of any size costs its digest file and no more.

use std::ops::Range;

use super::block_range;
use super::view::View;
use crate::error::Result;
use crate::types::{BlockHash, BlockIndex};

/// The digests of an image whose backup has them.
#[derive(Clone, Copy)]
pub struct Digests<'a>(&'a View);

impl<'a> Digests<'a> {
    pub(super) fn of(view: &'a View) -> Self {
        Self(view)
    }

    /// How many blocks the image has.
    pub fn count(&self) -> u64 {
        self.0.table().count()
    }

    /// Bytes in a block; the last one may be shorter.
    pub fn block_bytes(&self) -> u64 {
        self.0.table().block_bytes()
    }

    /// The bytes of the image that some blocks hold.
    pub fn range_of(&self, blocks: Range<u64>) -> Range<u64> {
        let start = blocks.start.saturating_mul(self.block_bytes()).min(self.0.len());
        let last = BlockIndex(blocks.end.saturating_sub(1));
        start..block_range(self.0.table(), self.0.len(), last).end.max(start)
    }

    /// The blocks that a range of the image lies in.
    pub fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.block_bytes()..range.end.div_ceil(self.block_bytes()).min(self.count())
    }

    /// Whether a block with this digest is all zeros.
    pub fn is_zero(&self, block: BlockIndex, hash: &BlockHash) -> bool {
        hash == self.0.zero_hash(block)
    }

    /// Puts the digests of `blocks`, which must lie below [`count`](Self::count), into `digests`; one that is damaged comes as
    /// `None`. Fails when the store does.
    pub fn read_into(&self, blocks: Range<u64>, digests: &mut Vec<Option<BlockHash>>) -> Result<()> {
        self.0.table().read_into(blocks, digests)
    }
}
