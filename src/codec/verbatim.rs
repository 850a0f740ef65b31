//! Plain bytes that stand in a stream as they are.
//!
//! Problem: what cannot be compressed is stored whole, and a reader that wants a block of it would fetch all from the restart point on.
//! Idea: between two points that are just as far apart in stored bytes as in plain ones, and the headers of stored blocks, there is nothing
//! but such blocks, and each but the last is as long as the format allows. So the place of any byte can be computed.
//!
//! That is a guess: lengths may agree by chance, or by somebody's will. Headers that are passed are checked, and wrong bytes are found out by
//! their digests as everywhere.

use super::Codec;

/// The longest that a header here is, in bytes.
const HEADER_BYTES_MAX: usize = 5;

/// How bytes stand between two restart points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verbatim {
    codec: Codec,
    plain_bytes: u64,
    /// Plain bytes of each block but the last.
    block_bytes: u64,
    /// Of each block.
    header_bytes: u64,
}

impl Verbatim {
    /// Between two points that are so many plain and stored bytes apart; `None` when what lies there is compressed.
    pub fn between(codec: Codec, plain_bytes: u64, stored_bytes: u64) -> Option<Self> {
        // Deflate: three bits up to a byte, two lengths; behind the last one the empty block of a full flush. zstd: three bytes.
        let (block_bytes, header_bytes, behind) = match codec {
            Codec::Zlib => (65_535, 5, 5),
            Codec::Zstd => (128 << 10, 3, 0),
            Codec::None | Codec::Bz2 => return None,
        };
        let headers = plain_bytes.div_ceil(block_bytes).checked_mul(header_bytes)?;
        let expected = plain_bytes.checked_add(headers)?.checked_add(behind)?;
        (stored_bytes == expected).then_some(Self { codec, plain_bytes, block_bytes, header_bytes })
    }

    /// Where the plain bytes `from..end`, which are some and lie between the points, stand: first stored byte and how many, headers
    /// between them included, counted from the first point.
    pub fn stored(&self, from: u64, end: u64) -> (u64, u64) {
        let at = |plain: u64| plain + (plain / self.block_bytes + 1) * self.header_bytes;
        (at(from), at(end - 1) + 1 - at(from))
    }

    /// Copies the plain bytes from `from` on out of their stored ones; whether the headers between them are right.
    pub fn copy(&self, stored: &[u8], from: u64, out: &mut [u8]) -> bool {
        let (mut stored, mut out, mut at) = (stored, out, from);
        while !out.is_empty() {
            if at > from && at.is_multiple_of(self.block_bytes) {
                let Some((header, rest)) = stored.split_at_checked(self.header_bytes as usize) else {
                    return false;
                };
                if !self.is_header(header, self.block_bytes.min(self.plain_bytes - at)) {
                    return false;
                }
                stored = rest;
            }
            let in_block = self.block_bytes - at % self.block_bytes;
            let len = out.len().min(usize::try_from(in_block).unwrap_or(usize::MAX));
            let Some((bytes, rest)) = stored.split_at_checked(len) else { return false };
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(bytes);
            (stored, out, at) = (rest, later, at + len as u64);
        }
        true
    }

    fn is_header(&self, header: &[u8], plain_bytes: u64) -> bool {
        let mut expected = [0; HEADER_BYTES_MAX];
        match self.codec {
            Codec::Zlib => {
                let len = plain_bytes as u16;
                expected[1..3].copy_from_slice(&len.to_le_bytes());
                expected[3..5].copy_from_slice(&(!len).to_le_bytes());
            }
            _ => expected[..3].copy_from_slice(&((plain_bytes as u32) << 3).to_le_bytes()[..3]),
        }
        header == &expected[..header.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_over_the_headers_between_blocks() {
        for (codec, plain_bytes) in [(Codec::Zlib, 200_000u64), (Codec::Zstd, 300_000)] {
            let plain: Vec<u8> =
                (0..plain_bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
            let (block, mut stored) = (if codec == Codec::Zlib { 65_535 } else { 131_072 }, Vec::new());
            for part in plain.chunks(block) {
                let len = part.len() as u16;
                match codec {
                    Codec::Zlib => {
                        stored.push(0);
                        stored.extend(len.to_le_bytes());
                        stored.extend((!len).to_le_bytes());
                    }
                    _ => stored.extend(&((part.len() as u32) << 3).to_le_bytes()[..3]),
                }
                stored.extend(part);
            }
            if codec == Codec::Zlib {
                stored.extend([0, 0, 0, 0xff, 0xff]);
            }
            assert_eq!(Verbatim::between(codec, plain_bytes, stored.len() as u64 - 1), None);
            let verbatim = Verbatim::between(codec, plain_bytes, stored.len() as u64).unwrap();
            let ends = [1, 5000, 65_534, 65_535, 65_536, 131_072, 131_073, plain_bytes];
            for (from, end) in
                ends.iter().flat_map(|from| ends.map(|end| (from - 1, end))).filter(|(from, end)| from < end)
            {
                let (at, len) = verbatim.stored(from, end);
                let range = at as usize..(at + len) as usize;
                let mut out = vec![0; (end - from) as usize];
                assert!(verbatim.copy(&stored[range.clone()], from, &mut out), "{codec} {from}..{end}");
                assert!(out == plain[from as usize..end as usize], "{codec} {from}..{end}");
                assert!(!verbatim.copy(&stored[range][..len as usize - 1], from, &mut out));
            }
            let wrong = if codec == Codec::Zlib { 5 + 65_535 } else { 3 + 131_072 };
            stored[wrong] ^= 1;
            let (at, len) = verbatim.stored(0, plain_bytes);
            let mut out = vec![0; plain_bytes as usize];
            assert!(!verbatim.copy(&stored[at as usize..(at + len) as usize], 0, &mut out));
        }
    }
}
