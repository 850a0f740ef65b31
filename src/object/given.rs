//! The restart points that the metadata tells of an object.
//!
//! Problem: our writer tells a point every 128 to 256 KiB, a hundred times as many as a decoder notes, and an object of a
//! hostile backup may tell any number of any places. Idea: such a point is its two offsets and nothing else, for what a decoder must know
//! there is the same for all points of an object ([`ObjectStream::state_of_nothing`](crate::codec::ObjectStream::state_of_nothing)).
//! What is too dense is thinned while it is read.
//!
//! Invariants: sorted by both offsets, all within the object, bounded. A point that leads astray goes alone; an object of
//! which [`REFUTED_MAX`] have led astray loses them all, since each costs a second look.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::seek_index::Entry;
use crate::codec::{Codec, Needed, Verbatim};
use crate::format::points::{Place, each};

/// Most points that are kept of one object: 256 KiB. 2 GiB of zstd tell as many; of a longer object every second is kept, or every
/// fourth, and so on. With 256 objects open this is 64 MiB at worst, and 4 MiB with our writer's objects of 128 MiB.
const GIVEN_MAX: usize = 1 << 14;

/// Most points that are looked at, some milliseconds of work: what our writer tells of a whole backup at most.
const LOOKED_AT_MAX: usize = 2_000_000;

/// Points nearer to the one before, in plain bytes, save less than it costs to begin at them.
const SPACING_BYTES_MIN: u64 = 16 << 10;

/// What a codec stores beside the bytes of some blocks that it cannot compress.
const HEADERS_BYTES: u64 = 256;

/// How many points may lead astray before none of the object is believed.
const REFUTED_MAX: u32 = 8;

/// Points of one object.
#[derive(Clone, Default, Debug)]
pub(super) struct Given {
    places: Vec<Place>,
    state: Arc<[u8]>,
    refuted: u32,
}

