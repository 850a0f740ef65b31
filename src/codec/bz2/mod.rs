//! bz2 objects: one or more bzip2 streams, one after the other, each of blocks that can be decoded by themselves.
//!
//! Problem: one core decodes 46 MB/s, and a reader wants 4 KiB from the middle, or all of it at once. Idea: a block (at most
//! 900,000 bytes before its runs are unfolded) depends on nothing but its own bits. So each one is a restart point, blocks
//! ahead of a sequential reader are decoded on idle threads ([`ahead`]), and readers of one object share what is decoded
//! ([`decoded`]). The library decodes whole streams only; [`block`] makes it decode a block and tell where that ended.
//!
//! ```text
//! stream: "BZh" level   block…   0x177245385090, combined CRC (32 bits)   0 to 7 bits up to a byte
//! block:  0x314159265359, CRC (32 bits), data          begins at any bit
//! ```
//!
//! Cinder's restore calls Python's `bz2.decompress`: all streams are joined, and what follows a complete stream and is
//! not one itself is ignored. Python holds all bytes back until it knows; a cursor cannot, so the line is drawn at a
//! stream's head. Bytes that do not get through the head of a stream are junk and the end; damage behind a good head
//! is an error.
//!
//! Invariants: the true blocks are walked from a stream's head, one after the other, each from where the one before
//! ended; a magic found by scanning says nothing until the walk arrives there. Every block's CRC is checked, by the
//! library. The combined CRC of a stream is checked here, but not of a stream that was entered in its middle: after
//! [`resume`](Bz2Decoder::resume) not until the next head. It guards nothing but the order of blocks, and whoever resumes has
//! other proof of the bytes. Nothing here is tried twice, so a hostile object costs at most what its bits cost to decode,
//! and as much again for blocks decoded ahead in vain.

mod scan;
mod window;
mod block;
mod decoded;
mod ahead;
mod rescue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::ahead::Ahead;
use self::block::{Block, BlockDecoder, Decoded, Failure, Follows, LongBlock};
use self::decoded::{Claim, DecodedBlocks, Key, Lead};
pub(super) use self::rescue::points_behind_damage;
use self::scan::{BLOCK_MAGIC, END_MAGIC, MAGIC_BITS};
use self::window::Window;
use super::{Codec, Decoder, Recording, RestartPoint};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;
use crate::workers::Workers;

/// Stored bytes of a stream's head: `BZh`, the level, and the six bytes that open a block or close the stream. Bytes that
/// fail within it are not a damaged stream but something else.
const HEAD_BYTES: usize = 10;

/// How many streams without a plain byte may follow each other. Nobody writes them in numbers, each takes 14 stored
/// bytes, and so 2 GB of them would keep one read busy for long.
const EMPTY_STREAMS_MAX: u32 = 1024;

/// Plain bytes that a reader takes in order before blocks are decoded ahead of it: a little more than a block, so that a
/// random read does not cause it, even if it was led to its place from the block's beginning.
const AHEAD_AFTER_BYTES: u64 = 1 << 20;

/// Least plain bytes between two restart points, so that a stream of tiny blocks does not make millions of them.
pub(super) const POINT_SPACING_BYTES: u64 = 64 << 10;

/// A block of at least so many plain bytes is worth new memory for the next one: a cursor that stands still between two
/// requests does not hold the library's 3.6 MB then. Small blocks cost less than that memory.
const KEEP_BELOW_BYTES: usize = 64 << 10;

/// What the decoders of one object share.
pub(super) struct Object {
    id: u64,
    source: Arc<dyn ObjectSource>,
    workers: Arc<Workers>,
    decoded: Arc<DecodedBlocks>,
    /// Blocks that were decoded, false ones and those decoded again included.
    #[cfg(test)]
    decodes: AtomicU64,
}

impl Object {
    pub(super) fn new(source: Arc<dyn ObjectSource>, workers: Arc<Workers>) -> Arc<Self> {
        Self::with_table(source, workers, decoded::shared().clone())
    }

