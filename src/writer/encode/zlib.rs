//! Pieces of a zlib stream.
//!
//! Problem: Cinder's restore reads one zlib stream and no more, so pieces must become one; readers want to begin every few
//! hundred KiB; and a volume may not take more than what Cinder itself stores. Idea: chunks that do not look back, each closed by an
//! empty stored block as zlib's `Z_FULL_FLUSH` does it. The Adler-32 of the whole is computed from those of the pieces.
//!
//! # libdeflate, not zlib
//!
//! A chunk that does not look back loses 1 to 3 %, which the compressor must win back. Stored bytes against Python's zlib at level 6
//! in one stream, for files of `/usr` at random, programs and shared libraries, and source code; speed of the first on one
//! thread, of the compressor alone. One run each, of 64 MiB; of the files 48 MiB, and 112 MiB in the last line but one:
//!
//! | compressor | chunk | files | programs | source | MB/s |
//! | --- | --- | --- | --- | --- | --- |
//! | zlib 6, one stream | - | 100 % | 100 % | 100 % | 49 |
//! | zlib-rs 6 | 128 KiB | 103.0 % | - | - | 99 |
//! | zlib-rs 9 | 128 KiB | 100.6 % | - | - | 33 |
//! | libdeflate 6 | 64 KiB | 101.2 % | - | - | 128 |
//! | libdeflate 6 | 128 KiB | 99.8 % | 100.7 % | 101.5 % | 126 |
//! | libdeflate 6 | 256 KiB | 99.0 % | 100.0 % | 100.5 % | 132 |
//! | **libdeflate 7** | **128 KiB** | **99.4 %** | **100.3 %** | **101.0 %** | **95** |
//! | libdeflate 7 | 256 KiB | 98.7 % | 99.6 % | 99.8 % | - |
//! | libdeflate 8 | 128 KiB | 99.0 % | 100.1 % | 100.3 % | 62 |
//!
//! So zlib-rs cannot do it at any level, and libdeflate can for all three from level 7 and 256 KiB on, with 128 KiB for files of all kinds. With the check below it makes
//! 89 MB/s of the files on one core (zlib 49), 68 of programs (33), 91 of source (58); 548 MB/s of a mix with 30 % random bytes and 30 %
//! zeros with four threads (zlib 72 with its one), at 99.6 % of the stored bytes.
//!
//! A reader that begins at the chunk decodes a random block of 32 KiB of that mix in 16 to 40 us (p50; mean 85 to 107), of the
//! files in 166, with chunks of 256 KiB; 95 with those of 128 KiB. Those are what we have: 2 GiB of such a mix take 99.96 % of genuine's bytes then instead
//! of 99.79 %, and a mount answers 4.3 to 4.5 thousand cold reads of 4 KiB at random places in a second instead of 3.5 (three rounds on a busy machine). Programs
//! and source take 0.3 and 1 % more than genuine's. Whoever prefers the bytes changes [`CHUNK_BYTES`].
//!
//! Where bytes compress tenfold and more, the loss would be larger. Such bytes decode several times as fast, so their chunks are
//! longer, up to [`STORED_BYTES_MIN`] of stored bytes: JSON that compresses to 2.5 % takes 100.5 % of one stream's bytes, p50 33 us.
//!
//! # Opening a block
//!
//! libdeflate makes whole streams only: its last block carries the final bit, which must be cleared for more to follow. Where
//! that block begins only decoding tells. So every chunk is decoded, block by block, with the inflater that readers use, and
//! compared with its plain bytes. It took 107 MB/s where the compressor alone had 126 (level 6, 128 KiB), and is worth it: no piece leaves this module that does not decode to
//! what it was made of, even if the compressor or this machine's memory is at fault. It is sane: RFC 1951 puts nothing but that bit
//! between a last block and another one, and a stored block of length zero may follow any block.

use libdeflater::{CompressionLvl, Compressor, adler32};

use super::{Encoded, PIECE_BYTES_MAX};
use crate::codec::zlib::inflate::{Inflate, Status};
use crate::error::{Error, ErrorKind, Result};

/// What an object begins with: deflate, a window of 32 KiB, level 6. As Cinder's; decoders do not look at the level.
pub(super) const HEADER: [u8; 2] = [0x78, 0x9c];

/// An empty last block, with fixed codes.
pub(super) const LAST_BLOCK: [u8; 2] = [0x03, 0x00];

/// The Adler-32 of no bytes.
pub(super) const ADLER_OF_NOTHING: u32 = 1;

/// Plain bytes of a chunk: what a reader decodes at most to get at any byte, at least what pays for a new window.
const CHUNK_BYTES: usize = 128 * 1024;

/// Stored bytes of a chunk for which it may be longer. A chosen number, not a tuned one: the
/// fewer bytes a chunk has, the larger a part of them is what its empty window costs.
const STORED_BYTES_MIN: usize = 16 * 1024;

