//! The ring of records, and who may write where.
//!
//! A position counts all bytes ever given away; its place in the file is the remainder by the ring's length. Stretches are
//! given to processes under a lock, a few megabytes at once, so that the lock is taken once for a hundred
//! blocks. The count stands in the file's header with its complement beside it; when the two do not fit, as damage
//! leaves them, counting goes on where this process last saw it, or begins anew, and what lies in the ring is forgotten.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::RingFile;
use super::layout::{GIVEN_AT, Layout, PAGE};

/// Given to one process at once, in bytes, unless the ring is small.
const STRETCH_BYTES_MAX: u64 = 4 << 20;

/// A ring has at least this many stretches, so that processes that use a bit of theirs do not use up a small ring.
const STRETCHES_MIN: u64 = 16;

/// Small records lie at multiples of this, in bytes.
const SMALL: u64 = 512;

/// Largest share of the ring that one record may take.
const RECORD_SHARE: u64 = 3;

/// The count is read again after this many looks at it: other processes move it too.
const LOOKS_MAX: u64 = 64;

/// The share of the ring that may be written again before anything new came in.
const AGAIN_SHARE: u64 = 16;

/// Counts above this are damage. A petabyte a second would take a year to get here.
const GIVEN_MAX: u64 = 1 << 62;

/// How long nobody asks for the lock again after it was waited for in vain. Threads that queue up behind the one that waits come to know with it, and
/// do not wait one after the other; the cache as a whole is left alone for longer (`health`).
const LOCK_LEFT_ALONE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Ring {
    file: Arc<RingFile>,
    layout: Layout,
    stretch: Mutex<Stretch>,
    /// The count as last seen.
    given: AtomicU64,
    looks: AtomicU64,
    /// The count when this process came.
    given_before: AtomicU64,
    /// What this process has written again only to keep it, in bytes.
    again: AtomicU64,
}

/// What this process may still write to.
#[derive(Default, Debug)]
struct Stretch {
    next: u64,
    end: u64,
    /// When another process was found to keep the lock.
    refused: Option<Instant>,
}

impl Ring {
    pub(super) fn new(file: Arc<RingFile>) -> Self {
        let ring = Self {
            layout: file.layout,
            file,
            stretch: Mutex::default(),
            given: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            given_before: AtomicU64::new(0),
            again: AtomicU64::new(0),
        };
        // What cannot be read now is met by the first look-up.
        let before = ring.look().unwrap_or(ring.layout.data_bytes);
        ring.given_before.store(before, Ordering::Relaxed);
        ring
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.layout.data_bytes
    }

    pub(super) fn record_bytes_max(&self) -> u64 {
        (self.layout.data_bytes / RECORD_SHARE).min(u64::from(u32::MAX))
    }

    /// Fills `record` from a position; `false` when the file ends first or no record can lie there.
    pub(super) fn read(&self, record: &mut [u8], position: u64) -> io::Result<bool> {
        let place = position % self.layout.data_bytes;
        if record.len() as u64 > self.layout.data_bytes - place {
            return Ok(false);
        }
        match self.file.data().read_exact_at(record, self.layout.data_at() + place) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a record and returns its position.
    pub(super) fn append(&self, record: &[u8]) -> io::Result<u64> {
        let position = self.take(record.len() as u64)?;
        let place = position % self.layout.data_bytes;
        self.file.data().write_all_at(record, self.layout.data_at() + place)?;
        Ok(position)
    }

    /// How much was given away after `position`; `None` when it has been overwritten or was not given away yet.
    pub(super) fn age(&self, position: u64) -> Option<u64> {
        let given = self.given.load(Ordering::Relaxed);
        if position >= given || self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS_MAX) {
            self.look().ok()?;
        }
        self.age_as_seen(position)
    }

    /// As [`age`](Self::age), by the count as this process has last seen it.
    pub(super) fn age_as_seen(&self, position: u64) -> Option<u64> {
        let age = self.given.load(Ordering::Relaxed).checked_sub(position)?;
        (age > 0 && age <= self.layout.data_bytes).then_some(age)
    }

