//! Wrong bytes, looked at again: is the object damaged, did a restart point lead astray, or was it read wrong for once?
//!
//! Three questions, each asked once for a stretch:
//! 1. Are they right when they are decoded anew from the next point before them? Then whoever decoded them before had read
//!    something else, and the points that he noted behind are forgotten with what they led to.
//! 2. Are they right when they are decoded past that point: from the object's start? Then the point is to blame, and with it all
//!    that came from the same place: the file of an earlier run, or the rest of one pass, and what later passes noted. Of the points
//!    that the metadata tells each stands for itself, until too many were wrong.
//! 3. If not, the object is damaged there. Decoding from the start tells nothing of what lies behind damage, so from now on
//!    points behind it are compared with the point before each of them instead, which costs a stretch.
//!
//! Invariants: damage costs the stretch that it lies in, and no point before it; how often an object is decoded from its start in
//! vain is bounded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::indexing::point_of;
use super::passes::Pass;
use super::seek_index::Entry;
use super::{ObjectReader, ReadFailure, STEP_BYTES};
use crate::codec::Decoder;
use crate::error::{Error, ErrorKind, Result};

/// How often one object is decoded from its start without the bytes being right then. Each time only what lies before the
/// damage that was met so far is decoded, so that few are enough for many damaged places.
const IN_VAIN_MAX: u32 = 16;

/// Bytes that lie further than this from the object's start are not decoded anew from there only because they were wrong.
/// Without restart points that would be most of an object.
const ANEW_FROM_START_BYTES: u64 = 64 << 20;

/// What second looks have found out about one object.
#[derive(Default)]
pub(super) struct Verdicts {
    /// Where stretches begin whose bytes stay wrong when they are decoded from there.
    lost: BTreeSet<u64>,
    /// Where stretches begin whose point is not to blame, as far as can be told.
    blameless: BTreeSet<u64>,
    /// Bytes from here on are wrong or out of reach for a decoder from the object's start.
    start_fails_from: Option<u64>,
    in_vain: u32,
}

impl Verdicts {
    /// For another reader of the same bytes. It looks for itself where they are lost, but not from the start.
    pub(super) fn inherited(&self) -> Self {
        Self { start_fails_from: self.start_fails_from, in_vain: self.in_vain, ..Self::default() }
    }
}

