//! A decoder at the right place: from the start, from where another one stopped, or from a restart point.
//!
//! Also the life of an object's restart points: found again when the object is first read, noted while it is decoded, packed
//! and saved in the background. [`second_look`](super::second_look) has what happens when they turn out to be wrong.
//!
//! Invariants: an index never claims to know what points were lost of; a point that cannot be used costs time only.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use super::cursors::Cursor;
use super::given::Given;
use super::holders::MakingRoom;
use super::indexing::{PACK_BYTES, key_of, point_of};
use super::passes::Pass;
use super::seek_index::{Entry, SeekIndex, State};
use super::turns::Turn;
use super::{ObjectReader, Passing, STEP_BYTES};
use crate::cache_dir::seek_indexes::{SavedIndex, SeekIndexKey};
use crate::codec::{Codec, RestartPoint};
use crate::error::{Error, ErrorKind, Result};

/// Reads of a stretch that skip much of it, before points in it become denser.
const VISITS_BEFORE_DENSE: u8 = 2;

/// The only job that packs and saves an object's points; whatever becomes of the job, the next one may begin when it is dropped.
struct Tidying(Weak<ObjectReader>);

impl Drop for Tidying {
    fn drop(&mut self) {
        if let Some(reader) = self.0.upgrade() {
            reader.is_tidying.store(false, Ordering::Release);
        }
    }
}

impl ObjectReader {
    /// Finds the points that the metadata tells, and those of an earlier run, the first time.
    pub(super) fn load_index_once(&self) {
        self.loaded.call_once(|| {
            self.take_given();
            self.load_index();
        });
    }

    /// Takes over what the metadata tells.
    fn take_given(&self) {
        let Some(text) = &self.points else { return };
        let state = match self.stream.state_of_nothing() {
            Ok(state) => state,
            Err(error) => {
                tracing::debug!(object = ?self.name, "restart points of the metadata are of no use: {error}");
                return;
            }
        };
        let stored_bytes = self.stream.source().stat().len_bytes;
        let given = Given::read(text, self.len_bytes, stored_bytes, state);
        let dense_bytes = self.indexing.dense_bytes(self.stream.codec());
        self.turns.lock().index.give(given, self.len_bytes, dense_bytes);
    }

    /// Finds the points of an earlier run, unless enough are known.
    pub(super) fn load_index(&self) {
        let codec = self.stream.codec();
        let needs_none = self.indexing.spacing_bytes(codec, self.len_bytes).is_none();
        if needs_none || self.turns.lock().index.known_to() >= self.len_bytes || self.key.get().is_some() {
            return;
        }
        let key = key_of(codec, self.len_bytes, &**self.stream.source());
        let key = key.inspect_err(|error| tracing::debug!(object = ?self.name, "no index: {error}")).ok();
        let _ = self.key.set(key);
        if let Some(saved) = key.and_then(|key| self.indexing.load(&key)) {
            self.adopt(saved, self.generation());
        }
    }

    /// Takes over the points of an index file; `false` when points have been forgotten since generation `seen`.
    fn adopt(&self, saved: SavedIndex, seen: u64) -> bool {
        let mut traffic = self.turns.lock();
        if self.generation() != seen {
            return false;
        }
        let before = traffic.index.held_bytes();
        let in_old_file = traffic.index.entries().iter().filter(|entry| entry.state.is_saved());
        let mut gone: Vec<u64> = in_old_file.map(|entry| entry.plain_offset).collect();
        for (position, point) in saved.points().iter().enumerate() {
            let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
            if plain_offset >= self.len_bytes {
                break;
            }
            let state = State::Saved(position);
            let is_same =
                |known: Entry| (known.plain_offset, known.stored_bits) == (plain_offset, stored_bits);
            if traffic.index.nearest(plain_offset).is_some_and(is_same) {
                traffic.index.replace_state(plain_offset, state);
            } else {
                // Not one that we noted ourselves.
                traffic.index.add(Entry::new(plain_offset, stored_bits, state));
            }
        }
        gone.retain(|offset| {
            saved.points().binary_search_by_key(offset, |point| point.plain_offset).is_err()
        });
        gone.iter().for_each(|&offset| traffic.index.remove(offset));
        traffic.index.reach(0, saved.known_to().min(self.len_bytes));
        self.indexing.account(before, traffic.index.held_bytes());
        traffic.index.is_saved_in(saved.file_bytes());
        traffic.saved = Some(Arc::new(saved));
        true
    }