    fn with_table(
        source: Arc<dyn ObjectSource>,
        workers: Arc<Workers>,
        decoded: Arc<DecodedBlocks>,
    ) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            source,
            workers,
            decoded,
            #[cfg(test)]
            decodes: AtomicU64::new(0),
        })
    }

    /// A job: decodes a block unless it is done, being done, or not wanted any more.
    fn decode_ahead(&self, key: Key) {
        let Some(lead) = self.decoded.begin(key) else { return };
        let mut window = Window::new(self.source.clone());
        // Where the store fails the task is given back: the reader will come and be told.
        if let Ok((decoded, _)) = self.decode(None, &mut window, key) {
            lead.unread(decoded);
        }
    }

    fn decode(
        &self,
        decoder: Option<BlockDecoder>,
        window: &mut Window,
        key: Key,
    ) -> Result<(Decoded, Option<BlockDecoder>)> {
        #[cfg(test)]
        self.decodes.fetch_add(1, Ordering::Relaxed);
        let decoder = decoder.filter(|decoder| decoder.stands_at(key.at, key.level));
        decoder.unwrap_or_else(|| BlockDecoder::new(key.at, key.level)).decode(window, key.at)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.decoded.forget(self.id);
    }
}

/// Where the walk along streams and blocks stands.
enum Place {
    /// Before a stream's head, at this stored byte.
    Head(u64),
    /// Before a block, at this bit.
    Block(u64),
    /// In a block whose plain bytes are being read.
    InWhole {
        block: Arc<Block>,
        read: usize,
    },
    /// The same, of a block that is not held whole.
    InLong {
        block: Box<LongBlock>,
        read: usize,
    },
    /// Before the magic that ends a stream, at this bit.
    End(u64),
    /// Behind the last stream.
    Ended,
    Failed(Error),
}

/// A cursor over the plain bytes of a run of bzip2 streams.
pub(super) struct Bz2Decoder {
    object: Arc<Object>,
    window: Window,
    place: Place,
    /// The stream's level, 1 to 9.
    level: u8,
    /// The checksums of the stream's blocks so far; `None` in a stream that was entered in its middle.
    combined: Option<u32>,
    /// Whether the stream has a block.
    has_plain: bool,
    any_complete: bool,
    /// The walk has come to the last stored byte, and to nothing that is no stream.
    ended_whole: bool,
    /// The bit at which the block begins that was begun last.
    last_block: u64,
    /// Stored offset behind the last complete stream.
    streams_end: Option<u64>,
    empty_streams: u32,
    /// Left at the next block, if that is worth it.
    decoder: Option<BlockDecoder>,
    /// Plain offset of the next byte.
    plain_offset: u64,
    /// Plain bytes given so far.
    given: u64,
    ahead: Option<Box<Ahead>>,
    recording: Option<Recording>,
    points: Vec<RestartPoint>,
    /// Plain offset of the last point.
    last_point: u64,
}

impl Bz2Decoder {
    /// A decoder at the object's start. Reads nothing yet.
    pub(super) fn start(object: Arc<Object>) -> Self {
        Self {
            window: Window::new(object.source.clone()),
            object,
            place: Place::Head(0),
            level: 0,
            combined: None,
            has_plain: false,
            any_complete: false,
            ended_whole: false,
            last_block: 0,
            streams_end: None,
            empty_streams: 0,
            decoder: None,
            plain_offset: 0,
            given: 0,
            ahead: None,
            recording: None,
            points: Vec::new(),
            last_point: 0,
        }
    }

    /// A decoder at a block, or, where the state is empty, at a stream's head. Reads nothing yet.
    pub(super) fn resume(object: Arc<Object>, point: &RestartPoint) -> Result<Self> {
        // Far from overflows; no object is that long.
        let at = point.stored_bits.min(u64::MAX / 2);
        let mut decoder = Self::start(object);
        (decoder.place, decoder.level) = match *point.state {
            [level @ 1..=9] => (Place::Block(at), level),
            [] if at.is_multiple_of(8) => (Place::Head(at / 8), 0),
            _ => {
                let message = format!("bz2: no restart at plain offset {}", point.plain_offset);
                return Err(Error::new(ErrorKind::Codec, message));
            }
        };
        (decoder.plain_offset, decoder.last_point) = (point.plain_offset, point.plain_offset);
        Ok(decoder)
    }

    /// Goes on to the next plain byte, the end or a failure; one step of that. Fails only where the store does.
    fn step(&mut self) -> Result<()> {
        self.place = match std::mem::replace(&mut self.place, Place::Ended) {
            Place::Head(offset) => self.head(offset)?,
            Place::Block(at) => {
                self.place = self.block(at)?;
                if self.ahead.is_some() {
                    self.read_ahead();
                }
                return Ok(());
            }
            Place::InWhole { block, .. } => self.behind(block.crc, block.follows),
            Place::InLong { mut block, .. } => {
                let follows = block.decoder.follows(&mut self.window)?;
                self.behind(block.crc, follows)
            }
            Place::End(at) => self.end(at)?,
            last @ (Place::Ended | Place::Failed(_)) => last,
        };
        Ok(())
    }

