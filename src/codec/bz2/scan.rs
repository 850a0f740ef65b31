//! Finds where bzip2 blocks may begin or streams may end, at the speed of memory.
//!
//! Problem: a block begins with 48 bits, a stream ends with 48 others, and both may begin at any bit. Idea: a field of 48
//! bits covers at least five whole bytes, wherever it begins. The pairs of neighbouring bytes within five bytes begin at
//! four consecutive bytes, so exactly one of those begins at a multiple of four. It is enough to look at one pair in
//! every four bytes, in a table of the 16-bit pieces of both magics: 66 of 65,536 values, so that one pair in a thousand
//! leads to a closer look.
//!
//! Invariant: every magic that lies wholly within the bytes is found. What is found is only a candidate: compressed
//! bits may look like a magic by chance or by intent, and nobody here decides about that.

/// What a block begins with: π.
pub(super) const BLOCK_MAGIC: u64 = 0x3141_5926_5359;

/// What a stream ends with: √π.
pub(super) const END_MAGIC: u64 = 0x1772_4538_5090;

/// Bits of a magic.
pub(super) const MAGIC_BITS: u64 = 48;

const MAGIC_MASK: u64 = (1 << MAGIC_BITS) - 1;

/// Which 16-bit values occur inside a magic, at any bit of it; one bit each.
static SIEVE: [u64; 1024] = sieve();

const fn sieve() -> [u64; 1024] {
    let mut sieve = [0; 1024];
    let mut shift = 0;
    while shift <= MAGIC_BITS - 16 {
        let block = (BLOCK_MAGIC >> shift) as u16 as usize;
        sieve[block / 64] |= 1 << (block % 64);
        let end = (END_MAGIC >> shift) as u16 as usize;
        sieve[end / 64] |= 1 << (end % 64);
        shift += 1;
    }
    sieve
}

/// A magic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Magic {
    Block,
    End,
}

/// The first magic that lies wholly within `bytes` and begins at bit `from` or later, and the bit at which it begins. Bits
/// are counted from the highest bit of the first byte.
pub(super) fn find(bytes: &[u8], from: u64) -> Option<(u64, Magic)> {
    // A magic at bit `from` has its pair at the first multiple of four behind it at the earliest; multiples of four of the
    // slice do as well as those of the object.
    let mut pair = usize::try_from(from / 8).ok()? / 4 * 4;
    loop {
        let quads = bytes.get(pair..)?.chunks(4);
        let hit = quads.take_while(|quad| quad.len() >= 2).position(|quad| {
            let value = usize::from(u16::from_be_bytes([quad[0], quad[1]]));
            SIEVE[value / 64] >> (value % 64) & 1 != 0
        });
        pair += hit? * 4;
        if let Some(found) = around(bytes, pair, from) {
            return Some(found);
        }
        pair += 4;
    }
}

/// The first magic from bit `from` on that covers the two bytes at `pair`.
fn around(bytes: &[u8], pair: usize, from: u64) -> Option<(u64, Magic)> {
    // A magic that covers the pair lies within the four bytes before it, the pair, and the four behind.
    let first = pair.saturating_sub(4);
    let end = bytes.len().min(pair + 6);
    let bits = bytes[first..end].iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let bits_len = (end - first) as u64 * 8;
    for at in 0..=bits_len.checked_sub(MAGIC_BITS)? {
        let value = (bits >> (bits_len - MAGIC_BITS - at)) as u64 & MAGIC_MASK;
        let bit = first as u64 * 8 + at;
        match value {
            BLOCK_MAGIC if bit >= from => return Some((bit, Magic::Block)),
            END_MAGIC if bit >= from => return Some((bit, Magic::End)),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bit(bytes: &[u8], at: u64) -> u64 {
        u64::from(bytes[at as usize / 8] >> (7 - at % 8) & 1)
    }

    fn plant(bytes: &mut [u8], at: u64, magic: u64) {
        for i in 0..MAGIC_BITS {
            let (byte, mask) = ((at + i) as usize / 8, 0x80 >> ((at + i) % 8));
            bytes[byte] &= !mask;
            if magic >> (MAGIC_BITS - 1 - i) & 1 != 0 {
                bytes[byte] |= mask;
            }
        }
    }

    /// All magics, found bit by bit.
    fn slowly(bytes: &[u8]) -> Vec<(u64, Magic)> {
        let (mut found, mut value) = (Vec::new(), 0);
        for at in 0..bytes.len() as u64 * 8 {
            value = (value << 1 | bit(bytes, at)) & MAGIC_MASK;
            match value {
                _ if at + 1 < MAGIC_BITS => {}
                BLOCK_MAGIC => found.push((at + 1 - MAGIC_BITS, Magic::Block)),
                END_MAGIC => found.push((at + 1 - MAGIC_BITS, Magic::End)),
                _ => {}
            }
        }
        found
    }

    fn all(bytes: &[u8]) -> Vec<(u64, Magic)> {
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some((at, magic)) = find(bytes, from) {
            found.push((at, magic));
            from = at + 1;
        }
        found
    }

    #[test]
    fn a_magic_at_any_bit_of_a_slice_of_any_length_is_found() {
        for len in 6..24 {
            for (magic, value) in [(Magic::Block, BLOCK_MAGIC), (Magic::End, END_MAGIC)] {
                for at in 0..=len * 8 - MAGIC_BITS {
                    for fill in [0, 0xff] {
                        let mut bytes = vec![fill; len as usize];
                        plant(&mut bytes, at, value);
                        assert_eq!(all(&bytes), [(at, magic)], "bit {at} of {len} bytes");
                        assert_eq!(find(&bytes, at + 1), None);
                        assert_eq!(find(&bytes[..bytes.len() - 1], at + 8), None);
                    }
                }
            }
        }
        assert_eq!(find(&[], 0), None);
        assert_eq!(find(&[0x31, 0x41, 0x59, 0x26, 0x53], 0), None);
        assert_eq!(find(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], 1 << 40), None);
    }

    #[test]
    fn magics_never_overlap_by_more_than_a_few_bits() {
        // The walker takes a magic in the last eight bits before the library's place for the one at its place: no two may
        // begin within eight bits.
        for a in [BLOCK_MAGIC, END_MAGIC] {
            for b in [BLOCK_MAGIC, END_MAGIC] {
                for shift in 1..=16 {
                    assert_ne!(a & (MAGIC_MASK >> shift), b >> shift, "{a:x} {b:x} {shift}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn finds_what_looking_at_every_bit_finds(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            planted in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..20),
        ) {
            for (at, is_block) in planted {
                if bytes.len() > 6 {
                    let at = at.index(bytes.len() * 8 - 48) as u64;
                    plant(&mut bytes, at, if is_block { BLOCK_MAGIC } else { END_MAGIC });
                }
            }
            prop_assert_eq!(all(&bytes), slowly(&bytes));
        }
    }
}
