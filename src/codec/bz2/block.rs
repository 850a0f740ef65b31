//! Decodes one block from the bit at which it begins, and finds the bit at which it ends.
//!
//! Problem: the library decodes streams, not blocks; it wants them to begin at a byte, and does not tell where in its
//! last bytes a block ended. The end cannot be looked up either: the bits of a block may contain what looks like the next
//! block's magic. Idea: give the library a stream's head and then the block's own bits, shifted to a byte boundary, with
//! no room for plain bytes: it stops taking bytes when the block is complete. It takes up to eight at a time, but only where
//! it is given eight; so around each place where a magic stands, and a block might end, it is given single bytes.
//! It has then taken the block's last bit and at most seven more, and within eight bits only one magic can begin. The
//! library itself then reads the magic from its own place, so that it is the judge of that, too.
//!
//! Invariants: each stored byte of a block is decoded once, whatever magics lie in it: no candidate is ever tried. Bytes,
//! checksum and failure are those that the library gives for the stream as a whole. One exception: a block that begins
//! in the middle of a byte is shifted, and where the object is cut the last up to seven bits then do not make a byte
//! and are not seen. So a cut object may give one block less, and is "truncated" where those bits would have been damage.
//! That is never so while the decoder goes on from a stream's head by itself.

use bzip2::{Decompress, Error as Bz2Error, Status};

use super::scan::{self, BLOCK_MAGIC, MAGIC_BITS};
use super::window::Window;
use crate::error::{ErrorKind, Result};

/// Plain bytes of a block that is held whole. A block of ordinary data has at most 900,000; runs of one byte are packed
/// before the block is measured, so one may also have 46 million, which nobody wants to hold.
pub(super) const WHOLE_BYTES_MAX: usize = 2 << 20;

/// Stored bytes given to the library at a time: enough that the call costs nothing, and small blocks not much.
const PIECE_BYTES: usize = 2048;

/// Memory of the library beside the block.
const STATE_BYTES: usize = 66 * 1024;

/// Memory of the block being decoded, for each level: four bytes for each of its 100,000.
const LEVEL_BYTES: usize = 400_000;

/// Plain bytes for which room is made at first.
const ROOM_BYTES: usize = 64 * 1024;

/// What comes behind a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Follows {
    /// Another block, from this bit on.
    Block(u64),
    /// The end of the stream: the bit at which its magic begins.
    End(u64),
    /// Nothing: the stream is damaged or cut, here or inside the block.
    Failure(Failure),
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) why: &'static str,
    /// About where, in bytes from the object's start.
    pub(super) stored_offset: u64,
}

impl Failure {
    pub(super) fn data(stored_offset: u64) -> Self {
        Self { kind: ErrorKind::Codec, why: "invalid data or wrong CRC", stored_offset }
    }

    pub(super) fn cut(stored_offset: u64) -> Self {
        let why = "the object ends here, before the end of the stream";
        Self { kind: ErrorKind::Truncated, why, stored_offset }
    }

    fn memory(stored_offset: u64) -> Self {
        Self { kind: ErrorKind::LimitExceeded, why: "out of memory", stored_offset }
    }
}

/// A block's plain bytes, all of them that can be had.
pub(super) struct Block {
    pub(super) plain: Box<[u8]>,
    /// The block's checksum, which the library has compared.
    pub(super) crc: u32,
    pub(super) follows: Follows,
}

/// A block with more plain bytes than are held: the first of them, and the decoder that has the others.
pub(super) struct LongBlock {
    pub(super) first: Vec<u8>,
    pub(super) crc: u32,
    pub(super) decoder: BlockDecoder,
}

/// A decoded block.
pub(super) enum Decoded {
    Whole(Block),
    Long(LongBlock),
}

