//! Does a zstd decoder that starts at a restart point give the same plain bytes as one that came all the way?

mod kinds;

use std::io::Write;
use std::sync::Arc;

use cinderfs::codec::{Codec, Decoder, ObjectStream, Recording, RestartPoint};
use cinderfs::workers::Workers;
use cinderfs::{Error, ErrorKind};
use zstd::zstd_safe::CParameter;

use crate::kit::{Object, drain};

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What volumes hold: words, noise, zeros, records, and copies of what came before.
fn mixed(seed: u64, bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed | 1);
    let mut plain = Vec::with_capacity(bytes + 300_000);
    while plain.len() < bytes {
        let len = 1 + numbers.below(200_000);
        match numbers.below(6) {
            0 | 1 => {
                let end = plain.len() + len;
                while plain.len() < end {
                    let word = numbers.below(1 + len / 20) as u64 * 7919;
                    write!(plain, "{word:x} ").unwrap();
                }
            }
            2 => plain.extend((0..len).map(|_| numbers.next() as u8)),
            3 => plain.resize(plain.len() + len, numbers.below(3) as u8),
            4 => {
                for n in 0..len / 16 {
                    plain.extend_from_slice(&(n as u64 / 3).to_le_bytes());
                    plain.extend_from_slice(&[numbers.below(4) as u8; 8]);
                }
            }
            _ if plain.is_empty() => {}
            _ => {
                let start = numbers.below(plain.len());
                let end = plain.len().min(start + len);
                plain.extend_from_within(start..end);
            }
        }
    }
    plain.truncate(bytes);
    plain
}

/// One frame.
fn frame(plain: &[u8], level: i32, parameters: &[CParameter], with_size: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), level).unwrap();
    for parameter in parameters {
        encoder.set_parameter(*parameter).unwrap();
    }
    if with_size {
        encoder.set_pledged_src_size(Some(plain.len() as u64)).unwrap();
        encoder.include_contentsize(true).unwrap();
    }
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn stream(stored: &[u8], read_bytes_max: usize) -> ObjectStream {
    ObjectStream::new(Codec::Zstd, Object::of(stored.to_vec(), read_bytes_max), Arc::new(Workers::new(0)))
}

/// Everything that a recording decoder gives.
fn recorded(
    stream: &ObjectStream,
    read_bytes: usize,
    spacing_bytes: u64,
) -> (Vec<u8>, Option<Error>, Vec<RestartPoint>) {
    let mut decoder = stream.start().unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes }));
    let (plain, error) = drain(&mut *decoder, read_bytes);
    (plain, error, decoder.take_points())
}

/// Reads at most `bytes` bytes.
fn some(decoder: &mut dyn Decoder, bytes: usize, read_bytes: usize) -> Vec<u8> {
    let mut plain = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        let end = bytes.min(filled + read_bytes);
        match decoder.read(&mut plain[filled..end]).unwrap() {
            0 => break,
            n => filled += n,
        }
    }
    plain.truncate(filled);
    plain
}

/// Restarts from every point, raw and packed; returns the points.
fn every_point_restarts(plain: &[u8], stored: &[u8], spacing_bytes: u64) -> Vec<RestartPoint> {
    let stream = stream(stored, usize::MAX);
    let (all, error, points) = recorded(&stream, 100_003, spacing_bytes);
    assert!(error.is_none(), "{error:?}");
    assert!(all == plain, "recording changed the bytes");
    assert!(points.windows(2).all(|two| two[0].plain_offset < two[1].plain_offset));
    for (n, point) in points.iter().enumerate() {
        let at = point.plain_offset as usize;
        let packed = stream.pack(point.clone());
        assert_eq!((packed.plain_offset, packed.stored_bits), (point.plain_offset, point.stored_bits));
        assert!(packed.state.len() <= point.state.len());
        for point in [point, &packed] {
            // To the end from some, beyond the window from all.
            let bytes = if n % 7 == 0 { plain.len() - at } else { (plain.len() - at).min(3 << 20) };
            let mut decoder = stream.resume(point).unwrap();
            let got = some(&mut *decoder, bytes, if n % 5 == 0 { 977 } else { 1 << 20 });
            assert!(got == plain[at..at + bytes], "point {n} at {at} of {} gives other bytes", plain.len());
            if n % 7 == 0 {
                let (rest, error) = drain(&mut *decoder, 4096);
                assert!(rest.is_empty() && error.is_none(), "after the end: {} bytes, {error:?}", rest.len());
            }
        }
    }
    points
}

