//! Plain ranges out of compressed objects.
//!
//! Problem: an object is by default one zlib stream of up to 2 GB of plain bytes. A reader wants 32 KiB from its middle,
//! then the next 32 KiB, while another thread asks for what comes after; starting the stream anew each time would cost
//! seconds. Idea: [`ObjectReader::read_at`] is the whole interface, "these plain bytes of this object". Behind it,
//! decoders that stopped somewhere are kept ([`cursors`]) and the one that stopped closest before the wanted range goes on
//! from there. What it passes on the way is offered to the reader, who may want it next.
//!
//! One compressed object is decoded by one thread at a time. That is no loss, as a stream cannot be entered in its
//! middle, and it is what makes read-ahead requests that arrive out of order harmless: whoever waited finds its bytes
//! already offered ([`Passing::already_there`]).
//!
//! Invariants: memory does not depend on an object's size; nothing here is verified; a failed read says how many of the
//! wanted bytes it could fill.

pub mod cursors;
pub mod pool;
pub mod proof;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::cursors::{Cursor, IdleCursors};
use crate::codec::{self, Codec, Decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;
use crate::types::ObjectName;

/// How far before the wanted bytes passed bytes are worth offering. Requests of at most 1 MiB are taken up in order, each
/// by one of at most 16 threads, so what is then read out of order lies within this.
const OFFER_BYTES_MAX: u64 = 16 << 20;

/// Decoded at once on the way to the wanted bytes.
const STEP_BYTES: u64 = 256 << 10;

/// For how long a failure of an object is believed without looking again. Long enough that the kernel's page by page
/// retry does not decode a broken stream up to its break for each page, short enough that a repaired object is soon
/// noticed. (Wrong blocks of a stream that does not break are remembered by the image.)
pub const FAILURE_BELIEVED: Duration = Duration::from_secs(3);

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// One object, opened.
pub struct ObjectReader {
    id: u64,
    name: ObjectName,
    codec: Codec,
    len_bytes: u64,
    source: Arc<dyn ObjectSource>,
    cursors: Arc<IdleCursors>,
    /// Held while a compressed stream is decoded.
    lane: Mutex<()>,
    failure: Mutex<Option<Failure>>,
}

/// What a reader of plain bytes makes of those that are passed on the way to them.
pub trait Passing {
    /// Asked when it is this reader's turn: are the wanted bytes there by now, from somewhere else?
    fn already_there(&mut self) -> bool {
        false
    }

    /// The lowest plain offset that is of use; `u64::MAX` for none.
    fn useful_from(&self) -> u64 {
        u64::MAX
    }

    /// The next plain bytes on the way, from `offset`; the first call's `offset` is not below
    /// [`useful_from`](Self::useful_from), each later call goes on where the one before ended, and the last one ends at the
    /// wanted bytes.
    fn passed(&mut self, _offset: u64, _bytes: &[u8]) {}
}

/// For a reader that only wants its own bytes.
pub struct NothingElse;

impl Passing for NothingElse {}

/// How a read ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// All wanted bytes are in the buffer.
    All,
    /// [`Passing::already_there`] said yes; the buffer is as it was.
    NotNeeded,
}

/// How a read failed.
#[derive(Clone, Debug)]
pub struct ReadFailure {
    /// How many of the wanted bytes are in the buffer.
    pub filled: usize,
    /// Why there are not more.
    pub error: Error,
}

struct Failure {
    /// Nothing can be read from here on. `None`: the object is suspect as a whole.
    from: Option<u64>,
    error: Error,
    since: Instant,
}