/// What follows a chunk's last block: the lengths of an empty stored block.
const EMPTY_STORED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Four buffers of a piece, and the compressor's tables: about 1 MB up to level 9, some 9 MB above.
pub(super) fn context_bytes(level: i32) -> usize {
    (if level < 10 { 5 } else { 14 }) << 20
}

/// The state in which one thread compresses.
pub(super) struct Zlib {
    compressor: Compressor,
    /// The stream of one chunk, and the one that is tried in its place.
    packed: Vec<u8>,
    longer: Vec<u8>,
    /// What it decodes to.
    decoded: Vec<u8>,
    stored: Vec<u8>,
    entries: Vec<(u32, u32)>,
}

impl Zlib {
    /// Fails with [`ErrorKind::Usage`] when there is no such level.
    pub(super) fn new(level: i32) -> Result<Self> {
        let level = CompressionLvl::new(level)
            .map_err(|_| Error::new(ErrorKind::Usage, format!("zlib has no level {level}")))?;
        Ok(Self {
            compressor: Compressor::new(level),
            packed: Vec::new(),
            longer: Vec::new(),
            decoded: vec![0; PIECE_BYTES_MAX],
            stored: Vec::new(),
            entries: Vec::new(),
        })
    }

    /// Compresses `plain`, at most [`PIECE_BYTES_MAX`] bytes.
    pub(super) fn encode(&mut self, plain: &[u8]) -> Result<Encoded<'_>> {
        self.stored.clear();
        self.entries.clear();
        let mut rest = plain;
        while !rest.is_empty() {
            let chunk_bytes = self.pack_chunk(rest)?;
            let (chunk, after) = rest.split_at(chunk_bytes);
            self.entries.push(((plain.len() - rest.len()) as u32, self.stored.len() as u32));
            append_open(&self.packed, chunk, &mut self.decoded, &mut self.stored)?;
            rest = after;
        }
        Ok(Encoded { stored: &self.stored, entries: &self.entries, adler: adler32(plain) })
    }

    /// Packs the first chunk of `rest`, and says how long that is.
    fn pack_chunk(&mut self, rest: &[u8]) -> Result<usize> {
        let usual = &rest[..rest.len().min(CHUNK_BYTES)];
        deflate(&mut self.compressor, usual, &mut self.packed)?;
        let times = STORED_BYTES_MIN.div_ceil(self.packed.len().max(1));
        let longer = &rest[..rest.len().min(CHUNK_BYTES.saturating_mul(times))];
        // Zeros are no sign of what follows them.
        if longer.len() == usual.len() || usual.iter().all(|byte| *byte == 0) {
            return Ok(usual.len());
        }
        deflate(&mut self.compressor, longer, &mut self.longer)?;
        // What follows is of another kind, and would be slow to pass over.
        if self.longer.len() > 2 * STORED_BYTES_MIN {
            return Ok(usual.len());
        }
        std::mem::swap(&mut self.packed, &mut self.longer);
        Ok(longer.len())
    }
}

/// One stream of bare blocks.
fn deflate(compressor: &mut Compressor, plain: &[u8], packed: &mut Vec<u8>) -> Result<()> {
    packed.resize(compressor.deflate_compress_bound(plain.len()), 0);
    let len = compressor.deflate_compress(plain, packed).map_err(|error| {
        Error::new(ErrorKind::Codec, format!("zlib: cannot compress {} bytes: {error}", plain.len()))
    })?;
    packed.truncate(len);
    Ok(())
}

/// Appends the blocks of `packed` to `stored` so that others may follow, at a whole byte. `decoded` is room for `plain`.
///
/// Fails with [`ErrorKind::Codec`] when they do not decode to `plain`.
fn append_open(packed: &[u8], plain: &[u8], decoded: &mut [u8], stored: &mut Vec<u8>) -> Result<()> {
    let wrong = |why: &str| {
        let message = format!("zlib: {} bytes were compressed to a stream that {why}", plain.len());
        Error::new(ErrorKind::Codec, message)
    };
    let no_memory = || Error::new(ErrorKind::LimitExceeded, "zlib: out of memory");
    let mut inflate = Inflate::raw(&[]).ok_or_else(no_memory)?;
    let decoded = &mut decoded[..plain.len()];
    let (mut consumed, mut produced) = (0, 0);
    // In bits from the start of `packed`.
    let mut last_block = 0;
    let end = loop {
        let step = inflate.step(&packed[consumed..], &mut decoded[produced..], true);
        consumed += step.consumed;
        produced += step.produced;
        match step.status {
            Status::Border { unused_bits, last } => {
                let border = consumed * 8 - unused_bits as usize;
                if last {
                    break border;
                }
                if border == last_block {
                    return Err(wrong("stands still"));
                }
                last_block = border;
            }
            // All of the input is there and all of the room: it must come to a border in each step.
            _ => return Err(wrong("does not decode")),
        }
    };
    if produced != plain.len() || decoded != plain {
        return Err(wrong("decodes to others"));
    }

    let start = stored.len();
    stored.extend_from_slice(&packed[..end.div_ceil(8)]);
    stored[start + last_block / 8] &= !(1 << (last_block % 8));
    // What lies behind the end in its byte is no matter to decoders, and so not checked by the inflater.
    if let (1.., Some(byte)) = (end % 8, stored.last_mut()) {
        *byte &= (1 << (end % 8)) - 1;
    }
    // Three bits, all 0, begin a stored block that is not the last; then zeros up to a whole byte.
    if !(1..=5).contains(&(end % 8)) {
        stored.push(0);
    }
    stored.extend_from_slice(&EMPTY_STORED);
    Ok(())
}