#[test]
fn every_level_restarts_from_every_point() {
    let mut points = 0;
    for level in [-50i32, -5, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19] {
        let plain =
            mixed(1000 + u64::from(level.unsigned_abs()), if level > 12 { 2_500_000 } else { 5_000_000 });
        for (parameters, with_size) in
            [(vec![], true), (vec![CParameter::ChecksumFlag(true), CParameter::WindowLog(17)], false)]
        {
            points +=
                every_point_restarts(&plain, &frame(&plain, level, &parameters, with_size), 200_000).len();
        }
    }
    assert!(points > 400, "{points} points");
}

#[test]
fn every_block_border_of_cinders_own_level_is_a_point() {
    for seed in 0..4 {
        let plain = mixed(seed, 6_000_000);
        let points = every_point_restarts(&plain, &frame(&plain, 3, &[], true), 1);
        assert!(points.len() > 30, "{} points in 46 blocks", points.len());
        assert!(points.iter().all(|point| !point.state.is_empty()));
    }
}

#[test]
fn text_noise_zeros_and_tiny_alphabets_restart() {
    let mut numbers = Numbers(77);
    let noise: Vec<u8> = (0..3_000_000).map(|_| numbers.next() as u8).collect();
    let coin: Vec<u8> = (0..3_000_000).map(|_| b'a' + (numbers.next() & 1) as u8).collect();
    let zeros = vec![0; 3_000_000];
    let period: Vec<u8> = (0..3_000_000usize).map(|n| (n % 1000 / 4) as u8).collect();
    let mut text_then_noise = mixed(5, 300_000);
    text_then_noise.extend_from_slice(&noise);
    text_then_noise.extend_from_slice(&zeros);
    text_then_noise.extend_from_slice(&noise[..1_000_000]);
    for plain in [noise, coin, zeros, period, text_then_noise] {
        for level in [1, 3, 19] {
            let points = every_point_restarts(&plain, &frame(&plain, level, &[], true), 300_000);
            assert!(
                points.len() >= 5 || level == 19,
                "{} points at level {level}, {:?}",
                points.len(),
                &plain[..50]
            );
        }
    }
}

/// Tables of a single code cannot be written into a dictionary; libzstd's encoder never takes such a table over into the
/// next block, but others may.
#[test]
fn a_point_that_would_need_a_table_of_one_code_is_not_noted() {
    // Four times: four literals, then ten bytes from one to four bytes back.
    let block = |literals: u8, offsets: u8, repeats: bool, is_last: bool| {
        let mut content = vec![16 << 3];
        content.extend((0..16).map(|n| literals.wrapping_add(n * 7)));
        content.push(4);
        content.extend_from_slice(if repeats { &[0xFC] } else { &[0x54, 4, 2, 7] });
        content.extend_from_slice(&[offsets, 1]);
        let header = (content.len() as u32) << 3 | 2 << 1 | u32::from(is_last);
        [&header.to_le_bytes()[..3], &content].concat()
    };
    let repeats = [false, true, false, false, true, true, true, false, false, true, false];
    let mut stored = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 0x58];
    for (n, repeats) in repeats.into_iter().enumerate() {
        stored.extend(block(n as u8, (n * 29) as u8, repeats, n == 10));
    }
    let plain = zstd::decode_all(&stored[..]).unwrap();
    assert_eq!(plain.len(), 11 * 56);
    let points = every_point_restarts(&plain, &stored, 1);
    let blocks: Vec<u64> = points.iter().map(|point| point.plain_offset / 56).collect();
    assert_eq!(blocks, [2, 3, 7, 8, 10]);
}