    fn head(&mut self, offset: u64) -> Result<Place> {
        let head = self.window.at(offset, HEAD_BYTES)?;
        let head = &head[..head.len().min(HEAD_BYTES)];
        if self.any_complete {
            self.streams_end = Some(offset);
        }
        if head.is_empty() && self.any_complete {
            self.ended_whole = true;
            return Ok(Place::Ended);
        }
        let level = head.get(3).copied().filter(|level| (b'1'..=b'9').contains(level));
        let begins = |magic: u64| head.iter().skip(4).zip(&magic.to_be_bytes()[2..]).all(|(a, b)| a == b);
        let is_head = head.iter().zip(b"BZh").all(|(a, b)| a == b) && (head.len() < 4 || level.is_some());
        if !is_head || !(begins(BLOCK_MAGIC) || begins(END_MAGIC)) {
            if self.any_complete {
                return Ok(Place::Ended);
            }
            let why = if is_head {
                Failure::data(offset).why
            } else {
                "incorrect header, expected \"BZh1\" to \"BZh9\""
            };
            return Ok(failed(Failure { why, ..Failure::data(offset) }));
        }
        let Some(level) = level.filter(|_| head.len() == HEAD_BYTES) else {
            return Ok(failed(Failure::cut(self.window.end())));
        };
        let at = (offset + 4) * 8;
        let place = if begins(BLOCK_MAGIC) { Place::Block(at) } else { Place::End(at) };
        (self.level, self.combined, self.has_plain) = (level - b'0', Some(0), false);
        Ok(place)
    }

    fn end(&mut self, at: u64) -> Result<Place> {
        let Some(crc) = self.window.bits(at + MAGIC_BITS, 32)? else {
            return Ok(failed(Failure::cut(self.window.end())));
        };
        if self.combined.is_some_and(|combined| u64::from(combined) != crc) {
            return Ok(failed(Failure { why: "wrong combined CRC", ..Failure::data(at / 8) }));
        }
        self.any_complete = true;
        self.decoder = None;
        self.empty_streams = if self.has_plain { 0 } else { self.empty_streams + 1 };
        if self.empty_streams > EMPTY_STREAMS_MAX {
            let message = format!("bz2: more than {EMPTY_STREAMS_MAX} empty streams in a row");
            return Ok(Place::Failed(Error::new(ErrorKind::LimitExceeded, message)));
        }
        Ok(Place::Head((at + MAGIC_BITS + 32).div_ceil(8)))
    }

    fn block(&mut self, at: u64) -> Result<Place> {
        self.last_block = at;
        if let Some(ahead) = &mut self.ahead {
            ahead.reached(&self.object, at, self.level);
        }
        let place = self.fetch(Key { object: self.object.id, at, level: self.level })?;
        self.has_plain = true;
        self.note_point(at);
        Ok(place)
    }

    /// The block, from wherever it can be had.
    fn fetch(&mut self, key: Key) -> Result<Place> {
        loop {
            let lead = match self.object.decoded.claim(key) {
                Claim::Whole(block) => return Ok(Place::InWhole { block, read: 0 }),
                Claim::Long(block) => return Ok(Place::InLong { block, read: 0 }),
                Claim::Wait(flight) => {
                    let block = flight.wait();
                    self.object.decoded.release(key);
                    match block {
                        Some(block) => return Ok(Place::InWhole { block, read: 0 }),
                        None => continue, // to lead, to go on alone, or behind another leader: each leads at most once
                    }
                }
                Claim::Lead(lead) => Some(lead),
                Claim::Alone => None,
            };
            return self.decode(key, lead);
        }
    }

    fn decode(&mut self, key: Key, lead: Option<Lead>) -> Result<Place> {
        let (decoded, decoder) = self.object.decode(self.decoder.take(), &mut self.window, key)?;
        Ok(match decoded {
            Decoded::Whole(block) => {
                self.decoder = decoder.filter(|_| block.plain.len() < KEEP_BELOW_BYTES);
                let block = Arc::new(block);
                if let Some(lead) = lead {
                    lead.read(Some(&block));
                }
                Place::InWhole { block, read: 0 }
            }
            Decoded::Long(block) => {
                if let Some(lead) = lead {
                    lead.read(None);
                }
                Place::InLong { block: Box::new(block), read: 0 }
            }
        })
    }

    /// The place behind a block that was read to its end.
    fn behind(&mut self, crc: u32, follows: Follows) -> Place {
        self.combined = self.combined.map(|combined| combined.rotate_left(1) ^ crc);
        match follows {
            Follows::Block(at) => Place::Block(at),
            Follows::End(at) => Place::End(at),
            Follows::Failure(failure) => failed(failure),
        }
    }

