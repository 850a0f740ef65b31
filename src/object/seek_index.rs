//! The restart points that are known of one object.
//!
//! Problem: points come in from several decoders in any order, from a file of an earlier run, and from readers that want them
//! denser in one place than in another; and a reader asks "where do I begin?" on every read. Idea: one sorted list, in
//! which the space between two neighbours is a *stretch*: the least that is decoded on the way to a byte in it.
//!
//! Points that the metadata tells ([`given`](super::given)) are apart from the others, because they are many and small; for a
//! reader they are one list.
//!
//! Invariants: sorted by plain offset, no offset twice; the object's start is not in the list, as it needs no point; the
//! number of points is bounded. No I/O happens here.

use std::ops::Range;
use std::sync::Arc;

use super::given::Given;
use super::known::Known;
use super::passes::Pass;
use crate::codec::{Codec, Needed, Recording, RestartPoint, Verbatim};
use crate::format::points::Place;

/// Most points of one object. 2 GB with a point every 64 KiB are half of this; a point costs 40 bytes besides its state.
const POINTS_MAX: usize = 1 << 16;

/// The part of a stretch that is fetched beyond what lies there if all of it is as dense: it seldom is.
const SHARE_MARGIN: u64 = 8;

/// A place to begin from.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) plain_offset: u64,
    pub(super) stored_bits: u64,
    pub(super) state: State,
    /// Who noted it.
    pub(super) pass: Pass,
    /// Reads that skipped much of the stretch behind it.
    visits: u8,
}

/// Where the state of a point is.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// In memory, as its decoder gave it.
    Raw(Arc<[u8]>),
    /// In memory, as small as it gets.
    Packed(Arc<[u8]>),
    /// In the index file that was opened last, at this position.
    Saved(usize),
    /// The one that all points have which the metadata tells.
    Given(Arc<[u8]>),
}

impl State {
    fn held_bytes(&self) -> usize {
        match self {
            Self::Raw(state) | Self::Packed(state) => state.len(),
            Self::Saved(_) | Self::Given(_) => 0,
        }
    }

    pub(super) fn is_saved(&self) -> bool {
        matches!(self, Self::Saved(_))
    }

    fn raw_bytes(&self) -> usize {
        match self {
            Self::Raw(state) => state.len(),
            Self::Packed(_) | Self::Saved(_) | Self::Given(_) => 0,
        }
    }
}

/// All points of one object.
#[derive(Clone, Default, Debug)]
pub(super) struct SeekIndex {
    entries: Vec<Entry>,
    given: Given,
    known: Known,
    held_bytes: usize,
    raw_bytes: usize,
    unsaved: usize,
    /// How long the file is that holds those that are saved.
    file_bytes: u64,
    /// How many were not in a file when the last try to save them failed.
    failed_at: usize,
}

