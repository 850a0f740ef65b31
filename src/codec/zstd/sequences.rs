//! The sequences of a block, decoded without being executed: RFC 8878 sections 3.1.1.3.2 and 3.1.1.5.
//!
//! Problem: a restart point needs the three last offsets, which only the sequences tell, and which plain bytes of the
//! window will be copied. Idea: decode the numbers, leave the bytes alone. The offsets may be unknown at first: after
//! three that are spelled out they are known.

use super::fse::Table;

/// The offsets that a frame starts with.
pub(super) const OFFSETS_AT_FRAME_START: Offsets = [1, 4, 8];

/// The three last offsets, newest first; 0 where not known.
pub(super) type Offsets = [u32; 3];

/// What a sequence copies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    /// Literals before the match.
    pub(super) literals: u32,
    /// Bytes of the match.
    pub(super) matched: u32,
    /// How far before its place the match is copied from; 0 when not known.
    pub(super) offset: u32,
}

/// A bit stream that is read from its end.
struct Bits<'a> {
    bytes: &'a [u8],
    /// How many bits are left to read; below 0 after too many were read.
    left: isize,
}

impl<'a> Bits<'a> {
    /// The highest bit of the last byte is a mark.
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let mark = bytes.last()?.checked_ilog2()?;
        Some(Self { bytes, left: (bytes.len() as isize - 1) * 8 + mark as isize })
    }

    /// The next bits, from the top of the word on: at least 57, zeros after the end.
    #[inline]
    fn peek(&self) -> u64 {
        let left = self.left.max(0) as usize;
        let end = left.div_ceil(8);
        let mut eight = [0; 8];
        if let Some(start) = end.checked_sub(8) {
            eight.copy_from_slice(&self.bytes[start..end]);
        } else {
            eight[8 - end..].copy_from_slice(&self.bytes[..end]);
        }
        u64::from_le_bytes(eight) << (end * 8 - left)
    }

    #[inline]
    fn take(&mut self, word: &mut u64, bits: u8) -> u32 {
        let value = (*word >> 1) >> (63 - u32::from(bits));
        *word <<= bits;
        self.left -= isize::from(bits);
        value as u32
    }
}

/// Most bits that one [`Bits::peek`] is sure to give.
const PEEK_BITS: u8 = 57;

/// Decodes `count` sequences of `bits`, hands each to `visit` and updates `offsets`. `None` when they are damaged.
pub(super) fn walk(
    tables: &[Table; 3],
    bits: &[u8],
    count: u32,
    offsets: &mut Offsets,
    mut visit: impl FnMut(Sequence),
) -> Option<()> {
    let mut bits = Bits::new(bits)?;
    let mut word = bits.peek();
    let [mut length_state, mut offset_state, mut match_state] =
        [&tables[0], &tables[1], &tables[2]].map(|table| bits.take(&mut word, table.log as u8) as usize);
    for n in 0..count {
        // States stay below the table's size, as their cells are made; the mask only spares the check.
        let lengths = tables[0].cells[length_state & 511];
        let code = tables[1].cells[offset_state & 511];
        let matches = tables[2].cells[match_state & 511];
        word = bits.peek();
        let value = code.base.wrapping_add(bits.take(&mut word, code.extra_bits));
        if code.extra_bits + matches.extra_bits + lengths.extra_bits > PEEK_BITS {
            word = bits.peek();
        }
        let matched = matches.base + bits.take(&mut word, matches.extra_bits);
        let literals = lengths.base + bits.take(&mut word, lengths.extra_bits);
        let offset = resolve(offsets, value, literals == 0);
        if bits.left < 0 {
            return None;
        }
        visit(Sequence { literals, matched, offset });
        if n + 1 < count {
            word = bits.peek();
            length_state = usize::from(lengths.next) + bits.take(&mut word, lengths.bits) as usize;
            match_state = usize::from(matches.next) + bits.take(&mut word, matches.bits) as usize;
            offset_state = usize::from(code.next) + bits.take(&mut word, code.bits) as usize;
        }
    }
    (bits.left >= 0).then_some(())
}

/// The offset that `value` stands for: the three smallest values name one of the last ones.
#[inline]
fn resolve(offsets: &mut Offsets, value: u32, no_literals: bool) -> u32 {
    let [first, second, third] = *offsets;
    if value > 3 {
        *offsets = [value - 3, first, second];
    } else {
        match value + u32::from(no_literals) {
            1 => {}
            2 => *offsets = [second, first, third],
            3 => *offsets = [third, first, second],
            // One less than the newest; what is not known (0) stays so, and a damaged 1 is as good as that.
            _ => *offsets = [first.saturating_sub(1), first, second],
        }
    }
    offsets[0]
}
