//! Do pieces that were compressed apart make an object that every decoder reads, from its start and from each entry point?
//!
//! Decoders: the libraries that genuine Cinder uses, and ours. The pieces come in any order and behind any others, because what
//! must not be is that one of them leans on what lies before it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

use std::io::Read;
use std::sync::Arc;

use cinderfs::codec::{Codec, ObjectStream, RestartPoint, decoder};
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::{ObjectSource, Store};
use cinderfs::types::ObjectName;
use cinderfs::workers::Workers;
use cinderfs::writer::encode::{
    EncodedPiece, Encoder, EntryPoint, FinishedObject, ObjectAssembler, PIECE_BYTES_MAX, copy_plain,
};
use cinderfs::{Error, ErrorKind};
use proptest::prelude::*;
use zstd::zstd_safe;

const CODECS: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Bz2, Codec::Zstd];
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What a piece may hold.
#[derive(Clone, Copy, Debug)]
enum Content {
    Zeros,
    Random,
    Words,
    /// The same bytes again after so many: what leads to offsets that are used again.
    Period(usize),
    /// Some of each, changing every few bytes.
    Mixed,
    /// A kilobyte that says itself again and again, which compresses a hundredfold.
    Dense,
}

const WORDS: [&str; 8] =
    ["volume", "backup ", "\n", "chain of ", "0x0000", "<extent/>", "a", "the object's stored bytes "];

fn content(kind: Content, seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes = Vec::with_capacity(len + 64);
    match kind {
        Content::Zeros => bytes.resize(len, 0),
        Content::Random => {
            while bytes.len() < len {
                bytes.extend_from_slice(&random.next().to_le_bytes());
            }
        }
        Content::Words => {
            while bytes.len() < len {
                bytes.extend_from_slice(WORDS[random.below(8) as usize].as_bytes());
                bytes.push(b' ' + random.below(64) as u8);
            }
        }
        Content::Period(period) => {
            let unit = content(Content::Random, random.next(), period);
            while bytes.len() < len {
                bytes.extend_from_slice(&unit);
                // So that a match ends and another one with the same offset begins.
                if random.below(4) == 0 {
                    bytes.push(random.next() as u8);
                }
            }
        }
        Content::Mixed => {
            while bytes.len() < len {
                let part = random.below(3000) as usize;
                let kind = match random.below(5) {
                    0 => Content::Zeros,
                    1 => Content::Random,
                    2 => Content::Period(1 + random.below(9) as usize),
                    _ => Content::Words,
                };
                let part = content(kind, random.next(), part);
                bytes.extend_from_slice(&part);
            }
        }
        Content::Dense => {
            let unit = content(Content::Words, random.next(), KIB);
            while bytes.len() < len {
                bytes.extend_from_slice(&unit);
                bytes.push(random.next() as u8);
            }
        }
    }
    bytes.truncate(len);
    bytes
}

fn kinds() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Zeros),
        Just(Content::Random),
        Just(Content::Words),
        (1usize..12).prop_map(Content::Period),
        Just(Content::Mixed),
        Just(Content::Dense),
    ]
}

/// An object, with what its file holds.
struct Object {
    finished: FinishedObject,
    stored: Vec<u8>,
    entries: Vec<EntryPoint>,
}

