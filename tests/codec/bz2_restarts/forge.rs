//! A bzip2 encoder for streams that are right and yet hold magics where no block begins and no stream ends.
//!
//! Idea: a block lists which of its tables each group of 50 symbols takes, in bits that may be almost any (runs of at most
//! five ones) if all tables are the same, and the list may be longer than the groups. So it can spell a magic at any bit.

/// What a block begins with.
pub(crate) const BLOCK_MAGIC: u64 = 0x3141_5926_5359;

/// What a stream ends with.
pub(crate) const END_MAGIC: u64 = 0x1772_4538_5090;

/// Bits, highest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: u64,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        for n in (0..count).rev() {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> n & 1) as u8) << (7 - self.len % 8);
            self.len += 1;
        }
    }
}

fn crc(plain: &[u8]) -> u32 {
    !plain.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            crc << 1 ^ if crc >> 31 == 1 { 0x04C1_1DB7 } else { 0 }
        })
    })
}

/// Runs of four and more as four and a count.
fn packed_runs(plain: &[u8]) -> Vec<u8> {
    let (mut packed, mut at) = (Vec::new(), 0);
    while at < plain.len() {
        let run = plain[at..].iter().take(259).take_while(|byte| **byte == plain[at]).count();
        packed.resize(packed.len() + run.min(4), plain[at]);
        if run >= 4 {
            packed.push((run - 4) as u8);
        }
        at += run;
    }
    packed
}

/// The last column of the sorted rotations, and where the first rotation is.
fn sorted(bytes: &[u8]) -> (Vec<u8>, usize) {
    let twice = bytes.repeat(2);
    let mut starts: Vec<usize> = (0..bytes.len()).collect();
    starts.sort_by(|a, b| twice[*a..a + bytes.len()].cmp(&twice[*b..b + bytes.len()]));
    let first = starts.iter().position(|start| *start == 0).unwrap();
    (starts.iter().map(|start| twice[start + bytes.len() - 1]).collect(), first)
}

/// One block of `plain`, whose list of tables spells `magics`, each after as many zeros as are named. Returns the bits at which
/// they begin.
fn block(bits: &mut Bits, plain: &[u8], magics: &[(u32, u64)]) -> Vec<u64> {
    let (column, first) = sorted(&packed_runs(plain));
    bits.put(BLOCK_MAGIC, 48);
    bits.put(u64::from(crc(plain)), 32);
    bits.put(0, 1);
    bits.put(first as u64, 24);
    let mut used: Vec<u8> = column.clone();
    used.sort_unstable();
    used.dedup();
    let of = |range: std::ops::Range<usize>| used.iter().any(|byte| range.contains(&usize::from(*byte)));
    (0..16).for_each(|n| bits.put(of(n * 16..n * 16 + 16).into(), 1));
    for n in (0..16).filter(|n| of(n * 16..n * 16 + 16)) {
        (0..16).for_each(|m| bits.put(of(n * 16 + m..n * 16 + m + 1).into(), 1));
    }
    // Each byte as its place among those used lately; runs of the first place as numbers of the digits 1 and 2.
    let (mut symbols, mut run, mut recent) = (Vec::new(), 0usize, used.clone());
    let end_run = |symbols: &mut Vec<usize>, run: &mut usize| {
        while *run > 0 {
            symbols.push(1 - *run % 2);
            *run = (*run - 1) / 2;
        }
    };
    for byte in column {
        let place = recent.iter().position(|other| *other == byte).unwrap();
        recent[..=place].rotate_right(1);
        if place == 0 {
            run += 1;
        } else {
            end_run(&mut symbols, &mut run);
            symbols.push(place + 1);
        }
    }
    end_run(&mut symbols, &mut run);
    symbols.push(used.len() + 1);

    const TABLES: u64 = 6;
    bits.put(TABLES, 3);
    let zeros = |value: u64| 48 - u64::from(value.count_ones());
    let listed: u64 = magics.iter().map(|(before, magic)| u64::from(*before) + zeros(*magic) + 1).sum();
    let groups = symbols.len().div_ceil(50) as u64;
    bits.put(listed + groups, 15);
    let mut places = Vec::new();
    for (before, magic) in magics {
        bits.put(0, *before);
        places.push(bits.len);
        bits.put(*magic, 48);
        // It may end with ones, which this zero ends.
        bits.put(0, 1);
    }
    (0..groups).for_each(|_| bits.put(0, 1));
    let len = (used.len() + 2).next_power_of_two().trailing_zeros().max(1);
    for _ in 0..TABLES {
        bits.put(len.into(), 5);
        (0..used.len() + 2).for_each(|_| bits.put(0, 1));
    }
    symbols.iter().for_each(|symbol| bits.put(*symbol as u64, len));
    places
}

/// The plain bytes of a block, and its false magics, each with the zeros before it.
pub(crate) type Forged<'a> = (&'a [u8], Vec<(u32, u64)>);

/// A stream of `blocks`; and the bits at which the false magics begin.
pub(crate) fn stream(level: u8, blocks: &[Forged<'_>]) -> (Vec<u8>, Vec<u64>) {
    let (mut bits, mut combined, mut places) = (Bits::default(), 0u32, Vec::new());
    b"BZh".iter().chain(&[b'0' + level]).for_each(|byte| bits.put(u64::from(*byte), 8));
    for (plain, magics) in blocks {
        places.extend(block(&mut bits, plain, magics));
        combined = combined.rotate_left(1) ^ crc(plain);
    }
    bits.put(END_MAGIC, 48);
    bits.put(u64::from(combined), 32);
    (bits.bytes, places)
}
