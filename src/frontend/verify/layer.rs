//! A backup whose objects are checked: its digests, and where its objects lie over each other.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::backup::{Backup, BlockHashTable, DataObject};
use crate::types::BlockHash;

/// Objects of one backup that may lie over each other at one place, before none of its blocks is compared here: what is not is
/// judged by the image.
const OVERLAPS_MAX: usize = 64;

/// Most bits in which a digest that was hit by chance differs from what it was. Two digests of different bytes differ in
/// about 128 of 256.
const FLIPPED_BITS_MAX: u32 = 24;

/// A backup whose objects are checked.
pub(super) struct Layer {
    pub(super) backup: Arc<Backup>,
    /// Its digests, if they are usable.
    pub(super) digests: Option<BlockHashTable>,
    /// Exact length of the volume, if it is known.
    pub(super) len_bytes: Option<u64>,
    /// Ranges of the volume where objects of this backup lie over each other, by object; empty in backups of Cinder's.
    hidden: HashMap<u32, Vec<Range<u64>>>,
}

/// Whether two digests differ as damage to one of them makes them differ.
pub(super) fn is_near(a: &BlockHash, b: &BlockHash) -> bool {
    let bits: u32 = a.0.iter().zip(&b.0).map(|(a, b)| (a ^ b).count_ones()).sum();
    bits <= FLIPPED_BITS_MAX
}

impl Layer {
    pub(super) fn new(backup: Arc<Backup>, digests: Option<BlockHashTable>, len_bytes: Option<u64>) -> Self {
        let hidden = hidden(&backup.objects);
        Self { backup, digests, len_bytes, hidden }
    }

    /// The bytes of the volume that a block holds; `None` for a last block of which that is not known.
    pub(super) fn block(&self, table: &BlockHashTable, block: u64) -> Option<Range<u64>> {
        let start = block * table.block_bytes();
        let end = start + table.block_bytes();
        match self.len_bytes {
            Some(len) => (start < len).then(|| start..end.min(len)),
            None => (block + 1 < table.count()).then_some(start..end),
        }
    }

    pub(super) fn is_hidden(&self, object: u32, range: &Range<u64>) -> bool {
        let of_object = self.hidden.get(&object).map_or(&[][..], Vec::as_slice);
        of_object.iter().any(|hidden| hidden.start < range.end && range.start < hidden.end)
    }
}

/// Ranges of objects that lie beneath later ones. Cinder makes none.
fn hidden(objects: &[DataObject]) -> HashMap<u32, Vec<Range<u64>>> {
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let range = |index: usize| objects[index].offset..objects[index].offset + objects[index].len_bytes;
    let mut by_offset: Vec<usize> = (0..objects.len()).collect();
    by_offset.sort_by_key(|&index| objects[index].offset);
    let mut hidden: HashMap<u32, Vec<Range<u64>>> = HashMap::new();
    let (mut open, mut count) = (Vec::<usize>::new(), 0);
    for index in by_offset {
        let here = range(index);
        open.retain(|&other| range(other).end > here.start);
        for &other in &open {
            let common = here.start..here.end.min(range(other).end);
            hidden.entry(number(index.min(other))).or_default().push(common);
        }
        open.push(index);
        count += open.len() - 1;
        if open.len() > OVERLAPS_MAX || count > OVERLAPS_MAX << 8 {
            return (0..objects.len()).map(|index| (number(index), vec![range(index)])).collect();
        }
    }
    hidden
}
