//! An image cut up for several readers: what lies in one object is read fastest by one of them, in order.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};

/// The image cut at block borders into groups, one for each object that holds a block's first byte.
pub(super) fn groups(map: &ExtentMap, block_bytes: u64) -> Vec<Vec<Range<u64>>> {
    let mut of_object: BTreeMap<Option<ObjectIndex>, Vec<Range<u64>>> = BTreeMap::new();
    let mut at = 0;
    for piece in map.pieces(0..map.len()) {
        let (object, image) = match piece {
            Piece::Gap(image) => (None, image),
            Piece::Data { image, object, .. } => (Some(object), image),
        };
        // A block that this piece ends in the middle of is read with it.
        let end = image.end.div_ceil(block_bytes).saturating_mul(block_bytes).min(map.len());
        if end > at {
            of_object.entry(object).or_default().push(at..end);
            at = end;
        }
    }
    of_object.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::extent_map::Extent;

    #[test]
    fn groups_are_the_whole_image_once() {
        let extent = |start, len, object| Extent {
            start,
            len,
            object: ObjectIndex { layer: 0, object },
            object_offset: 0,
        };
        let map = ExtentMap::paint(
            [extent(0, 100, 0), extent(100, 50, 1), extent(30, 20, 2), extent(170, 13, 1)],
            190,
        );
        for block_bytes in [1, 7, 10, 32, 500] {
            let mut ranges: Vec<_> = groups(&map, block_bytes).into_iter().flatten().collect();
            ranges.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in ranges {
                assert_eq!(range.start, at);
                assert!(range.end == 190 || range.end % block_bytes == 0);
                at = range.end;
            }
            assert_eq!(at, 190);
        }
        assert_eq!(groups(&map, 10).len(), 4);
    }
}