#[test]
fn windows_over_the_bound_give_no_points_inside_a_frame() {
    let plain = mixed(9, 20_000_000);
    let mut twice = frame(&plain, 1, &[CParameter::WindowLog(24)], false);
    let first_frame = twice.len() as u64;
    twice.extend(frame(
        &plain,
        1,
        &[CParameter::WindowLog(23), CParameter::EnableLongDistanceMatching(true)],
        false,
    ));
    let stream = stream(&twice, usize::MAX);
    let (_, error, points) = recorded(&stream, 1 << 20, 1 << 20);
    assert!(error.is_none());
    let inside = |point: &&RestartPoint| point.stored_bits / 8 < first_frame;
    assert_eq!(points.iter().filter(inside).count(), 0);
    assert_eq!((points[0].plain_offset, points[0].stored_bits / 8), (20_000_000, first_frame));
    assert!(points[0].state.is_empty() && points.len() > 3);
    let mut decoder = stream.resume(points.last().unwrap()).unwrap();
    assert!(
        drain(&mut *decoder, 1 << 20).0 == plain[points.last().unwrap().plain_offset as usize - 20_000_000..]
    );
}

#[test]
fn frames_that_follow_each_other_are_points() {
    let (mut plain, mut stored) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let part = mixed(n, [0, 10, 100_000, 700_000][n as usize % 4]);
        stored.extend(frame(&part, 3, &[CParameter::ChecksumFlag(n % 3 == 0)], n % 2 == 0));
        if n % 5 == 0 {
            // A skippable frame.
            stored.extend_from_slice(&[0x5A, 0x2A, 0x4D, 0x18, n as u8, 0, 0, 0]);
            stored.extend(vec![0xFD; n as usize]);
        }
        plain.extend(part);
    }
    let points = every_point_restarts(&plain, &stored, 1);
    assert!(points.iter().filter(|point| point.state.is_empty()).count() >= 15);
    assert!(points.iter().filter(|point| !point.state.is_empty()).count() >= 20);
}

#[test]
fn small_reads_and_recording_from_the_middle_find_points_that_hold() {
    let plain = mixed(21, 4_000_000);
    let stored = frame(&plain, 3, &[CParameter::WindowLog(18), CParameter::ChecksumFlag(true)], true);
    let whole = stream(&stored, usize::MAX);
    let pieces = stream(&stored, 613);
    let from_start = recorded(&whole, 1 << 20, 300_000).2;
    assert!(from_start.len() > 5);
    for read_bytes in [1_001, 4096, 131_072] {
        assert_eq!(recorded(&pieces, read_bytes, 300_000).2, from_start);
    }
    let mut decoder = pieces.start().unwrap();
    some(&mut *decoder, 1_234_567, 5_000);
    decoder.record(Some(Recording { from: 2_000_000, spacing_bytes: 200_000 }));
    some(&mut *decoder, 1_500_000, 5_000);
    let mut points = decoder.take_points();
    decoder.record(None);
    assert!(points.len() >= 3 && points[0].plain_offset >= 2_000_000, "{}", points.len());
    // And from a point on.
    let mut decoder = whole.resume(&from_start[1]).unwrap();
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    drain(&mut *decoder, 1 << 20);
    points.extend(decoder.take_points());
    assert!(points.len() >= 15);
    for point in points {
        let mut decoder = whole.resume(&whole.pack(point.clone())).unwrap();
        assert!(drain(&mut *decoder, 8_191).0 == plain[point.plain_offset as usize..]);
    }
}

#[test]
fn the_spacing_is_kept() {
    let plain = mixed(33, 8_000_000);
    let stored = frame(&plain, 3, &[], true);
    let points = recorded(&stream(&stored, usize::MAX), 1 << 20, 1_000_000).2;
    assert_eq!(points.len(), 7);
    for (point, wanted) in points.iter().zip(1..) {
        assert!(point.plain_offset >= wanted * 1_000_000 && point.plain_offset < wanted * 1_140_000);
    }
}

