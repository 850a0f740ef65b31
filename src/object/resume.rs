//! A decoder at the right place: from the start, from where another one stopped, or from a restart point.
//!
//! Also the life of an object's restart points: found again when the object is first read, noted while it is decoded, packed
//! and saved in the background, and forgotten when they turn out to be wrong.
//!
//! Invariants: damage costs the stretch that it lies in, so wrong bytes are decoded again from the next point before them; points
//! of an earlier run are trusted until something they led to fails its digest even then. Then the bytes are decoded from the
//! object's start, once; if that helps the points are forgotten, if not they are not to blame.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::cursors::Cursor;
use super::indexing::{PACK_BYTES, key_of, point_of};
use super::seek_index::{Entry, State};
use super::turns::Turn;
use super::{ObjectReader, Passing, ReadFailure, STEP_BYTES};
use crate::cache_dir::seek_indexes::SavedIndex;
use crate::codec::RestartPoint;
use crate::error::Result;

/// Reads of a stretch that skip much of it, before points in it become denser.
const VISITS_BEFORE_DENSE: u8 = 2;

impl ObjectReader {
    /// Finds the points of an earlier run, the first time.
    pub(super) fn load_index_once(&self) {
        let codec = self.stream.codec();
        if self.indexing.spacing_bytes(codec, self.len_bytes).is_none() {
            return;
        }
        self.loaded.call_once(|| {
            let key = key_of(codec, self.len_bytes, &**self.stream.source());
            let key = key.inspect_err(|error| tracing::debug!(object = ?self.name, "no index: {error}")).ok();
            let _ = self.key.set(key);
            if let Some(saved) = key.and_then(|key| self.indexing.load(&key)) {
                self.adopt(saved, self.generation());
            }
        });
    }

    /// Takes over the points of an index file; `false` when points have been forgotten since generation `seen`.
    fn adopt(&self, saved: SavedIndex, seen: u64) -> bool {
        let mut traffic = self.turns.lock();
        if self.generation() != seen {
            return false;
        }
        let before = traffic.index.held_bytes();
        let in_old_file =
            traffic.index.entries().iter().filter(|entry| matches!(entry.state, State::Saved(_)));
        let mut gone: Vec<u64> = in_old_file.map(|entry| entry.plain_offset).collect();
        for (position, point) in saved.points().iter().enumerate() {
            let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
            if plain_offset >= self.len_bytes {
                break;
            }
            let state = State::Saved(position);
            if traffic.index.add(Entry::new(plain_offset, stored_bits, state.clone())) {
                // Not one that we noted ourselves.
                self.is_index_settled.store(false, Ordering::Release);
            } else {
                traffic.index.replace_state(plain_offset, state);
            }
        }
        gone.retain(|offset| {
            saved.points().binary_search_by_key(offset, |point| point.plain_offset).is_err()
        });
        gone.iter().for_each(|&offset| traffic.index.remove(offset));
        traffic.index.reach(0, saved.known_to().min(self.len_bytes));
        self.indexing.account(before, traffic.index.held_bytes());
        traffic.saved = Some(Arc::new(saved));
        true
    }

    /// Takes over what another reader of the same bytes knows. That it was given up says nothing against its points: behind
    /// damage, they are what makes the rest quick to read.
    pub(super) fn inherit(&self, other: &Self) {
        if other.stream.source().stat().version != self.stream.source().stat().version {
            return;
        }
        let other = {
            let traffic = other.turns.lock();
            if !other.loaded.is_completed() || traffic.index.entries().is_empty() {
                return;
            }
            let is_settled = other.is_index_settled.load(Ordering::Acquire);
            (traffic.index.clone(), traffic.saved.clone(), other.key.get().copied().flatten(), is_settled)
        };
        let (index, saved, key, is_settled) = other;
        self.loaded.call_once(|| {
            let _ = self.key.set(key);
            self.is_index_settled.store(is_settled, Ordering::Release);
            let mut traffic = self.turns.lock();
            self.indexing.account(0, index.held_bytes());
            (traffic.index, traffic.saved) = (index, saved);
        });
    }