    /// Takes over what another reader of the same bytes knows. That it was given up says nothing against its points: behind
    /// damage, they are what makes the rest quick to read.
    pub(super) fn inherit(&self, other: &Self) {
        if other.stream.source().stat().version != self.stream.source().stat().version {
            return;
        }
        // Whoever is still looking behind the damage is not waited for.
        let rest = other.rescued.try_lock().ok().and_then(|rest| *rest);
        *self.rescued.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        let other = {
            let traffic = other.turns.lock();
            if !other.loaded.is_completed() || traffic.index.is_empty() {
                return;
            }
            let verdicts = other.verdicts().inherited();
            (traffic.index.clone(), traffic.saved.clone(), other.key.get().copied().flatten(), verdicts)
        };
        let (index, saved, key, verdicts) = other;
        self.loaded.call_once(|| {
            if key.is_some() {
                let _ = self.key.set(key);
            }
            *self.verdicts() = verdicts;
            let mut traffic = self.turns.lock();
            self.indexing.account(0, index.held_bytes());
            self.is_on_the_list(index.held_bytes());
            (traffic.index, traffic.saved) = (index, saved);
        });
    }

    /// The decoder that is closest before `offset`, or at it, for a reader that wants the bytes up to `end`. The caller has the turn
    /// for it.
    pub(super) fn cursor_before(&self, offset: u64, end: u64) -> Result<Cursor> {
        loop {
            let (nearest, needed, saved, generation, doubts) = {
                let traffic = self.turns.lock();
                let nearest = traffic.index.nearest(offset);
                let lens = (self.len_bytes, self.stream.source().stat().len_bytes);
                let start = Entry::new(0, 0, State::Raw(Arc::new([])));
                let entry = nearest.as_ref().unwrap_or(&start);
                let needed = traffic.index.needed(entry, end, self.stream.codec(), lens);
                let doubts = self.doubts.load(Ordering::Acquire);
                (nearest, needed, traffic.saved.clone(), self.generation(), doubts)
            };
            let start = nearest.as_ref().map_or(0, |entry| entry.plain_offset);
            // Whoever begins at such a point knows how much it needs; who came from before it has nothing more to offer.
            let is_at_point = self.is_fresh_at(nearest.as_ref(), offset);
            if let Some(cursor) = (!is_at_point).then(|| self.cursors.take(self.id, start..=offset)).flatten()
            {
                if self.may_go_on(&cursor, start) {
                    return Ok(cursor);
                }
                continue;
            }
            let Some(entry) = nearest else {
                return Ok(Cursor {
                    at: 0,
                    decoder: self.stream.start_for(needed)?,
                    noted_to: Some(0),
                    pass: Pass::new(),
                    entered: 0,
                    recording: None,
                    generation,
                    doubts,
                });
            };
            let resumed = match point_of(&entry, saved.as_deref()) {
                Some(Ok(point)) => self.stream.resume_for(&point, needed),
                Some(Err(error)) => Err(error),
                None => continue, // the file was exchanged meanwhile
            };
            match resumed {
                Ok(decoder) => {
                    let at = entry.plain_offset;
                    return Ok(Cursor {
                        at,
                        decoder,
                        noted_to: Some(at),
                        pass: Pass::new(),
                        entered: at,
                        recording: None,
                        generation,
                        doubts,
                    });
                }
                Err(error) => {
                    let offset = entry.plain_offset;
                    tracing::debug!(object = ?self.name, offset, "a restart point is of no use: {error}");
                    self.change_index(|index| index.remove(offset));
                }
            }
        }
    }

