//! Which backups Cinder 22 to 28 restore wrongly to a new volume, from their digests alone.
//!
//! The defect: these releases restore object by object, the full backup first, and leave out each piece of 1 MiB (counted from the
//! object's start; the last may be shorter) that is all zeros, because a new volume reads as zeros anyway. For an object of an incremental
//! backup that is wrong: the volume holds the data of the backups beneath by then, and keeps it. Restores to an existing volume are right,
//! and so are those of 29.
//!
//! So a range is at risk when an incremental backup stored it, the piece of the object that it lies in is all zeros, and the volume as of
//! the backup beneath that one is not zeros there. Digests tell all of that, as far as pieces are whole blocks: with blocks that do not
//! divide a piece (all of Cinder's own do), a zeroed piece whose border lies inside a block that holds data is not seen.
//!
//! [`at_risk`] tells of one backup; whoever looks at a store asks it for each one with a parent. What is at risk is not damage:
//! the backup is good, `cinderfs restore` and Cinder 29 restore it rightly, and `cinderfs audit` finds what was restored wrongly.
//!
//! Invariants: no object is opened; memory is a few digests for each call; a range that is told is at risk, one that is not told need not be
//! safe where digests of the chain are missing or damaged ([`Risk::unknown_bytes`]).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Older;
use crate::chain::extent_map::Extent;
use crate::error::Result;
use crate::image::{Digests, Image};
use crate::types::{BackupId, BlockIndex};

/// What Cinder leaves out at once when it is all zeros, in bytes, counted from an object's start.
pub const PIECE_BYTES: u64 = 1 << 20;

/// How much of a backup is at risk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Risk {
    /// Bytes that read wrongly when Cinder 22 to 28 restore the backup to a new volume.
    pub bytes: u64,
    /// In how many ranges.
    pub ranges: u64,
    /// Bytes that incremental backups stored and of which nothing can be said, because digests are missing.
    pub unknown_bytes: u64,
}

/// Gives each range of `tip` that is at risk to `on_range`, in order, joined where they touch.
///
/// `older` opens the images of the backups beneath; it is asked once for each. A full backup is never at risk, nor does it cost a read.
/// Fails when the store does, and with what `on_range` fails with.
pub fn at_risk(
    tip: &Image,
    older: &Older<'_>,
    on_range: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<Risk> {
    let mut risk = Risk::default();
    let mut images: HashMap<u32, Option<Arc<Image>>> = HashMap::new();
    let mut last: Option<Range<u64>> = None;
    for extent in tip.extent_map().extents().iter().filter(|extent| extent.object.layer > 0) {
        let layer = extent.object.layer;
        for layer in [layer, layer - 1].into_iter().filter(|&layer| !is_tip(tip, layer)) {
            images.entry(layer).or_insert_with(|| older(id_of(tip, layer)?));
        }
        let image_of = |layer: u32| match images.get(&layer) {
            _ if is_tip(tip, layer) => Some(tip),
            image => image?.as_deref(),
        };
        let digests_of = |layer: u32| image_of(layer)?.digests();
        let (Some(of_tip), Some(stored), Some(beneath)) =
            (tip.digests(), digests_of(layer), digests_of(layer - 1))
        else {
            risk.unknown_bytes += extent.len;
            continue;
        };
        let object = tip.holder(extent.object)?.volume;
        let zeros = Zeros { tip: of_tip, stored, beneath };
        in_extent(&zeros, &object, extent, &mut |range| {
            risk.bytes += range.end - range.start;
            match &mut last {
                Some(last) if last.end == range.start => last.end = range.end,
                last => {
                    risk.ranges += 1;
                    if let Some(done) = last.replace(range) {
                        on_range(done)?;
                    }
                }
            }
            Ok(())
        })?;
    }
    last.into_iter().try_for_each(on_range)?;
    Ok(risk)
}

/// The backup of a layer; layers are counted from the full one.
fn id_of(tip: &Image, layer: u32) -> Option<&BackupId> {
    tip.chain().iter().rev().nth(layer as usize)
}

fn is_tip(tip: &Image, layer: u32) -> bool {
    layer as usize + 1 == tip.chain().len()
}

/// Who has zeros where.
struct Zeros<'a> {
    tip: Digests<'a>,
    /// The volume as of the backup whose object it is.
    stored: Digests<'a>,
    /// The volume as of the backup beneath that one.
    beneath: Digests<'a>,
}

/// The ranges at risk of what is visible of an object.
fn in_extent(
    zeros: &Zeros<'_>,
    object: &Range<u64>,
    visible: &Extent,
    on_range: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let mut at = visible.start;
    while at < visible.end() {
        let piece = piece_of(object, at);
        let seen = at..piece.end.min(visible.end());
        at = seen.end;
        // Most pieces hold data; the tip's digests, which are read in order, tell so first.
        let seen_blocks = zeros.tip.blocks_of(&seen);
        let of_tip = are_zeros(zeros.tip, seen_blocks.clone())?;
        if !of_tip.contains(&Some(true)) {
            continue;
        }
        if are_zeros(zeros.stored, zeros.stored.blocks_of(&piece))?
            .iter()
            .any(|is_zero| *is_zero != Some(true))
        {
            continue;
        }
        for (block, is_zero) in seen_blocks.zip(of_tip) {
            let bytes = zeros.tip.range_of(block..block + 1);
            let hit = bytes.start.max(seen.start)..bytes.end.min(seen.end);
            // The volume may have been shorter, and the blocks others.
            let beneath = are_zeros(zeros.beneath, zeros.beneath.blocks_of(&hit))?;
            if is_zero == Some(true) && beneath.contains(&Some(false)) {
                on_range(hit)?;
            }
        }
    }
    Ok(())
}

/// The piece of an object that a byte of the volume lies in.
fn piece_of(object: &Range<u64>, at: u64) -> Range<u64> {
    let start = object.start + (at - object.start) / PIECE_BYTES * PIECE_BYTES;
    start..object.end.min(start + PIECE_BYTES)
}

/// Which blocks are zeros; `None` where a digest is damaged.
fn are_zeros(digests: Digests<'_>, blocks: Range<u64>) -> Result<Vec<Option<bool>>> {
    let blocks = blocks.start.min(digests.count())..blocks.end.min(digests.count());
    let mut hashes = Vec::new();
    digests.read_into(blocks.clone(), &mut hashes)?;
    let of = |(block, hash): (u64, Option<_>)| hash.map(|hash| digests.is_zero(BlockIndex(block), &hash));
    Ok(blocks.zip(hashes).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_counted_from_the_objects_start() {
        let mib = PIECE_BYTES;
        let object = 3 * mib + 7..5 * mib + 100;
        assert_eq!(piece_of(&object, 3 * mib + 7), 3 * mib + 7..4 * mib + 7);
        assert_eq!(piece_of(&object, 4 * mib + 6), 3 * mib + 7..4 * mib + 7);
        assert_eq!(piece_of(&object, 4 * mib + 7), 4 * mib + 7..5 * mib + 7);
        assert_eq!(piece_of(&object, 5 * mib + 99), 5 * mib + 7..5 * mib + 100);
    }
}
