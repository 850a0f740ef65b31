//! Where an image ends, when only the last block's digest can tell.
//!
//! Problem: the lengths that the extents of a chain speak for may differ within the last block: the volume was resized
//! there, or a writer other than Cinder stored a part of that block. Idea: a shorter volume's last block is a beginning
//! of a longer one's, so one pass over it tries the digest on all of them.
//!
//! Invariants: nothing is read where the extents agree, as they do in any chain of Cinder's whose volume kept its size;
//! without a match (that block is damaged) the rule for Cinder's own chains stands.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::damage::is_damage;
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
    let last = table.count() - 1;
    let start = last * table.block_bytes();
    let read = || -> Result<(BlockHash, Vec<u8>)> {
        let expected = table.get(last..last + 1).pop().transpose()?.unwrap_or(BlockHash([0; 32]));
        let mut plain = vec![0; (longest - start) as usize];
        for piece in ExtentMap::paint(extents(layers), longest).pieces(start..longest) {
            if let Piece::Data { image, object, object_offset, .. } = piece {
                let out = &mut plain[(image.start - start) as usize..(image.end - start) as usize];
                let reader = open_object(engine, layers, object)?;
                reader.read_at(out, object_offset, &mut NothingElse).map_err(|failure| failure.error)?;
            }
        }
        Ok((expected, plain))
    };
    let (expected, plain) = match read() {
        Ok(read) => read,
        Err(error) if is_damage(error.kind()) => return Ok(by_rule),
        Err(error) => return Err(error),
    };
    let mut hasher = Sha256::new();
    let mut hashed = start;
    for len in possible {
        hasher.update(&plain[(hashed - start) as usize..(len - start) as usize]);
        hashed = len;
        if BlockHash(hasher.clone().finalize().into()) == expected {
            return Ok(len);
        }
    }
    Ok(by_rule)
}
