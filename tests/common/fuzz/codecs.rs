//! Range readers: random seeks and restarts, against one plain decode from the beginning.

use std::io::Write as _;
use std::sync::Arc;

use cinderfs::ErrorKind;
use cinderfs::codec::{Codec, Decoder, ObjectStream, Recording, RestartPoint, decoder};
use cinderfs::object::NothingElse;
use cinderfs::object::indexing::Indexing;
use cinderfs::object::pool::ObjectPool;
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::{ObjectSource, Store};
use cinderfs::types::ObjectName;
use cinderfs::workers::Workers;

use super::Input;

/// How much is decoded of a stream: a bomb of zeros is no finding.
const PLAIN_BYTES_MAX: usize = 400_000;

/// Restart points that are tried, spread over those there are.
const POINTS_TRIED: usize = 6;

/// Bytes read at each of them.
const RESUMED_BYTES: usize = 100_000;

pub(super) fn none(data: &[u8]) {
    range(Codec::None, data);
}

pub(super) fn zlib(data: &[u8]) {
    range(Codec::Zlib, data);
}

pub(super) fn bz2(data: &[u8]) {
    range(Codec::Bz2, data);
}

pub(super) fn zstd(data: &[u8]) {
    range(Codec::Zstd, data);
}

/// The stored bytes that an input stands for: itself, or what an encoder makes of it, perhaps with damage.
///
/// `Some(plain)` when they are a good stream.
fn stored(codec: Codec, input: &mut Input<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
    let (kind, level, repeats) = (input.byte(), input.byte(), input.byte());
    if kind & 1 == 0 {
        return (input.rest().to_vec(), None);
    }
    let edits: Vec<_> = if kind & 2 == 0 {
        Vec::new()
    } else {
        (0..3).map(|_| (input.below(1 << 20), input.byte())).collect()
    };
    // Longer than what libFuzzer makes up, so that there are several blocks: the same again, each time a little changed.
    let unit = input.rest();
    let mut plain = unit.to_vec();
    for round in 0..repeats {
        if plain.len() + unit.len() > PLAIN_BYTES_MAX / 2 {
            break;
        }
        plain.extend(unit.iter().map(|byte| byte.wrapping_add(round)));
    }
    let mut stored = pack(codec, level, kind & 4 != 0, &plain);
    for &(at, byte) in &edits {
        let len = stored.len().max(1);
        if let Some(old) = stored.get_mut(at % len) {
            *old ^= byte;
        }
    }
    (stored, edits.is_empty().then_some(plain))
}

pub(super) fn pack(codec: Codec, level: u8, in_parts: bool, plain: &[u8]) -> Vec<u8> {
    let parts = plain.chunks(if in_parts { plain.len() / 3 + 1 } else { plain.len().max(1) });
    let bz2 = |part: &[u8]| {
        let mut encoder =
            bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(u32::from(level % 9) + 1));
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    match codec {
        Codec::None => plain.to_vec(),
        Codec::Zlib => {
            let level = flate2::Compression::new(u32::from(level % 10));
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            for part in parts {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
            }
            encoder.finish().unwrap()
        }
        Codec::Bz2 if plain.is_empty() => bz2(plain),
        Codec::Bz2 => parts.flat_map(bz2).collect(),
        Codec::Zstd if plain.is_empty() => zstd::bulk::compress(plain, 1).unwrap(),
        Codec::Zstd => {
            parts.flat_map(|part| zstd::bulk::compress(part, i32::from(level % 12) - 2).unwrap()).collect()
        }
    }
}

fn name() -> ObjectName {
    ObjectName::parse("object").unwrap()
}

fn store_of(stored: &[u8]) -> (Arc<MemoryStore>, Arc<dyn ObjectSource>) {
    let store = Arc::new(MemoryStore::new());
    store.insert(name(), stored);
    let source = store.open(&name()).unwrap();
    (store, source)
}

/// Reads to the end, a failure or the bound; whether it came to the end.
fn read_all(decoder: &mut dyn Decoder, most: usize, mut step: impl FnMut(usize) -> usize) -> (Vec<u8>, bool) {
    let mut plain = Vec::new();
    while plain.len() < most {
        let before = plain.len();
        plain.resize(before + step(before).clamp(1, most - before), 0xAA);
        match decoder.read(&mut plain[before..]) {
            Ok(n) => {
                plain.truncate(before + n);
                if n == 0 {
                    return (plain, true);
                }
            }
            Err(error) => {
                plain.truncate(before);
                assert_eq!(decoder.read(&mut [0; 9]).unwrap_err().kind(), error.kind(), "it is spent");
                return (plain, false);
            }
        }
    }
    (plain, false)
}