#[test]
fn a_truncated_or_damaged_stream_is_the_same_with_and_without_recording() {
    let plain = mixed(41, 700_000);
    let good = frame(&plain, 3, &[CParameter::WindowLog(17), CParameter::ChecksumFlag(true)], true);
    let mut numbers = Numbers(4);
    let mut points = 0;
    for n in 0..600 {
        let mut stored = good.clone();
        if n % 3 == 0 {
            stored.truncate(numbers.below(good.len()));
        } else {
            for _ in 0..1 + n % 4 {
                let at = numbers.below(stored.len());
                stored[at] ^= 1 << numbers.below(8);
            }
        }
        let stream = stream(&stored, if n % 2 == 0 { usize::MAX } else { 5_003 });
        let mut decoder = stream.start().unwrap();
        let (bytes, error) = drain(&mut *decoder, 60_000);
        let (recorded_bytes, recorded_error, recorded_points) = recorded(&stream, 60_000, 1);
        assert!(bytes == recorded_bytes);
        assert_eq!(error.map(|error| error.to_string()), recorded_error.map(|error| error.to_string()));
        for point in recorded_points.iter().step_by(3) {
            let mut decoder = stream.resume(&stream.pack(point.clone())).unwrap();
            let rest = drain(&mut *decoder, 60_000).0;
            let from = point.plain_offset as usize;
            assert!(
                from <= bytes.len() && bytes[from..].starts_with(&rest[..rest.len().min(bytes.len() - from)])
            );
            points += 1;
        }
    }
    assert!(points > 300, "{points} points");
}

#[test]
fn a_damaged_point_is_refused_or_gives_some_bytes() {
    let plain = mixed(51, 900_000);
    let stream = stream(&frame(&plain, 3, &[CParameter::WindowLog(17)], true), usize::MAX);
    let points = recorded(&stream, 1 << 20, 200_000).2;
    assert!(points.len() >= 3);
    let mut numbers = Numbers(6);
    let (mut refused, mut taken) = (0, 0);
    for n in 0..3_000 {
        let mut point = points[n % points.len()].clone();
        if n % 2 == 0 {
            point = stream.pack(point);
        }
        let mut state = point.state.to_vec();
        for _ in 0..1 + n % 3 {
            match numbers.below(4) {
                // The tables, where damage tells most.
                0 | 1 => {
                    let at = numbers.below(state.len().min(250));
                    state[at] = numbers.next() as u8;
                }
                2 => {
                    let at = numbers.below(state.len());
                    state[at] ^= 1 << numbers.below(8);
                }
                _ => state.truncate(numbers.below(state.len()) + 1),
            }
        }
        point.state = state.into();
        if n % 10 == 0 {
            point.stored_bits = numbers.next() % (8 * 900_000);
        }
        let packed = stream.pack(point.clone());
        for point in [point, packed] {
            match stream.resume(&point) {
                Ok(mut decoder) => {
                    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
                    drain(&mut *decoder, 300_000);
                    decoder.take_points();
                    taken += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Codec);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 300 && taken > 300, "{refused} refused, {taken} taken");
}

#[test]
fn a_state_that_claims_to_be_large_is_refused() {
    let stream = stream(&frame(&mixed(1, 100_000), 3, &[], true), usize::MAX);
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    for (descriptor, claim) in [(0xFFu8, 64u32 << 20), (0x60, 64 << 20), (0x60, 1 << 20), (0x58, u32::MAX)] {
        let mut state = vec![2, 0, descriptor, 100, 0];
        state.extend_from_slice(&claim.to_le_bytes());
        state.extend_from_slice(&bomb);
        let point = RestartPoint { plain_offset: 1 << 20, stored_bits: 800, state: state.into() };
        let error = stream.resume(&point).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert_eq!(stream.pack(point.clone()), point);
    }
}