fn assemble<'a>(encoder: &Encoder, pieces: impl IntoIterator<Item = &'a EncodedPiece>) -> Object {
    let (mut stored, mut entries) = (Vec::new(), Vec::new());
    let mut assembler = ObjectAssembler::new(encoder);
    for piece in pieces {
        let appended = assembler
            .append(piece, |bytes| {
                stored.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        entries.extend(appended.entry_points());
        assert_eq!(assembler.stored_bytes(), stored.len() as u64);
    }
    let finished = assembler
        .finish(|bytes| {
            stored.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    assert_eq!(finished.stored_bytes, stored.len() as u64);
    if let Some(patch) = finished.patch {
        stored[patch.offset as usize..][..patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    Object { finished, stored, entries }
}

fn object(encoder: &Encoder, plain: &[u8]) -> Object {
    let piece_bytes = encoder.piece_bytes(32 * KIB);
    let pieces: Vec<_> =
        plain.chunks(piece_bytes).map(|piece| encoder.encode_piece(piece).unwrap()).collect();
    assemble(encoder, &pieces)
}

fn source(stored: &[u8]) -> Arc<dyn ObjectSource> {
    let store = MemoryStore::new();
    let name = ObjectName::parse("container/object").unwrap();
    store.insert(name.clone(), stored);
    store.open(&name).unwrap()
}

/// All plain bytes as our own decoder sees them.
fn decode(codec: Codec, stored: &[u8]) -> cinderfs::Result<Vec<u8>> {
    let (mut decoder, mut plain) = (decoder(codec, source(stored))?, Vec::new());
    let mut part = vec![0; 100_000];
    loop {
        match decoder.read(&mut part)? {
            0 => return Ok(plain),
            read => plain.extend_from_slice(&part[..read]),
        }
    }
}

/// All plain bytes as the library sees them, in the way in which Cinder's bindings call it.
fn decode_by_library(codec: Codec, stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match codec {
        Codec::None => plain.extend_from_slice(stored),
        Codec::Zlib => {
            let mut decoder = flate2::bufread::ZlibDecoder::new(stored);
            decoder.read_to_end(&mut plain).unwrap();
            assert_eq!(decoder.total_in(), stored.len() as u64, "one stream and nothing else");
        }
        Codec::Bz2 => {
            bzip2::bufread::MultiBzDecoder::new(stored).read_to_end(&mut plain).unwrap();
        }
        Codec::Zstd => {
            assert_eq!(zstd_safe::find_frame_compressed_size(stored), Ok(stored.len()), "one frame");
            let size = zstd_safe::get_frame_content_size(stored).unwrap().expect("a content size");
            plain = zstd::bulk::decompress(stored, size as usize).unwrap();
            assert_eq!(plain.len() as u64, size);
        }
    }
    plain
}

fn same(got: &[u8], expected: &[u8], what: &str) {
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what}: {} bytes, expected {}; first difference {at:?}", got.len(), expected.len());
    }
}

fn check_both(object: &Object, plain: &[u8]) {
    let codec = object.finished.codec;
    assert_eq!(object.finished.plain_bytes, plain.len() as u64);
    same(&decode_by_library(codec, &object.stored), plain, &format!("{codec} by its library"));
    same(&decode(codec, &object.stored).unwrap(), plain, &format!("{codec} by our decoder"));
}

#[test]
fn objects_of_every_awkward_length_come_back() {
    let sizes = [
        0,
        1,
        2,
        511,
        65_535,
        128 * KIB - 1,
        128 * KIB,
        128 * KIB + 1,
        256 * KIB - 1,
        256 * KIB,
        256 * KIB + 1,
        884_735,
        884_736,
        884_737,
        MIB - 1,
        MIB,
        MIB + 1,
        3 * MIB + 12_345,
    ];
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        for (n, size) in sizes.into_iter().enumerate() {
            let kinds = [Content::Mixed, Content::Words, Content::Dense, Content::Random, Content::Zeros];
            for kind in [kinds[n % 5], kinds[(n + 2) % 5]] {
                let plain = content(kind, n as u64 + 1, size);
                check_both(&object(&encoder, &plain), &plain);
            }
        }
    }
}

#[test]
fn every_level_comes_back_and_others_are_refused() {
    let plain = content(Content::Mixed, 3, 300_000);
    for (codec, levels) in [(Codec::Zlib, 1..=12), (Codec::Bz2, 1..=9), (Codec::Zstd, 1..=19)] {
        for level in levels.clone() {
            let encoder = Encoder::new(codec, Some(level)).unwrap();
            check_both(&object(&encoder, &plain), &plain);
        }
        for level in [i32::MIN, -1, 0, levels.end() + 1, i32::MAX] {
            let refused = Encoder::new(codec, Some(level)).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Usage, "{codec} {level}");
        }
    }
    assert_eq!(Encoder::new(Codec::None, Some(1)).err().unwrap().kind(), ErrorKind::Usage);
}

#[test]
fn headers_are_those_that_cinder_writes() {
    let plain = content(Content::Words, 1, 2 * MIB);
    let stored = |codec| object(&Encoder::new(codec, None).unwrap(), &plain).stored;
    assert_eq!(stored(Codec::Zlib)[..2], [0x78, 0x9c]);
    assert_eq!(&stored(Codec::Bz2)[..4], b"BZh9");
    let zstd = stored(Codec::Zstd);
    assert_eq!(zstd[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    assert_eq!(zstd[4] & 0b0010_0111, 0, "no checksum, no dictionary, a window of its own");
    assert!(1u64 << (10 + (zstd[5] >> 3)) <= 2 << 20, "a window of at most 2 MiB");
}

/// Decoding from every entry point gives the rest of the plain bytes.
fn check_entries(encoder: &Encoder, object: &Object, plain: &[u8], poison: &[u8]) {
    let codec = encoder.codec();
    let whole = ObjectStream::new(codec, source(&object.stored), Arc::new(Workers::new(0)));
    for entry in &object.entries {
        let rest = &plain[entry.plain_offset as usize..];
        let stored = &object.stored[entry.stored_offset as usize..];
        let bits = entry.stored_offset * 8;
        let mut decoder = match codec {
            Codec::Zlib => whole.resume(&point(entry, bits, &[])).unwrap(),
            Codec::Bz2 => {
                assert_eq!(&stored[..4], b"BZh9");
                whole.resume(&point(entry, bits + 32, &[9])).unwrap()
            }
            Codec::Zstd => {
                // In a frame of another piece that leaves offsets and tables behind.
                let piece = encoder.encode_piece(poison).unwrap();
                let frame =
                    [&object.stored[..4], &[0], &object.stored[5..6], piece.stored(), stored].concat();
                let plain = decode(codec, &frame).unwrap();
                same(&plain, &[poison, rest].concat(), "zstd behind another piece");
                continue;
            }
            Codec::None => panic!("no entry points"),
        };
        let mut got = vec![0; rest.len() + 1];
        let mut filled = 0;
        loop {
            match decoder.read(&mut got[filled..]).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        same(&got[..filled], rest, &format!("{codec} from {entry:?}"));
    }
}

fn point(entry: &EntryPoint, stored_bits: u64, state: &[u8]) -> RestartPoint {
    RestartPoint { plain_offset: entry.plain_offset, stored_bits, state: state.into() }
}

#[test]
fn decoding_begins_at_each_entry_point() {
    let mut plain = content(Content::Mixed, 5, 1_300_000);
    plain.extend(content(Content::Words, 6, 700_000));
    plain.extend(content(Content::Zeros, 7, MIB));
    plain.extend(content(Content::Period(5), 8, 500_000));
    let poison = content(Content::Period(11), 9, 200_000);
    for (codec, at_least) in [(Codec::Zlib, 9), (Codec::Bz2, 3), (Codec::Zstd, 20)] {
        let encoder = Encoder::new(codec, None).unwrap();
        let object = object(&encoder, &plain);
        assert!(object.entries.len() >= at_least, "{codec}: {}", object.entries.len());
        assert!(
            object.entries.is_sorted_by(|a, b| {
                a.plain_offset < b.plain_offset && a.stored_offset < b.stored_offset
            })
        );
        check_entries(&encoder, &object, &plain, &poison);
    }
    let none = object(&Encoder::new(Codec::None, None).unwrap(), &plain);
    assert_eq!(none.entries, []);
}

#[test]
fn entry_points_are_close_where_decoding_is_slow() {
    let spacing = |codec, kind| {
        let object = object(&Encoder::new(codec, None).unwrap(), &content(kind, 1, 4 * MIB));
        let mut places: Vec<_> = object.entries.iter().map(|entry| entry.plain_offset as usize).collect();
        places.insert(0, 0);
        places.push(4 * MIB);
        places.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    };
    for kind in [Content::Words, Content::Random, Content::Mixed] {
        assert_eq!(spacing(Codec::Zlib, kind), 128 * KIB, "{kind:?}");
    }
    // What compresses a hundredfold decodes in no time.
    assert_eq!(spacing(Codec::Zlib, Content::Dense), MIB);
    assert_eq!(spacing(Codec::Zstd, Content::Words), 128 * KIB);
    assert!(spacing(Codec::Bz2, Content::Words) <= 900_000);
}

/// Pieces by number of content and their order in an object.
fn puzzle() -> impl Strategy<Value = (Vec<(Content, u64, usize)>, Vec<prop::sample::Index>)> {
    let len = prop_oneof![
        0usize..40,
        0usize..70_000,
        (1usize..9).prop_map(|n| n * 128 * KIB),
        (1usize..9).prop_map(|n| n * 128 * KIB - 1),
        Just(MIB),
    ];
    let piece = (kinds(), any::<u64>(), len);
    (prop::collection::vec(piece, 1..5), prop::collection::vec(any::<prop::sample::Index>(), 1..7))
}

fn check_puzzle(codec: Codec, pieces: &[(Content, u64, usize)], order: &[prop::sample::Index]) {
    let encoder = Encoder::new(codec, None).unwrap();
    let plains: Vec<_> = pieces.iter().map(|(kind, seed, len)| content(*kind, *seed, *len)).collect();
    let encoded: Vec<_> = plains.iter().map(|plain| encoder.encode_piece(plain).unwrap()).collect();
    let order: Vec<_> = order.iter().map(|index| index.index(pieces.len())).collect();
    let plain = order.iter().map(|n| &plains[*n][..]).collect::<Vec<_>>().concat();
    let object = assemble(&encoder, order.iter().map(|n| &encoded[*n]));
    check_both(&object, &plain);
    check_entries(&encoder, &object, &plain, &plains[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn zlib_pieces_fit_in_any_order((pieces, order) in puzzle()) {
        check_puzzle(Codec::Zlib, &pieces, &order);
    }

    #[test]
    fn zstd_pieces_fit_in_any_order((pieces, order) in puzzle()) {
        check_puzzle(Codec::Zstd, &pieces, &order);
    }
}

proptest! {
    // It is slow, and the streams of a bz2 object have nothing to do with each other.
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn bz2_pieces_fit_in_any_order((pieces, order) in puzzle()) {
        check_puzzle(Codec::Bz2, &pieces, &order);
    }
}

/// The blocks of a frame without content size, none of them the last.
fn blocks_of_frame(frame: &[u8]) -> Vec<u8> {
    let mut blocks = frame[6..].to_vec();
    let mut at = 0;
    loop {
        let header = u32::from_le_bytes([blocks[at], blocks[at + 1], blocks[at + 2], 0]);
        let is_last = header & 1 == 1;
        blocks[at] &= !1;
        at += 3 + if (header >> 1) & 3 == 1 { 1 } else { (header >> 3) as usize };
        if is_last {
            assert_eq!(at, blocks.len());
            return blocks;
        }
    }
}

/// The check on the checks above: frames made apart and spliced are wrong, and the contents used here show it.
#[test]
fn blocks_of_frames_of_their_own_do_lean_on_what_lies_before() {
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::CompressionLevel(3)).unwrap();
    context.set_parameter(zstd_safe::CParameter::WindowLog(17)).unwrap();
    context.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
    let header = object(&Encoder::new(Codec::Zstd, None).unwrap(), b"x").stored[..6].to_vec();
    let mut wrong = 0;
    for seed in 0..20 {
        let first = content(Content::Period(11), seed, 300_000);
        let second = content([Content::Mixed, Content::Period(1)][seed as usize % 2], seed, 300_000);
        let mut spliced = header.clone();
        spliced[4] = 0;
        for plain in [&first, &second] {
            let mut frame = Vec::with_capacity(400_000);
            context.compress2(&mut frame, plain).unwrap();
            assert_eq!(frame[4] & 0x20, 0, "a header of six bytes");
            spliced.extend(blocks_of_frame(&frame));
        }
        spliced.extend([1, 0, 0]);
        wrong += u32::from(decode(Codec::Zstd, &spliced).ok() != Some([first, second].concat()));
    }
    assert!(wrong > 0, "no splice went wrong, so the tests above prove nothing");
}

#[test]
fn zeros_are_compressed_once_for_each_length() {
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        for len in [1, 4096, 884_736, MIB] {
            let first = encoder.encode_zeros(len).unwrap();
            let again = encoder.encode_piece(&vec![0; len]).unwrap();
            assert_eq!(first.stored().as_ptr(), again.stored().as_ptr(), "{codec} {len}");
            assert_eq!(first.plain_bytes(), len);
            let almost = [&vec![0; len - 1][..], &[1]].concat();
            let other = encoder.encode_piece(&almost).unwrap();
            check_both(
                &assemble(&encoder, [&first, &other, &again]),
                &[&vec![0; len], &almost[..], &vec![0; len]].concat(),
            );
        }
        // More lengths than are remembered are right as well.
        for len in (0..200).rev() {
            let piece = encoder.encode_zeros(len).unwrap();
            check_both(&assemble(&encoder, [&piece]), &vec![0; len]);
        }
        let zeros = encoder.encode_zeros(MIB).unwrap().stored().len();
        assert!(codec == Codec::None || zeros < 1400, "{codec}: {zeros}");
    }
}

#[test]
fn a_length_over_4_gib_is_told_and_summed_right() {
    const PIECES: usize = 5 * 1024;
    let mut sum = libdeflater::Adler32::new();
    let zeros = vec![0; MIB];
    let end = content(Content::Words, 1, 777);
    (0..PIECES).for_each(|_| sum.update(&zeros));
    sum.update(&end);
    for codec in [Codec::Zlib, Codec::Zstd] {
        let encoder = Encoder::new(codec, None).unwrap();
        let (piece, end) = (encoder.encode_zeros(MIB).unwrap(), encoder.encode_piece(&end).unwrap());
        let object = assemble(&encoder, std::iter::repeat_n(&piece, PIECES).chain([&end]));
        let length = (PIECES * MIB + 777) as u64;
        assert_eq!(object.finished.plain_bytes, length);
        if codec == Codec::Zlib {
            assert_eq!(object.stored.last_chunk(), Some(&sum.sum().to_be_bytes()));
        } else {
            assert_eq!(zstd_safe::get_frame_content_size(&object.stored).unwrap(), Some(length));
        }
    }
}

#[test]
fn what_does_not_get_smaller_is_told_and_can_be_copied_plain() {
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        let random = content(Content::Random, 2, 2 * MIB + 5);
        let in_vain = object(&encoder, &random);
        assert_eq!(in_vain.finished.is_in_vain(), codec != Codec::None, "{codec}");
        // Cinder compares whole objects, and takes what is as long as the plain bytes for none as well.
        assert!(!object(&encoder, &content(Content::Words, 2, MIB)).finished.is_in_vain());
        assert_eq!(object(&encoder, &[7]).finished.is_in_vain(), codec != Codec::None);

        let mut plain = Vec::new();
        let mut buffer = vec![0; 70_000];
        copy_plain(&in_vain.finished, source(&in_vain.stored), &mut buffer, |bytes| {
            plain.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        same(&plain, &random, "the copy");

        let longer = FinishedObject { plain_bytes: random.len() as u64 + 1, ..in_vain.finished.clone() };
        let short = copy_plain(&longer, source(&in_vain.stored), &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::Truncated);
        let full = || Error::new(ErrorKind::Target, "no space left");
        let failed = copy_plain(&in_vain.finished, source(&in_vain.stored), &mut buffer, |_| Err(full()));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Target);
    }
}

#[test]
fn pieces_of_impossible_lengths_or_for_other_objects_are_refused() {
    let zlib = Encoder::new(Codec::Zlib, None).unwrap();
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        let long = vec![1; PIECE_BYTES_MAX + 1];
        assert_eq!(encoder.encode_piece(&long).err().unwrap().kind(), ErrorKind::Usage);
        for zeros in [PIECE_BYTES_MAX + 1, usize::MAX] {
            assert_eq!(encoder.encode_zeros(zeros).err().unwrap().kind(), ErrorKind::Usage);
        }
        if codec != Codec::Zlib {
            let piece = zlib.encode_piece(b"x").unwrap();
            let mut assembler = ObjectAssembler::new(&encoder);
            let refused = assembler.append(&piece, |_| panic!("written")).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Usage);
        }
    }
    let mut assembler = ObjectAssembler::new(&zlib);
    let piece = zlib.encode_piece(b"x").unwrap();
    let failed = assembler.append(&piece, |_| Err(Error::new(ErrorKind::Target, "full"))).err().unwrap();
    assert_eq!(failed.kind(), ErrorKind::Target);
}

#[test]
fn pieces_are_whole_blocks_of_any_block_size() {
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        for block in [0, 1, 512, 4096, 32 * KIB, 100_000, 899_981, 899_982, MIB, MIB + 1, 1 << 30, usize::MAX]
        {
            let piece = encoder.piece_bytes(block);
            assert!(
                (800_000..=PIECE_BYTES_MAX).contains(&piece) || block > 400_000,
                "{codec} {block}: {piece}"
            );
            assert!(piece > 0 && piece <= PIECE_BYTES_MAX);
            let most = if codec == Codec::Bz2 { 899_981 } else { MIB };
            assert!(block == 0 || block > most || piece.is_multiple_of(block), "{codec} {block}: {piece}");
        }
    }
    assert_eq!(Encoder::new(Codec::Bz2, None).unwrap().piece_bytes(32 * KIB), 27 * 32 * KIB);
}

#[test]
fn threads_make_the_same_bytes_as_one() {
    for codec in CODECS {
        let encoder = Encoder::new(codec, None).unwrap();
        let plains: Vec<_> = (0..12)
            .map(|n| content([Content::Mixed, Content::Words, Content::Dense][n % 3], n as u64, 400_000))
            .collect();
        let alone: Vec<_> = plains.iter().map(|plain| encoder.encode_piece(plain).unwrap()).collect();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (encoder, plains, alone) = (&encoder, &plains, &alone);
                scope.spawn(move || {
                    for n in (0..plains.len()).map(|n| (n + 2 * thread) % plains.len()) {
                        let piece = encoder.encode_piece(&plains[n]).unwrap();
                        assert!(piece.stored() == alone[n].stored(), "{codec}");
                    }
                });
            }
        });
    }
}