/// The Adler-32 of two byte strings in a row, the second of which has `second_bytes` bytes.
pub(super) fn adler_of_both(first: u32, second: u32, second_bytes: u64) -> u32 {
    // The largest prime below 2^16. A sum of all bytes, from 1 on, and a sum of those sums; so the first one's sum
    // counts once for each byte of the second, and the 1 with which the second began must go.
    const BASE: u64 = 65521;
    let sums = |adler: u32| (u64::from(adler & 0xffff), u64::from(adler >> 16));
    let ((a, a_sum), (b, b_sum)) = (sums(first), sums(second));
    let before = a + BASE - 1;
    let low = (before + b) % BASE;
    let high = (a_sum + b_sum + before % BASE * (second_bytes % BASE)) % BASE;
    (high << 16 | low) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_of_both_is_that_of_one_after_the_other() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(n) >> 3) as u8 | 0x80).collect();
        for at in [0, 1, 2, 5551, 65520, 65521, 65522, 131_072, 299_999, 300_000] {
            let (first, second) = bytes.split_at(at);
            let both = adler_of_both(adler32(first), adler32(second), second.len() as u64);
            assert_eq!(both, adler32(&bytes), "cut at {at}");
        }
    }

    #[test]
    fn what_does_not_decode_to_its_plain_bytes_is_refused() {
        let plain = b"what does not decode to its plain bytes is refused, is refused, is refused".repeat(9);
        let mut compressor = Compressor::new(CompressionLvl::default());
        let mut packed = Vec::new();
        deflate(&mut compressor, &plain, &mut packed).unwrap();
        let open = |packed: &[u8], plain: &[u8]| {
            let mut stored = Vec::new();
            append_open(packed, plain, &mut vec![0; plain.len()], &mut stored).map(|()| stored)
        };
        open(&packed, &plain).unwrap();

        let mut other = plain.clone();
        other[100] ^= 1;
        for (packed, plain) in [
            (&packed[..], &other[..]),
            (&packed[..], &plain[..plain.len() - 1]),
            (&packed[..], &[&plain[..], b"x"].concat()),
            (&packed[..packed.len() - 3], &plain[..]),
            (&[], &plain[..]),
            (&[0x06], &plain[..]),
        ] {
            assert_eq!(open(packed, plain).unwrap_err().kind(), ErrorKind::Codec);
        }
    }

    #[test]
    fn blocks_that_end_at_any_bit_are_closed_at_a_whole_byte() {
        let mut ends = [false; 8];
        let mut compressor = Compressor::new(CompressionLvl::default());
        for len in 1..400usize {
            let letter = |n: usize| b"etaoin shrdlu"[(n * n * 7 + len * n / 3) % 97 % 13];
            let plain: Vec<u8> = (0..len).map(letter).collect();
            let mut packed = Vec::new();
            deflate(&mut compressor, &plain, &mut packed).unwrap();
            let mut stored = Vec::new();
            append_open(&packed, &plain, &mut vec![0; len], &mut stored).unwrap();
            // Twice, then the end: decodes to both, and ends with the last byte.
            let twice = [&stored[..], &stored, &LAST_BLOCK].concat();
            let mut decoded = vec![0; 2 * len];
            libdeflater::Decompressor::new().deflate_decompress(&twice, &mut decoded).unwrap();
            assert_eq!(decoded, plain.repeat(2));
            ends[end_bit(&packed) % 8] = true;
        }
        assert_eq!(ends, [true; 8], "the cases that the code has were all seen");
    }

    fn end_bit(packed: &[u8]) -> usize {
        let mut inflate = Inflate::raw(&[]).unwrap();
        let step = inflate.step(packed, &mut [0; 4096], true);
        match step.status {
            Status::Border { unused_bits, last: true } => step.consumed * 8 - unused_bits as usize,
            _ => panic!("more than one block"),
        }
    }
}