    fn note_point(&mut self, at: u64) {
        let Some(recording) = self.recording else { return };
        let spacing_bytes = recording.spacing_bytes.min(POINT_SPACING_BYTES);
        // The object's start is none: there one starts anyway.
        if self.plain_offset >= recording.from && self.plain_offset - self.last_point >= spacing_bytes {
            self.last_point = self.plain_offset;
            let state = Arc::new([self.level]);
            self.points.push(RestartPoint { plain_offset: self.plain_offset, stored_bits: at, state });
        }
    }

    /// Whether to begin reading ahead.
    fn begin_ahead(&mut self) {
        if self.ahead.is_none() && self.given >= AHEAD_AFTER_BYTES && self.object.workers.threads() > 0 {
            self.read_ahead();
        }
    }

    /// Has blocks behind the current one decoded.
    fn read_ahead(&mut self) {
        let from = match &self.place {
            Place::InWhole { block, .. } => match block.follows {
                Follows::Block(at) | Follows::End(at) => at,
                Follows::Failure(_) => return,
            },
            Place::InLong { block, .. } => block.decoder.ends_about(),
            _ => return,
        };
        let ahead = self.ahead.get_or_insert_with(|| Box::new(Ahead::new(&self.object, self.level)));
        ahead.top_up(&self.object, from);
    }

    /// Gives up what is only of use to go on.
    fn release(&mut self) {
        self.decoder = None;
        self.window.clear();
        if let Some(mut ahead) = self.ahead.take() {
            ahead.release_all(&self.object);
        }
    }

    /// Plain bytes of the current block; 0 when there is no block, or no more of it.
    fn copy(&mut self, out: &mut [u8]) -> usize {
        match &mut self.place {
            Place::InWhole { block, read } => take(&block.plain, read, out),
            Place::InLong { block, read } => {
                let taken = take(&block.first, read, out);
                if taken > 0 {
                    return taken;
                }
                block.first = Vec::new();
                *read = 0;
                let (taken, failure) = block.decoder.read(out);
                if let Some(failure) = failure {
                    self.place = failed(failure);
                }
                taken
            }
            _ => 0,
        }
    }
}

fn take(bytes: &[u8], read: &mut usize, out: &mut [u8]) -> usize {
    let len = out.len().min(bytes.len() - *read);
    out[..len].copy_from_slice(&bytes[*read..*read + len]);
    *read += len;
    len
}

fn failed(failure: Failure) -> Place {
    let Failure { kind, why, stored_offset } = failure;
    let message = format!("{} stream near stored byte {stored_offset}: {why}", Codec::Bz2);
    Place::Failed(Error::new(kind, message))
}

impl Decoder for Bz2Decoder {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let taken = self.copy(&mut out[filled..]);
            filled += taken;
            self.plain_offset += taken as u64;
            self.given += taken as u64;
            if taken > 0 {
                continue;
            }
            if matches!(self.place, Place::Ended | Place::Failed(_)) {
                self.release();
                break;
            }
            if let Err(error) = self.step() {
                self.place = Place::Failed(error);
            }
        }
        if filled > 0 {
            self.begin_ahead();
        }
        match &self.place {
            Place::Failed(error) if filled == 0 && !out.is_empty() => Err(error.clone()),
            _ => Ok(filled),
        }
    }

    fn record(&mut self, recording: Option<Recording>) {
        self.recording = recording;
    }

    fn take_points(&mut self) -> Vec<RestartPoint> {
        std::mem::take(&mut self.points)
    }

    fn stored_end(&self) -> Option<u64> {
        self.streams_end.filter(|_| matches!(self.place, Place::Ended))
    }

    fn memory_bytes(&self) -> usize {
        let place = match &self.place {
            Place::InWhole { block, .. } => block.plain.len(),
            Place::InLong { block, .. } => block.first.capacity() + block.decoder.memory_bytes(),
            Place::Head(_) | Place::Block(_) | Place::End(_) | Place::Ended | Place::Failed(_) => 0,
        };
        place
            + self.window.memory_bytes()
            + self.decoder.as_ref().map_or(0, BlockDecoder::memory_bytes)
            + self.ahead.as_ref().map_or(0, |ahead| ahead.memory_bytes())
            + self.points.capacity() * (size_of::<RestartPoint>() + 32)
    }
}

impl Drop for Bz2Decoder {
    fn drop(&mut self) {
        self.release();
    }
}
