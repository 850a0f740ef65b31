//! Objects as Cinder stores them, out of pieces that are compressed by themselves.
//!
//! Problem: an object is one stream, and a stream is made on one core and read from its beginning. Idea: cut it into
//! pieces of at most [`PIECE_BYTES_MAX`] that do not know each other. An [`Encoder`] makes an [`EncodedPiece`] on any
//! thread; an [`ObjectAssembler`] puts pieces one behind the other into something that genuine Cinder restores. Where a
//! reader may begin without what lies before, the assembler tells as [`EntryPoint`]s; they lie at each piece, and closer
//! where that is cheap.
//!
//! | codec | an object is | an entry point is | as Cinder's own? |
//! | --- | --- | --- | --- |
//! | none | the plain bytes | any byte, so none is told | equal |
//! | zlib | one stream, `78 9c`; full flushes between chunks; an empty last block | behind a full flush | one stream is all that Cinder reads |
//! | bz2 | a stream for each piece | the start of a stream | Python joins streams |
//! | zstd | one frame with content size, no checksum; an empty last block | where a job begins | one frame is all that is safe with every binding |
//!
//! [`zlib`], [`bz2`] and [`zstd`] say what was weighed and measured for each of them.
//!
//! Invariants:
//! - the stored bytes of a piece depend on its plain bytes, codec and level alone, not on threads or on earlier pieces;
//! - pieces of one encoder may be put together in any order, and repeated: the object's plain bytes are theirs in that order;
//! - a piece of zeros is compressed once for each length and shared from then on;
//! - nothing holds more than one piece, and what a context needs for it.

mod assembler;
mod bz2;
mod zlib;
mod zstd;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::assembler::{Appended, EntryPoint, FinishedObject, ObjectAssembler, Patch, copy_plain};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};

/// Most plain bytes of a piece. Pieces are what is in flight between threads, and what an object stored as `none` is copied
/// in; larger ones would compress no better, see [`zlib`].
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// How many lengths of zero pieces are remembered. A volume has one usual length and its last one; changes between two
/// backups have as many as there are blocks in a piece, 32 with Cinder's default.
const ZERO_LENGTHS_MAX: usize = 64;

/// Makes pieces of objects; shared by all threads.
pub struct Encoder {
    codec: Codec,
    level: i32,
    /// States that no thread uses at this moment; as many as ever were in use at once.
    idle: Mutex<Vec<Context>>,
    /// Pieces of zeros, oldest first.
    zero_pieces: Mutex<Vec<EncodedPiece>>,
    /// What they are made of, and compared with.
    zeros: Arc<[u8]>,
}

/// One piece, compressed. A clone shares the bytes.
#[derive(Clone)]
pub struct EncodedPiece {
    codec: Codec,
    plain_bytes: usize,
    /// The stored bytes are the first `stored_bytes` of these.
    stored: Arc<[u8]>,
    stored_bytes: usize,
    /// Where decoding may begin, from the piece's start: plain and stored offset in bytes, rising. The piece's start is one.
    entries: Arc<[(u32, u32)]>,
    /// zlib only: of the plain bytes.
    adler: u32,
    /// bz2 only: of all its streams.
    level: u8,
}

impl EncodedPiece {
    /// How many plain bytes it stands for.
    pub fn plain_bytes(&self) -> usize {
        self.plain_bytes
    }

    /// Its stored bytes: those of an object without what the codec puts before, between and after pieces.
    pub fn stored(&self) -> &[u8] {
        &self.stored[..self.stored_bytes]
    }
}

/// What a codec makes of a piece.
struct Encoded<'a> {
    stored: &'a [u8],
    entries: &'a [(u32, u32)],
    adler: u32,
}

/// The state in which one thread compresses.
enum Context {
    Zlib(Box<zlib::Zlib>),
    Bz2(bz2::Bz2),
    Zstd(Box<zstd::Zstd>),
}

impl Encoder {
    /// For objects of `codec`; `None` is the usual one: 7 of zlib (see [`zlib`]), and those that Cinder has, 9 of bz2 and 3 of zstd.
    ///
    /// Fails with [`ErrorKind::Usage`] when the codec has no such level: 1 to 12 of zlib, 1 to 9 of bz2, 1 to 19 of zstd.
    pub fn new(codec: Codec, level: Option<i32>) -> Result<Self> {
        let (usual, levels) = match codec {
            Codec::None => (0, 0..=0),
            Codec::Zlib => (7, 1..=12),
            Codec::Bz2 => (9, 1..=9),
            // Higher ones want windows that no job here fills.
            Codec::Zstd => (3, 1..=19),
        };
        let level = level.unwrap_or(usual);
        if !levels.contains(&level) {
            let (low, high) = levels.into_inner();
            let message = format!("{codec} has no level {level}: expected {low} to {high}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(Self {
            codec,
            level,
            idle: Mutex::default(),
            zero_pieces: Mutex::default(),
            zeros: vec![0; PIECE_BYTES_MAX].into(),
        })
    }