impl ObjectReader {
    /// Changes whenever restart points have been found wrong, or stored bytes are asked for again. Bytes that were read before may be wrong
    /// because of them.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Begins a second look at bytes that were wrong when they were read at generation `seen`. Waits until nobody else looks
    /// at this object: what he finds out decides whether there is anything to be gained.
    pub fn look_again(&self, seen: u64) -> SecondLook<'_> {
        let alone = self.looking_again.lock().unwrap_or_else(PoisonError::into_inner);
        let is_outdated = self.generation() != seen;
        let (asked, anew) = (Cell::new(None), RefCell::default());
        let was_anew_wrong = Cell::new(false);
        SecondLook { reader: self, is_outdated, asked, was_anew_wrong, anew, bypass: None, _alone: alone }
    }

    pub(super) fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How bytes at `offset` may be read past the point before them; `None` when that would tell nothing new.
    fn way_past(&self, offset: u64) -> Option<Bypass> {
        let (suspect, before) = {
            let traffic = self.turns.lock();
            let suspect = traffic.index.nearest(offset)?;
            (suspect.clone(), traffic.index.nearest(suspect.plain_offset - 1))
        };
        let verdicts = self.verdicts();
        if verdicts.blameless.contains(&suspect.plain_offset) {
            return None;
        }
        let is_start_good = verdicts.in_vain < IN_VAIN_MAX
            && verdicts.start_fails_from.is_none_or(|fails_from| offset < fails_from);
        let before = before.filter(|before| !verdicts.lost.contains(&before.plain_offset));
        let from = if is_start_good { From::Start } else { From::Point(before?) };
        Some(Bypass { suspect, from, is_verdict: true })
    }

    /// Decodes bytes with a decoder of its own. The error is at the plain offset that is told with it.
    fn decode_from(&self, from: &From, out: &mut [u8], offset: u64) -> Result<(), (u64, Error)> {
        let (mut decoder, mut at) = self.decoder_from(from).map_err(|error| (0, error))?;
        tracing::debug!(object = ?self.name, offset, at, "wrong bytes: decoding past the restart point before them");
        let mut step = vec![0; STEP_BYTES.min(offset - at) as usize];
        while at < offset {
            let most = STEP_BYTES.min(offset - at) as usize;
            at += match decoder.read(&mut step[..most]) {
                Ok(0) => return Err((at, self.ends_early(at))),
                Ok(n) => n as u64,
                Err(error) => return Err((at, error)),
            };
        }
        let mut filled = 0;
        while filled < out.len() {
            let at = offset + filled as u64;
            filled += match decoder.read(&mut out[filled..]) {
                Ok(0) => return Err((at, self.ends_early(at))),
                Ok(n) => n,
                Err(error) => return Err((at, error)),
            };
        }
        Ok(())
    }

    fn decoder_from(&self, from: &From) -> Result<(Box<dyn Decoder>, u64)> {
        let From::Point(entry) = from else { return Ok((self.stream.start()?, 0)) };
        let saved = self.turns.lock().saved.clone();
        let gone = || Error::new(ErrorKind::NoData, "the restart point is no longer there");
        let point = point_of(entry, saved.as_deref()).ok_or_else(gone)??;
        Ok((self.stream.resume(&point)?, entry.plain_offset))
    }

    /// Forgets the points that `is_wrong` picks, and what was decoded from them.
    fn forget(&self, is_wrong: &dyn Fn(&Entry) -> bool) {
        let mut traffic = self.turns.lock();
        let wrong: Vec<Entry> = traffic.index.all().into_iter().filter(is_wrong).collect();
        // All at once: whoever sees the new generation sees nothing of the old one.
        self.generation.fetch_add(1, Ordering::AcqRel);
        let before = traffic.index.held_bytes();
        if wrong.iter().filter(|entry| entry.pass == Pass::GIVEN).count() > 1 {
            traffic.index.forget_given();
        }
        wrong.iter().for_each(|entry| traffic.index.remove(entry.plain_offset));
        let is_all = !wrong.is_empty() && traffic.index.is_empty();
        if is_all {
            traffic.index.clear();
            traffic.saved = None;
        }
        self.indexing.account(before, traffic.index.held_bytes());
        self.failures.clear();
        {
            let mut verdicts = self.verdicts();
            verdicts.lost.clear();
            verdicts.blameless.clear();
        }
        drop(traffic);
        self.cursors.drop_all_of(self.id);
        let Some(key) = self.key.get().copied().flatten() else { return };
        if is_all {
            self.indexing.forget(&key);
        } else if wrong.iter().any(|entry| entry.state.is_saved() || entry.pass == Pass::GIVEN) {
            let places: BTreeSet<_> =
                wrong.iter().map(|entry| (entry.plain_offset, entry.stored_bits)).collect();
            self.indexing
                .keep_some(&key, &mut |point| !places.contains(&(point.plain_offset, point.stored_bits)));
        }
    }

    /// Forgets what was made of stored bytes that the store is asked for again: where a network changed a byte, the stream broke, or did not, and
    /// its rest was looked for, for that reason only.
    fn forget_what_came(&self) {
        {
            let _traffic = self.turns.lock();
            // Who has a decoder in hand does not give it back, and what he finds out is not noted.
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.failures.clear();
        }
        *self.rescued.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.stream.forget_decoded();
        self.cursors.drop_all_of(self.id);
    }

    /// Forgets what `pass` noted behind the point before `offset`: it has been found good since.
    fn forget_pass(&self, pass: Pass, offset: u64) {
        let start = self.turns.lock().index.stretch_start(offset);
        tracing::debug!(object = ?self.name, offset, "read wrong for once: what was noted on the way is forgotten");
        // Later passes may have begun at its points.
        self.forget(&|entry| entry.plain_offset > start && entry.pass >= pass);
    }

    /// Forgets a point that led astray, and what came with it.
    fn blame(&self, bypass: &Bypass) {
        let Bypass { suspect, from, .. } = bypass;
        let at = suspect.plain_offset;
        tracing::warn!(object = ?self.name, at, "restart points were wrong, and are forgotten");
        let are_too_many = suspect.pass == Pass::GIVEN && self.turns.lock().index.refute();
        // With it go those of later passes, which may have begun there and be as wrong.
        self.forget(&|entry| match (suspect.pass, from) {
            // Each of the metadata's stands for itself, as far as there are good ones.
            (Pass::GIVEN, _) if entry.pass == Pass::GIVEN => are_too_many || entry.plain_offset == at,
            (Pass::GIVEN, _) => entry.plain_offset > at && entry.pass > Pass::EARLIER,
            // Perhaps a file of another object.
            (Pass::EARLIER, From::Start) => entry.pass >= Pass::EARLIER,
            // The point before it was right, so it is not.
            (Pass::EARLIER, From::Point(_)) => {
                entry.plain_offset == at || (entry.plain_offset > at && entry.pass > Pass::EARLIER)
            }
            // Whatever went wrong on that way, it went wrong before this point.
            (pass, _) => entry.plain_offset >= at && entry.pass >= pass,
        });
        if are_too_many {
            self.load_index();
        }
    }
}

/// Where to begin instead.
#[derive(Debug)]
enum From {
    Start,
    Point(Entry),
}

/// A way past a point.
#[derive(Debug)]
struct Bypass {
    suspect: Entry,
    from: From,
    /// Whether the outcome says something about the point.
    is_verdict: bool,
}

