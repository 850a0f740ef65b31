//! A zlib encoder with all of zlib's settings, which safe interfaces do not offer.
#![allow(unsafe_code, reason = "the C-level interface of zlib-rs")]

use libz_rs_sys::*;

/// Settings of zlib's `deflateInit2`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// 0 to 9.
    pub(crate) level: i32,
    /// 9 to 15.
    pub(crate) window_bits: i32,
    /// 1 to 9: block sizes grow with it.
    pub(crate) mem_level: i32,
    /// 0 to 4: default, filtered, Huffman only, RLE, fixed codes.
    pub(crate) strategy: i32,
}

/// What Cinder uses.
pub(crate) const DEFAULT: Settings = Settings { level: 6, window_bits: 15, mem_level: 8, strategy: 0 };

/// Flush kinds that may stand between pieces of one stream.
pub(crate) const FLUSHES: [i32; 5] = [Z_NO_FLUSH, Z_PARTIAL_FLUSH, Z_SYNC_FLUSH, Z_FULL_FLUSH, Z_BLOCK];

/// One zlib stream of `pieces`, each followed by its flush.
pub(crate) fn deflate_pieces(settings: Settings, pieces: &[(&[u8], i32)]) -> Vec<u8> {
    let Settings { level, window_bits, mem_level, strategy } = settings;
    let mut stream = Box::<z_stream>::default();
    let size = size_of::<z_stream>() as i32;
    // SAFETY: a whole stream without allocators of its own, and the library's own version and size.
    let status = unsafe {
        deflateInit2_(&mut *stream, level, Z_DEFLATED, window_bits, mem_level, strategy, zlibVersion(), size)
    };
    assert_eq!(status, Z_OK, "{settings:?}");
    let (mut stored, mut out) = (Vec::new(), vec![0; 64 * 1024]);
    for (piece, flush) in pieces.iter().copied().chain([(&[][..], Z_FINISH)]) {
        stream.next_in = piece.as_ptr();
        stream.avail_in = piece.len() as u32;
        loop {
            stream.next_out = out.as_mut_ptr();
            stream.avail_out = out.len() as u32;
            // SAFETY: the stream is initialised; its pointers are those of slices that live through the call.
            let status = unsafe { deflate(&mut *stream, flush) };
            assert!(matches!(status, Z_OK | Z_STREAM_END | Z_BUF_ERROR), "{status}");
            stored.extend_from_slice(&out[..out.len() - stream.avail_out as usize]);
            if stream.avail_out > 0 && (flush != Z_FINISH || status == Z_STREAM_END) {
                break;
            }
        }
    }
    // SAFETY: the stream was initialised, and is ended here only.
    unsafe { deflateEnd(&mut *stream) };
    stored
}

/// How a block is coded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// As it is.
    Stored,
    /// With the format's own codes.
    Fixed,
    /// With codes of its own.
    Dynamic,
}

/// A block, as the format describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    /// The bit at which it begins, counted from the stream's start, the lowest bit of a byte first.
    pub(crate) bit: u64,
    /// Plain bytes before it.
    pub(crate) plain_offset: u64,
    pub(crate) kind: Kind,
    /// The farthest that a match in it reaches before its own first byte, 0 when none does.
    pub(crate) reaches_back: usize,
}

