//! Every kind of bz2 object, restarted at every block: all levels, several streams, empty ones, and magics that are none.

use std::io::Read as _;

use super::forge::{self, BLOCK_MAGIC, END_MAGIC};
use super::*;

#[derive(Debug, Default)]
struct Seen {
    /// Points in streams of each level from 1 on, as the state tells it.
    levels: [usize; 9],
    /// Points at each bit of a byte.
    bits: [usize; 8],
    /// Points just behind a stream's head, and further on in it.
    heads: usize,
    inside: usize,
    empty_streams: usize,
    /// False magics of blocks and of ends, at each bit of a byte.
    false_blocks: [usize; 8],
    false_ends: [usize; 8],
    /// Plain bytes that are runs of many, which unfold to more than a block's size.
    unfolded: usize,
}

struct Built {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Built {
    fn add(&mut self, stored: Vec<u8>, plain: &[u8]) {
        self.stored.extend(stored);
        self.plain.extend_from_slice(plain);
    }

    /// A stream with false magics in each of its blocks, at all bits of a byte.
    fn add_forged(&mut self, level: u8, seed: usize, seen: &mut Seen) {
        let plain = mixed(60_000 + seed * 7_001);
        let blocks: Vec<_> = plain
            .chunks(7_000 + seed * 13)
            .enumerate()
            .map(|(n, part)| {
                let magic = |m: usize| if (n + m).is_multiple_of(2) { BLOCK_MAGIC } else { END_MAGIC };
                // 48 bits and one behind: each stands one bit further on in its byte than the one before.
                (part, (0..20).map(|m| (m as u32 % 3 * 8 + m as u32 / 16, magic(m))).collect())
            })
            .collect();
        let (stored, places) = forge::stream(level, &blocks);
        for at in places {
            let value = (at..at + 48)
                .fold(0, |value, bit| value << 1 | u64::from(stored[bit as usize / 8] >> (7 - bit % 8) & 1));
            let kind = if value == BLOCK_MAGIC { &mut seen.false_blocks } else { &mut seen.false_ends };
            assert!(value == BLOCK_MAGIC || value == END_MAGIC);
            kind[at as usize % 8] += 1;
        }
        self.add(stored, &plain);
    }
}

/// An object of streams whose levels begin with `level`.
fn build(level: u32, seen: &mut Seen) -> Built {
    let mut built = Built { stored: Vec::new(), plain: Vec::new() };
    // Far enough that blocks are decoded ahead when the false magics come.
    let bytes = mixed(1_300_000 + level as usize * 150_000);
    built.add(bz2(&bytes, level), &bytes);
    built.add_forged(level as u8, level as usize, seen);
    for empty in [level, 10 - level] {
        built.add(bz2(b"", empty), b"");
        seen.empty_streams += 1;
    }
    let zeros = vec![level as u8; 3_000_000];
    built.add(bz2(&zeros, 10 - level), &zeros);
    seen.unfolded += zeros.len();
    built.add_forged(10 - level as u8, 10, seen);
    built.add(bz2(&bytes[..200_000], level), &bytes[..200_000]);
    built
}

fn check(level: u32, threads: usize, seen: &mut Seen) {
    let Built { stored, plain } = build(level, seen);
    let mut by_library = Vec::new();
    bzip2::read::MultiBzDecoder::new(&stored[..]).read_to_end(&mut by_library).unwrap();
    assert!(by_library == plain, "the object is not what was asked for");
    let object = Object::of(stored, usize::MAX);
    let points = all_points(&fresh(&object, threads), &plain);
    for (n, point) in points.iter().enumerate() {
        let next_end = points.get(n + 2).map_or(plain.len(), |after| after.plain_offset as usize);
        let end = if n % 32 == 0 { plain.len() } else { next_end };
        restart(&fresh(&object, threads), point, &plain[..end], end == plain.len());
        seen.levels[usize::from(point.state[0]) - 1] += 1;
        seen.bits[point.stored_bits as usize % 8] += 1;
        let is_head = point.stored_bits.is_multiple_of(8) && {
            let byte = point.stored_bits / 8 - 4;
            let mut head = [0; 3];
            object.read_at(&mut head, byte).unwrap();
            head == *b"BZh"
        };
        *if is_head { &mut seen.heads } else { &mut seen.inside } += 1;
    }
}

#[test]
fn every_kind_of_object_restarts_at_every_block() {
    let mut seen = Seen::default();
    for level in 1..=9 {
        for threads in [0, 3] {
            check(level, threads, &mut seen);
        }
    }
    println!("{seen:?}");
    let Seen { levels, bits, false_blocks, false_ends, .. } = seen;
    assert!(levels.iter().all(|n| *n >= 8), "{seen:?}");
    assert!(bits.iter().all(|n| *n >= 8), "{seen:?}");
    assert!(false_blocks.iter().chain(&false_ends).all(|n| *n >= 10), "{seen:?}");
    assert!(seen.heads >= 50 && seen.inside >= 100 && seen.empty_streams == 36, "{seen:?}");
    assert!(seen.unfolded > 0, "{seen:?}");
}