impl ObjectReader {
    fn new(
        name: ObjectName,
        codec: Codec,
        len_bytes: u64,
        source: Arc<dyn ObjectSource>,
        cursors: Arc<IdleCursors>,
    ) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, name, codec, len_bytes, source, cursors, lane: Mutex::new(()), failure: Mutex::new(None) }
    }

    /// The object's name in the store.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Fills `out` with the plain bytes from `offset`.
    pub fn read_at(
        &self,
        out: &mut [u8],
        offset: u64,
        passing: &mut dyn Passing,
    ) -> Result<Filled, ReadFailure> {
        let result = match (self.believed_failure(offset), self.codec) {
            (Some(failure), _) => Err(failure),
            (None, Codec::None) => self.read_stored(out, offset),
            (None, Codec::Zlib | Codec::Bz2 | Codec::Zstd) => self.read_compressed(out, offset, passing),
        };
        result.map_err(|failure| {
            // A damaged stream stays damaged. A store that failed may answer the next time, but perhaps not through
            // this descriptor: after a file server was away it may stay stale for good.
            let is_damaged = matches!(
                failure.error.kind(),
                ErrorKind::Codec | ErrorKind::Truncated | ErrorKind::LimitExceeded
            );
            let from = is_damaged.then_some(offset + failure.filled as u64);
            self.remember(from, &failure.error);
            let error = failure.error.context(format!("object {:?}", self.name));
            ReadFailure { error, ..failure }
        })
    }

    /// Tells that bytes of this object were not what they must be, so that it is soon opened anew: the store may hold
    /// another object under this name by now.
    pub fn suspect(&self, error: &Error) {
        self.remember(None, error);
    }

    /// Whether this reader should be given up for a new one.
    fn is_stale(&self) -> bool {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().is_some_and(|failure| failure.since.elapsed() > FAILURE_BELIEVED)
    }

    fn remember(&self, from: Option<u64>, error: &Error) {
        let mut known = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            // Where the bytes end says more than that some of them are wrong.
            Some(known) if known.from.is_none() && from.is_some() => {
                (known.from, known.error) = (from, error.clone());
            }
            Some(_) => {}
            None => *known = Some(Failure { from, error: error.clone(), since: Instant::now() }),
        }
    }

    fn believed_failure(&self, offset: u64) -> Option<ReadFailure> {
        let known = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref()?;
        let is_behind = known.from.is_some_and(|from| offset >= from);
        is_behind.then(|| ReadFailure { filled: 0, error: known.error.clone() })
    }

    /// Without compression any byte is there at once, for any number of threads.
    fn read_stored(&self, out: &mut [u8], offset: u64) -> Result<Filled, ReadFailure> {
        let mut filled = 0;
        while filled < out.len() {
            match self.source.read_at(&mut out[filled..], offset + filled as u64) {
                Ok(0) => return Err(ReadFailure { filled, error: self.ends_early(offset + filled as u64) }),
                Ok(n) => filled += n,
                Err(error) => return Err(ReadFailure { filled, error }),
            }
        }
        Ok(Filled::All)
    }

    fn read_compressed(
        &self,
        out: &mut [u8],
        offset: u64,
        passing: &mut dyn Passing,
    ) -> Result<Filled, ReadFailure> {
        let _lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        if passing.already_there() {
            return Ok(Filled::NotNeeded);
        }
        // Whoever had the lane before may have found out.
        if let Some(failure) = self.believed_failure(offset) {
            return Err(failure);
        }
        let nothing = |error| ReadFailure { filled: 0, error };
        let mut cursor = match self.cursors.take(self.id, offset) {
            Some(cursor) => cursor,
            None => {
                Cursor { at: 0, decoder: codec::decoder(self.codec, self.source.clone()).map_err(nothing)? }
            }
        };
        self.skip_to(&mut cursor, offset, passing).map_err(nothing)?;
        let mut filled = 0;
        while filled < out.len() {
            match cursor.decoder.read(&mut out[filled..]) {
                Ok(0) => return Err(ReadFailure { filled, error: self.ends_early(offset + filled as u64) }),
                Ok(n) => filled += n,
                Err(error) => return Err(ReadFailure { filled, error }),
            }
        }
        cursor.at = offset + filled as u64;
        if cursor.at < self.len_bytes {
            self.cursors.put(self.id, cursor);
        }
        Ok(Filled::All)
    }

    /// Decodes up to `offset`, offering what is of use on the way.
    fn skip_to(&self, cursor: &mut Cursor, offset: u64, passing: &mut dyn Passing) -> Result<()> {
        let offer_from =
            passing.useful_from().max(offset.saturating_sub(OFFER_BYTES_MAX)).max(cursor.at).min(offset);
        let mut step = vec![0; STEP_BYTES.min(offset - cursor.at) as usize];
        while cursor.at < offset {
            let border = if cursor.at < offer_from { offer_from } else { offset };
            let most = STEP_BYTES.min(border - cursor.at) as usize;
            let n = self.decode_some(cursor, &mut step[..most])?;
            if cursor.at >= offer_from {
                passing.passed(cursor.at, &step[..n]);
            }
            cursor.at += n as u64;
        }
        Ok(())
    }

    fn decode_some(&self, cursor: &mut Cursor, out: &mut [u8]) -> Result<usize> {
        let error = match cursor.decoder.read(out) {
            Ok(0) => self.ends_early(cursor.at),
            Ok(n) => return Ok(n),
            Err(error) => error,
        };
        // Not only the wanted bytes are lost, but all from here on.
        if matches!(error.kind(), ErrorKind::Codec | ErrorKind::Truncated | ErrorKind::LimitExceeded) {
            self.remember(Some(cursor.at), &error);
        }
        Err(error)
    }

    fn ends_early(&self, at: u64) -> Error {
        let message = format!("its plain bytes end at {at}, expected {} of them", self.len_bytes);
        Error::new(ErrorKind::Truncated, message)
    }

    /// A decoder of its own at the object's start, for reading it whole.
    pub fn decoder(&self) -> Result<Box<dyn Decoder>> {
        codec::decoder(self.codec, self.source.clone())
    }
}

impl Drop for ObjectReader {
    fn drop(&mut self) {
        self.cursors.drop_all_of(self.id);
    }
}
