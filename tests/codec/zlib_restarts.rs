//! Restart points of zlib objects: decoding from any of them gives the plain bytes to the end.

mod kinds;

use std::sync::Arc;

use cinderfs::ErrorKind;
use cinderfs::codec::{Codec, Decoder, ObjectStream, Recording, RestartPoint};
use cinderfs::store::ObjectSource;
use cinderfs::workers::Workers;
use proptest::prelude::*;

use crate::deflate::*;
use crate::kit::*;

fn stream_of(source: Arc<dyn ObjectSource>) -> ObjectStream {
    ObjectStream::new(Codec::Zlib, source, Arc::new(Workers::new(0)))
}

fn stream(stored: &[u8]) -> ObjectStream {
    stream_of(Object::of(stored.to_vec(), usize::MAX))
}

/// A stream whose blocks are 64 << `mem_level` symbols long; default settings make a few blocks per megabyte.
fn blocks(plain: &[u8], mem_level: i32) -> Vec<u8> {
    deflate_pieces(Settings { mem_level, ..DEFAULT }, &[(plain, 0)])
}

fn every(spacing_bytes: u64) -> Option<Recording> {
    Some(Recording { from: 0, spacing_bytes })
}

/// Takes new points, and those of before with what follows them.
fn take_all(decoder: &mut dyn Decoder, points: &mut Vec<RestartPoint>) {
    points.extend(decoder.take_points());
    for followed in decoder.take_followed() {
        let known = points.iter_mut().find(|point| point.plain_offset == followed.plain_offset).unwrap();
        assert_eq!(known.stored_bits, followed.stored_bits);
        *known = followed;
    }
}

/// All plain bytes and all points of a decoder that starts at the plain offset `start`.
fn record(
    decoder: &mut dyn Decoder,
    start: u64,
    recording: Option<Recording>,
    reads: &[usize],
) -> (Vec<u8>, Vec<RestartPoint>) {
    decoder.record(recording);
    let (mut plain, mut points) = (Vec::new(), Vec::new());
    let mut buf = vec![0; reads.iter().copied().max().unwrap()];
    for read_bytes in reads.iter().cycle() {
        let read = decoder.read(&mut buf[..*read_bytes]).unwrap();
        plain.extend_from_slice(&buf[..read]);
        take_all(decoder, &mut points);
        if let Some(point) = points.last() {
            assert!(point.plain_offset <= start + plain.len() as u64, "a point ahead of the bytes given");
        }
        if read == 0 {
            break;
        }
    }
    assert_eq!(decoder.memory_bytes(), 0, "nothing is held after the end");
    (plain, points)
}

fn places(points: &[RestartPoint]) -> Vec<(u64, u64)> {
    points.iter().map(|point| (point.plain_offset, point.stored_bits)).collect()
}

/// Every point, as it is and packed, leads to the rest of `plain`. Returns the bytes of all packed states.
fn assert_restarts(stream: &ObjectStream, points: &[RestartPoint], plain: &[u8], read_bytes: usize) -> usize {
    let mut packed_bytes = 0;
    for point in points {
        let packed = stream.pack(point.clone());
        assert_eq!(places(std::slice::from_ref(&packed)), places(std::slice::from_ref(point)));
        assert_eq!(stream.pack(packed.clone()), packed, "packing again changes nothing");
        assert!(packed.state.len() <= point.state.len());
        packed_bytes += packed.state.len();
        for point in [point, &packed] {
            let (rest, error) = drain(&mut *stream.resume(point).unwrap(), read_bytes);
            assert!(error.is_none(), "{:?}: {error:?}", places(std::slice::from_ref(point)));
            assert!(
                rest == plain[point.plain_offset as usize..],
                "{:?}",
                places(std::slice::from_ref(point))
            );
        }
    }
    packed_bytes
}

fn assert_spaced(points: &[RestartPoint], spacing_bytes: u64) {
    let mut wanted = spacing_bytes;
    for point in points {
        assert!(point.plain_offset >= wanted, "{} before {wanted}", point.plain_offset);
        wanted = point.plain_offset + spacing_bytes;
    }
}