    /// How its objects are compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How long pieces are best, in plain bytes: whole blocks of `block_bytes`, as many as suit the codec. A block that is
    /// longer than that must be cut; then it is the codec's length alone.
    pub fn piece_bytes(&self, block_bytes: usize) -> usize {
        let most = match self.codec {
            Codec::None | Codec::Zlib | Codec::Zstd => PIECE_BYTES_MAX,
            Codec::Bz2 => bz2::plain_bytes_max(self.level),
        };
        match block_bytes {
            1.. if block_bytes <= most => most - most % block_bytes,
            _ => most,
        }
    }

    /// About how much memory one thread needs that encodes, in bytes, pieces not counted.
    pub fn context_bytes(&self) -> usize {
        match self.codec {
            Codec::None => 0,
            Codec::Zlib => zlib::context_bytes(self.level),
            Codec::Bz2 => bz2::CONTEXT_BYTES,
            Codec::Zstd => zstd::CONTEXT_BYTES,
        }
    }

    /// Compresses one piece of at most [`PIECE_BYTES_MAX`] bytes, on this thread. (zstd has a thread of its own for each
    /// that calls this, which waits while the caller works, and the other way round.)
    ///
    /// Fails with [`ErrorKind::Usage`] when the piece is longer, with [`ErrorKind::LimitExceeded`] when there is no
    /// memory, and with [`ErrorKind::Codec`] when the compressor is found to have made other bytes than it should.
    pub fn encode_piece(&self, plain: &[u8]) -> Result<EncodedPiece> {
        match self.zeros.get(..plain.len()) {
            None => {
                let message =
                    format!("a piece has {} bytes, expected at most {PIECE_BYTES_MAX}", plain.len());
                Err(Error::new(ErrorKind::Usage, message))
            }
            Some(zeros) if plain == zeros => self.encode_zeros(plain.len()),
            Some(_) => self.compress(plain),
        }
    }

    /// The piece of `plain_bytes` zeros. Fails as [`Encoder::encode_piece`].
    pub fn encode_zeros(&self, plain_bytes: usize) -> Result<EncodedPiece> {
        let known = lock(&self.zero_pieces).iter().find(|piece| piece.plain_bytes == plain_bytes).cloned();
        if let Some(piece) = known {
            return Ok(piece);
        }
        let Some(zeros) = self.zeros.get(..plain_bytes) else {
            let message = format!("a piece has {plain_bytes} bytes, expected at most {PIECE_BYTES_MAX}");
            return Err(Error::new(ErrorKind::Usage, message));
        };
        if self.codec == Codec::None {
            return Ok(self.piece(zeros, self.zeros.clone(), zeros.len(), &[], 0));
        }
        let piece = self.compress(zeros)?;
        let mut pieces = lock(&self.zero_pieces);
        // Others may have been as fast; one of that length is enough.
        if pieces.iter().all(|other| other.plain_bytes != plain_bytes) {
            if pieces.len() >= ZERO_LENGTHS_MAX {
                pieces.remove(0);
            }
            pieces.push(piece.clone());
        }
        Ok(piece)
    }

    fn compress(&self, plain: &[u8]) -> Result<EncodedPiece> {
        if self.codec == Codec::None || plain.is_empty() {
            return Ok(self.piece(plain, plain.into(), plain.len(), &[], zlib::ADLER_OF_NOTHING));
        }
        let mut context = match lock(&self.idle).pop() {
            Some(context) => context,
            None => self.context()?,
        };
        let encoded = match &mut context {
            Context::Zlib(zlib) => zlib.encode(plain)?,
            Context::Bz2(bz2) => bz2.encode(plain)?,
            Context::Zstd(zstd) => zstd.encode(plain)?,
        };
        // Exactly as long as it must be: the room that the compressor wanted stays with the context.
        let stored: Arc<[u8]> = encoded.stored.into();
        let len = stored.len();
        let piece = self.piece(plain, stored, len, encoded.entries, encoded.adler);
        // Not after a failure: whatever state that left is dropped.
        lock(&self.idle).push(context);
        Ok(piece)
    }

    fn context(&self) -> Result<Context> {
        Ok(match self.codec {
            Codec::Zlib => Context::Zlib(Box::new(zlib::Zlib::new(self.level)?)),
            Codec::Zstd => Context::Zstd(Box::new(zstd::Zstd::new(self.level)?)),
            Codec::Bz2 | Codec::None => Context::Bz2(bz2::Bz2::new(self.level)),
        })
    }

    fn piece(
        &self,
        plain: &[u8],
        stored: Arc<[u8]>,
        stored_bytes: usize,
        entries: &[(u32, u32)],
        adler: u32,
    ) -> EncodedPiece {
        EncodedPiece {
            codec: self.codec,
            plain_bytes: plain.len(),
            stored,
            stored_bytes,
            entries: entries.into(),
            adler,
            level: self.level as u8,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
