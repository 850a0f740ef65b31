//! Streams that are right, as Cinder and other writers make them.

use std::io::Write;

use cinderfs::codec::{Codec, decoder};
use cinderfs::{Error, ErrorKind};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use crate::kit::*;

const SIZES: [usize; 8] = [0, 1, 2, 4095, 65_536, 131_073, 1_000_003, 3_000_000];

#[test]
fn names_as_cinder_spells_them() {
    for (name, codec) in [
        ("none", Some(Codec::None)),
        ("off", Some(Codec::None)),
        ("no", Some(Codec::None)),
        ("zlib", Some(Codec::Zlib)),
        ("ZLIB", Some(Codec::Zlib)),
        ("gzip", Some(Codec::Zlib)),
        ("bz2", Some(Codec::Bz2)),
        ("Bzip2", Some(Codec::Bz2)),
        ("zstd", Some(Codec::Zstd)),
        ("", None),
        ("lz4", None),
        (" zlib", None),
        ("zlib\0", None),
        ("zſtd", None),
    ] {
        assert_eq!(Codec::from_name(name), codec, "{name:?}");
    }
    for codec in ALL {
        assert_eq!(Codec::from_name(codec.name()), Some(codec));
    }
}

#[test]
fn every_size_and_level_comes_back() {
    for len in SIZES {
        let bytes = mixed(len);
        assert_eq!(plain(Codec::None, &bytes), bytes);
        for level in 0..=9 {
            assert!(plain(Codec::Zlib, &zlib(&bytes, level)) == bytes, "zlib {level}, {len} bytes");
        }
        for level in [1, 5, 9] {
            assert!(plain(Codec::Bz2, &bz2(&bytes, level)) == bytes, "bz2 {level}, {len} bytes");
        }
        for level in [-5, 1, 3, 9, 19] {
            assert!(plain(Codec::Zstd, &zstd(&bytes, level)) == bytes, "zstd {level}, {len} bytes");
        }
        assert!(plain(Codec::Zstd, &zstd_unsized(&bytes)) == bytes, "zstd without size, {len} bytes");
    }
}

#[test]
fn zlib_with_flush_points_and_small_windows() {
    let bytes = mixed(300_000);
    for window_bits in 9..=15 {
        for flush in [FlushCompress::None, FlushCompress::Partial, FlushCompress::Sync, FlushCompress::Full] {
            let mut compress = Compress::new_with_window_bits(Compression::new(6), true, window_bits);
            let mut stored = Vec::with_capacity(2 * bytes.len());
            for part in bytes.chunks(10_000) {
                let goal = compress.total_in() + part.len() as u64;
                while compress.total_in() < goal {
                    let rest = &part[part.len() - (goal - compress.total_in()) as usize..];
                    compress.compress_vec(rest, &mut stored, flush).unwrap();
                }
            }
            compress.compress_vec(&[], &mut stored, FlushCompress::Finish).unwrap();
            assert!(plain(Codec::Zlib, &stored) == bytes, "window {window_bits}, {flush:?}");
        }
    }
}

#[test]
fn only_the_first_zlib_stream_counts() {
    let first = mixed(10_000);
    for rest in [b"junk".to_vec(), vec![0; 300_000], zlib(b"another", 6)] {
        assert_eq!(plain(Codec::Zlib, &[zlib(&first, 6), rest].concat()), first);
    }
    let empty_first = [zlib(b"", 6), zlib(b"another", 6)].concat();
    assert_eq!(plain(Codec::Zlib, &empty_first), b"");
}

#[test]
fn bz2_streams_are_joined_and_junk_behind_them_ignored() {
    let (a, b) = (mixed(200_000), mixed(77));
    let streams = [bz2(&a, 1), bz2(b"", 9), bz2(&b, 9)].concat();
    let joined = [a, b].concat();
    assert_eq!(plain(Codec::Bz2, &streams), joined);
    for junk in [&b"junk"[..], &[0], &[0; 200_000], b"BZh0", b"BZh9 this is not a block"] {
        let stored = [&streams[..], junk].concat();
        assert_eq!(plain(Codec::Bz2, &stored), joined, "{:?}", &junk[..junk.len().min(9)]);
        for read_bytes_max in [1, 7] {
            let mut decoder = decoder(Codec::Bz2, Object::of(stored.clone(), read_bytes_max)).unwrap();
            let (plain, error) = drain(&mut *decoder, 65_536);
            assert!(plain == joined && error.is_none(), "{error:?}");
        }
    }
    // What may still become a stream is one that was cut; Python's bz2 fails here, too.
    for head in [&b"B"[..], b"BZh", b"BZh9", b"BZh91AY"] {
        let (plain, kind, _) = failure(Codec::Bz2, &[&streams[..], head].concat());
        assert!(plain == joined && kind == ErrorKind::Truncated);
    }
}

