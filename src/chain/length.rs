//! Where a volume ends.
//!
//! Problem: the exact length of a volume stands nowhere. Cinder reads a device to its end; a full backup's extents end
//! there, but an incremental only stores what changed, and says no more than how many blocks there are. The volume may
//! have shrunk since the full backup, or grown or shrunk within its last block.
//!
//! Idea: with `n` digests of blocks of `c` bytes the length lies in `(n-1)*c + 1 ..= n*c`. A change of the length
//! within that interval changes the last block's digest (a short block is hashed as it is), so the backup that saw the
//! change has stored the last block, up to the volume's end. Hence: of the backups that store the last block's first
//! byte, the newest one tells the end; an end beyond `n*c` means that the volume was cut at a block's border since.
//!
//! Other writers store parts of blocks, and then an extent may end in the last block without telling the end. So where
//! the extents disagree, [`possible_lens`] gives all their ends, and the last block's digest decides between them.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// The image's length in bytes.
///
/// `extents(layer)` gives the ranges of the volume that a backup of the chain stored, for `layer` in `0..layers`, the
/// full backup first. `digests` is the number of digests and the block's bytes; without it the extents of the whole
/// chain decide. `size_bytes` is what the volume's own metadata claims.
pub fn image_len<I: Iterator<Item = Range<u64>>>(
    layers: usize,
    extents: impl Fn(usize) -> I,
    digests: Option<(u64, u64)>,
    size_bytes: Option<u64>,
) -> Result<u64> {
    let end_of = |layer| extents(layer).map(|extent| extent.end).max().unwrap_or(0);
    let extents_end = (0..layers).map(end_of).max().unwrap_or(0);
    let Some((count, block_bytes)) = digests else { return Ok(extents_end) };
    let tip_end = layers.checked_sub(1).map_or(0, end_of);
    let end = count.checked_mul(block_bytes).filter(|&end| end <= crate::format::metadata::OFFSET_MAX);
    let (Some(end), true) = (end, count > 0) else {
        // A volume may have shrunk to nothing; then no block is left that could tell.
        if count == 0 && tip_end == 0 {
            return Ok(0);
        }
        return Err(does_not_fit(count, block_bytes, extents_end));
    };
    let last_block = end - block_bytes;
    if extents_end <= last_block {
        // More blocks than stored bytes. Only a backup whose zero runs at the end were left out can be like this, and
        // only if the volume's size confirms it.
        return match size_bytes {
            Some(size) if size > last_block && size <= end => Ok(size),
            _ => Err(does_not_fit(count, block_bytes, extents_end)),
        };
    }
    // What its parents stored may lie beyond the end of a volume that shrank; what it stored itself may not.
    if tip_end > end {
        return Err(does_not_fit(count, block_bytes, extents_end));
    }
    for layer in (0..layers).rev() {
        if extents(layer).any(|extent| extent.contains(&last_block)) {
            return Ok(end_of(layer).min(end));
        }
    }
    Ok(extents_end.min(end))
}

/// Every length within the last block that an extent of the chain speaks for. `extents` are those of all backups,
/// `count` and `block_bytes` the number of digests and the block's bytes. With at most one, [`image_len`] is certain.
pub fn possible_lens(
    extents: impl Iterator<Item = Range<u64>>,
    count: u64,
    block_bytes: u64,
) -> BTreeSet<u64> {
    let end = count.saturating_mul(block_bytes);
    let last_block = end.saturating_sub(block_bytes);
    extents.map(|extent| extent.end.min(end)).filter(|&extent_end| extent_end > last_block).collect()
}