impl SeekIndex {
    /// The points that were noted, by us or in an earlier run.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All points, those that the metadata tells included.
    pub(super) fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.entries.iter().cloned().chain(self.given.entries()).collect();
        all.sort_by_key(|entry| entry.plain_offset);
        all
    }

    /// Whether there is no point at all.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.given.is_empty()
    }

    /// Takes over what the metadata of an object of `len_bytes` tells. What lies between two points that are at most `dense_bytes`
    /// apart is known then.
    pub(super) fn give(&mut self, given: Given, len_bytes: u64, dense_bytes: u64) {
        self.given = given;
        let starts = std::iter::once(0).chain(self.given.entries().map(|entry| entry.plain_offset));
        let ends = self.given.entries().map(|entry| entry.plain_offset).chain([len_bytes]);
        for (start, end) in starts.zip(ends) {
            if end - start <= dense_bytes {
                self.known.add(start..end);
            }
        }
        // No place twice.
        let is_given =
            |entry: &Entry| self.given.offset_before(entry.plain_offset) == Some(entry.plain_offset);
        let twice: Vec<u64> =
            self.entries.iter().filter(|entry| is_given(entry)).map(|entry| entry.plain_offset).collect();
        for offset in twice {
            self.remove_noted(offset);
        }
    }

    /// Forgets all points of the metadata, and that anything is known.
    pub(super) fn forget_given(&mut self) {
        self.given = Given::default();
        self.known = Known::default();
    }

    /// Counts a point of the metadata that led astray; whether that were too many for the others to be believed.
    pub(super) fn refute(&mut self) -> bool {
        self.given.refute()
    }

    /// Plain offset up to which points have been noted.
    pub(super) fn known_to(&self) -> u64 {
        self.known.prefix()
    }

    /// Notes that a decoder which noted all points that were wanted has come from one place to another.
    pub(super) fn reach(&mut self, from: u64, to: u64) {
        self.known.add(from..to);
    }

    /// Bytes of states in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The last point at or before `offset`.
    pub(super) fn nearest(&self, offset: u64) -> Option<Entry> {
        let (noted, given) = (self.noted_before(offset), self.given.offset_before(offset));
        if noted.map(|entry| entry.plain_offset) >= given {
            return noted.cloned();
        }
        self.given.before(offset)
    }

    fn noted_before(&self, offset: u64) -> Option<&Entry> {
        let after = self.entries.partition_point(|entry| entry.plain_offset <= offset);
        self.entries[..after].last()
    }

    /// Where the stretch of `offset` begins.
    pub(super) fn stretch_start(&self, offset: u64) -> u64 {
        let noted = self.noted_before(offset).map_or(0, |entry| entry.plain_offset);
        self.given.offset_before(offset).map_or(noted, |given| given.max(noted))
    }

    /// As [`Given::verbatim`].
    pub(super) fn verbatim(&self, from: u64, end: u64, codec: Codec) -> Option<(Verbatim, Place)> {
        self.given.verbatim(from, end, codec)
    }

    /// What a decoder at `entry` needs for the plain bytes up to `end`: as far as the next point at most. `None` where that is not known.
    /// `len_bytes` and `stored_bytes` are the object's lengths.
    pub(super) fn needed(
        &self,
        entry: &Entry,
        end: u64,
        codec: Codec,
        (len_bytes, stored_bytes): (u64, u64),
    ) -> Option<Needed> {
        if entry.pass == Pass::GIVEN {
            return self.given.needed(entry, end, codec);
        }
        let (next, until) = match self.next_after(entry.plain_offset) {
            Some(next) => (next, self.nearest(next)?.stored_bits.div_ceil(8)),
            None if self.known_to() >= len_bytes => (len_bytes, stored_bytes),
            None => return None,
        };
        let plain = next.checked_sub(entry.plain_offset).filter(|plain| *plain > 0)?;
        let stored = until.checked_sub(entry.stored_bits / 8).filter(|stored| *stored > 0)?;
        Some(Needed { first_bytes: share(stored, end.saturating_sub(entry.plain_offset), plain), until })
    }

    /// The stored bytes from the first point in a range of plain bytes, or (`is_tiled`) the last one before it, to the last one in it. Of
    /// ranges that follow each other, the latter leave nothing out. `None` where these are not two.
    pub(super) fn stored_within(&self, plain: &Range<u64>, is_tiled: bool) -> Option<Range<u64>> {
        let first = match is_tiled {
            true => self.nearest(plain.start),
            false => Some(self.next_after(plain.start.saturating_sub(1)).and_then(|at| self.nearest(at))?),
        };
        let (from, first) = first.map_or((0, 0), |first| (first.plain_offset, first.stored_bits / 8));
        let last = self.nearest(plain.end)?;
        let stored = first..last.stored_bits.div_ceil(8);
        (from < last.plain_offset && stored.start < stored.end).then_some(stored)
    }

    /// The first point behind `offset`.
    pub(super) fn next_after(&self, offset: u64) -> Option<u64> {
        let after = self.entries.partition_point(|entry| entry.plain_offset <= offset);
        let noted = self.entries.get(after).map(|entry| entry.plain_offset);
        [noted, self.given.offset_after(offset)].into_iter().flatten().min()
    }

    /// Adds a point, unless there is one at its place or the list is full.
    pub(super) fn add(&mut self, entry: Entry) -> bool {
        let is_given = self.given.offset_before(entry.plain_offset) == Some(entry.plain_offset);
        if entry.plain_offset == 0 || is_given || self.entries.len() >= POINTS_MAX {
            return false;
        }
        match self.entries.binary_search_by_key(&entry.plain_offset, |known| known.plain_offset) {
            Ok(_) => false,
            Err(at) => {
                self.count(&entry.state);
                self.entries.insert(at, entry);
                true
            }
        }
    }

    /// Gives a point that `pass` noted the state that packs smaller, wherever it has gone meanwhile.
    pub(super) fn follow(&mut self, point: RestartPoint, pass: Pass) {
        let known = self.noted_before(point.plain_offset);
        let is_same = |entry: &&Entry| {
            (entry.plain_offset, entry.stored_bits, entry.pass)
                == (point.plain_offset, point.stored_bits, pass)
        };
        if known.filter(is_same).is_some() {
            self.replace_state(point.plain_offset, State::Raw(point.state));
        }
    }

    /// Gives the point at `plain_offset` another form of its state.
    pub(super) fn replace_state(&mut self, plain_offset: u64, state: State) {
        if let Ok(at) = self.entries.binary_search_by_key(&plain_offset, |known| known.plain_offset) {
            self.count(&state);
            let old = std::mem::replace(&mut self.entries[at].state, state);
            self.discount(&old);
        }
    }

    /// Forgets the point at `plain_offset`: what it led to has to be decoded anew to have a point there again.
    pub(super) fn remove(&mut self, plain_offset: u64) {
        if self.remove_noted(plain_offset) || self.given.remove(plain_offset) {
            let gap = self.stretch_start(plain_offset)..self.next_after(plain_offset).unwrap_or(u64::MAX);
            self.known.remove(gap);
        }
    }

    fn remove_noted(&mut self, plain_offset: u64) -> bool {
        let Ok(at) = self.entries.binary_search_by_key(&plain_offset, |known| known.plain_offset) else {
            return false;
        };
        let removed = self.entries.remove(at);
        self.discount(&removed.state);
        true
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets every other point whose state is in memory.
    pub(super) fn thin(&mut self) {
        let mut held = 0usize;
        self.entries.retain(|entry| {
            let is_held = entry.state.held_bytes() > 0;
            held += usize::from(is_held);
            !is_held || !held.is_multiple_of(2)
        });
        self.held_bytes = self.entries.iter().map(|entry| entry.state.held_bytes()).sum();
        self.raw_bytes = self.entries.iter().map(|entry| entry.state.raw_bytes()).sum();
        self.unsaved = self.entries.iter().filter(|entry| !entry.state.is_saved()).count();
    }

    /// What a decoder that stands at `at` should record so that points end up `spacing_bytes` apart; `None` when the next
    /// point is near enough.
    pub(super) fn wanted(&self, at: u64, spacing_bytes: u64) -> Option<Recording> {
        let from = self.stretch_start(at).saturating_add(spacing_bytes);
        // A point shortly before the next one would be of little use.
        let is_near = |next: u64| from.saturating_add(spacing_bytes / 2) > next;
        if self.next_after(at).is_some_and(is_near) || self.entries.len() >= POINTS_MAX {
            return None;
        }
        Some(Recording { from, spacing_bytes })
    }

    /// Counts a read that skips much of the stretch of `offset`; returns how many there were.
    pub(super) fn visit(&mut self, offset: u64) -> u8 {
        let after = self.entries.partition_point(|entry| entry.plain_offset <= offset);
        let given = self.given.offset_before(offset);
        let Some(entry) = after.checked_sub(1).map(|at| &mut self.entries[at]) else { return 0 };
        if given > Some(entry.plain_offset) {
            return 0;
        }
        entry.visits = entry.visits.saturating_add(1);
        entry.visits
    }

    /// Bytes of states as their decoders gave them.
    pub(super) fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    fn count(&mut self, state: &State) {
        self.held_bytes += state.held_bytes();
        self.raw_bytes += state.raw_bytes();
        self.unsaved += usize::from(!state.is_saved());
    }

    fn discount(&mut self, state: &State) {
        self.held_bytes -= state.held_bytes();
        self.raw_bytes -= state.raw_bytes();
        self.unsaved -= usize::from(!state.is_saved());
    }

    /// How long the file is that holds those that are saved, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Notes that points are in a file of so many bytes now.
    pub(super) fn is_saved_in(&mut self, file_bytes: u64) {
        (self.file_bytes, self.failed_at) = (file_bytes, 0);
    }

    /// Notes that they could not be saved.
    pub(super) fn is_not_saved(&mut self) {
        self.failed_at = self.unsaved;
    }

    /// How many there were not in a file when the last try to save them failed; 0 if it did not.
    pub(super) fn failed_at(&self) -> usize {
        self.failed_at
    }

    /// Points whose state is not in a file yet.
    pub(super) fn unsaved(&self) -> usize {
        self.unsaved
    }
}

