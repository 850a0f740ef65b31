//! A lost block out of another backup: asking for one, and being asked.
//!
//! Invariants: a copy is verified like any other block; whoever is asked for one reads its own objects only, claims no flight, and
//! does not ask on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{View, Wanted, within};
use crate::block::VerifiedBlock;
use crate::chain::extent_map::Piece;
use crate::error::{Error, Result};
use crate::image::copies::LostBlock;
use crate::object::NothingElse;

/// Healed blocks that are logged one by one; after these they are only counted.
const HEALED_LOGGED_MAX: u64 = 100;

impl View {
    /// Looks for another copy of a block that is damaged.
    pub(super) fn heal(&self, wanted: &Wanted<'_>, error: Error) -> Result<Arc<VerifiedBlock>> {
        let (true, true, Some(tip)) = (self.heals, error.kind().is_damage(), self.layers.last()) else {
            return Err(error);
        };
        let Some(copies) = self.engine.copies() else { return Err(error) };
        let range = self.range_of(wanted.block);
        let tried: Vec<_> = self.sources(range.clone()).collect();
        let lost = LostBlock {
            backup: tip,
            block: wanted.block,
            block_bytes: self.table.block_bytes(),
            len_bytes: range.end - range.start,
            hash: wanted.hash,
            tried: &tried,
        };
        let Some((verified, from)) = copies.find(&lost) else { return Err(error) };
        if self.healed_blocks.fetch_add(1, Ordering::Relaxed) < HEALED_LOGGED_MAX {
            tracing::warn!(backup = %tip.summary.id, offset = range.start, "healed from backup {from}: {error}");
        }
        self.engine.keep(wanted.hash, verified.clone());
        Ok(verified)
    }

    /// The block that another view has lost, if this one has it at the same place, in other objects.
    pub(in crate::image) fn copy_of(&self, lost: &LostBlock<'_>) -> Option<Arc<VerifiedBlock>> {
        let (block, index) = (lost.block, lost.block.0);
        if self.table.block_bytes() != lost.block_bytes || index >= self.table.count() {
            return None;
        }
        let range = self.range_of(block);
        let hash = self.table.get(index..index + 1).pop()?.ok()?;
        if hash != lost.hash
            || range.end - range.start != lost.len_bytes
            || self.lost_lately.get(block).is_some()
        {
            return None;
        }
        if self.sources(range.clone()).any(|source| lost.tried.contains(&source)) {
            return None;
        }
        // Without a flight: whoever asks leads one for this very digest.
        let mut plain = vec![0; lost.len_bytes as usize];
        let read = self.map.pieces(range.clone()).all(|piece| match piece {
            Piece::Gap(_) => true, // zeros, if the digest says so
            Piece::Data { image, object, object_offset, .. } => {
                let out = &mut plain[within(&image, &range)];
                self.open(object)
                    .is_ok_and(|reader| reader.read_at(out, object_offset, &mut NothingElse).is_ok())
            }
        });
        let verified = read.then(|| VerifiedBlock::verify(&plain, &hash).ok())?;
        verified.map(Arc::new)
    }
}