/// The library, in the middle of a run of blocks.
pub(super) struct BlockDecoder {
    library: Decompress,
    level: u8,
    /// The stored bit at which the next byte for the library begins.
    next: u64,
    /// Where the block ends if it is undamaged, once it is taken in.
    end: Option<u64>,
    piece: Box<[u8; PIECE_BYTES]>,
}

/// How much of a block could be taken in.
enum TakenIn {
    Complete,
    /// All the object has, which may be all of the block or not.
    ToTheEnd,
    Failed(Failure),
}

impl BlockDecoder {
    /// A decoder of the blocks from bit `at` of a stream of `level`, 1 to 9.
    pub(super) fn new(at: u64, level: u8) -> Self {
        let mut library = Decompress::new(false);
        // Taken in whole; if it were not, the first block would fail.
        let _ = library.decompress(&[b'B', b'Z', b'h', b'0' + level], &mut []);
        Self { library, level, next: at, end: None, piece: Box::new([0; PIECE_BYTES]) }
    }

    /// Whether the next block is the one at `at` of a stream of `level`.
    pub(super) fn stands_at(&self, at: u64, level: u8) -> bool {
        self.end == Some(at) && self.level == level
    }

    /// Decodes the block at `at`: where the decoder began, or the block behind the one before.
    ///
    /// Fails only where the store does.
    pub(super) fn decode(mut self, window: &mut Window, at: u64) -> Result<(Decoded, Option<Self>)> {
        match window.bits(at, MAGIC_BITS)? {
            Some(BLOCK_MAGIC) => {}
            Some(_) => return Ok((empty(Failure::data(at / 8)), None)),
            None => return Ok((empty(Failure::cut(window.end())), None)),
        }
        let Some(crc) = window.bits(at + MAGIC_BITS, 32)? else {
            return Ok((empty(Failure::cut(window.end())), None));
        };
        let crc = crc as u32;
        let taken_in = self.take_in(window, at)?;
        if let TakenIn::Failed(failure) = taken_in {
            return Ok((empty(failure), None));
        }
        let mut plain = Vec::new();
        let follows = loop {
            if plain.len() >= WHOLE_BYTES_MAX {
                return Ok((Decoded::Long(LongBlock { first: plain, crc, decoder: self }), None));
            }
            plain.reserve(ROOM_BYTES.max(plain.len()));
            let result = self.library.decompress_vec(&[], &mut plain);
            match self.given(result) {
                Err(failure) => break Follows::Failure(failure),
                Ok(()) if plain.is_empty() => break Follows::Failure(Failure::cut(window.end())),
                Ok(()) if plain.len() == plain.capacity() => {}
                Ok(()) => break self.follows(window)?,
            }
        };
        let block = Block { plain: plain.into_boxed_slice(), crc, follows };
        Ok((Decoded::Whole(block), Some(self)))
    }

    /// The next plain bytes of a long block, 0 at its end (or for an empty `out`), and the failure behind them, if any.
    pub(super) fn read(&mut self, out: &mut [u8]) -> (usize, Option<Failure>) {
        let before = self.library.total_out();
        let result = self.library.decompress(&[], out);
        let failure = self.given(result).err();
        ((self.library.total_out() - before) as usize, failure)
    }

    /// What comes behind a block whose plain bytes have all been given.
    pub(super) fn follows(&mut self, window: &mut Window) -> Result<Follows> {
        // The library reads the next magic by itself. All of it lies in what it has taken in and the next six bytes; fewer
        // than eight, so it takes none before it must.
        for _ in 0..MAGIC_BITS / 8 {
            let Some(byte) = window.bits(self.next, 8)? else {
                return Ok(Follows::Failure(Failure::cut(window.end())));
            };
            let result = self.library.decompress(&[byte as u8], &mut []);
            if let Err(failure) = self.given(result) {
                return Ok(Follows::Failure(failure));
            }
            self.next += 8;
        }
        let Some(end) = self.end else { return Ok(Follows::Failure(Failure::data(self.next / 8))) };
        Ok(match window.bits(end, MAGIC_BITS)? {
            Some(BLOCK_MAGIC) => Follows::Block(end),
            _ => Follows::End(end),
        })
    }