    pub(super) fn given_as_seen(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Whether a record of `len` bytes may be written again only because it grows old. Not more than others give cause for:
    /// who reads the same nine tenths of a ring again and again would else write as much as he reads.
    pub(super) fn may_write_again(&self, len: u64) -> bool {
        let given = self.given.load(Ordering::Relaxed);
        let grown = given.saturating_sub(self.given_before.load(Ordering::Relaxed));
        // Half of the growth at most can be such writing, so new records came in at least as fast.
        let allowed = (grown + self.layout.data_bytes / AGAIN_SHARE) / 2;
        let again = self.again.fetch_add(len, Ordering::Relaxed);
        let may = again + len <= allowed;
        if !may {
            self.again.fetch_sub(len, Ordering::Relaxed);
        }
        may
    }

    /// Room for a record of `len` bytes, at most [`record_bytes_max`](Self::record_bytes_max).
    fn take(&self, len: u64) -> io::Result<u64> {
        let align = if len < PAGE { SMALL } else { PAGE };
        let len = len.next_multiple_of(align);
        let most = (self.layout.data_bytes / STRETCHES_MIN).clamp(PAGE, STRETCH_BYTES_MAX) / PAGE * PAGE;
        // What would waste much of a stretch has one of its own.
        // Held while the folder is locked as well: its lock does not part the threads of one process.
        let mut stretch = self.stretch.lock().unwrap_or_else(PoisonError::into_inner);
        if len > most / 8 {
            return Ok(self.ask(&mut stretch, len.next_multiple_of(PAGE))?.0);
        }
        let mut at = stretch.next.next_multiple_of(align);
        // What was given to us a whole ring ago belongs to others by now.
        let is_ours = self.age_as_seen(at).is_some();
        if at + len > stretch.end || !is_ours {
            let end;
            (at, end) = self.ask(&mut stretch, most)?;
            stretch.end = end;
        }
        stretch.next = at + len;
        Ok(at)
    }

    /// Asks for `len` bytes, unless that was in vain a moment ago.
    fn ask(&self, stretch: &mut Stretch, len: u64) -> io::Result<(u64, u64)> {
        if stretch.refused.is_some_and(|at| at.elapsed() < LOCK_LEFT_ALONE) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process holds its lock"));
        }
        let given = self.give_contiguous(len);
        let is_refused = given.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        stretch.refused = is_refused.then(Instant::now);
        given
    }

    /// Gives away `len` bytes, a multiple of the page, that do not go over the ring's end: from where to where.
    fn give_contiguous(&self, len: u64) -> io::Result<(u64, u64)> {
        let ring = self.layout.data_bytes;
        self.give(|given| {
            let left = ring - given % ring;
            let start = if left < len { given + left } else { given };
            (start, start + len)
        })
    }

    /// Moves the count on under the lock.
    fn give(&self, step: impl Fn(u64) -> (u64, u64)) -> io::Result<(u64, u64)> {
        self.file.alone(|| {
            let (start, end) = step(self.look()?);
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&end.to_le_bytes());
            bytes[8..].copy_from_slice(&(!end).to_le_bytes());
            self.file.data().write_all_at(&bytes, GIVEN_AT)?;
            self.given.fetch_max(end, Ordering::Relaxed);
            Ok((start, end))
        })
    }

    /// The count, never less than this process has seen: it may still write to stretches from before it was damaged.
    fn look(&self) -> io::Result<u64> {
        let given = self.read_given()?;
        Ok(self.given.fetch_max(given, Ordering::Relaxed).max(given))
    }

    /// The count in the file, a multiple of the page. It begins at the ring's length, so that no position is 0.
    fn read_given(&self) -> io::Result<u64> {
        let mut bytes = [0; 16];
        match self.file.data().read_exact_at(&mut bytes, GIVEN_AT) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        let (mut given, mut complement) = ([0; 8], [0; 8]);
        given.copy_from_slice(&bytes[..8]);
        complement.copy_from_slice(&bytes[8..]);
        let (given, complement) = (u64::from_le_bytes(given), u64::from_le_bytes(complement));
        let fits = given == !complement
            && given.is_multiple_of(PAGE)
            && (self.layout.data_bytes..GIVEN_MAX).contains(&given);
        Ok(if fits { given } else { self.layout.data_bytes })
    }
}
