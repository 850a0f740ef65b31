//! Streams that are damaged, foreign or hostile: an error, never a hang, never memory without bound.

use cinderfs::ErrorKind;
use cinderfs::codec::{Codec, decoder};

use crate::kit::*;

#[test]
fn cut_anywhere_gives_a_prefix_and_an_error() {
    let bytes = mixed(700);
    for codec in COMPRESSED {
        for stored in [encode(codec, &bytes), zstd_unsized(&bytes)] {
            let codec = if stored.starts_with(b"\x28\xb5\x2f\xfd") { Codec::Zstd } else { codec };
            for len in 0..stored.len() {
                for read_bytes in [1, 100, 10_000] {
                    let (plain, error) = drain(&mut *open(codec, &stored[..len]), read_bytes);
                    let error = error.unwrap_or_else(|| panic!("{codec} cut to {len}: no error"));
                    assert_eq!(error.kind(), ErrorKind::Truncated, "{codec} cut to {len}: {error}");
                    assert!(error.to_string().contains(&format!("stored byte {len}:")), "{error}");
                    assert!(bytes.starts_with(&plain), "{codec} cut to {len}");
                }
            }
        }
    }
}

#[test]
fn cut_between_streams_is_the_end_and_inside_the_second_is_not() {
    let (a, b) = (mixed(300), mixed(500));
    for codec in [Codec::Bz2, Codec::Zstd] {
        let (first, second) = (encode(codec, &a), encode(codec, &b));
        assert_eq!(plain(codec, &first), a);
        for len in 1..second.len() {
            let (plain, kind, message) = failure(codec, &[&first[..], &second[..len]].concat());
            assert_eq!(kind, ErrorKind::Truncated, "{message}");
            assert!(
                plain.starts_with(&a) && [&a[..], &b].concat().starts_with(&plain),
                "{codec} cut to {len}"
            );
        }
    }
}

#[test]
fn every_flipped_bit_ends() {
    let bytes = mixed(700);
    for codec in COMPRESSED {
        let stored = encode(codec, &bytes);
        let (mut errors, mut equal) = (0, 0);
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            for read_bytes in [64, 10_000] {
                let (plain, error) = drain(&mut *open(codec, &damaged), read_bytes);
                assert!(plain.len() < 10_000_000, "{codec} bit {bit}");
                match error {
                    Some(_) => errors += 1,
                    None if plain == bytes => equal += 1,
                    None => panic!("{codec} bit {bit}: wrong bytes and no error, against its checksum"),
                }
            }
        }
        assert!(errors > 20 * equal, "{codec}: {errors} errors, {equal} harmless");
    }
}

#[test]
fn a_wrong_checksum_is_told_after_all_bytes() {
    let bytes = mixed(300_000);
    for (codec, words) in [(Codec::Zlib, "data check"), (Codec::Zstd, "checksum")] {
        let mut stored = encode(codec, &bytes);
        *stored.last_mut().unwrap() ^= 1;
        let (plain, kind, message) = failure(codec, &stored);
        assert!(plain == bytes, "{codec}: {} bytes", plain.len());
        assert_eq!(kind, ErrorKind::Codec);
        assert!(message.contains(words), "{message}");
    }
    let mut stored = bz2(&bytes, 9);
    let end = stored.len();
    stored[end - 3] ^= 0x10;
    assert!(failure(Codec::Bz2, &stored).0 == bytes);
}

#[test]
fn bytes_before_the_damage_stay() {
    let bytes = mixed(3_000_000);
    for (codec, stored, kept) in [
        (Codec::Zlib, zlib(&bytes, 6), 1_400_000),
        (Codec::Bz2, bz2(&bytes, 1), 1_200_000),
        (Codec::Zstd, zstd(&bytes, 3), 1_200_000),
    ] {
        let mut damaged = stored.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0xff);
        for read_bytes in [1000, 65_536, 4 << 20] {
            let (plain, error) = drain(&mut *open(codec, &damaged), read_bytes);
            assert_eq!(error.unwrap().kind(), ErrorKind::Codec);
            let good = plain.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
            assert!(good > kept, "{codec}: {good} good bytes by reads of {read_bytes}");
        }
    }
}

#[test]
fn a_zstd_block_is_delivered_whole_however_small_the_reads() {
    // A block of 1000 times 'a', and a block of the type that does not exist.
    let block = [&(1000u32 << 3 | 2).to_le_bytes()[..3], b"a"].concat();
    let stored = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3][..], &block, &[0xff; 3]].concat();
    for read_bytes in [1, 300, 999, 1000, 1001] {
        let (plain, error) = drain(&mut *open(Codec::Zstd, &stored), read_bytes);
        assert_eq!(error.unwrap().kind(), ErrorKind::Codec);
        assert_eq!(plain, [b'a'; 1000], "reads of {read_bytes}");
    }
}