    /// Gives the library the bits of the block at `at`.
    fn take_in(&mut self, window: &mut Window, at: u64) -> Result<TakenIn> {
        self.end = None;
        // No block ends within its own magic and checksum.
        let mut look_from = at + MAGIC_BITS + 32;
        loop {
            let first = self.next / 8;
            // One byte more for the shift, and a magic's length and the distance to it, so that each round gets on.
            let bytes = window.at(first, PIECE_BYTES + 16)?;
            let is_last = bytes.len() < PIECE_BYTES + 16;
            let bytes = &bytes[..bytes.len().min(PIECE_BYTES + 16)];
            let base = first * 8;
            let len_bits = bytes.len() as u64 * 8;
            let magic = scan::find(bytes, look_from.saturating_sub(base)).map(|(bit, _)| base + bit);
            // No magic that was not looked for begins before this bit.
            let clear = match magic {
                Some(magic) => magic,
                None if is_last => u64::MAX,
                None => base + len_bits - (MAGIC_BITS - 1),
            };
            let whole = (base + len_bits - self.next) / 8;
            // Eight bits before a magic the library must hold less than a byte, so that it has to take one more.
            let far =
                whole.min(clear.saturating_sub(8).saturating_sub(self.next) / 8).min(PIECE_BYTES as u64);
            let (count, is_near) = match magic {
                Some(magic) if far == 0 => {
                    (whole.min(magic.saturating_sub(self.next).div_ceil(8).max(1)), true)
                }
                _ => (far, false),
            };
            if count == 0 {
                return Ok(TakenIn::ToTheEnd);
            }
            let piece = shifted(bytes, self.next % 8, &mut self.piece[..count as usize]);
            let before = self.library.total_in();
            let result = self.library.decompress(piece, &mut []);
            let taken = self.library.total_in() - before;
            self.next += taken * 8;
            if let Err(failure) = self.given(result) {
                return Ok(TakenIn::Failed(failure));
            }
            if taken < count {
                // Complete with the bytes of the rounds before, or else not at a magic.
                self.end = self.end.filter(|_| taken == 0);
                return Ok(TakenIn::Complete);
            }
            // If the block ends at this magic, the library takes no further byte.
            self.end = magic.filter(|magic| is_near && self.next >= *magic && self.next < *magic + 8);
            if let Some(magic) = self.end {
                look_from = magic + 1;
            }
        }
    }

    /// What the library's answer means for a block.
    fn given(&self, result: Result<Status, Bz2Error>) -> Result<(), Failure> {
        match result {
            Ok(Status::Ok) => Ok(()),
            Ok(Status::MemNeeded) => Err(Failure::memory(self.next / 8)),
            Ok(_) | Err(_) => Err(Failure::data(self.next / 8)),
        }
    }

    /// The stored bit at which the block ends, or a few bits before.
    pub(super) fn ends_about(&self) -> u64 {
        self.end.unwrap_or(self.next.saturating_sub(64))
    }

    /// The library's memory, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        STATE_BYTES + PIECE_BYTES + LEVEL_BYTES * usize::from(self.level)
    }
}

/// A block of which nothing can be had.
fn empty(failure: Failure) -> Decoded {
    Decoded::Whole(Block { plain: Box::default(), crc: 0, follows: Follows::Failure(failure) })
}

/// Fills `out` from bit `shift` (0 to 7) of `bytes` on, which must be long enough.
fn shifted<'a>(bytes: &[u8], shift: u64, out: &'a mut [u8]) -> &'a [u8] {
    if shift == 0 {
        out.copy_from_slice(&bytes[..out.len()]);
    } else {
        for (byte, pair) in out.iter_mut().zip(bytes.windows(2)) {
            *byte = pair[0] << shift | pair[1] >> (8 - shift);
        }
    }
    out
}
