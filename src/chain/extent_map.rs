//! Maps image ranges to the object bytes that hold them.
//!
//! A chain is a stack of sparse layers: each backup lists the extents it stored, newer hiding older, and within one
//! backup the later object hides the earlier. We flatten the stack once, when an image is opened, because a mount asks
//! this question on every read, and an incremental may have 100,000 one-block objects.
//!
//! Invariants: extents are sorted, disjoint and non-empty and lie in `0..len`; neighbours that continue each other in
//! one object are merged. Ranges that no extent covers are gaps; what they mean is the reader's business. No I/O happens
//! here, so the tests compare the map with a byte array that every layer has been painted on.

use std::collections::BTreeMap;
use std::ops::Range;

/// A data object of a chain: which backup (0 is the full one) and which of its objects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectIndex {
    /// Which backup of the chain, counted from the full one.
    pub layer: u32,
    /// Which object of that backup, counted from 0 in the order of its metadata.
    pub object: u32,
}

/// A range of the image that one object holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where in the image it begins, in bytes.
    pub start: u64,
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// What holds it.
    pub object: ObjectIndex,
    /// Where in the object's plain bytes it begins.
    pub object_offset: u64,
}

impl Extent {
    /// Where in the image it ends.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A piece of a range: held by an object, or by nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Plain bytes of an object.
    Data {
        /// Which bytes of the image.
        image: Range<u64>,
        /// What holds them.
        object: ObjectIndex,
        /// Where in the object's plain bytes they begin.
        object_offset: u64,
    },
    /// No object of the chain covers these bytes of the image.
    Gap(Range<u64>),
}

impl Piece {
    /// Which bytes of the image it is.
    pub fn image(self) -> Range<u64> {
        match self {
            Self::Data { image, .. } | Self::Gap(image) => image,
        }
    }
}

/// The flattened extents of a chain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtentMap {
    extents: Vec<Extent>,
    len: u64,
}

impl ExtentMap {
    /// Paints `extents` in order, later ones hiding earlier ones, on an image of `len` bytes. Empty extents paint
    /// nothing; what lies beyond `len` is cut off.
    pub fn paint(extents: impl IntoIterator<Item = Extent>, len: u64) -> Self {
        // Disjoint at all times, by start. Each painted extent removes what it covers and splits at most two.
        let mut painted: BTreeMap<u64, Extent> = BTreeMap::new();
        for extent in extents {
            let end = extent.end().min(len);
            if extent.start >= end {
                continue;
            }
            let extent = Extent { len: end - extent.start, ..extent };
            if let Some((_, &before)) = painted.range(..extent.start).next_back()
                && before.end() > extent.start
            {
                painted.insert(before.start, Extent { len: extent.start - before.start, ..before });
                if before.end() > end {
                    let after = tail_of(before, end);
                    painted.insert(after.start, after);
                }
            }
            while let Some((&start, &covered)) = painted.range(extent.start..end).next() {
                painted.remove(&start);
                if covered.end() > end {
                    let after = tail_of(covered, end);
                    painted.insert(after.start, after);
                }
            }
            painted.insert(extent.start, extent);
        }
        let mut extents: Vec<Extent> = Vec::with_capacity(painted.len());
        for (_, extent) in painted {
            match extents.last_mut() {
                Some(last)
                    if last.end() == extent.start
                        && last.object == extent.object
                        && last.object_offset + last.len == extent.object_offset =>
                {
                    last.len += extent.len;
                }
                _ => extents.push(extent),
            }
        }
        Self { extents, len }
    }

    /// The image's length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the image has no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All extents, sorted.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// What holds each byte of `range`, in order and without a hole between the pieces; the part of `range` beyond the
    /// image's length is left out.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let end = range.end.min(self.len);
        let mut at = range.start;
        let mut next = self.extents.partition_point(|extent| extent.end() <= at);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = match self.extents.get(next) {
                Some(extent) if extent.start <= at => {
                    let image = at..extent.end().min(end);
                    next += 1;
                    Piece::Data {
                        object: extent.object,
                        object_offset: extent.object_offset + (at - extent.start),
                        image,
                    }
                }
                Some(extent) => Piece::Gap(at..extent.start.min(end)),
                None => Piece::Gap(at..end),
            };
            at = match &piece {
                Piece::Data { image, .. } | Piece::Gap(image) => image.end,
            };
            Some(piece)
        })
    }
}

/// The part of an extent from `from` on.
fn tail_of(extent: Extent, from: u64) -> Extent {
    let cut = from - extent.start;
    Extent { start: from, len: extent.len - cut, object_offset: extent.object_offset + cut, ..extent }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Who paints each byte: (object, offset in it).
    fn model(extents: &[Extent], len: u64) -> Vec<Option<(ObjectIndex, u64)>> {
        let mut bytes = vec![None; len as usize];
        for extent in extents {
            for i in 0..extent.len {
                if let Some(byte) = bytes.get_mut((extent.start + i) as usize) {
                    *byte = Some((extent.object, extent.object_offset + i));
                }
            }
        }
        bytes
    }

    fn arbitrary_extent() -> impl Strategy<Value = Extent> {
        (0u64..60, 0u64..30, 0u32..3, 0u32..3, 0u64..5).prop_map(
            |(start, len, layer, object, object_offset)| Extent {
                start,
                len,
                object: ObjectIndex { layer, object },
                object_offset,
            },
        )
    }

    proptest! {
        #[test]
        fn agrees_with_a_painted_array(
            extents in prop::collection::vec(arbitrary_extent(), 0..20),
            len in 0u64..70,
            from in 0u64..80,
            to in 0u64..80,
        ) {
            let map = ExtentMap::paint(extents.iter().copied(), len);
            let model = model(&extents, len);
            for pair in map.extents().windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
            }
            let mut at = from;
            for piece in map.pieces(from..to) {
                let range = match &piece { Piece::Data { image, .. } | Piece::Gap(image) => image.clone() };
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start);
                at = range.end;
                for i in range.clone() {
                    let expected = match &piece {
                        Piece::Data { object, object_offset, .. } => {
                            Some((*object, object_offset + (i - range.start)))
                        }
                        Piece::Gap(_) => None,
                    };
                    prop_assert_eq!(model[i as usize], expected);
                }
            }
            prop_assert_eq!(at, to.min(len).max(from));
        }
    }

    #[test]
    fn a_hundred_thousand_small_extents_merge_where_they_continue() {
        let object = ObjectIndex { layer: 0, object: 0 };
        let extents =
            (0..100_000).rev().map(|i| Extent { start: i * 10, len: 10, object, object_offset: i * 10 });
        let map = ExtentMap::paint(extents, 1_000_000);
        assert_eq!(map.extents(), [Extent { start: 0, len: 1_000_000, object, object_offset: 0 }]);
    }
}
