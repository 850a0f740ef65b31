//! Plain ranges out of compressed objects.
//!
//! Problem: an object is by default one zlib stream of up to 2 GB of plain bytes. A reader wants 32 KiB from its middle,
//! then the next 32 KiB, while another thread asks for what comes after; starting the stream anew each time would cost
//! seconds. Idea: [`ObjectReader::read_at`] is the whole interface, "these plain bytes of this object". Behind it,
//! decoders that stopped somewhere are kept ([`cursors`]), and restart points are noted on the way ([`seek_index`]); the
//! closest of them before the wanted range is where decoding goes on. What is passed on the way is offered to the reader,
//! who may want it next.
//!
//! - [`seek_index`]: the points that are known of one object.
//! - [`given`]: the points that the metadata tells.
//! - [`known`]: the parts that were decoded with their points noted. [`passes`]: which decoder gave what.
//! - [`holders`]: whose points are in memory, for when room is short.
//! - [`turns`]: who decodes which stretch between two points, and who waits.
//! - [`indexing`]: how points get smaller, and outlive the process.
//! - [`resume`]: a decoder at the right place, from all these.
//! - [`second_look`]: wrong bytes, and whose fault they are.
//! - [`rescue`]: what lies behind damage.
//! - [`failures`]: what need not be tried again at once.
//! - [`pool`]: objects that stay open. [`proof`]: objects whose only digest is an md5.
//!
//! Invariants: memory does not depend on an object's size; nothing here is verified; a failed read says how many of the
//! wanted bytes it could fill; a wrong restart point costs a second look, never a byte.

mod cursors;
mod failures;
mod given;
mod holders;
pub mod indexing;
mod known;
mod passes;
pub mod pool;
pub mod proof;
mod rescue;
mod resume;
mod second_look;
mod seek_index;
mod turns;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, Weak};

use self::cursors::{Cursor, IdleCursors};
use self::failures::Failures;
use self::indexing::Indexing;
use self::passes::{Pass, Passes};
use self::second_look::Verdicts;
use self::turns::{Turn, Turns};
use crate::cache_dir::seek_indexes::SeekIndexKey;
use crate::codec::{Codec, ObjectStream};
use crate::error::{Error, ErrorKind, Result};
use crate::scratch::Scratch;
use crate::store::{ObjectSource, ObjectVersion, read_exact_at};
use crate::types::ObjectName;

pub use self::failures::FAILURE_BELIEVED;
pub use self::resume::Whole;
pub use self::second_look::SecondLook;
pub use self::turns::Urgency;

/// How far before the wanted bytes passed bytes are worth offering. Requests of at most 1 MiB are taken up in order, each
/// by one of at most 16 threads, so what is then read out of order lies within this.
const OFFER_BYTES_MAX: u64 = 16 << 20;

/// Decoded at once on the way to the wanted bytes.
const STEP_BYTES: u64 = 256 << 10;

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// One object, opened.
pub struct ObjectReader {
    id: u64,
    name: ObjectName,
    len_bytes: u64,
    /// What the metadata tells of restart points.
    points: Option<Arc<str>>,
    stream: ObjectStream,
    cursors: Arc<IdleCursors>,
    indexing: Arc<Indexing>,
    /// For jobs in the background, which must not keep an object open.
    own: Weak<ObjectReader>,
    turns: Turns,
    /// See [`generation`](Self::generation).
    generation: AtomicU64,
    key: OnceLock<Option<SeekIndexKey>>,
    loaded: Once,
    /// Somebody packs and saves points now.
    is_tidying: AtomicBool,
    /// Held while points are saved, from the look at what is known on: who began earlier must not write last.
    saving: Mutex<()>,
    /// It is on the list of those that hold states.
    is_holder: AtomicBool,
    /// How often bytes of it were wrong: a decoder that ran through damage may be off for all that follows.
    doubts: AtomicU64,
    /// Who gave which bytes.
    passes: Passes,
    /// What second looks have found out.
    verdicts: Mutex<Verdicts>,
    /// Held by whoever looks again at bytes that were wrong.
    looking_again: Mutex<()>,
    failures: Failures,
    /// Where the part behind damage begins that was found, `u64::MAX` when there was none to be found. Held by whoever looks for it.
    rescued: Mutex<Option<u64>>,
}

