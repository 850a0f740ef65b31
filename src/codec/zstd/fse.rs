//! The tables of zstd's sequence codes: finite state entropy, RFC 8878 sections 4.1 and 3.1.1.3.2.
//!
//! Idea: a distribution is read from its stored description, and a table of cells built from it, each of which knows its
//! code's base value, how many bits that code adds, and how the next cell is found.
//!
//! Invariants: every number that comes from the stream is checked against the format's bounds before it is used as a size
//! or an index; a table has at most [`CELLS_MAX`] cells.

/// Most cells of a table: an accuracy of 9 bits, the format's largest.
const CELLS_MAX: usize = 512;

/// Most codes of an alphabet: match lengths have 53.
const CODES_MAX: usize = 53;

/// Smallest accuracy of a described table, in bits.
const ACCURACY_LOG_MIN: u32 = 5;

/// One of the three alphabets of a sequence.
#[derive(Debug)]
pub(super) struct Alphabet {
    /// Base value of the first code.
    first: u32,
    /// Bits that each code adds to its base; a base is the one before it plus what that one's bits can tell apart.
    extra_bits: &'static [u8],
    /// Largest accuracy that the format allows.
    log_max: u32,
    /// The predefined distribution, as the stream would describe it.
    pub(super) predefined: &'static [u8],
}

/// Literal lengths.
pub(super) static LITERAL_LENGTHS: Alphabet = Alphabet {
    first: 0,
    extra_bits: &[
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12,
        13, 14, 15, 16,
    ],
    log_max: 9,
    predefined: &[
        0x51, 0x10, 0x63, 0x8c, 0x31, 0xc6, 0x18, 0x63, 0x0c, 0x21, 0xc4, 0x18, 0x63, 0x66, 0x66, 0x86, 0x46,
        0x92, 0x04, 0x00,
    ],
};

/// Offsets: code n is `1 << n` and n more bits.
pub(super) static OFFSETS: Alphabet = Alphabet {
    first: 1,
    extra_bits: &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27,
        28, 29, 30, 31,
    ],
    log_max: 8,
    predefined: &[0x20, 0x84, 0x10, 0x42, 0x66, 0x46, 0x44, 0x44, 0x44, 0x44, 0x24, 0x49, 0x02, 0x00],
};

/// Match lengths.
pub(super) static MATCH_LENGTHS: Alphabet = Alphabet {
    first: 3,
    extra_bits: &[
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1,
        1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
    log_max: 9,
    predefined: &[
        0x21, 0x14, 0xc4, 0x18, 0x63, 0x8c, 0x21, 0x84, 0x10, 0x42, 0x08, 0x21, 0x84, 0x10, 0x42, 0x08, 0x21,
        0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x24, 0x09, 0x00, 0x00,
    ],
};

impl Alphabet {
    /// Whether a table may stand for `code` alone.
    pub(super) fn has(&self, code: u8) -> bool {
        usize::from(code) < self.extra_bits.len()
    }

    /// Base value and additional bits of `code`, which the alphabet has.
    fn value(&self, code: usize) -> (u32, u8) {
        let base = self.extra_bits[..code].iter().fold(self.first, |base, bits| base.wrapping_add(1 << bits));
        (base, self.extra_bits[code])
    }
}

/// A distribution over an alphabet's codes.
#[derive(Debug)]
pub(super) struct Distribution {
    /// Cells of each code; -1 is one cell with the full accuracy.
    cells: [i16; CODES_MAX],
    log: u32,
    /// Bytes of its description.
    pub(super) stored_bytes: usize,
}

/// 32 bits of a forward bit stream from bit `at` on; zeros after its end.
fn peek(bytes: &[u8], at: usize) -> u32 {
    let rest = bytes.get(at / 8..).unwrap_or_default();
    let mut eight = [0; 8];
    let have = rest.len().min(8);
    eight[..have].copy_from_slice(&rest[..have]);
    (u64::from_le_bytes(eight) >> (at % 8)) as u32
}

impl Distribution {
    /// Reads the description at the start of `bytes`; `None` when it is none for `alphabet`.
    pub(super) fn read(alphabet: &Alphabet, bytes: &[u8]) -> Option<Self> {
        let log = (peek(bytes, 0) & 15) + ACCURACY_LOG_MIN;
        if log > alphabet.log_max {
            return None;
        }
        let mut cells = [0; CODES_MAX];
        let (mut bit, mut code) = (4, 0);
        // Cells not given yet, and one; a number below `threshold` may take one bit less than `bits`.
        let mut remaining = (1 << log) + 1;
        let mut bits = log as usize + 1;
        while remaining > 1 {
            if code >= alphabet.extra_bits.len() {
                return None;
            }
            let threshold = 1 << (bits - 1);
            let short = 2 * threshold - 1 - remaining;
            let next = peek(bytes, bit);
            let low = (next & (threshold as u32 - 1)) as i32;
            let mut count = (next & (2 * threshold as u32 - 1)) as i32;
            if low < short {
                count = low;
                bit += bits - 1;
            } else {
                bit += bits;
                if count >= threshold {
                    count -= short;
                }
            }
            count -= 1;
            remaining -= count.abs();
            cells[code] = count as i16;
            code += 1;
            while remaining > 0 && remaining < 1 << (bits - 1) {
                bits -= 1;
            }
            if count == 0 {
                // How many codes of no cells follow; 3 means that another such number does.
                loop {
                    let more = peek(bytes, bit) as usize & 3;
                    bit += 2;
                    code += more;
                    if more < 3 {
                        break;
                    }
                }
            }
        }
        let stored_bytes = bit.div_ceil(8);
        (remaining == 1 && stored_bytes <= bytes.len()).then_some(Self { cells, log, stored_bytes })
    }
}

/// What to read when a table is in one of its states.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Cell {
    /// Base value of the code.
    pub(super) base: u32,
    /// The next state is this and `bits` more bits.
    pub(super) next: u16,
    pub(super) bits: u8,
    /// Bits that the code adds to its base.
    pub(super) extra_bits: u8,
}