/// A second look at wrong bytes of one object, see [`ObjectReader::look_again`]. Nobody else looks at it meanwhile.
pub struct SecondLook<'a> {
    reader: &'a ObjectReader,
    /// The points that may have led astray are forgotten already.
    is_outdated: bool,
    /// The bytes that are looked at, once known.
    asked: Cell<Option<u64>>,
    /// They were decoded anew in this look already, and wrong.
    was_anew_wrong: Cell<bool>,
    /// Bytes that were decoded anew and not found wrong, and who gave them before.
    anew: RefCell<Option<(u64, Option<Pass>)>>,
    bypass: Option<Bypass>,
    _alone: MutexGuard<'a, ()>,
}

impl SecondLook<'_> {
    /// Of which object.
    pub fn object(&self) -> &ObjectReader {
        self.reader
    }

    /// Whether the same read may give other bytes by now.
    fn is_worth_repeating(&self) -> bool {
        self.is_outdated && !self.was_anew_wrong.get()
    }

    /// Whether the bytes may be others this time.
    pub fn may_help(&self) -> bool {
        let is_past = |offset| self.reader.way_past(offset).is_some();
        self.is_worth_repeating() || self.asked.get().is_none_or(is_past)
    }

    /// Whether decoding from the next restart point before `offset` may give other bytes: somebody else's decoder may have run
    /// through damage before that point, and be off ever since. `false` once that was tried for a block of the same stretch.
    pub fn may_enter_anew(&self, offset: u64) -> bool {
        self.asked.set(Some(offset));
        let start = self.reader.turns.lock().index.stretch_start(offset);
        let is_near = start > 0 || offset < ANEW_FROM_START_BYTES;
        is_near && !self.reader.verdicts().lost.contains(&start)
    }

    /// Reads the bytes again from the next restart point before them.
    pub fn read_anew(&self, out: &mut [u8], offset: u64) -> Result<(), ReadFailure> {
        let range: Range<u64> = offset..offset + out.len() as u64;
        let before = self.reader.passes.latest_over(&range);
        if self.reader.stream.source().doubt() {
            self.reader.forget_what_came();
        }
        self.reader.read_at(out, offset, &mut super::NothingElse)?;
        *self.anew.borrow_mut() = Some((offset, before));
        Ok(())
    }

    /// Tells that [`read_anew`](Self::read_anew) did not help.
    pub fn is_lost_from(&self, offset: u64) {
        let start = self.reader.turns.lock().index.stretch_start(offset);
        *self.anew.borrow_mut() = None;
        self.was_anew_wrong.set(true);
        self.reader.verdicts().lost.insert(start);
    }

    /// Reads the bytes again, past the point that is suspected.
    pub fn read_at(&mut self, out: &mut [u8], offset: u64) -> Result<(), ReadFailure> {
        let way = if self.is_worth_repeating() { None } else { self.reader.way_past(offset) };
        let Some(mut way) = way else {
            return self.reader.read_at(out, offset, &mut super::NothingElse).map(drop);
        };
        let mut result = self.reader.decode_from(&way.from, out, offset);
        if let (Err((at, error)), From::Start) = (&result, &way.from)
            && error.kind().is_damage()
            && *at < way.suspect.plain_offset
        {
            // Damage before the point says nothing of it.
            self.reader.start_fails_at(*at);
            if let Some(other) = self.reader.way_past(offset) {
                result = self.reader.decode_from(&other.from, out, offset);
                way = other;
            }
        }
        // A store that does not answer says nothing about the points.
        way.is_verdict = result.as_ref().err().is_none_or(|(_, error)| error.kind().is_damage());
        if let (Err((at, error)), From::Start) = (&result, &way.from)
            && error.kind().is_damage()
        {
            self.reader.start_fails_at(*at);
        }
        self.asked.set(Some(offset));
        self.bypass.get_or_insert(way);
        result.map_err(|(_, error)| ReadFailure { filled: 0, error })
    }

    /// Ends the look. Were the bytes right this time, the point that was suspected is to blame and forgotten; were they
    /// wrong again, it is not to blame.
    pub fn end(mut self, is_right: bool) {
        let Some(bypass) = self.bypass.take() else { return };
        if is_right {
            self.reader.blame(&bypass);
        } else if bypass.is_verdict {
            if let (From::Start, Some(offset)) = (&bypass.from, self.asked.get()) {
                self.reader.start_fails_at(offset);
            }
            self.reader.verdicts().blameless.insert(bypass.suspect.plain_offset);
        }
    }
}

impl ObjectReader {
    fn start_fails_at(&self, at: u64) {
        let mut verdicts = self.verdicts();
        if verdicts.start_fails_from.is_none_or(|known| at < known) {
            verdicts.start_fails_from = Some(at);
            verdicts.in_vain += 1;
        }
    }
}

impl Drop for SecondLook<'_> {
    /// Bytes that were read anew and then not told to be wrong were right.
    fn drop(&mut self) {
        if let Some((offset, Some(pass))) = self.anew.take()
            // Nobody decoded what stands there as it is, and nobody noted a point on the way.
            && pass != Pass::GIVEN
        {
            self.reader.forget_pass(pass, offset);
        }
    }
}