    /// Whether `nearest` is a point of the metadata at `offset` itself, where a new decoder is as good as any. Those of bz2 are not: who
    /// has come far in order has blocks decoded ahead.
    pub(super) fn is_fresh_at(&self, nearest: Option<&Entry>, offset: u64) -> bool {
        let is_at = |entry: &Entry| entry.pass == Pass::GIVEN && entry.plain_offset == offset;
        self.stream.codec() != Codec::Bz2 && nearest.is_some_and(is_at)
    }

    /// Whether what a decoder gives from here on is worth as much as what one that begins at `start` gives. Since bytes of the
    /// object were wrong, those that began before may have come through damage.
    fn may_go_on(&self, cursor: &Cursor, start: u64) -> bool {
        let is_doubtful = cursor.doubts != self.doubts.load(Ordering::Acquire);
        cursor.generation == self.generation() && (!is_doubtful || cursor.entered >= start)
    }

    /// How far apart points should be on the way of a decoder from `at` to `offset`.
    pub(super) fn spacing_for(&self, at: u64, offset: u64) -> Option<u64> {
        let codec = self.stream.codec();
        let usual = self.indexing.spacing_bytes(codec, self.len_bytes)?;
        let Some(dense) = codec.dense_spacing_bytes().filter(|dense| offset - at > *dense && *dense < usual)
        else {
            return Some(usual);
        };
        let mut traffic = self.turns.lock();
        let is_inside = traffic.index.next_after(at).is_some();
        let come_back = is_inside && traffic.index.visit(at) > VISITS_BEFORE_DENSE;
        Some(if come_back { dense } else { usual })
    }

    /// Takes the points that were noted up to here, lets those go on who wait for them, and says what is to be noted next.
    pub(super) fn steer(&self, turn: &Turn<'_>, cursor: &mut Cursor, spacing: Option<u64>) {
        let Some(spacing) = spacing else {
            turn.reach(cursor.at, |_| ());
            return;
        };
        let (points, followed) = (cursor.decoder.take_points(), cursor.decoder.take_followed());
        let (is_current, wanted, held_bytes, is_due) = turn.reach(cursor.at, |index| {
            let is_current = cursor.generation == self.generation();
            let before = index.held_bytes();
            if is_current {
                for point in points {
                    index.add(Entry::raw(point, cursor.pass));
                }
                for point in followed {
                    index.follow(point, cursor.pass);
                }
                if let Some(from) = cursor.noted_to {
                    index.reach(from, cursor.at);
                }
            }
            self.indexing.account(before, index.held_bytes());
            // Points of bz2 have no states to be packed, but are worth saving all the same.
            let is_due = index.raw_bytes() >= PACK_BYTES || self.indexing.is_worth_saving(index, false);
            (is_current, index.wanted(cursor.at, spacing), index.held_bytes(), is_due)
        });
        self.is_on_the_list(held_bytes);
        let has_room = self.indexing.has_room();
        let may_note = is_current && has_room;
        // What is passed without noting the points that are wanted there must be decoded again to know them.
        cursor.noted_to = (wanted.is_none() || may_note).then_some(cursor.at);
        let wanted = wanted.filter(|wanted| may_note && wanted.from < self.len_bytes);
        if wanted != cursor.recording {
            cursor.decoder.record(wanted);
            cursor.recording = wanted;
        }
        if self.indexing.needs_room() {
            // Many objects of few points each, most of them idle by now, may have filled the memory for states.
            if let Some(making) = MakingRoom::begin(&self.indexing) {
                self.indexing.workers().submit(move || making.run());
            }
        }
        if is_due && !self.is_tidying.swap(true, Ordering::AcqRel) {
            let tidying = Tidying(self.own.clone());
            self.indexing.workers().submit(move || {
                if let Some(reader) = tidying.0.upgrade() {
                    reader.tidy(false);
                }
            });
        }
    }