/// What a reader of plain bytes makes of those that are passed on the way to them.
pub trait Passing {
    /// Whether somebody waits for the wanted bytes.
    fn urgency(&self) -> Urgency {
        Urgency::Wanted
    }

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

impl ObjectReader {
    fn new(
        name: ObjectName,
        codec: Codec,
        len_bytes: u64,
        points: Option<Arc<str>>,
        source: Arc<dyn ObjectSource>,
        cursors: Arc<IdleCursors>,
        indexing: Arc<Indexing>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name,
            len_bytes,
            points,
            stream: ObjectStream::new(codec, source, indexing.decoders().clone()),
            cursors,
            indexing,
            own: own.clone(),
            turns: Turns::default(),
            generation: AtomicU64::new(0),
            key: OnceLock::new(),
            loaded: Once::new(),
            is_tidying: AtomicBool::new(false),
            saving: Mutex::default(),
            is_holder: AtomicBool::new(false),
            doubts: AtomicU64::new(0),
            passes: Passes::default(),
            verdicts: Mutex::default(),
            looking_again: Mutex::default(),
            failures: Failures::default(),
            rescued: Mutex::default(),
        })
    }

    /// Tells readers apart, also those of the same object.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The object's name in the store.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Which version of the object it reads.
    pub fn version(&self) -> &ObjectVersion {
        &self.stream.source().stat().version
    }

    /// Fills `out` with the plain bytes from `offset`.
    pub fn read_at(
        &self,
        out: &mut [u8],
        offset: u64,
        passing: &mut dyn Passing,
    ) -> Result<Filled, ReadFailure> {
        let mut result = self.read_once(out, offset, passing);
        if let Err(failure) = &result
            && self.rescue(offset, offset + failure.filled as u64, &failure.error)
        {
            result = self.read_once(out, offset, passing);
        }
        result.map_err(|failure| {
            let error = failure.error.of_object(&self.name);
            ReadFailure { error, ..failure }
        })
    }

    fn read_once(
        &self,
        out: &mut [u8],
        offset: u64,
        passing: &mut dyn Passing,
    ) -> Result<Filled, ReadFailure> {
        let generation = self.generation();
        let result = match (self.failures.believed_at(offset), self.stream.codec()) {
            (Some(error), _) => Err(ReadFailure { filled: 0, error }),
            (None, Codec::None) => self.read_stored(out, offset),
            (None, Codec::Zlib | Codec::Bz2 | Codec::Zstd) => self.read_compressed(out, offset, passing),
        };
        result.inspect_err(|failure| {
            self.note_failure(offset, offset + failure.filled as u64, &failure.error, generation);
        })
    }

    /// Tells that bytes of this object were not what they must be, so that it is soon opened anew: the store may hold
    /// another object under this name by now. Decoders that are on their way do not go on past the next restart point.
    pub fn suspect(&self, error: &Error) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
        self.failures.suspect(error);
    }

    /// Tells the store which stored bytes a reader of the plain bytes `range` will need, as far as restart points say. The first and the last
    /// stretch are left to who decodes them: he may stand in the middle of the one, and end in that of the other.
    ///
    /// With `is_tiled` they are not: what comes before is announced, too.
    pub fn announce(&self, range: Range<u64>, is_tiled: bool) {
        if self.stream.source().is_local() {
            return;
        }
        self.load_index_once();
        let stored = self.turns.lock().index.stored_within(&range, is_tiled);
        if let Some(stored) = stored {
            self.stream.source().will_need(stored.start, stored.end - stored.start);
        }
    }

    /// Tells the store that somebody will soon read on from the plain byte `offset`, and finds out what is known of the object.
    pub fn read_on(&self, offset: u64) {
        let source = self.stream.source();
        match self.stream.codec() {
            _ if source.is_local() => {}
            Codec::None => source.will_read_on(offset),
            Codec::Zlib | Codec::Bz2 | Codec::Zstd if offset == 0 => {
                source.will_read_on(0);
                self.load_index_once();
            }
            Codec::Zlib | Codec::Bz2 | Codec::Zstd => {
                self.load_index_once();
                let nearest = self.turns.lock().index.nearest(offset);
                source.will_read_on(nearest.map_or(0, |point| point.stored_bits / 8));
            }
        }
    }

    /// Whether this reader should be given up for a new one.
    fn is_stale(&self) -> bool {
        self.failures.are_old()
    }

    /// Remembers that a read that came from a plain offset failed at another one, at generation `seen`.
    fn note_failure(&self, from: u64, at: u64, error: &Error, seen: u64) {
        // A damaged stream stays damaged, up to the next place where it can be entered. A store that failed may answer the
        // next time, but perhaps not through this descriptor: after a file server was away it may stay stale for good.
        let is_damaged =
            matches!(error.kind(), ErrorKind::Codec | ErrorKind::Truncated | ErrorKind::LimitExceeded);
        if is_damaged && !self.ran_past_the_rest(from, at) {
            let traffic = self.turns.lock();
            // What was decoded from points that are forgotten by now says nothing of the object.
            if seen == self.generation() {
                self.failures.add(at..traffic.index.next_after(at).unwrap_or(u64::MAX), error);
            }
        } else {
            self.failures.suspect(error);
        }
    }

    /// Without compression any byte is there at once, for any number of threads.
    fn read_stored(&self, out: &mut [u8], offset: u64) -> Result<Filled, ReadFailure> {
        let mut filled = 0;
        while filled < out.len() {
            match self.stream.source().read_at(&mut out[filled..], offset + filled as u64) {
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
        self.load_index_once();
        if self.read_verbatim(out, offset) {
            return Ok(Filled::All);
        }
        let turn = self.turns.enter(offset..offset + out.len() as u64, passing.urgency());
        if passing.already_there() {
            return Ok(Filled::NotNeeded);
        }
        let nothing = |error| ReadFailure { filled: 0, error };
        // Whoever had the turn before may have found out.
        if let Some(error) = self.failures.believed_at(offset) {
            return Err(nothing(error));
        }
        let mut cursor = self.cursor_before(offset, offset + out.len() as u64).map_err(nothing)?;
        let spacing = self.spacing_for(cursor.at, offset);
        self.steer(&turn, &mut cursor, spacing);
        self.skip_to(&turn, &mut cursor, offset, spacing, passing).map_err(nothing)?;
        self.passes.note(offset..offset + out.len() as u64, cursor.pass);
        let mut filled = 0;
        while filled < out.len() {
            match cursor.decoder.read(&mut out[filled..]) {
                Ok(0) => return Err(ReadFailure { filled, error: self.ends_early(offset + filled as u64) }),
                Ok(n) => filled += n,
                Err(error) => return Err(ReadFailure { filled, error }),
            }
        }
        cursor.at = offset + filled as u64;
        self.steer(&turn, &mut cursor, spacing);
        let nearest = self.turns.lock().index.nearest(cursor.at);
        let is_of_use = cursor.at < self.len_bytes && !self.is_fresh_at(nearest.as_ref(), cursor.at);
        if is_of_use && cursor.generation == self.generation() {
            self.cursors.put(self.id, cursor);
        }
        Ok(Filled::All)
    }

    /// Fills `out` with bytes that stand in the object as they are, if these do: no need to wait for anybody, or to pass others. Where
    /// that fails, decoding tells why.
    fn read_verbatim(&self, out: &mut [u8], offset: u64) -> bool {
        if out.is_empty() {
            return false;
        }
        let end = offset + out.len() as u64;
        let verbatim = self.turns.lock().index.verbatim(offset, end, self.stream.codec());
        let Some((verbatim, here)) = verbatim else { return false };
        let from = offset - here.plain_offset;
        let (at, len) = verbatim.stored(from, end - here.plain_offset);
        let Ok(len) = usize::try_from(len) else { return false };
        let (source, at) = (&**self.stream.source(), here.stored_offset.saturating_add(at));
        let is_there = if len == out.len() {
            read_exact_at(source, out, at).is_ok()
        } else {
            let mut stored = Scratch::take(len);
            read_exact_at(source, &mut stored, at).is_ok() && verbatim.copy(&stored, from, out)
        };
        if is_there {
            self.passes.note(offset..end, Pass::GIVEN);
        }
        is_there
    }

    /// Decodes up to `offset`, offering what is of use on the way.
    fn skip_to(
        &self,
        turn: &Turn<'_>,
        cursor: &mut Cursor,
        offset: u64,
        spacing: Option<u64>,
        passing: &mut dyn Passing,
    ) -> Result<()> {
        let offer_from =
            passing.useful_from().max(offset.saturating_sub(OFFER_BYTES_MAX)).max(cursor.at).min(offset);
        let mut step = Scratch::take(STEP_BYTES.min(offset - cursor.at) as usize);
        while cursor.at < offset {
            let border = if cursor.at < offer_from { offer_from } else { offset };
            let most = STEP_BYTES.min(border - cursor.at) as usize;
            let n = self.decode_some(cursor, &mut step[..most])?;
            if cursor.at >= offer_from {
                passing.passed(cursor.at, &step[..n]);
            }
            cursor.at += n as u64;
            self.steer(turn, cursor, spacing);
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
        if error.kind().is_damage() {
            self.note_failure(cursor.entered, cursor.at, &error, cursor.generation);
        }
        Err(error)
    }

    fn ends_early(&self, at: u64) -> Error {
        let message = format!("its plain bytes end at {at}, expected {} of them", self.len_bytes);
        Error::new(ErrorKind::Truncated, message)
    }
}

impl Drop for ObjectReader {
    fn drop(&mut self) {
        self.cursors.drop_all_of(self.id);
        // Whatever panicked may be what saving would do again, and a second panic would end the process.
        if !std::thread::panicking() {
            self.keep_index();
        }
        self.indexing.account(self.turns.lock().index.held_bytes(), 0);
    }
}