impl Given {
    /// The points in `text` of an object of these lengths; `state` is what a decoder must know at each of them. A text that is none
    /// has no points.
    pub(super) fn read(text: &str, len_bytes: u64, stored_bytes: u64, state: Arc<[u8]>) -> Self {
        let mut places: Vec<Place> = Vec::new();
        let (mut looked_at, mut stride) = (0usize, 1);
        let read = each(text, &mut |place| {
            looked_at += 1;
            let is_beyond = place.plain_offset >= len_bytes || place.stored_offset >= stored_bytes;
            if is_beyond || looked_at > LOOKED_AT_MAX {
                return ControlFlow::Break(());
            }
            let last = places.last().map_or(0, |last| last.plain_offset);
            // Both steps are at least 1, so they rise.
            if looked_at.is_multiple_of(stride) && place.plain_offset - last >= SPACING_BYTES_MIN {
                if places.len() >= GIVEN_MAX {
                    let mut n = 0u32;
                    places.retain(|_| {
                        n += 1;
                        n.is_multiple_of(2)
                    });
                    stride *= 2;
                }
                if looked_at.is_multiple_of(stride) {
                    places.push(place);
                }
            }
            ControlFlow::Continue(())
        });
        if read.is_err() {
            return Self::default();
        }
        places.shrink_to_fit();
        Self { places, state, refuted: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.places.iter().map(|place| self.entry(*place))
    }

    /// Plain offset of the last point at or before `offset`.
    pub(super) fn offset_before(&self, offset: u64) -> Option<u64> {
        self.place_before(offset).map(|place| place.plain_offset)
    }

    /// The last point at or before `offset`.
    pub(super) fn before(&self, offset: u64) -> Option<Entry> {
        self.place_before(offset).map(|place| self.entry(place))
    }

    /// Stored bytes that a decoder at the point `entry` is about to need for the plain bytes up to `end`; `None` when it is no point
    /// of these.
    pub(super) fn needed(&self, entry: &Entry, end: u64, codec: Codec) -> Option<Needed> {
        let at = self.places.binary_search_by_key(&entry.plain_offset, |place| place.plain_offset).ok()?;
        let (here, next) = (self.places.get(at)?, self.places.get(at + 1)?);
        let (plain, stored) =
            (next.plain_offset - here.plain_offset, next.stored_offset - here.stored_offset);
        let wanted = end.saturating_sub(here.plain_offset).min(plain);
        // A block of zstd that is compressed is decoded whole.
        let share = if codec == Codec::Zstd && stored < plain {
            stored
        } else {
            let share = u128::from(stored) * u128::from(wanted) / u128::from(plain);
            share as u64 + u64::from(stored < plain) * (stored / 8) + HEADERS_BYTES
        };
        Some(Needed { first_bytes: share.min(stored), until: next.stored_offset })
    }

    /// How the plain bytes `from..end` stand in the object, if they do as they are between two points that follow each other; and the
    /// first of these.
    pub(super) fn verbatim(&self, from: u64, end: u64, codec: Codec) -> Option<(Verbatim, Place)> {
        let after = self.places.partition_point(|place| place.plain_offset <= from);
        let (here, next) = (self.places.get(after.checked_sub(1)?)?, self.places.get(after)?);
        let (plain, stored) =
            (next.plain_offset - here.plain_offset, next.stored_offset - here.stored_offset);
        let verbatim = Verbatim::between(codec, plain, stored).filter(|_| end <= next.plain_offset);
        verbatim.map(|verbatim| (verbatim, *here))
    }

    /// Plain offset of the first point behind `offset`.
    pub(super) fn offset_after(&self, offset: u64) -> Option<u64> {
        let after = self.places.partition_point(|place| place.plain_offset <= offset);
        self.places.get(after).map(|place| place.plain_offset)
    }

    /// Forgets the point at plain offset `offset`; whether there was one.
    pub(super) fn remove(&mut self, offset: u64) -> bool {
        let found = self.places.binary_search_by_key(&offset, |place| place.plain_offset);
        found.map(|at| self.places.remove(at)).is_ok()
    }

    /// Counts a point that led astray; whether that were too many.
    pub(super) fn refute(&mut self) -> bool {
        self.refuted += 1;
        self.refuted >= REFUTED_MAX
    }

    fn place_before(&self, offset: u64) -> Option<Place> {
        let after = self.places.partition_point(|place| place.plain_offset <= offset);
        self.places[..after].last().copied()
    }

    fn entry(&self, place: Place) -> Entry {
        Entry::given(place.plain_offset, place.stored_offset.saturating_mul(8), self.state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn offsets(text: &str, len_bytes: u64, stored_bytes: u64) -> Vec<u64> {
        let given = Given::read(text, len_bytes, stored_bytes, Arc::new([]));
        given.entries().map(|entry| entry.plain_offset / KIB).collect()
    }

    #[test]
    fn what_cannot_be_in_the_object_is_left_out() {
        let text = "131072:1000x3,1000000,5x2";
        assert_eq!(offsets(text, 4096 * KIB, 1 << 30), [128, 256, 384, 512, 640, 768]);
        assert_eq!(offsets(text, 4096 * KIB, 3000), [128, 256]);
        assert_eq!(offsets(text, 384 * KIB, 1 << 30), [128, 256]);
        assert!(offsets("131072:1000x3,zebra", 4096 * KIB, 1 << 30).is_empty());
        assert!(offsets("", 4096 * KIB, 1 << 30).is_empty());
    }

    #[test]
    fn numbers_beyond_all_bounds_take_bounded_memory_and_time() {
        let endless = "1:1x18446744073709551615";
        assert_eq!(offsets(endless, u64::MAX, u64::MAX).len(), LOOKED_AT_MAX / (16 << 10));
        let dense = Given::read("131072:1x18446744073709551615", u64::MAX, u64::MAX, Arc::new([]));
        assert!((GIVEN_MAX / 2..=GIVEN_MAX).contains(&dense.places.len()));
        let steps: Vec<u64> =
            dense.places.windows(2).map(|two| two[1].plain_offset - two[0].plain_offset).collect();
        assert!(steps.iter().all(|step| *step == steps[0]), "thinned evenly");
        assert!(dense.places.capacity() <= GIVEN_MAX);
    }
}
