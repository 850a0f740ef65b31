//! Where an image ends, when only the last block's digest can tell.
//!
//! Problem: the lengths that the extents of a chain speak for may differ within the last block: the volume was resized
//! there, or a writer other than Cinder stored a part of that block. Idea: a shorter volume's last block is a beginning
//! of a longer one's, so one pass over it tries the digest on all of them.
//!
//! Invariants: nothing is read where the extents agree, as they do in any chain of Cinder's whose volume kept its size;
//! without a match (that block is damaged) the rule for Cinder's own chains stands.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::engine::Engine;
use super::{extents, open_object};
use crate::backup::{Backup, BlockHashTable};
use crate::chain::extent_map::{ExtentMap, Piece};
use crate::chain::length::possible_lens;
use crate::error::Result;
use crate::object::NothingElse;
use crate::types::BlockHash;

/// The image's length: `by_rule`, or the one for which the last block is right. Fails when the store does not answer.
pub(super) fn settle(
    engine: &Arc<Engine>,
    layers: &[Arc<Backup>],
    table: &BlockHashTable,
    by_rule: u64,
) -> Result<u64> {
    let ranges = extents(layers).map(|extent| extent.start..extent.end());
    let possible = possible_lens(ranges, table.count(), table.block_bytes());
    let (Some(&longest), 2..) = (possible.last(), possible.len()) else { return Ok(by_rule) };
    let expected = match table.get(table.count() - 1..table.count()).pop().transpose() {
        Ok(expected) => expected,
        Err(error) if error.kind().is_damage() => return Ok(by_rule),
        Err(error) => return Err(error),
    };
    let start = (table.count() - 1) * table.block_bytes();
    // The rule's own answer first: in Cinder's chains it is right, and read from the newest, small objects. What lies
    // beyond it may be at the end of 2 GB.
    for longest in [by_rule, longest] {
        let plain = match last_block(engine, layers, start..longest) {
            Ok(plain) => plain,
            Err(error) if error.kind().is_damage() => continue,
            Err(error) => return Err(error),
        };
        let mut hasher = Sha256::new();
        let mut hashed = start;
        for &len in possible.iter().filter(|&&len| len <= longest) {
            hasher.update(&plain[(hashed - start) as usize..(len - start) as usize]);
            hashed = len;
            if Some(BlockHash(hasher.clone().finalize().into())) == expected {
                return Ok(len);
            }
        }
    }
    Ok(by_rule)
}

/// The plain bytes of `range`, which may be wrong.
fn last_block(engine: &Arc<Engine>, layers: &[Arc<Backup>], range: Range<u64>) -> Result<Vec<u8>> {
    let mut plain = vec![0; range.end.saturating_sub(range.start) as usize];
    for piece in ExtentMap::paint(extents(layers), range.end).pieces(range.clone()) {
        if let Piece::Data { image, object, object_offset, .. } = piece {
            let out = &mut plain[(image.start - range.start) as usize..(image.end - range.start) as usize];
            let reader = open_object(engine, layers, object)?;
            reader.read_at(out, object_offset, &mut NothingElse).map_err(|failure| failure.error)?;
        }
    }
    Ok(plain)
}