/// The blocks of a zlib stream that is right, its plain bytes, and the bit behind the last block: bit by bit, as RFC 1951 tells it,
/// without the decoder that is tested.
pub(crate) fn read_blocks(stored: &[u8]) -> (Vec<Block>, Vec<u8>, u64) {
    let (mut bits, mut blocks, mut plain) = (Bits { stored, at: 16 }, Vec::new(), Vec::new());
    loop {
        let (bit, start) = (bits.at, plain.len());
        let is_last = bits.take(1) == 1;
        let (kind, reaches_back) = match bits.take(2) {
            0 => {
                bits.at = bits.at.next_multiple_of(8);
                let len = bits.take(16) as usize;
                assert_eq!(bits.take(16) as usize, len ^ 0xFFFF);
                plain.extend((0..len).map(|_| bits.take(8) as u8));
                (Kind::Stored, 0)
            }
            1 => {
                let lens = [vec![8; 144], vec![9; 112], vec![7; 24], vec![8; 8]].concat();
                (Kind::Fixed, bits.symbols(&Code::new(&lens), &Code::new(&[5; 30]), &mut plain, start))
            }
            _ => {
                let (literals, distances) = bits.codes();
                (Kind::Dynamic, bits.symbols(&literals, &distances, &mut plain, start))
            }
        };
        blocks.push(Block { bit, plain_offset: start as u64, kind, reaches_back });
        if is_last {
            return (blocks, plain, bits.at);
        }
    }
}

/// A canonical code: how many symbols have each length, and all in their order.
struct Code {
    counts: [u32; 16],
    symbols: Vec<usize>,
}

impl Code {
    fn new(lens: &[u8]) -> Self {
        let mut counts = [0; 16];
        lens.iter().filter(|len| **len > 0).for_each(|len| counts[usize::from(*len)] += 1);
        let mut symbols: Vec<_> = (0..lens.len()).filter(|symbol| lens[*symbol] > 0).collect();
        symbols.sort_by_key(|symbol| lens[*symbol]);
        Self { counts, symbols }
    }
}

struct Bits<'a> {
    stored: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> u32 {
        (0..count).fold(0, |value, n| {
            let bit = self.stored[self.at as usize / 8] >> (self.at % 8) & 1;
            self.at += 1;
            value | u32::from(bit) << n
        })
    }

    fn symbol(&mut self, code: &Code) -> usize {
        let (mut value, mut first, mut index) = (0, 0, 0);
        for count in &code.counts[1..] {
            value |= self.take(1);
            if value < first + count {
                return code.symbols[(index + value - first) as usize];
            }
            index += count;
            first = (first + count) << 1;
            value <<= 1;
        }
        panic!("no such code");
    }

    fn codes(&mut self) -> (Code, Code) {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let (literals, distances) = (257 + self.take(5) as usize, 1 + self.take(5) as usize);
        let count = 4 + self.take(4) as usize;
        let mut lens_of_lens = [0; 19];
        ORDER[..count].iter().for_each(|n| lens_of_lens[*n] = self.take(3) as u8);
        let (code, mut lens) = (Code::new(&lens_of_lens), Vec::new());
        while lens.len() < literals + distances {
            match self.symbol(&code) {
                16 => lens.resize(lens.len() + 3 + self.take(2) as usize, *lens.last().unwrap()),
                17 => lens.resize(lens.len() + 3 + self.take(3) as usize, 0),
                18 => lens.resize(lens.len() + 11 + self.take(7) as usize, 0),
                len => lens.push(len as u8),
            }
        }
        (Code::new(&lens[..literals]), Code::new(&lens[literals..]))
    }

    /// The symbols of one block; how far the matches reach before `start`.
    fn symbols(&mut self, literals: &Code, distances: &Code, plain: &mut Vec<u8>, start: usize) -> usize {
        let mut reaches_back = 0;
        loop {
            match self.symbol(literals) {
                literal @ 0..256 => plain.push(literal as u8),
                256 => return reaches_back,
                code => {
                    let len = match code - 257 {
                        n @ 0..8 => n + 3,
                        28 => 258,
                        n => 3 + ((4 + n % 4) << (n / 4 - 1)) + self.take(n as u32 / 4 - 1) as usize,
                    };
                    let distance = match self.symbol(distances) {
                        n @ 0..4 => n + 1,
                        n => 1 + ((2 + n % 2) << (n / 2 - 1)) + self.take(n as u32 / 2 - 1) as usize,
                    };
                    let from = plain.len() - distance;
                    reaches_back = reaches_back.max(start.saturating_sub(from));
                    (from..from + len).for_each(|at| plain.push(plain[at]));
                }
            }
        }
    }
}