/// How many of the `stored` bytes of a stretch are most likely needed for the first `wanted` of its `plain` bytes.
fn share(stored: u64, wanted: u64, plain: u64) -> u64 {
    let share = u128::from(stored) * u128::from(wanted.min(plain)) / u128::from(plain);
    (share as u64 + stored / SHARE_MARGIN).min(stored)
}

impl Entry {
    /// A point as the decoder of `pass` gave it.
    pub(super) fn raw(point: RestartPoint, pass: Pass) -> Self {
        Self { pass, ..Self::new(point.plain_offset, point.stored_bits, State::Raw(point.state)) }
    }

    /// A point of the metadata.
    pub(super) fn given(plain_offset: u64, stored_bits: u64, state: Arc<[u8]>) -> Self {
        Self { pass: Pass::GIVEN, ..Self::new(plain_offset, stored_bits, State::Given(state)) }
    }

    /// A point of an earlier run.
    pub(super) fn new(plain_offset: u64, stored_bits: u64, state: State) -> Self {
        Self { plain_offset, stored_bits, state, pass: Pass::EARLIER, visits: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(offsets: &[u64]) -> SeekIndex {
        let mut index = SeekIndex::default();
        for &plain_offset in offsets {
            let state = State::Raw(vec![0; 10].into());
            index.add(Entry::new(plain_offset, 8 * plain_offset, state));
        }
        index
    }

    fn offsets(index: &SeekIndex) -> Vec<u64> {
        index.entries().iter().map(|entry| entry.plain_offset).collect()
    }

    #[test]
    fn a_read_begins_at_the_last_point_before_it() {
        let index = index(&[300, 100, 0, 200, 100]);
        assert_eq!(offsets(&index), [100, 200, 300]);
        let starts = [0, 99, 100, 199, 200, 999].map(|offset| index.stretch_start(offset));
        assert_eq!(starts, [0, 0, 100, 100, 200, 300]);
        assert_eq!([0, 100, 300].map(|offset| index.next_after(offset)), [Some(100), Some(200), None]);
    }

    #[test]
    fn points_are_wanted_where_they_are_far_apart() {
        let index = index(&[100, 200, 800]);
        let from = |at| index.wanted(at, 100).map(|recording| recording.from);
        assert_eq!(from(0), None);
        assert_eq!(from(150), None);
        assert_eq!(from(250), Some(300));
        assert_eq!(from(800), Some(900));
        assert_eq!(index.wanted(150, 20).map(|recording| recording.from), Some(120));
    }

    #[test]
    fn a_decoder_needs_what_lies_before_the_next_point_at_most() {
        let mut index = index(&[100, 200, 300]);
        let needed = |index: &SeekIndex, at, end| {
            let entry = index.nearest(at).unwrap();
            let needed = index.needed(&entry, end, Codec::Zlib, (400, 450));
            needed.map(|needed| (needed.first_bytes, needed.until))
        };
        // As many stored bytes as plain ones.
        assert_eq!(needed(&index, 150, 150), Some((50 + 12, 200)));
        assert_eq!(needed(&index, 150, 199), Some((100, 200)));
        assert_eq!(needed(&index, 150, 999), Some((100, 200)));
        assert_eq!(needed(&index, 300, 350), None, "what follows is not known");
        index.reach(0, 400);
        assert_eq!(needed(&index, 300, 350), Some((75 + 18, 450)));
    }

    #[test]
    fn what_is_announced_lies_between_points() {
        let index = index(&[100, 200, 300]);
        let within = |range: Range<u64>| [false, true].map(|is_tiled| index.stored_within(&range, is_tiled));
        assert_eq!(within(150..310), [Some(200..300), Some(100..300)]);
        assert_eq!(within(100..200), [Some(100..200), Some(100..200)]);
        assert_eq!(within(120..180), [None, None]);
        assert_eq!(within(0..250), [Some(100..200), Some(0..200)]);
    }

    #[test]
    fn what_a_lost_point_led_to_is_known_again_once_it_was_decoded() {
        let mut index = index(&[100, 200, 300]);
        index.reach(0, 400);
        index.remove(200);
        assert_eq!(index.known_to(), 100);
        // Whoever begins behind it does not fill the gap.
        index.reach(300, 400);
        assert_eq!(index.known_to(), 100);
        index.reach(100, 300);
        index.reach(300, 400);
        assert_eq!(index.known_to(), 400);
    }

    #[test]
    fn memory_is_counted_through_all_changes() {
        let mut index = index(&[100, 200, 300, 400, 500]);
        assert_eq!((index.held_bytes(), index.unsaved()), (50, 5));
        index.replace_state(200, State::Packed(vec![0; 3].into()));
        index.replace_state(300, State::Saved(0));
        assert_eq!((index.held_bytes(), index.raw_bytes(), index.unsaved()), (33, 30, 4));
        index.remove(100);
        index.remove(101);
        assert_eq!(index.held_bytes(), 23);
        index.thin();
        assert_eq!((offsets(&index), index.held_bytes()), (vec![200, 300, 500], 13));
        index.clear();
        assert_eq!((index.held_bytes(), index.stretch_start(900)), (0, 0));
    }
}