fn range(codec: Codec, data: &[u8]) {
    let mut input = Input::new(data);
    let spacing_bytes = 1 + input.number(2);
    let (step, seeks) = (1 + input.below(1 << 17), input.take(16));
    let (stored, original) = stored(codec, &mut input);
    let (store, source) = store_of(&stored);

    let mut whole = decoder(codec, source.clone()).unwrap();
    let (plain, is_whole) = read_all(&mut *whole, PLAIN_BYTES_MAX, |_| 1 << 16);
    if let Some(original) = &original {
        assert!(is_whole && plain == *original, "{} of {} bytes", plain.len(), original.len());
    }

    // The same while points are noted, in other steps.
    let stream = ObjectStream::new(codec, source, Arc::new(Workers::new(0)));
    let mut recording = stream.start().unwrap();
    recording.record(Some(Recording { from: 0, spacing_bytes }));
    let mut points = Vec::new();
    let (mut again, mut ends) = (Vec::new(), false);
    while again.len() < PLAIN_BYTES_MAX && !ends {
        let (part, ended) = read_all(&mut *recording, step.min(PLAIN_BYTES_MAX - again.len()), |_| 5000);
        ends = ended || part.is_empty();
        again.extend(part);
        points.extend(recording.take_points());
        for followed in recording.take_followed() {
            let at = followed.plain_offset;
            let known = points.iter_mut().find(|point| point.plain_offset == at);
            assert!(known.is_some(), "a point that was not taken before");
            known.into_iter().for_each(|known| *known = followed.clone());
        }
        let is_passed = |point: &RestartPoint| point.plain_offset <= again.len() as u64;
        assert!(points.iter().all(is_passed), "a point lies ahead");
    }
    assert!(again == plain, "noting points changes bytes: {} and {}", again.len(), plain.len());
    assert!(points.windows(2).all(|two| two[0].plain_offset < two[1].plain_offset));
    let apart = points.len().div_ceil(POINTS_TRIED).max(1);
    for point in points.into_iter().step_by(apart) {
        let packed = stream.pack(point.clone());
        for point in [point, packed] {
            check_restart(&stream, &point, &plain, is_whole);
        }
    }
    check_ranges(codec, store, &plain, is_whole, spacing_bytes, seeks);
}

/// What is decoded from a point is what is decoded from the start.
fn check_restart(stream: &ObjectStream, point: &RestartPoint, plain: &[u8], is_whole: bool) {
    let expected = &plain[point.plain_offset as usize..];
    let expected = &expected[..expected.len().min(RESUMED_BYTES)];
    let mut resumed = stream.resume(point).unwrap();
    let (bytes, _) = read_all(&mut *resumed, RESUMED_BYTES, |_| 7000);
    let both = bytes.len().min(expected.len());
    assert!(bytes[..both] == expected[..both], "wrong bytes from the point at {}", point.plain_offset);
    if is_whole {
        assert_eq!(bytes.len(), expected.len(), "from the point at {}", point.plain_offset);
    }
}

/// Reads in any order through the reader of objects.
fn check_ranges(
    codec: Codec,
    store: Arc<dyn Store>,
    plain: &[u8],
    is_whole: bool,
    spacing_bytes: u64,
    seeks: &[u8],
) {
    let indexing = Indexing::new(None, Arc::new(Workers::new(0)), true).with_spacing(Some(spacing_bytes));
    let pool = ObjectPool::new(store, 1 << 20, Arc::new(indexing));
    let reader = pool.get(name(), codec, plain.len() as u64, None).unwrap();
    for seek in seeks.chunks_exact(2) {
        let at = plain.len() * usize::from(seek[0]) / 256;
        let len = (1 + usize::from(seek[1]) * 40).min(plain.len() - at);
        let mut out = vec![0xAA; len];
        match reader.read_at(&mut out, at as u64, &mut NothingElse) {
            Ok(_) => assert!(out == plain[at..at + len], "{len} bytes at {at} of {}", plain.len()),
            Err(failure) => {
                assert!(!is_whole, "{len} bytes at {at} of {}: {}", plain.len(), failure.error);
                assert!(out[..failure.filled] == plain[at..at + failure.filled]);
            }
        }
    }
}

/// A point with any state on any stream: wrong bytes are the digests' business, everything else is not.
pub(super) fn restart_state(data: &[u8]) {
    let mut input = Input::new(data);
    let codec = [Codec::Zlib, Codec::Bz2, Codec::Zstd][input.below(3)];
    let (plain_offset, stored_bits) = (input.any_size(), input.any_size());
    let state_bytes = input.number(2) as usize;
    let state = Arc::from(input.take(state_bytes));
    let (_, source) = store_of(input.rest());
    let stream = ObjectStream::new(codec, source, Arc::new(Workers::new(0)));
    let point = RestartPoint { plain_offset, stored_bits, state };
    let packed = stream.pack(point.clone());
    assert_eq!((packed.plain_offset, packed.stored_bits), (plain_offset, stored_bits));
    for point in [point, packed] {
        match stream.resume(&point) {
            Ok(mut resumed) => {
                resumed.record(Some(Recording { from: plain_offset.saturating_add(1), spacing_bytes: 1000 }));
                read_all(&mut *resumed, PLAIN_BYTES_MAX, |_| 1 << 16);
                assert!(resumed.memory_bytes() < 64 << 20);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Codec, "{error}"),
        }
    }
}
