//! Every kind of zlib stream, restarted at every border between two blocks.
//!
//! Where the borders are tells [`read_blocks`], which knows nothing of the decoder. What occurred is counted, so that a
//! generator that makes less than it says is found out.

use super::*;

/// Streams: each level with each window, six times.
const STREAMS: usize = 6 * 70;

/// How often each kind occurred.
#[derive(Debug, Default)]
struct Seen {
    /// Points in streams of each level, and of each window from 9 bits on, as the stream's own header tells it.
    levels: [usize; 10],
    windows: [usize; 7],
    /// Points just behind a flush of each of [`FLUSHES`].
    flushes: [usize; 5],
    /// Points before a stored, a fixed and a dynamic block.
    before: [usize; 3],
    /// Points before a block that refers to bytes before it, and before one that does not.
    with_window: usize,
    without_window: usize,
    /// Points, and ends of last blocks, at each bit of a byte.
    points_at_bit: [usize; 8],
    ends_at_bit: [usize; 8],
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as usize % end
    }
}

/// One random stream of a level and a window.
fn random_stream(n: usize, numbers: &mut Numbers) -> (Vec<u8>, Vec<u8>, Vec<(u64, usize)>) {
    let strategy = [0, 0, 4, 1, 2, 3][n / 70];
    let settings = Settings {
        level: (n % 10) as i32,
        window_bits: 9 + (n / 10 % 7) as i32,
        mem_level: 1 + numbers.below(9) as i32,
        strategy,
    };
    let lens: Vec<usize> = (0..2 + numbers.below(5)).map(|_| numbers.below(25_000)).collect();
    let mut plain = far_reaching(lens.iter().sum(), numbers.0);
    if numbers.below(4) == 0 {
        // Noise, which zlib stores whatever the level is.
        let at = numbers.below(plain.len() / 2 + 1);
        plain[at..].iter_mut().for_each(|byte| *byte = numbers.below(256) as u8);
    }
    let (mut pieces, mut flushed, mut at) = (Vec::new(), Vec::new(), 0);
    for (piece, len) in lens.into_iter().enumerate() {
        let flush = (n + piece) % FLUSHES.len();
        pieces.push((&plain[at..at + len], FLUSHES[flush]));
        at += len;
        flushed.push((at as u64, flush));
    }
    let stored = deflate_pieces(settings, &pieces);
    (plain, stored, flushed)
}

fn check(n: usize, numbers: &mut Numbers, seen: &mut Seen) {
    let (plain, stored, flushed) = random_stream(n, numbers);
    let (blocks, by_rfc, end) = read_blocks(&stored);
    assert!(by_rfc == plain, "the stream is not what was asked for");
    let window = usize::from(stored[0] >> 4) + 8;
    let stream = stream(&stored);
    let (bytes, points) = record(&mut *stream.start().unwrap(), 0, every(1), &[1 + numbers.below(9000)]);
    assert!(bytes == plain);
    // Of several borders at one plain offset the first, and none at the very start.
    let mut expected = blocks.clone();
    expected.dedup_by_key(|block| block.plain_offset);
    expected.retain(|block| block.plain_offset > 0);
    let borders: Vec<_> = expected.iter().map(|block| (block.plain_offset, block.bit)).collect();
    assert_eq!(places(&points), borders, "every border is a point, and nothing else");

    for (index, (point, block)) in points.iter().zip(&expected).enumerate() {
        let at = point.plain_offset as usize;
        let next_end = points.get(index + 2).map_or(plain.len(), |after| after.plain_offset as usize);
        // All that a window serves, and in some cases all.
        let to_the_end = index % 16 == 0 || index + 1 == points.len();
        let end = if to_the_end { plain.len() } else { plain.len().min(next_end.max(at + 33_000)) };
        for point in [point, &stream.pack(point.clone())] {
            let mut decoder = stream.resume(point).unwrap();
            let (mut got, mut filled) = (vec![0; end - at], 0);
            while filled < got.len() {
                let room = got.len().min(filled + 1 + numbers.below(20_000));
                let read = decoder.read(&mut got[filled..room]).unwrap();
                assert!(read > 0, "{:?} ends after {filled}", places(std::slice::from_ref(point)));
                filled += read;
            }
            assert!(got == plain[at..end], "{:?}", places(std::slice::from_ref(point)));
            if to_the_end {
                assert_eq!(decoder.read(&mut [0; 9]).unwrap(), 0, "bytes behind the end");
            }
        }
        seen.before[block.kind as usize] += 1;
        seen.points_at_bit[block.bit as usize % 8] += 1;
        let far = blocks.iter().any(|after| {
            after.bit >= block.bit && after.reaches_back as u64 > after.plain_offset - block.plain_offset
        });
        *if far { &mut seen.with_window } else { &mut seen.without_window } += 1;
        for (_, flush) in flushed.iter().filter(|(offset, _)| *offset == block.plain_offset) {
            seen.flushes[*flush] += 1;
        }
    }
    seen.levels[n % 10] += points.len();
    seen.windows[window - 9] += points.len();
    seen.ends_at_bit[end as usize % 8] += 1;
}

#[test]
fn every_kind_of_stream_restarts_at_every_border() {
    let seed = std::env::var("CINDERFS_TEST_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("CINDERFS_TEST_SEED={seed}");
    let (mut numbers, mut seen) = (Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1), Seen::default());
    (0..STREAMS).for_each(|n| check(n, &mut numbers, &mut seen));
    println!("{seen:?}");
    let Seen { levels, windows, flushes, before, points_at_bit, ends_at_bit, .. } = seen;
    assert!(levels.iter().chain(&windows).all(|n| *n >= 100), "{seen:?}");
    assert!(flushes[1..].iter().all(|n| *n >= 50), "{seen:?}");
    assert!(before.iter().all(|n| *n >= 50), "{seen:?}");
    assert!(seen.with_window >= 1000 && seen.without_window >= 20, "{seen:?}");
    assert!(points_at_bit.iter().all(|n| *n >= 20) && ends_at_bit.iter().all(|n| *n >= 1), "{seen:?}");
}
