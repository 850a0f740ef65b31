//! Chains that Cinder 22.0.0 to 28.0.0 restores wrongly to a new volume.
//!
//! These releases do not write a piece of an object (1 MiB, counted from the object's start) that is all zeros, in incremental
//! backups either: on a new volume what the parent had there stays. So a chain is at risk where an incremental holds such a
//! piece, no later backup covers it, and the parent's digests say that it was not zeros. Digests tell all of that; no object is read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::findings::{Cinder, Finding, Kind, Ranges};
use crate::backup::{Backup, BlockHashTable, DigestFile};
use crate::block::hash_of_zeros;
use crate::chain::extent_map::Piece;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::store::Store;
use crate::types::BlockHash;

/// Pieces that Cinder looks at, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// Digests compared at once.
const BATCH_BLOCKS: u64 = 4096;

/// What an image has to fear, if anything. Nothing is said where digests are missing.
pub(super) fn find(store: &dyn Store, image: &Arc<Image>, cancel: &AtomicBool) -> Result<Option<Finding>> {
    let (Some(ours), [_, _, ..]) = (image.digests(), image.layers()) else { return Ok(None) };
    let zeros = Zeros::of(ours, image.len_bytes());
    let mut found: Vec<Range<u64>> = Vec::new();
    // The digests of what lies beneath a layer, opened when they are first needed.
    let mut beneath: Option<(u32, Option<BlockHashTable>)> = None;
    for piece in image.extent_map().pieces(0..image.len_bytes()) {
        let Piece::Data { image: range, object, object_offset } = piece else { continue };
        let Some(layer) = object.layer.checked_sub(1) else { continue };
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        let len = image.layers()[object.layer as usize]
            .objects
            .get(object.object as usize)
            .map_or(0, |o| o.len_bytes);
        let start = range.start - object_offset;
        let mut at = object_offset / PIECE_BYTES * PIECE_BYTES;
        while start + at < range.end {
            let whole = start + at..start + (at + PIECE_BYTES).min(len);
            at += PIECE_BYTES;
            // A piece of which a part lies beneath a later object was all zeros only if its own backup's digests say so; those
            // that show whole are what Cinder makes.
            let shown = whole.start.max(range.start)..whole.end.min(range.end);
            if shown != whole || !zeros.are_in(ours, &whole) {
                continue;
            }
            if beneath.as_ref().is_none_or(|(known, _)| *known != layer) {
                beneath = Some((layer, digests(store, &image.layers()[layer as usize], ours)?));
            }
            let Some((_, Some(theirs))) = &beneath else { continue };
            if !zeros.are_in(theirs, &whole) {
                found.push(whole);
            }
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let ranges: Ranges = found.into_iter().collect();
    let message = format!(
        "Cinder 22 to 28 restores {} bytes of zeros wrongly to a new volume: the parent's data shows there",
        ranges.bytes()
    );
    let reason = "29.0.0 is right, and so are all onto an existing volume";
    Ok(Some(Finding { ranges, ..Finding::new(Kind::ZeroDefect, message, Cinder::Yes, reason) }))
}

fn digests(store: &dyn Store, backup: &Backup, ours: &BlockHashTable) -> Result<Option<BlockHashTable>> {
    match backup.digests(store) {
        Ok(DigestFile::Usable(table)) if table.block_bytes() == ours.block_bytes() => Ok(Some(table)),
        Ok(_) => Ok(None),
        Err(error) if error.kind().is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The digests of zeros.
struct Zeros {
    block_bytes: u64,
    len_bytes: u64,
    block: BlockHash,
    last: BlockHash,
}

impl Zeros {
    fn of(table: &BlockHashTable, len_bytes: u64) -> Self {
        let block_bytes = table.block_bytes();
        let last_bytes = len_bytes - len_bytes.saturating_sub(1) / block_bytes * block_bytes;
        let (block, last) = (hash_of_zeros(block_bytes), hash_of_zeros(last_bytes));
        Self { block_bytes, len_bytes, block, last }
    }

    /// Whether all blocks that a range touches are zeros.
    fn are_in(&self, table: &BlockHashTable, range: &Range<u64>) -> bool {
        let blocks = range.start / self.block_bytes..range.end.div_ceil(self.block_bytes).min(table.count());
        if blocks.is_empty() {
            return true;
        }
        let is_zero = |block: u64, digest: Result<BlockHash>| {
            let is_last = (block + 1) * self.block_bytes >= self.len_bytes;
            digest.is_ok_and(|digest| digest == self.block || is_last && digest == self.last)
        };
        // One block first: most are no zeros.
        let (mut at, mut batch) = (blocks.start, 1);
        while at < blocks.end {
            let until = blocks.end.min(at + batch);
            if !(at..until).zip(table.get(at..until)).all(|(block, digest)| is_zero(block, digest)) {
                return false;
            }
            (at, batch) = (until, BATCH_BLOCKS);
        }
        true
    }
}