/// Bytes that refer to each other at all distances: words, noise, runs, and pieces of what came before.
fn far_reaching(len: usize, seed: u64) -> Vec<u8> {
    let (mut bytes, mut state) = (Vec::with_capacity(len + 1000), seed | 1);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let amount = 3 + (state >> 20) as usize % 60;
        match state % 8 {
            0 => bytes.resize(bytes.len() + amount * 4, (state >> 8) as u8),
            1 | 2 => {
                for i in 0..amount as u64 {
                    bytes.push(((state ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8);
                }
            }
            3 | 4 if bytes.len() > amount => {
                let distance = amount + (state >> 32) as usize % 33_000;
                let from = bytes.len().saturating_sub(distance);
                bytes.extend_from_within(from..from + amount);
            }
            _ => bytes.extend_from_slice(format!("volume {} backup ", (state >> 8) % 1000).as_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn points_are_as_far_apart_as_wanted() {
    let plain = far_reaching(3_000_000, 1);
    let stream = stream(&blocks(&plain, 6));
    let (_, all) = record(&mut *stream.start().unwrap(), 0, every(1), &[100]);
    let longest = all.windows(2).map(|two| two[1].plain_offset - two[0].plain_offset).max().unwrap();
    assert!(all.len() > 20 && longest < 200_000, "{} points, {longest} bytes", all.len());
    for spacing in [1, 10_000, 300_000, 1 << 20] {
        for read in [10_000, 1 << 20] {
            let (bytes, points) = record(&mut *stream.start().unwrap(), 0, every(spacing), &[read]);
            assert!(bytes == plain);
            // The next border after each wanted place, whatever the reads are.
            let mut wanted = spacing;
            let mut expected = Vec::new();
            for place in places(&all) {
                if place.0 >= wanted {
                    expected.push(place);
                    wanted = place.0 + spacing;
                }
            }
            assert_eq!(places(&points), expected, "spacing {spacing}, reads of {read}");
            assert_restarts(&stream, &points, &plain, 65_536);
        }
    }
}

#[test]
fn a_border_just_where_a_point_is_wanted_is_noted() {
    let plain = far_reaching(200_000, 7);
    let stream = stream(&blocks(&plain, 2));
    let (_, all) = record(&mut *stream.start().unwrap(), 0, every(1), &[1000]);
    assert!(all.len() > 30, "{}", all.len());
    for point in &all {
        let recording = Some(Recording { from: point.plain_offset, spacing_bytes: 1 << 30 });
        for read in [777, plain.len() + 1] {
            let (_, points) = record(&mut *stream.start().unwrap(), 0, recording, &[read]);
            assert_eq!(places(&points), places(std::slice::from_ref(point)), "reads of {read}");
        }
    }
}

#[test]
fn an_empty_block_is_no_second_point() {
    let plain = far_reaching(50_000, 8);
    // Each flush writes an empty block, so there are two borders at one plain offset.
    let pieces: Vec<_> = plain.chunks(5000).map(|piece| (piece, libz_rs_sys::Z_SYNC_FLUSH)).collect();
    let stream = stream(&deflate_pieces(DEFAULT, &pieces));
    let (_, points) = record(&mut *stream.start().unwrap(), 0, every(1), &[1000]);
    let offsets: Vec<_> = points.iter().map(|point| point.plain_offset).collect();
    assert_eq!(offsets, (1..=10).map(|piece| piece * 5000).collect::<Vec<_>>());
    for (i, point) in points.iter().enumerate() {
        let recording = Some(Recording { from: point.plain_offset, spacing_bytes: 1 });
        let (_, again) = record(&mut *stream.resume(point).unwrap(), point.plain_offset, recording, &[1000]);
        assert_eq!(places(&again), places(&points[i + 1..]));
    }
}

#[test]
fn recording_may_begin_change_and_end_anywhere() {
    let plain = far_reaching(2_000_000, 2);
    let stream = stream(&blocks(&plain, 6));
    let mut decoder = stream.start().unwrap();
    let mut buf = vec![0; 500_000];
    let mut read = |decoder: &mut dyn Decoder| {
        let mut filled = 0;
        while filled < buf.len() {
            filled += decoder.read(&mut buf[filled..]).unwrap();
        }
        decoder.take_points()
    };
    assert_eq!(read(&mut *decoder), []);
    decoder.record(Some(Recording { from: 0, spacing_bytes: 1 }));
    let dense = read(&mut *decoder);
    assert!(dense.len() > 3 && dense.iter().all(|p| (500_000..=1_000_000).contains(&p.plain_offset)));
    decoder.record(Some(Recording { from: 1_300_000, spacing_bytes: 100_000 }));
    let sparse = read(&mut *decoder);
    assert!((1..=2).contains(&sparse.len()) && sparse[0].plain_offset >= 1_300_000, "{:?}", places(&sparse));
    decoder.record(None);
    assert_eq!(read(&mut *decoder), []);
    assert_eq!(decoder.read(&mut [0; 10]).unwrap(), 0);
    // At the end, there is nothing to record.
    decoder.record(every(1));
    assert_eq!(decoder.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(decoder.take_points(), []);
    assert_restarts(&stream, &[dense, sparse].concat(), &plain, 65_536);
}

#[test]
fn a_resumed_decoder_notes_the_same_places() {
    let plain = far_reaching(600_000, 3);
    let stream = stream(&blocks(&plain, 2));
    let (_, points) = record(&mut *stream.start().unwrap(), 0, every(1), &[5000]);
    assert!(points.len() > 100, "{}", points.len());
    for (i, point) in points.iter().enumerate().step_by(20) {
        // Its window holds zeros where nothing refers to, and so do those that are noted now.
        let packed = stream.pack(point.clone());
        assert!(packed.state.len() < point.state.len());
        let (rest, again) =
            record(&mut *stream.resume(&packed).unwrap(), point.plain_offset, every(1), &[5000]);
        assert!(rest == plain[point.plain_offset as usize..]);
        assert_eq!(places(&again), places(&points[i + 1..]));
        assert_restarts(&stream, &again[..again.len().min(12)], &plain, 65_536);
    }
}

#[test]
fn no_more_points_wait_than_the_bound() {
    let plain = far_reaching(600_000, 4);
    let stream = stream(&blocks(&plain, 1));
    let mut decoder = stream.start().unwrap();
    decoder.record(every(1));
    let mut buf = vec![0; plain.len()];
    assert_eq!(decoder.read(&mut buf[..590_000]).unwrap(), 590_000);
    assert!(buf[..590_000] == plain[..590_000]);
    assert!((7 << 20..10 << 20).contains(&decoder.memory_bytes()), "{}", decoder.memory_bytes());
    let first = decoder.take_points();
    assert_eq!(first.len(), 256);
    assert!(first[255].plain_offset < 590_000 - 10_000);
    assert!(decoder.memory_bytes() < 300_000);
    // It goes on when they have been taken. Points of the read that met the end can still be taken.
    let (mut rest, mut later) = (590_000, Vec::new());
    while rest < plain.len() + 1 {
        rest += decoder.read(&mut buf[..20_000]).unwrap().max(1);
        later.extend(decoder.take_points());
    }
    assert!(later.len() > 3 && later[0].plain_offset >= 590_000, "{:?}", places(&later));
    assert_restarts(&stream, &later, &plain, 65_536);
}

#[test]
fn points_of_the_read_that_meets_the_end_wait() {
    let plain = far_reaching(500_000, 5);
    let stream = stream(&blocks(&plain, 6));
    let mut decoder = stream.start().unwrap();
    decoder.record(every(1));
    let mut buf = vec![0; plain.len() + 1];
    assert_eq!(decoder.read(&mut buf).unwrap(), plain.len());
    let points = decoder.take_points();
    assert!(points.len() > 2, "{}", points.len());
    assert_eq!(decoder.take_points(), []);
    assert_restarts(&stream, &points, &plain, 65_536);
}

#[test]
fn states_pack_to_what_the_stream_refers_to() {
    let noise = (0..600_000).scan(7u64, |state, _| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some((*state >> 11) as u8)
    });
    let noise: Vec<u8> = noise.collect();
    let (text, zeros) = (mixed(600_000), vec![0; 60_000_000]);
    for (name, plain, bytes_per_point) in [("noise", noise, 0), ("text", text, 12_000), ("zeros", zeros, 40)]
    {
        let stream = stream(&zlib(&plain, 6));
        let (_, points) = record(&mut *stream.start().unwrap(), 0, every(40_000), &[100_000]);
        let points: Vec<_> = points.into_iter().filter(|point| point.state.len() > 32_768).collect();
        assert!(points.len() > 2, "{name}: {}", points.len());
        let packed = assert_restarts(&stream, &points[..points.len().min(8)], &plain, 65_536);
        assert!(packed <= bytes_per_point * points.len().min(8), "{name}: {packed} bytes");
    }
}

#[test]
fn packing_reads_nothing_and_whole_windows_stay_whole() {
    let plain = far_reaching(500_000, 6);
    let whole = stream(&zlib(&plain, 6));
    let (_, points) = record(&mut *whole.start().unwrap(), 0, every(100_000), &[5000]);
    let failing =
        stream_of(Object::new(1 << 20, |_, _| Err(cinderfs::Error::new(ErrorKind::StoreIo, "boom"))));
    for point in &points {
        let packed = failing.pack(point.clone());
        assert_eq!(packed, whole.pack(point.clone()));
        assert_restarts(&whole, &[packed], &plain, 65_536);
    }
    // Taken at once, a point does not know yet what follows.
    let mut decoder = whole.start().unwrap();
    decoder.record(every(100_000));
    let (mut buf, mut early, mut late) = (vec![0; 1000], Vec::new(), Vec::new());
    while decoder.read(&mut buf).unwrap() > 0 {
        early.extend(decoder.take_points());
        late.extend(decoder.take_followed());
    }
    late.extend(decoder.take_followed());
    assert_eq!((places(&early), places(&late)), (places(&points), places(&points)));
    for (early, late) in early.into_iter().zip(late) {
        let (whole_bytes, pruned_bytes) =
            (failing.pack(early.clone()).state.len(), failing.pack(late).state.len());
        assert!(pruned_bytes < whole_bytes, "{pruned_bytes} bytes of {whole_bytes}");
        assert_restarts(&whole, &[failing.pack(early)], &plain, 65_536);
    }
    let foreign = RestartPoint { state: Arc::from([9, 9, 9]), ..points[1].clone() };
    assert_eq!(whole.pack(foreign.clone()), foreign);
}

#[test]
fn a_short_read_behind_a_point_asks_the_store_for_little() {
    let plain = far_reaching(3_000_000, 9);
    let stored = blocks(&plain, 6);
    let (_, points) = record(&mut *stream(&stored).start().unwrap(), 0, every(200_000), &[65_536]);
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = asked.clone();
    let counted = stream_of(Object::new(stored.len() as u64, move |buf, offset| {
        counter.fetch_add(buf.len(), std::sync::atomic::Ordering::Relaxed);
        let rest = &stored[stored.len().min(offset as usize)..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }));
    for point in &points[..points.len() - 2] {
        let mut decoder = counted.resume(point).unwrap();
        assert_eq!(decoder.read(&mut [0; 4096]).unwrap(), 4096);
        assert_eq!(asked.swap(0, std::sync::atomic::Ordering::Relaxed), 16 * 1024);
    }
}

#[test]
fn a_point_behind_the_object_is_refused_by_name() {
    let stream = stream(&zlib(&mixed(1000), 6));
    let bits = stream.source().stat().len_bytes * 8;
    for (stored_bits, state) in
        [(bits, vec![]), (u64::MAX, vec![]), (9, vec![3, 1]), (9, vec![1; 32 * 1024 + 2])]
    {
        let point = RestartPoint { plain_offset: 77, stored_bits, state: state.into() };
        let error = stream.resume(&point).err().expect("an error");
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(error.to_string().contains("plain offset 77"), "{error}");
    }
}

#[test]
fn a_packed_state_cannot_ask_for_more_than_a_window() {
    let stream = stream(&zlib(&mixed(1000), 6));
    for len in [32 * 1024, 32 * 1024 + 1, 1 << 28] {
        let frame = ::zstd::bulk::compress(&vec![0; len], 1).unwrap();
        let state = [&[2][..], &frame].concat().into();
        let result = stream.resume(&RestartPoint { plain_offset: 5, stored_bits: 16, state });
        assert_eq!(result.err().map(|error| error.kind()), (len > 32 * 1024).then_some(ErrorKind::Codec));
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    (0..=9, 9..=15, 1..=9, 0..=4).prop_map(|(level, window_bits, mem_level, strategy)| Settings {
        level,
        window_bits,
        mem_level,
        strategy,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stream_from_any_point(
        settings in settings(),
        seed in any::<u64>(),
        cuts in prop::collection::vec((0usize..30_000, 0usize..FLUSHES.len()), 0..10),
        junk in prop::collection::vec(any::<u8>(), 0..20),
        spacing in prop_oneof![Just(1u64), 2u64..3000, 3000u64..60_000],
        reads in prop_oneof![Just(vec![1usize]), prop::collection::vec(1usize..9000, 1..20)],
        stored_reads in prop::collection::vec(1usize..3000, 1..20),
        rest_read in 1usize..70_000,
    ) {
        let plain = far_reaching(cuts.iter().map(|cut| cut.0).sum(), seed);
        let (mut pieces, mut left) = (Vec::new(), &plain[..]);
        for (len, flush) in cuts {
            let (piece, rest) = left.split_at(len);
            pieces.push((piece, FLUSHES[flush]));
            left = rest;
        }
        let stored = [&deflate_pieces(settings, &pieces)[..], &junk].concat();
        let stream = stream_of(Object::new(stored.len() as u64, move |buf, offset| {
            let rest = &stored[stored.len().min(offset as usize)..];
            let n = rest.len().min(buf.len()).min(stored_reads[offset as usize % stored_reads.len()]);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }));
        let (bytes, points) = record(&mut *stream.start().unwrap(), 0, every(spacing), &reads);
        prop_assert!(bytes == plain);
        assert_spaced(&points, spacing);
        let (_, same) = record(&mut *stream.start().unwrap(), 0, every(spacing), &[256]);
        prop_assert!(places(&points) == places(&same), "points depend on the reads");
        let step = points.len() / 60 + 1;
        let chosen: Vec<_> = points.iter().rev().step_by(step).cloned().collect();
        assert_restarts(&stream, &chosen, &plain, rest_read);
    }

    #[test]
    fn wrong_points_end(
        seed in any::<u64>(),
        settings in settings(),
        moves in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), -9i64..9, any::<prop::sample::Index>(), any::<u8>()), 20),
        state in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let plain = far_reaching(60_000, seed);
        let stream = stream(&deflate_pieces(settings, &[(&plain, 0)]));
        let (_, points) = record(&mut *stream.start().unwrap(), 0, every(1), &[1000]);
        prop_assume!(!points.is_empty());
        for (which, offset, bits, byte, value) in moves {
            let mut point = which.get(&points).clone();
            match value % 5 {
                0 => point.stored_bits = point.stored_bits.saturating_add_signed(bits),
                1 => point.stored_bits = offset % (stream.source().stat().len_bytes * 8 + 100),
                2 => point.plain_offset = u64::MAX - offset % 100_000,
                3 => point.state = state.clone().into(),
                _ => {
                    let mut state = stream.pack(point.clone()).state.to_vec();
                    if !state.is_empty() { let at = byte.index(state.len()); state[at] ^= value; }
                    point.state = state.into();
                }
            }
            let point = stream.pack(point);
            if let Ok(mut decoder) = stream.resume(&point) {
                decoder.record(every(1));
                let (wrong, _) = drain(&mut *decoder, 10_000);
                prop_assert!(wrong.len() < 10_000_000);
                prop_assert!(decoder.take_points().len() <= 256);
            }
        }
    }
}