/// A decoding table.
#[derive(Debug)]
pub(super) struct Table {
    /// Bits of the first state; the table has `1 << log` cells, and every state is below that.
    pub(super) log: u32,
    pub(super) cells: [Cell; CELLS_MAX],
}

impl Table {
    /// The table of `distribution`.
    pub(super) fn new(alphabet: &Alphabet, distribution: &Distribution) -> Self {
        let log = distribution.log;
        let size = 1usize << log;
        let mut codes = [0u8; CELLS_MAX];
        let mut next = [0u32; CODES_MAX];
        let mut free = size;
        for (code, count) in distribution.cells.iter().enumerate() {
            if *count < 0 {
                free = free.saturating_sub(1);
                codes[free] = code as u8;
                next[code] = 1;
            } else {
                next[code] = *count as u32;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut position = 0;
        for (code, count) in distribution.cells.iter().enumerate() {
            for _ in 0..(*count).max(0) {
                codes[position] = code as u8;
                position = (position + step) & (size - 1);
                // Ends: the step is odd, so it meets each cell, and a count is only above 0 where a cell is free.
                while free > 0 && position >= free {
                    position = (position + step) & (size - 1);
                }
            }
        }
        let mut values = [(0, 0); CODES_MAX];
        let mut base = alphabet.first;
        for (value, extra_bits) in values.iter_mut().zip(alphabet.extra_bits) {
            *value = (base, *extra_bits);
            base = base.wrapping_add(1 << extra_bits);
        }
        let mut cells = [Cell::default(); CELLS_MAX];
        for (cell, code) in cells[..size].iter_mut().zip(codes) {
            let (base, extra_bits) = values[usize::from(code)];
            let state = &mut next[usize::from(code)];
            let bits = log.saturating_sub((*state).max(1).ilog2());
            *cell = Cell {
                base,
                next: ((*state << bits) as usize & (size - 1)) as u16,
                bits: bits as u8,
                extra_bits,
            };
            *state += 1;
        }
        Self { log, cells }
    }

    /// The table that only knows `code`, which the alphabet has.
    pub(super) fn single(alphabet: &Alphabet, code: u8) -> Self {
        let (base, extra_bits) = alphabet.value(usize::from(code));
        let mut cells = [Cell::default(); CELLS_MAX];
        cells[0] = Cell { base, next: 0, bits: 0, extra_bits };
        Self { log: 0, cells }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8878, section 3.1.1.3.2.2.
    #[test]
    fn the_predefined_descriptions_are_those_of_the_format() {
        let mut lengths = vec![4, 3];
        lengths.extend([2; 11]);
        lengths.extend([1; 3]);
        lengths.extend([2; 9]);
        lengths.extend([3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1]);
        let mut offsets = vec![1; 6];
        offsets.extend([2; 3]);
        offsets.extend([1; 15]);
        offsets.extend([-1; 5]);
        let mut matches = vec![1, 4, 3];
        matches.extend([2; 6]);
        matches.extend([1; 37]);
        matches.extend([-1; 7]);
        for (alphabet, cells, log) in
            [(&LITERAL_LENGTHS, lengths, 6), (&OFFSETS, offsets, 5), (&MATCH_LENGTHS, matches, 6)]
        {
            let read = Distribution::read(alphabet, alphabet.predefined).unwrap();
            assert_eq!(read.cells[..cells.len()], cells);
            assert_eq!((read.log, read.stored_bytes), (log, alphabet.predefined.len()));
            assert!(
                Distribution::read(alphabet, &alphabet.predefined[..alphabet.predefined.len() - 2]).is_none()
            );
        }
    }

    /// RFC 8878, appendix A.1, first and last rows.
    #[test]
    fn the_predefined_table_of_literal_lengths_is_that_of_the_format() {
        let read = Distribution::read(&LITERAL_LENGTHS, LITERAL_LENGTHS.predefined).unwrap();
        let table = Table::new(&LITERAL_LENGTHS, &read);
        let row = |state: usize| (table.cells[state].base, table.cells[state].bits, table.cells[state].next);
        assert_eq!((row(0), row(1), row(2)), ((0, 4, 0), (0, 4, 16), (1, 5, 32)));
        assert_eq!((row(62), row(63)), ((16384, 6, 0), (8192, 6, 0)));
    }

    #[test]
    fn bytes_that_are_no_description_are_refused_without_a_panic() {
        let mut seed = 1u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes = (seed >> 8).to_le_bytes();
            for alphabet in [&LITERAL_LENGTHS, &OFFSETS, &MATCH_LENGTHS] {
                if let Some(read) = Distribution::read(alphabet, &bytes) {
                    let table = Table::new(alphabet, &read);
                    let size = 1 << table.log;
                    assert!(
                        table.cells[..size]
                            .iter()
                            .all(|cell| usize::from(cell.next) + (1 << cell.bits) <= size)
                    );
                }
            }
        }
    }
}