fn does_not_fit(count: u64, block_bytes: u64, extents_end: u64) -> Error {
    Error::new(
        ErrorKind::Malformed,
        format!(
            "{count} digests of blocks of {block_bytes} bytes do not fit objects that end at byte {extents_end}"
        ),
    )
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a backup with one extent is a list of one range")]
mod tests {
    use super::*;

    fn len(layers: &[&[Range<u64>]], digests: Option<(u64, u64)>, size: Option<u64>) -> Result<u64> {
        image_len(layers.len(), |layer| layers[layer].iter().cloned(), digests, size)
    }

    #[test]
    fn a_full_backup_ends_with_its_extents() {
        assert_eq!(len(&[&[0..1000]], Some((10, 100)), None).unwrap(), 1000);
        assert_eq!(len(&[&[0..600, 600..957]], Some((10, 100)), None).unwrap(), 957);
        assert_eq!(len(&[&[0..957]], None, None).unwrap(), 957);
        assert_eq!(len(&[&[]], Some((0, 100)), None).unwrap(), 0);
    }

    #[test]
    fn digests_that_do_not_fit_are_refused() {
        assert_eq!(len(&[&[0..1000], &[]], Some((0, 100)), None).unwrap(), 0);
        for digests in [(9, 100), (11, 100), (0, 100), (u64::MAX, 100), (1 << 62, 4)] {
            let error = len(&[&[0..1000]], Some(digests), Some(5000)).unwrap_err();
            assert!(error.to_string().contains("do not fit"), "{error}");
        }
        assert!(len(&[&[0..1000], &[0..100]], Some((11, 100)), None).is_err());
        assert!(len(&[&[0..1000], &[900..1000]], Some((9, 100)), None).is_err());
        assert!(len(&[&[0..1000], &[0..100]], Some((0, 100)), None).is_err());
    }

    #[test]
    fn zeros_left_out_at_the_end_need_the_volumes_own_size() {
        assert_eq!(len(&[&[0..100]], Some((11, 100)), Some(1100)).unwrap(), 1100);
        assert_eq!(len(&[&[0..100]], Some((11, 100)), Some(1050)).unwrap(), 1050);
        assert!(len(&[&[0..100]], Some((11, 100)), Some(1000)).is_err());
        assert!(len(&[&[0..100]], Some((11, 100)), None).is_err());
    }

    #[test]
    fn an_incremental_that_stored_the_last_block_tells_the_end() {
        let full = 0..1070; // ten blocks of 100 and 70 bytes
        type Case<'a> = (&'a [&'a [Range<u64>]], u64, u64);
        let cases: [Case<'_>; 8] = [
            (&[std::slice::from_ref(&full), &[]], 11, 1070),
            (&[std::slice::from_ref(&full), &[0..100]], 11, 1070),
            (&[std::slice::from_ref(&full), &[1000..1050]], 11, 1050), // shrank within the last block
            (&[std::slice::from_ref(&full), &[1000..1095]], 11, 1095), // grew within the last block
            (&[std::slice::from_ref(&full), &[1000..1095], &[1000..1020]], 11, 1020),
            (&[std::slice::from_ref(&full), &[1000..1095], &[0..100]], 11, 1095),
            (&[std::slice::from_ref(&full), &[]], 9, 900), // shrank to a block's border
            (&[std::slice::from_ref(&full), &[800..830]], 9, 830), // shrank into a block
        ];
        for (layers, count, expected) in cases {
            assert_eq!(len(layers, Some((count, 100)), None).unwrap(), expected, "{layers:?} {count}");
        }
    }

    #[test]
    fn extents_that_disagree_about_the_end_are_told() {
        let lens = |extents: &[Range<u64>]| Vec::from_iter(possible_lens(extents.iter().cloned(), 11, 100));
        assert_eq!(lens(&[0..1070]), [1070]);
        assert_eq!(lens(&[0..1000, 200..1070, 900..1070]), [1070]);
        assert_eq!(lens(&[0..1070, 990..1010]), [1010, 1070]);
        assert_eq!(lens(&[0..1500, 0..1030]), [1030, 1100]);
        assert!(possible_lens(std::iter::once(0..7), 0, 100).is_empty());
        assert!(possible_lens(std::iter::once(0..7), u64::MAX, 100).is_empty());
    }

    #[test]
    fn without_digests_the_longest_backup_decides() {
        assert_eq!(len(&[&[0..1070], &[1000..1095], &[0..100]], None, None).unwrap(), 1095);
    }
}