#[test]
fn foreign_bytes_are_refused() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(b"plain").unwrap();
    let gzip = gzip.finish().unwrap();
    let (plain, kind, message) = failure(Codec::Zlib, &gzip);
    assert_eq!((plain.len(), kind), (0, ErrorKind::Codec));
    assert!(message.contains("incorrect header"), "{message}");
    for codec in COMPRESSED {
        for other in
            [&b"just text, and more of it"[..], &[0; 4096], &[0xff; 4096], &encode(Codec::None, &gzip)]
        {
            let (plain, kind, message) = failure(codec, other);
            assert_eq!((plain.len(), kind), (0, ErrorKind::Codec), "{codec}: {message}");
            assert!(message.starts_with(codec.name()) && !message.contains('\n'), "{message}");
        }
    }
    // The header's FDICT bit with a right header check, then a dictionary id.
    let (_, kind, message) = failure(Codec::Zlib, &[0x78, 0xbb, 1, 2, 3, 4, 5, 6]);
    assert_eq!(kind, ErrorKind::Codec);
    assert!(message.contains("dictionary"), "{message}");
}

#[test]
fn bytes_behind_a_zstd_frame_that_are_no_frame_are_an_error() {
    let bytes = mixed(200_000);
    for junk in [&b"junk"[..], b"some more junk", &[0; 9]] {
        let (plain, kind, message) = failure(Codec::Zstd, &[&zstd(&bytes, 3)[..], junk].concat());
        assert!(plain == bytes && kind == ErrorKind::Codec, "{message}");
        assert!(message.contains("expected the end or another frame"), "{message}");
    }
}

#[test]
fn damage_in_a_second_bz2_stream_is_not_its_end() {
    let (a, b) = (mixed(300), mixed(50_000));
    let (first, mut second) = (bz2(&a, 9), bz2(&b, 9));
    let middle = second.len() / 2;
    second[middle] ^= 4;
    let (plain, kind, message) = failure(Codec::Bz2, &[first, second].concat());
    assert!(plain.starts_with(&a));
    assert_eq!(kind, ErrorKind::Codec, "{message}");
}

/// A zstd frame without content size whose window byte is `window`: one raw block of `plain`.
fn frame_with_window(window: u8, plain: &[u8]) -> Vec<u8> {
    let block = (plain.len() as u32) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, window][..], &block.to_le_bytes()[..3], plain].concat()
}

#[test]
fn a_zstd_window_over_the_bound_is_refused_by_name() {
    assert_eq!(plain(Codec::Zstd, &frame_with_window(17 << 3, b"abc")), b"abc");
    for window in [17 << 3 | 1, 18 << 3, 21 << 3, 31 << 3 | 7] {
        let mut decoder = open(Codec::Zstd, &frame_with_window(window, b"abc"));
        let (plain, error) = drain(&mut *decoder, 100);
        let error = error.unwrap();
        assert_eq!((plain.len(), error.kind()), (0, ErrorKind::LimitExceeded), "{error}");
        assert!(error.to_string().contains("128 MiB"), "{error}");
        assert_eq!(decoder.memory_bytes(), 0);
    }
    // A single-segment frame's window is its content size.
    let mut huge = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    huge.extend_from_slice(&(1u64 << 40).to_le_bytes());
    huge.extend_from_slice(&[0x19, 0, 0, b'a', b'b', b'c']);
    assert_eq!(failure(Codec::Zstd, &huge).1, ErrorKind::LimitExceeded);
}

#[test]
fn bombs_stream_in_flat_memory() {
    let zeros = vec![0; 1 << 20];
    let segment = {
        let mut compress = flate2::Compress::new(flate2::Compression::new(9), false);
        let mut stored = Vec::with_capacity(1 << 20);
        compress.compress_vec(&zeros, &mut stored, flate2::FlushCompress::Full).unwrap();
        stored
    };
    assert!(segment.len() < 2000, "{}", segment.len());
    // RLE blocks of 128 KiB zeros, behind a frame header with a window of 128 KiB.
    let rle = [&(128u32 << 10 << 3 | 2).to_le_bytes()[..3], &[0]].concat();
    let frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    for (codec, head, body, bound) in [
        (Codec::Zlib, vec![0x78, 0x9c], segment, 1 << 20),
        (Codec::Bz2, vec![], bz2(&zeros, 9), 4 << 20),
        (Codec::Zstd, frame, rle, 1 << 20),
    ] {
        let mut decoder = decoder(codec, Object::endless(head, body)).unwrap();
        let mut buf = vec![1; 1 << 20];
        for _ in 0..200 {
            assert_eq!(decoder.read(&mut buf).unwrap(), buf.len());
            assert!(buf.iter().all(|b| *b == 0));
            assert!(decoder.memory_bytes() < bound, "{codec}: {}", decoder.memory_bytes());
        }
    }
}

#[test]
fn streams_of_nothing_without_end_are_refused() {
    let empty_blocks = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    for (codec, head, body) in [
        (Codec::Bz2, vec![], bz2(b"", 9)),
        (Codec::Zstd, vec![], zstd(b"", 3)),
        (Codec::Zstd, empty_blocks, vec![0; 3]),
    ] {
        let mut decoder = decoder(codec, Object::endless(head, body)).unwrap();
        let error = decoder.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    }
}