    /// Puts it on the list of those whose states take memory, once.
    fn is_on_the_list(&self, held_bytes: usize) {
        if held_bytes > 0
            && !self.is_holder.load(Ordering::Relaxed)
            && !self.is_holder.swap(true, Ordering::AcqRel)
        {
            self.indexing.holders().add(self.own.clone());
        }
    }

    /// Bytes of states in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.turns.lock().index.held_bytes()
    }

    /// Packs new points, and saves them when there are enough, or (`all`) in any case.
    pub(super) fn tidy(&self, all: bool) {
        loop {
            let raw = {
                let traffic = self.turns.lock();
                let is_raw = |entry: &&Entry| matches!(&entry.state, State::Raw(state) if !state.is_empty());
                traffic.index.entries().iter().find(is_raw).cloned()
            };
            let Some(Entry { plain_offset, stored_bits, state: State::Raw(state), .. }) = raw else { break };
            let point = self.stream.pack(RestartPoint { plain_offset, stored_bits, state });
            self.change_index(|index| index.replace_state(plain_offset, State::Packed(point.state)));
        }
        let is_worth_saving = self.indexing.is_worth_saving(&self.turns.lock().index, all);
        if is_worth_saving {
            self.save();
        }
    }

    /// Forgets every other point whose state is in memory.
    pub(super) fn thin(&self) {
        self.change_index(SeekIndex::thin);
    }

    /// Saves the restart points that are not saved yet.
    pub fn keep_index(&self) {
        if self.has_news() {
            self.save();
        }
    }

    /// Saves them in the background, if there is time for it: whoever drives an object out of the pool waits for another one.
    pub(super) fn retire(self: Arc<Self>) {
        if self.has_news() {
            let workers = self.indexing.workers().clone();
            // When too much is to be done already, it is saved right here, as it is dropped.
            workers.submit(move || self.keep_index());
        }
    }

    /// Whether something is known that no file has.
    fn has_news(&self) -> bool {
        let traffic = self.turns.lock();
        let (index, saved) = (&traffic.index, traffic.saved.as_deref());
        // That all is known is worth a file, also when there are no further points, or it would be looked for again.
        let is_complete =
            index.known_to() >= self.len_bytes && saved.is_none_or(|saved| saved.known_to() < self.len_bytes);
        self.indexing.is_worth_saving(index, true) || is_complete
    }

    fn save(&self) {
        let Some(key) = self.key.get().copied().flatten() else { return };
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let (entries, saved, known_to, generation) = {
            let traffic = self.turns.lock();
            let index = &traffic.index;
            (index.all(), traffic.saved.clone(), index.known_to(), self.generation())
        };
        match self.indexing.save(&key, known_to, &entries, saved.as_deref(), &self.stream) {
            Some(Ok(saved)) => {
                let is_of_use = self.adopt(saved, generation);
                if !is_of_use {
                    self.take_back(&key, &entries);
                }
            }
            None => {}
            Some(Err(error)) => {
                self.change_index(SeekIndex::is_not_saved);
                tracing::debug!(object = ?self.name, "restart points are not saved: {error}");
            }
        }
    }

    /// Takes those of `entries` out of the file that have been forgotten while they were saved.
    fn take_back(&self, key: &SeekIndexKey, entries: &[Entry]) {
        let now: Vec<u64> = self.turns.lock().index.all().iter().map(|entry| entry.plain_offset).collect();
        let was_saved = |at: &u64| entries.binary_search_by_key(at, |entry| entry.plain_offset).is_ok();
        let is_there = |at: &u64| now.binary_search(at).is_ok();
        self.indexing
            .keep_some(key, &mut |point| !was_saved(&point.plain_offset) || is_there(&point.plain_offset));
    }

    /// Changes the index outside a turn.
    pub(super) fn change_index(&self, change: impl FnOnce(&mut SeekIndex)) {
        let mut traffic = self.turns.lock();
        let before = traffic.index.held_bytes();
        change(&mut traffic.index);
        self.indexing.account(before, traffic.index.held_bytes());
    }

    /// Reads all plain bytes in order, noting restart points.
    pub fn whole(&self) -> Result<Whole<'_>> {
        self.load_index_once();
        let turn = self.turns.enter(0..1, super::Urgency::Wanted);
        let cursor = Cursor {
            at: 0,
            decoder: self.stream.start()?,
            noted_to: Some(0),
            pass: Pass::new(),
            entered: 0,
            recording: None,
            generation: self.generation(),
            doubts: self.doubts.load(Ordering::Acquire),
        };
        let spacing = self.spacing_for(0, 0);
        Ok(Whole { reader: self, turn, cursor, spacing })
    }

    /// The first restart point behind a plain offset. What lies on either side of it is best read by itself.
    pub fn border_after(&self, offset: u64) -> Option<u64> {
        self.load_index_once();
        self.turns.lock().index.next_after(offset)
    }

    /// Plain offset, in bytes, up to which restart points are known; all of an object that needs none.
    pub fn known_to(&self) -> u64 {
        self.load_index_once();
        if self.indexing.spacing_bytes(self.stream.codec(), self.len_bytes).is_none() {
            return self.len_bytes;
        }
        self.turns.lock().index.known_to()
    }

    /// Decodes some of what has not been decoded yet, for its restart points alone; returns how far they are known then, in
    /// plain bytes. To be called again until that is the object's length.
    pub fn explore(&self) -> Result<u64> {
        let known_to = self.known_to();
        for _ in 0..EXPLORED_AGAIN {
            if self.known_to() != known_to || known_to >= self.len_bytes {
                break;
            }
            // Nobody waits for it, so room is made right here; and if there is none, the run must end all the same.
            if let Some(making) =
                (!self.indexing.has_room()).then(|| MakingRoom::begin(&self.indexing)).flatten()
            {
                making.run();
            }
            // Not past the next point: the decoder would begin there.
            let next = self.turns.lock().index.next_after(known_to).unwrap_or(u64::MAX);
            let target = known_to.saturating_add(EXPLORED_AT_ONCE).min(self.len_bytes).min(next);
            self.read_at(&mut [0], target - 1, &mut Exploring).map_err(|failure| failure.error)?;
        }
        let now = self.known_to();
        if now == known_to && now < self.len_bytes {
            let message = format!("there is no memory for its restart points behind plain offset {now}");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        Ok(now)
    }
}

/// How often the same place is explored when that leads nowhere: an idle decoder behind the place, or somebody who fills the
/// memory for states, may be in the way once or twice.
const EXPLORED_AGAIN: usize = 5;

/// Decoded at once by [`ObjectReader::explore`], in bytes: a fraction of a second.
const EXPLORED_AT_ONCE: u64 = 32 << 20;

/// Nobody waits for what is explored.
struct Exploring;

impl Passing for Exploring {
    fn urgency(&self) -> super::Urgency {
        super::Urgency::Ahead
    }
}

/// A pass over all plain bytes of an object.
pub struct Whole<'a> {
    reader: &'a ObjectReader,
    turn: Turn<'a>,
    cursor: Cursor,
    spacing: Option<u64>,
}

impl Whole<'_> {
    /// As [`Decoder::read`](crate::codec::Decoder::read).
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = self.cursor.decoder.read(out)?;
        let before = self.cursor.at;
        self.cursor.at += n as u64;
        if before / STEP_BYTES != self.cursor.at / STEP_BYTES || before == 0 || n == 0 {
            self.reader.steer(&self.turn, &mut self.cursor, self.spacing);
        }
        Ok(n)
    }
}
