//! Where data begins and ends, from the digests alone.
//!
//! The digest of a block of zeros is a constant, so a hole map needs no object to be read. A volume of 1 TiB still has
//! 2.25 GiB of digests; a scan stops where the answer is, and only the count of all data goes through all of them.

use std::ops::ControlFlow;

use super::block_range;
use super::view::View;
use crate::error::Result;
use crate::types::{BlockHash, BlockIndex};

/// Blocks counted while the caller waits: 8 GiB of volume at 32 KiB a block, some 20 ms.
pub(super) const COUNT_AT_ONCE_MAX: u64 = 1 << 18;

pub(super) fn seek_data(view: &View, offset: u64) -> Result<Option<u64>> {
    first_block(view, offset, |is_zero| !is_zero)
}

pub(super) fn seek_hole(view: &View, offset: u64) -> Result<u64> {
    Ok(first_block(view, offset, |is_zero| is_zero)?.unwrap_or(view.len()))
}

/// Where the first block from `offset` on begins of which `wanted` holds; `offset` itself when that is in its block.
fn first_block(view: &View, offset: u64, wanted: impl Fn(bool) -> bool) -> Result<Option<u64>> {
    let mut found = None;
    let first = BlockIndex(offset / view.table().block_bytes());
    view.table().scan(first, &mut |block, hash| {
        if !wanted(is_zero(view, block, hash)) {
            return ControlFlow::Continue(());
        }
        found = Some(block_range(view.table(), view.len(), block).start.max(offset));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Bytes in blocks that are not zeros.
pub(super) fn data_bytes(view: &View) -> Result<u64> {
    let mut bytes = 0;
    view.table().scan(BlockIndex(0), &mut |block, hash| {
        if !is_zero(view, block, hash) {
            let range = block_range(view.table(), view.len(), block);
            bytes += range.end - range.start;
        }
        ControlFlow::Continue(())
    })?;
    Ok(bytes)
}

/// A damaged digest is not a hole: reading there must fail, not skip.
fn is_zero(view: &View, block: BlockIndex, hash: Option<BlockHash>) -> bool {
    hash.is_some_and(|hash| hash == *view.zero_hash(block))
}