    /// The decoder that is closest before `offset`, or at it. The caller has the turn for it.
    pub(super) fn cursor_before(&self, offset: u64) -> Result<Cursor> {
        loop {
            let (nearest, saved, generation, doubts) = {
                let traffic = self.turns.lock();
                let doubts = self.doubts.load(Ordering::Acquire);
                (traffic.index.nearest(offset).cloned(), traffic.saved.clone(), self.generation(), doubts)
            };
            let start = nearest.as_ref().map_or(0, |entry| entry.plain_offset);
            if let Some(cursor) = self.cursors.take(self.id, start..=offset) {
                if self.may_go_on(&cursor, start) {
                    return Ok(cursor);
                }
                continue;
            }
            let Some(entry) = nearest else {
                return Ok(Cursor {
                    at: 0,
                    decoder: self.stream.start()?,
                    noted_to: 0,
                    entered: 0,
                    recording: None,
                    generation,
                    doubts,
                });
            };
            let resumed = match point_of(&entry, saved.as_deref()) {
                Some(Ok(point)) => self.stream.resume(&point),
                Some(Err(error)) => Err(error),
                None => continue, // the file was exchanged meanwhile
            };
            match resumed {
                Ok(decoder) => {
                    let at = entry.plain_offset;
                    return Ok(Cursor {
                        at,
                        decoder,
                        noted_to: at,
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
        let points = cursor.decoder.take_points();
        let (is_current, wanted, raw_bytes) = turn.reach(cursor.at, |index| {
            let is_current = cursor.generation == self.generation();
            let before = index.held_bytes();
            if is_current {
                for point in points {
                    index.add(Entry::raw(point));
                }
                index.reach(cursor.noted_to, cursor.at);
            }
            self.indexing.account(before, index.held_bytes());
            (is_current, index.wanted(cursor.at, spacing), index.raw_bytes())
        });
        let has_room = self.indexing.has_room();
        cursor.noted_to = cursor.at;
        let wanted = wanted.filter(|_| is_current && has_room);
        if wanted != cursor.recording {
            cursor.decoder.record(wanted);
            cursor.recording = wanted;
        }
        // Many objects of few points each would else fill the memory for states with unpacked ones.
        let pack_at = if has_room { PACK_BYTES } else { 1 };
        if raw_bytes >= pack_at && !self.is_tidying.swap(true, Ordering::AcqRel) {
            let own = self.own.clone();
            let tidy = move || {
                if let Some(reader) = own.upgrade() {
                    reader.tidy();
                    reader.is_tidying.store(false, Ordering::Release);
                }
            };
            if !self.indexing.workers().submit(tidy) {
                self.is_tidying.store(false, Ordering::Release);
            }
        }
    }

    /// Packs new points, and saves them when there are enough.
    fn tidy(&self) {
        loop {
            let raw = {
                let traffic = self.turns.lock();
                let is_raw = |entry: &&Entry| matches!(entry.state, State::Raw(_));
                traffic.index.entries().iter().find(is_raw).cloned()
            };
            let Some(Entry { plain_offset, stored_bits, state: State::Raw(state), .. }) = raw else { break };
            let point = self.stream.pack(RestartPoint { plain_offset, stored_bits, state });
            self.change_index(|index| index.replace_state(plain_offset, State::Packed(point.state)));
        }
        let is_worth_saving = self.indexing.is_worth_saving(&self.turns.lock().index, false);
        if is_worth_saving {
            self.save();
        }
        if !self.indexing.has_room() {
            // There is no file for them, so fewer must do.
            self.change_index(super::seek_index::SeekIndex::thin);
        }
    }

    /// Saves the restart points that are not saved yet.
    pub fn keep_index(&self) {
        let is_worth_saving = {
            let traffic = self.turns.lock();
            let (index, saved) = (&traffic.index, traffic.saved.as_deref());
            // That all is known is worth a file, also when there are no further points, or it would be looked for again.
            let is_news = index.known_to() >= self.len_bytes
                && saved.is_none_or(|saved| saved.known_to() < self.len_bytes);
            self.indexing.is_worth_saving(index, true) || is_news
        };
        if is_worth_saving {
            self.save();
        }
    }

    fn save(&self) {
        let Some(key) = self.key.get().copied().flatten() else { return };
        let (entries, saved, known_to, generation) = {
            let traffic = self.turns.lock();
            let index = &traffic.index;
            (index.entries().to_vec(), traffic.saved.clone(), index.known_to(), self.generation())
        };
        match self.indexing.save(&key, known_to, &entries, saved.as_deref(), &self.stream) {
            Some(Ok(saved)) => {
                let is_of_use = self.adopt(saved, generation);
                if !is_of_use {
                    self.indexing.forget(&key);
                }
            }
            None => {}
            Some(Err(error)) => tracing::debug!(object = ?self.name, "restart points are not saved: {error}"),
        }
    }

    /// Changes the index outside a turn.
    fn change_index(&self, change: impl FnOnce(&mut super::seek_index::SeekIndex)) {
        let mut traffic = self.turns.lock();
        let before = traffic.index.held_bytes();
        change(&mut traffic.index);
        self.indexing.account(before, traffic.index.held_bytes());
    }

    /// Changes whenever restart points have been found wrong. Bytes that were read before may be wrong because of them.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Begins a second look at bytes that were wrong when they were read at generation `seen`. Waits until nobody else looks
    /// at this object: what he finds out decides whether there is anything to be gained.
    pub fn look_again(&self, seen: u64) -> SecondLook<'_> {
        let alone = self.looking_again.lock().unwrap_or_else(PoisonError::into_inner);
        let is_outdated = self.generation() != seen;
        let suspects_points = !is_outdated && !self.is_index_settled.load(Ordering::Acquire);
        SecondLook { reader: self, is_outdated, suspects_points, _alone: alone }
    }

    /// Reads past all restart points, from the object's start.
    fn read_from_start(&self, out: &mut [u8], offset: u64) -> Result<()> {
        tracing::debug!(object = ?self.name, offset, "wrong bytes: decoding from the start, without restart points");
        let mut decoder = self.stream.start()?;
        let mut at = 0;
        let mut step = vec![0; STEP_BYTES.min(offset) as usize];
        while at < offset {
            let most = STEP_BYTES.min(offset - at) as usize;
            at += match decoder.read(&mut step[..most])? {
                0 => return Err(self.ends_early(at)),
                n => n as u64,
            };
        }
        let mut filled = 0;
        while filled < out.len() {
            filled += match decoder.read(&mut out[filled..])? {
                0 => return Err(self.ends_early(at + filled as u64)),
                n => n,
            };
        }
        Ok(())
    }

    /// Forgets all restart points and what was decoded from them: they are not those of this object.
    fn forget_index(&self) {
        tracing::warn!(object = ?self.name, "its saved restart points were wrong, and are forgotten");
        let mut traffic = self.turns.lock();
        // All at once: whoever sees the new generation sees nothing of the old one.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.indexing.account(traffic.index.held_bytes(), 0);
        traffic.index.clear();
        traffic.saved = None;
        self.failures.clear();
        self.lost_stretches.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.is_index_settled.store(true, Ordering::Release);
        drop(traffic);
        self.cursors.drop_all_of(self.id);
        if let Some(key) = self.key.get().copied().flatten() {
            self.indexing.forget(&key);
        }
    }

    /// Reads all plain bytes in order, noting restart points.
    pub fn whole(&self) -> Result<Whole<'_>> {
        self.load_index_once();
        let turn = self.turns.enter(0..1, super::Urgency::Wanted);
        let cursor = Cursor {
            at: 0,
            decoder: self.stream.start()?,
            noted_to: 0,
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
        if known_to < self.len_bytes {
            // Not past the next point: the decoder would begin there.
            let next = self.turns.lock().index.next_after(known_to).unwrap_or(u64::MAX);
            let target = (known_to + EXPLORED_AT_ONCE).min(self.len_bytes).min(next);
            self.read_at(&mut [0], target - 1, &mut Exploring).map_err(|failure| failure.error)?;
        }
        Ok(self.known_to())
    }
}

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
        if before / STEP_BYTES != self.cursor.at / STEP_BYTES || before == 0 {
            self.reader.steer(&self.turn, &mut self.cursor, self.spacing);
        }
        Ok(n)
    }
}

/// A second look at wrong bytes of one object, see [`ObjectReader::look_again`]. Nobody else looks at it meanwhile.
pub struct SecondLook<'a> {
    reader: &'a ObjectReader,
    /// The points that may have led astray are forgotten already.
    is_outdated: bool,
    /// Points of an earlier run may have led astray.
    suspects_points: bool,
    _alone: MutexGuard<'a, ()>,
}

impl SecondLook<'_> {
    /// Of which object.
    pub fn object(&self) -> &ObjectReader {
        self.reader
    }

