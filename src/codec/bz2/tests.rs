//! The walk against the library's own decoder of whole streams, serial and with help; what is decoded how often.

use std::io::{Read, Write};
use std::sync::Barrier;

use bzip2::{Decompress, Status};
use proptest::prelude::*;

use super::*;
use crate::store::{ObjectStat, ObjectVersion, Ownership};

struct Stored(ObjectStat, Vec<u8>);

impl Stored {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let stat = ObjectStat {
            len_bytes: bytes.len() as u64,
            version: ObjectVersion("1".into()),
            modified: None,
            owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
        };
        Arc::new(Self(stat, bytes))
    }
}

impl ObjectSource for Stored {
    fn stat(&self) -> &ObjectStat {
        &self.0
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = &self.1[self.1.len().min(offset as usize)..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

fn object(stored: &[u8], threads: usize) -> Arc<Object> {
    let workers = Arc::new(Workers::new(threads));
    Object::with_table(Stored::new(stored.to_vec()), workers, Arc::default())
}

fn compress(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Words, runs and noise.
fn mixed(len: usize, seed: u64) -> Vec<u8> {
    let (mut bytes, mut state) = (Vec::with_capacity(len + 300), seed | 1);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 5 {
            0 | 1 => bytes.extend_from_slice(&state.to_le_bytes()),
            2 => bytes.extend_from_slice(&[(state >> 8) as u8; 30][..(state >> 16) as usize % 30]),
            _ => bytes.extend_from_slice(format!("volume {} backup ", (state >> 8) % 1000).as_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

type Outcome = (Vec<u8>, Option<(ErrorKind, String)>);

fn drain(decoder: &mut dyn Decoder, read_bytes: usize) -> Outcome {
    let (mut plain, mut buf) = (Vec::new(), vec![0; read_bytes]);
    loop {
        match decoder.read(&mut buf) {
            Ok(0) => return (plain, None),
            Ok(len) => plain.extend_from_slice(&buf[..len]),
            Err(error) => return (plain, Some((error.kind(), error.to_string()))),
        }
    }
}

/// What the library gives for a run of streams, by the rules for what lies behind them.
///
/// Where a block is damaged such that its end cannot be found, the library drops the bytes of that call which came to it, and
/// how many these are depends on the room it was given. From `fine_from` on it has room for one byte at a time, so that
/// nothing is dropped; before, 100 KB.
fn reference(stored: &[u8], fine_from: usize) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut plain, mut room, mut at, mut any_complete) = (Vec::new(), vec![0; 100_000], 0, false);
    loop {
        if at == stored.len() && any_complete {
            return (plain, None);
        }
        let mut library = Decompress::new(false);
        loop {
            let room_bytes = fine_from.saturating_sub(plain.len()).clamp(1, room.len());
            // The head byte by byte: given more, the library takes seven at a time, and does not tell where it failed.
            let (taken, given) = (library.total_in() as usize, library.total_out());
            let input_end = if taken < 10 { stored.len().min(at + taken + 1) } else { stored.len() };
            let input = &stored[at + taken..input_end];
            let result = library.decompress(input, &mut room[..room_bytes]);
            let len = (library.total_out() - given) as usize;
            plain.extend_from_slice(&room[..len]);
            match result {
                Ok(Status::StreamEnd) => break,
                Err(_) if any_complete && library.total_in() <= 10 => return (plain, None),
                Err(_) => return (plain, Some(ErrorKind::Codec)),
                Ok(_) if input.is_empty() && len == 0 => return (plain, Some(ErrorKind::Truncated)),
                Ok(_) => {}
            }
        }
        at += library.total_in() as usize;
        any_complete = true;
    }
}

/// Where the blocks of undamaged streams end: the stored bit, and the plain bytes up to there.
fn block_ends(stored: &[u8]) -> Vec<(u64, usize)> {
    let mut decoder = Bz2Decoder::start(object(stored, 0));
    let (mut ends, mut plain_bytes, mut buf) = (Vec::new(), 0, vec![0; 1 << 20]);
    while !matches!(decoder.place, Place::Ended | Place::Failed(_)) {
        match decoder.copy(&mut buf) {
            0 => decoder.step().unwrap(),
            len => plain_bytes += len,
        }
        if let Place::Block(at) | Place::End(at) = decoder.place {
            ends.push((at, plain_bytes));
        }
    }
    ends
}

/// Plain bytes of the blocks that end before a stored byte.
fn complete_before(ends: &[(u64, usize)], stored_byte: usize) -> usize {
    ends.iter().filter(|(bit, _)| *bit <= stored_byte as u64 * 8).map(|(_, plain)| *plain).max().unwrap_or(0)
}

/// Reads all of it, and from every point; with and without help. Returns the points.
///
/// Where damage is to be found, the bytes of all blocks before it are `complete`. These must be given. Of the damaged block
/// as many may be missing as the library drops; nothing may come that it does not have.
fn check(stored: &[u8], complete: usize, threads: usize) -> Vec<RestartPoint> {
    let (mut expected, failure) = reference(stored, usize::MAX);
    let is_damaged = failure == Some(ErrorKind::Codec);
    if is_damaged {
        expected = reference(stored, complete).0;
        assert!(expected.len() >= complete, "{} bytes, {complete} are complete", expected.len());
    }
    let object = object(stored, threads);
    let mut decoder = Bz2Decoder::start(object.clone());
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    let (plain, error) = drain(&mut decoder, 70_000);
    // Of bytes from `from` on.
    let is_right = |plain: &[u8], from: usize| {
        if is_damaged {
            from + plain.len() >= complete && expected[from..].starts_with(plain)
        } else {
            plain == &expected[from..]
        }
    };
    let lens = (plain.len(), complete, expected.len());
    assert!(is_right(&plain, 0), "bytes, complete, expected: {lens:?}");
    assert_eq!(error.as_ref().map(|(kind, _)| *kind), failure);
    let message = error.map_or(String::new(), |(_, message)| message);
    let points = decoder.take_points();
    for point in &points {
        let from = point.plain_offset as usize;
        let (rest, error) = drain(&mut Bz2Decoder::resume(object.clone(), point).unwrap(), 1 << 20);
        if message.contains("combined") {
            // A stream entered in its middle has no combined CRC that could be wrong.
            assert!(rest.starts_with(&expected[from..]), "{point:?}");
        } else {
            assert!(is_right(&rest, from), "{point:?}: {} bytes; {lens:?}", rest.len());
            assert_eq!(error.map(|(kind, _)| kind), failure);
        }
    }
    points
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_streams_give_what_the_library_gives(
        streams in prop::collection::vec((1u32..10, 0usize..400_000, any::<u64>(), 0u8..4), 1..5),
        junk in prop::collection::vec(any::<u8>(), 0..20),
        threads in 0usize..4,
        damage in prop::option::of((any::<prop::sample::Index>(), 0u32..8)),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut stored = Vec::new();
        for (level, len, seed, kind) in streams {
            let plain = match kind {
                0 => vec![seed as u8; len * 20],
                1 => Vec::new(),
                _ => mixed(len, seed),
            };
            stored.extend(compress(&plain, level));
        }
        let ends = block_ends(&stored);
        let mut complete = ends.last().map_or(0, |(_, plain)| *plain);
        stored.extend(junk);
        if let Some((at, bit)) = damage {
            let at = at.index(stored.len());
            complete = complete_before(&ends, at);
            stored[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            stored.truncate(cut.index(stored.len()));
            complete = complete.min(complete_before(&ends, stored.len()));
        }
        check(&stored, complete, threads);
    }
}

#[test]
fn every_level_restarts_at_every_block() {
    for level in 1..10 {
        let mut plain = mixed(level as usize * 220_000, 7);
        plain.extend(vec![0; 3_000_000]);
        plain.extend(mixed(150_000, 8));
        for threads in [0, 3] {
            let points = check(&compress(&plain, level), plain.len(), threads);
            assert!(points.len() >= 2, "level {level}: {points:?}");
            assert!(points.iter().all(|point| *point.state == [level as u8]));
        }
    }
}

#[test]
fn a_block_of_millions_of_zeros_is_not_held() {
    let stored = compress(&vec![0; 60_000_000], 9);
    for threads in [0, 2] {
        check(&stored, 60_000_000, threads);
        let mut decoder = Bz2Decoder::start(object(&stored, threads));
        let mut buf = vec![1; 1 << 20];
        let mut left = 60_000_000;
        while left > 0 {
            let len = decoder.read(&mut buf).unwrap();
            assert!(len > 0 && buf[..len].iter().all(|byte| *byte == 0));
            left -= len;
            assert!(decoder.memory_bytes() < 10 << 20, "{}", decoder.memory_bytes());
        }
    }
}

#[test]
fn cut_anywhere_and_flipped_anywhere_ends_as_the_library_ends() {
    let stored = [compress(&mixed(900, 3), 1), compress(b"", 9), compress(&mixed(500, 4), 9)].concat();
    let ends = block_ends(&stored);
    for len in 0..=stored.len() {
        check(&stored[..len], complete_before(&ends, len), 0);
    }
    for bit in 0..stored.len() * 8 {
        let mut damaged = stored.clone();
        damaged[bit / 8] ^= 0x80 >> (bit % 8);
        check(&damaged, complete_before(&ends, bit / 8), 0);
    }
}

/// Blocks that begin at any bit: all of them cut at any byte, each entered anew.
#[test]
fn a_cut_object_loses_at_most_its_last_block_where_blocks_are_entered() {
    let stored = compress(&mixed(700_000, 5), 1);
    let whole = object(&stored, 0);
    let mut decoder = Bz2Decoder::start(whole);
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    let plain = drain(&mut decoder, 1 << 20).0;
    let points = decoder.take_points();
    assert!(points.len() >= 4 && points.iter().any(|point| point.stored_bits % 8 != 0));
    for (point, next) in points.iter().zip(&points[1..]) {
        let end = next.stored_bits.div_ceil(8) as usize;
        for len in end - 3..end + 16 {
            let cut = object(&stored[..len], 0);
            let (rest, error) = drain(&mut Bz2Decoder::resume(cut, point).unwrap(), 1 << 20);
            let (kind, message) = error.unwrap();
            assert_eq!(kind, ErrorKind::Truncated, "{message}");
            assert!(message.contains(&format!("stored byte {len}:")), "{message}");
            let expected = &plain[point.plain_offset as usize..next.plain_offset as usize];
            assert!(rest == expected || rest.is_empty() && len <= end, "{len}, {end}: {}", rest.len());
        }
    }
}

#[test]
fn a_wrong_point_gives_an_error_or_an_end() {
    let stored = compress(&mixed(300_000, 6), 1);
    for (stored_bits, state) in
        [(0, vec![1]), (33, vec![1]), (1 << 40, vec![9]), (u64::MAX, vec![9]), (32, vec![])]
    {
        let point = RestartPoint { plain_offset: 5, stored_bits, state: state.into() };
        let error = match Bz2Decoder::resume(object(&stored, 2), &point) {
            Ok(mut decoder) => decoder.read(&mut [0; 10]).unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error.kind(), ErrorKind::Codec | ErrorKind::Truncated), "{error}");
    }
    // A block, but taken for one of a higher level: the same bytes.
    let point = RestartPoint { plain_offset: 0, stored_bits: 32, state: Arc::new([9]) };
    assert_eq!(drain(&mut Bz2Decoder::resume(object(&stored, 0), &point).unwrap(), 1000).0.len(), 300_000);
}

/// A table that the library decodes slowly and to the end: magics stand in the bits of true blocks' selectors.
fn with_magics_inside(stored: &[u8], places: &[u64]) -> Vec<u8> {
    let mut planted = stored.to_vec();
    for at in places {
        for i in 0..MAGIC_BITS {
            let (byte, mask) = ((at + i) as usize / 8, 0x80 >> ((at + i) % 8));
            planted[byte] &= !mask;
            if BLOCK_MAGIC >> (MAGIC_BITS - 1 - i) & 1 != 0 {
                planted[byte] |= mask;
            }
        }
    }
    planted
}

/// Magics in the bits of a block: the library still decodes it (to other bytes, and the checksum fails at its end) or stops
/// inside; the walk must do exactly as it does, whatever bits before the block's end look like an end.
#[test]
fn magics_inside_blocks_change_nothing() {
    let stored = compress(&mixed(250_000, 9), 1);
    let (bits, ends) = (stored.len() as u64 * 8, block_ends(&stored));
    let mut decoded_on = 0;
    for n in 0..120u64 {
        let first = 3000 + n * 7919 % (bits - 4000);
        let places: Vec<u64> = (0..1 + n % 5).map(|i| (first + i * 61).min(bits - 200)).collect();
        let planted = with_magics_inside(&stored, &places);
        let complete = complete_before(&ends, first as usize / 8);
        decoded_on += usize::from(reference(&planted, complete).0.len() > complete);
        check(&planted, complete, (n % 3) as usize);
    }
    assert!(decoded_on > 30, "{decoded_on} were decoded on behind a magic");
}

#[test]
fn an_object_full_of_magics_costs_no_more_than_its_bits() {
    let magic = &BLOCK_MAGIC.to_be_bytes()[2..];
    let good = compress(&mixed(1_500_000, 10), 1);
    for (head, threads) in [(&b"BZh9"[..], 0), (b"BZh9", 3), (&good[..good.len() - 10], 3)] {
        let stored = [head, &magic.repeat(200_000)].concat();
        let object = object(&stored, threads);
        let (plain, error) = drain(&mut Bz2Decoder::start(object.clone()), 65_536);
        assert!(error.is_some() && plain.len() <= 1_500_000);
        let decodes = object.decodes.load(Ordering::Relaxed);
        assert!(decodes < 60, "{decodes} decodes");
    }
}

#[test]
fn false_blocks_ahead_are_given_up() {
    // Streams whose blocks are true, and between them, behind each stream's end, would-be blocks: the level of each
    // stream differs from the one before, so nothing that was decoded ahead is ever right.
    let stored: Vec<u8> = (0..300).flat_map(|n| compress(&mixed(60_000, n), 1 + n as u32 % 2)).collect();
    let object = object(&stored, 3);
    let (plain, error) = drain(&mut Bz2Decoder::start(object.clone()), 65_536);
    assert!(error.is_none() && plain.len() == 300 * 60_000);
    let decodes = object.decodes.load(Ordering::Relaxed);
    assert!(decodes < 300 + 60, "{decodes} decodes of 300 blocks");
}

#[test]
fn many_tiny_blocks_give_few_points() {
    let stored = compress(b"tiny", 1).repeat(20_000);
    let mut decoder = Bz2Decoder::start(object(&stored, 2));
    decoder.record(Some(Recording { from: 0, spacing_bytes: 4 << 20 }));
    let (plain, error) = drain(&mut decoder, 65_536);
    assert!(plain == b"tiny".repeat(20_000) && error.is_none());
    assert_eq!(decoder.take_points().len(), 1);
}

#[test]
fn readers_of_one_object_decode_each_block_once() {
    let plain = mixed(4_000_000, 11);
    let stored = compress(&plain, 2);
    let object = object(&stored, 3);
    let mut decoder = Bz2Decoder::start(object.clone());
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    drain(&mut decoder, 65_536);
    let points = decoder.take_points();
    let blocks = points.len() as u64 + 1;
    assert!((15..40).contains(&blocks), "{blocks}");
    assert_eq!(object.decodes.load(Ordering::Relaxed), blocks, "no block is decoded twice by one reader");
    // Side by side, from the start and from neighbouring points, without what was kept.
    object.decoded.forget(object.id);
    object.decodes.store(0, Ordering::Relaxed);
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (object, barrier, plain, point) = (&object, &barrier, &plain, &points[n % 3]);
            scope.spawn(move || {
                barrier.wait();
                let mut decoder = Bz2Decoder::resume(object.clone(), point).unwrap();
                assert!(drain(&mut decoder, 32_768).0 == plain[point.plain_offset as usize..]);
            });
        }
    });
    let decodes = object.decodes.load(Ordering::Relaxed);
    assert!(decodes <= blocks + 2, "{decodes} decodes of {blocks} blocks");
    assert!(object.decoded.bytes() <= 8 << 20);
}

#[test]
fn a_random_read_decodes_one_block() {
    let stored = compress(&mixed(3_000_000, 12), 9);
    let object = object(&stored, 4);
    let mut decoder = Bz2Decoder::start(object.clone());
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    drain(&mut decoder, 65_536);
    let points = decoder.take_points();
    object.decoded.forget(object.id);
    object.decodes.store(0, Ordering::Relaxed);
    for point in &points {
        let mut decoder = Bz2Decoder::resume(object.clone(), point).unwrap();
        assert_eq!(decoder.read(&mut [0; 4096]).unwrap(), 4096);
    }
    assert_eq!(object.decodes.load(Ordering::Relaxed), points.len() as u64);
}

#[test]
fn the_reference_is_the_library() {
    let plain = mixed(300_000, 13);
    let stored = [compress(&plain, 3), compress(&plain, 1)].concat();
    let mut expected = Vec::new();
    bzip2::read::MultiBzDecoder::new(&stored[..]).read_to_end(&mut expected).unwrap();
    assert!(reference(&stored, 400_000) == (expected, None));
}
