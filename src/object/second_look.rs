//! Wrong bytes, looked at again: is the object damaged, or did a restart point lead astray?
//!
//! Invariants: damage costs the stretch that it lies in, so wrong bytes are decoded again from the next point before them; points
//! of an earlier run are trusted until something they led to fails its digest even then. Then the bytes are decoded from the
//! object's start, once; if that helps the points are forgotten, if not they are not to blame.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::{ObjectReader, ReadFailure, STEP_BYTES};
use crate::error::Result;

impl ObjectReader {
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