    /// Whether the bytes may be others this time.
    pub fn may_help(&self) -> bool {
        self.is_outdated || self.suspects_points
    }

    /// Whether decoding from the next restart point before `offset` may give other bytes: somebody else's decoder may have run
    /// through damage before that point, and be off ever since. `false` once that was tried for a block of the same stretch.
    pub fn may_enter_anew(&self, offset: u64) -> bool {
        let start = self.reader.turns.lock().index.stretch_start(offset);
        start > 0 && !self.lost_stretches().contains(&start)
    }

    /// Reads the bytes again from the next restart point before them.
    pub fn read_anew(&self, out: &mut [u8], offset: u64) -> Result<(), ReadFailure> {
        self.reader.read_at(out, offset, &mut super::NothingElse).map(drop)
    }

    /// Tells that [`read_anew`](Self::read_anew) did not help.
    pub fn is_lost_from(&self, offset: u64) {
        let start = self.reader.turns.lock().index.stretch_start(offset);
        self.lost_stretches().insert(start);
    }

    fn lost_stretches(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.reader.lost_stretches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the bytes again, without the points that are suspected.
    pub fn read_at(&mut self, out: &mut [u8], offset: u64) -> Result<(), ReadFailure> {
        if !self.suspects_points {
            return self.reader.read_at(out, offset, &mut super::NothingElse).map(drop);
        }
        self.reader.read_from_start(out, offset).map_err(|error| {
            // A store that does not answer says nothing about the points.
            self.suspects_points &= error.kind().is_damage();
            ReadFailure { filled: 0, error }
        })
    }

    /// Ends the look. Were the bytes right this time, the points that were suspected are to blame and forgotten; were they
    /// wrong again, the points are not to blame.
    pub fn end(self, is_right: bool) {
        if self.suspects_points && is_right {
            self.reader.forget_index();
        } else if self.suspects_points {
            self.reader.is_index_settled.store(true, Ordering::Release);
        }
    }
}