#[test]
fn zstd_frames_are_joined_and_skippable_ones_skipped() {
    let (a, b) = (mixed(300_000), mixed(1));
    let skip =
        |len: u32| [&0x184d_2a53u32.to_le_bytes()[..], &len.to_le_bytes(), &vec![7; len as usize]].concat();
    let joined = [&a[..], &b].concat();
    for frames in [
        vec![zstd(&a, 3), zstd(&b, 3)],
        vec![zstd_unsized(&a), zstd_unsized(&b)],
        vec![zstd(&a, 3), zstd(b"", 3), zstd_unsized(b""), zstd_unsized(&b)],
        vec![skip(5), zstd(&a, 3), zstd_unsized(&b)],
        vec![zstd(&a, 3), skip(0), skip(300_000), zstd_unsized(&b)],
        vec![zstd_unsized(&a), zstd(&b, 1), skip(1)],
    ] {
        assert!(plain(Codec::Zstd, &frames.concat()) == joined);
    }
    assert_eq!(plain(Codec::Zstd, &skip(9)), b"");
}

#[test]
fn zstd_output_that_ends_with_the_callers_buffer() {
    let bytes = mixed(131_072 * 3);
    for stored in [zstd(&bytes, 3), zstd_unsized(&bytes)] {
        for read_bytes in [1024, 131_072, 131_072 * 3, 131_071, 131_073] {
            let (plain, error) = drain(&mut *open(Codec::Zstd, &stored), read_bytes);
            assert!(plain == bytes && error.is_none(), "{read_bytes}: {error:?}");
        }
    }
}

#[test]
fn long_zstd_windows_up_to_the_bound() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&mixed(500_000)).unwrap();
    let stored = encoder.finish().unwrap();
    assert_eq!(stored[5], (27 - 10) << 3, "the frame asks for 128 MiB");
    let mut decoder = open(Codec::Zstd, &stored);
    let mut buf = [0; 100];
    assert!(decoder.memory_bytes() < 1 << 20);
    assert_eq!(decoder.read(&mut buf).unwrap(), 100);
    assert!((128 << 20..130 << 20).contains(&decoder.memory_bytes()), "{}", decoder.memory_bytes());
    let (rest, error) = drain(&mut *decoder, 65_536);
    assert!([&buf[..], &rest].concat() == mixed(500_000) && error.is_none());
    assert_eq!(decoder.memory_bytes(), 0, "a cursor at its end holds nothing");
}

#[test]
fn an_empty_read_is_nothing() {
    for codec in ALL {
        let mut decoder = open(codec, &encode(codec, b"abc"));
        assert_eq!(decoder.read(&mut []).unwrap(), 0);
        assert_eq!(drain(&mut *decoder, 10).0, b"abc");
    }
}

#[test]
fn a_store_that_fails_is_passed_through_after_the_bytes_before() {
    for codec in ALL {
        let bytes = mixed(900_000);
        let stored = encode(codec, &bytes);
        let fails_from = stored.len() as u64 * 3 / 4;
        let object = Object::new(stored.len() as u64, move |buf, offset| {
            if offset >= fails_from {
                return Err(Error::new(ErrorKind::StoreIo, "boom"));
            }
            let n = buf.len().min((fails_from - offset) as usize);
            buf[..n].copy_from_slice(&stored[offset as usize..][..n]);
            Ok(n)
        });
        let (plain, error) = drain(&mut *decoder(codec, object).unwrap(), 1 << 20);
        let error = error.unwrap();
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::StoreIo, "boom".to_owned()));
        assert!(bytes.starts_with(&plain), "{codec}");
        // One bz2 block holds all of it.
        assert!(codec == Codec::Bz2 || plain.len() > 400_000, "{codec}: {}", plain.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_data_in_any_steps(
        parts in prop::collection::vec((any::<u8>(), 0usize..5000, any::<bool>()), 0..12),
        reads in prop::collection::vec(1usize..9000, 1..20),
        stored_reads in prop::collection::vec(1usize..3000, 1..20),
        split in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        for (byte, len, noise) in parts {
            if noise { bytes.extend(mixed(len + 77).iter().skip(77).map(|b| b ^ byte)) } else { bytes.resize(bytes.len() + len, byte) }
        }
        let (head, tail) = bytes.split_at(split.index(bytes.len() + 1));
        for codec in ALL {
            // Two streams, where the codec joins them.
            let stored = match codec {
                Codec::Zlib => encode(codec, &bytes),
                _ => [encode(codec, head), encode(codec, tail)].concat(),
            };
            let stored_reads = stored_reads.clone();
            let object = Object::new(stored.len() as u64, move |buf, offset| {
                let rest = &stored[stored.len().min(offset as usize)..];
                let n = rest.len().min(buf.len()).min(stored_reads[offset as usize % stored_reads.len()]);
                buf[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            });
            let mut decoder = decoder(codec, object).unwrap();
            let (mut got, mut buf) = (Vec::new(), [0; 9000]);
            for read_bytes in reads.iter().cycle() {
                let n = decoder.read(&mut buf[..*read_bytes]).unwrap();
                if n == 0 { break }
                got.extend_from_slice(&buf[..n]);
            }
            prop_assert!(got == bytes, "{}: {} bytes, expected {}", codec, got.len(), bytes.len());
        }
    }
}
