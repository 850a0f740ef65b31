//! Every kind of zstd stream, restarted at every border of two blocks: all levels, frames, jobs, windows, and every way in which a block
//! may depend on those before it.
//!
//! What follows each point is read from the blocks' headers, and whether it depends on the point's state is found out by harming that:
//! kinds are counted where they were restarted, not where they were meant to be.

use std::process::{Command, Stdio};

use super::*;

/// The least size of a job that `zstd -T` takes.
const JOB_BYTES: usize = 512 << 10;

#[derive(Debug, Default)]
struct Seen {
    /// Points in streams of each level from 1 on.
    levels: [usize; 19],
    /// Points before a stored block, one repeated byte, and a compressed block.
    before: [usize; 3],
    /// Points before a block whose literals are stored, repeated, coded, and coded with the tree of a block before.
    literals: [usize; 4],
    /// Points before a block whose literal lengths, offsets and match lengths are coded with the table of a block before.
    repeats: [usize; 3],
    /// Points whose three last offsets count.
    last_offsets: usize,
    /// Points whose window counts.
    windows: usize,
    /// Points of which bytes over two and over four megabytes before them count.
    over_2_mib: usize,
    over_4_mib: usize,
    /// Points at frames' starts, and at job borders that need no byte before them.
    frames: usize,
    jobs: usize,
    checksums: usize,
}

/// A block's header, and its first ones.
struct Block {
    stored: u64,
    kind: u8,
    literals: u8,
    modes: [u8; 3],
}

/// The blocks of frames without dictionaries, as RFC 8878 tells their headers; and whether each frame has a checksum.
fn read_blocks(stored: &[u8]) -> (Vec<Block>, usize) {
    let (mut blocks, mut checksums, mut at) = (Vec::new(), 0, 0);
    let number = |at: usize, len: usize| {
        stored[at..at + len].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte))
    };
    while at < stored.len() {
        if number(at, 4) & !15 == 0x184D_2A50 {
            at += 8 + number(at + 4, 4);
            continue;
        }
        assert_eq!(number(at, 4), 0xFD2F_B528);
        let descriptor = stored[at + 4];
        let is_single = descriptor >> 5 & 1;
        let size_bytes = [is_single, 2, 4, 8][usize::from(descriptor >> 6)];
        at += 5 + usize::from(1 - is_single) + usize::from(size_bytes);
        loop {
            let header = number(at, 3);
            let (kind, size) = ((header >> 1 & 3) as u8, header >> 3);
            let mut block = Block { stored: at as u64, kind, literals: 9, modes: [9; 3] };
            at += 3;
            if kind == 2 {
                let first = stored[at];
                block.literals = first & 3;
                let wide = usize::from(first >> 2 & 3);
                let section = if first & 3 < 2 {
                    let (header, len) = [(1, 5), (2, 12), (1, 5), (3, 20)][wide];
                    let plain = number(at, header) >> (header * 8 - len);
                    header + if first & 3 == 0 { plain } else { 1 }
                } else {
                    let (header, len) = [(3, 10), (3, 10), (4, 14), (5, 18)][wide];
                    header + (number(at, header) >> (4 + len))
                };
                let count = stored[at + section];
                if count > 0 {
                    let modes = stored
                        [at + section + [1, 2, 3][usize::from(count > 127) + usize::from(count == 255)]];
                    block.modes = [modes >> 6, modes >> 4 & 3, modes >> 2 & 3];
                }
            }
            at += if kind == 1 { 1 } else { size };
            blocks.push(block);
            if header & 1 == 1 {
                break;
            }
        }
        if descriptor & 4 != 0 {
            checksums += 1;
            at += 4;
        }
    }
    (blocks, checksums)
}

/// Whether the stream goes on otherwise, or not at all, behind a point with another state.
fn differs(
    stored: &ObjectStream,
    point: &RestartPoint,
    plain: &[u8],
    harm: impl FnOnce(&mut [u8], &mut [u8]),
) -> bool {
    let mut state = point.state.to_vec();
    let tables_bytes = usize::from(u16::from_le_bytes([state[3], state[4]]));
    let (tables, window) = state[5..].split_at_mut(tables_bytes);
    harm(&mut tables[tables_bytes - 12..], window);
    let Ok(mut decoder) = stored.resume(&RestartPoint { state: state.into(), ..point.clone() }) else {
        return true;
    };
    let (mut buf, mut rest) = (vec![0; 1 << 20], &plain[point.plain_offset as usize..]);
    while !rest.is_empty() {
        let room = buf.len().min(rest.len());
        match decoder.read(&mut buf[..room]) {
            Ok(len) if len > 0 && rest.starts_with(&buf[..len]) => rest = &rest[len..],
            _ => return true,
        }
    }
    false
}

/// Restarts from every point, and counts what was hit. Returns how many points there are, and how many
/// of them lie where a job may begin and need no byte before them.
fn check(plain: &[u8], stored: &[u8], spacing_bytes: u64, seen: &mut Seen) -> (usize, usize) {
    assert!(zstd::decode_all(stored).unwrap() == plain, "the stream is not what was asked for");
    let points = every_point_restarts(plain, stored, spacing_bytes);
    let (blocks, checksums) = read_blocks(stored);
    seen.checksums += checksums;
    let whole = stream(stored, usize::MAX);
    let mut free_borders = 0;
    for point in &points {
        if point.state.is_empty() {
            seen.frames += 1;
            continue;
        }
        let block = blocks.iter().find(|block| block.stored == point.stored_bits / 8);
        let block = block.expect("a point inside a frame is where a block begins");
        seen.before[usize::from(block.kind)] += 1;
        if block.kind == 2 {
            seen.literals[usize::from(block.literals)] += 1;
            (0..3).for_each(|n| seen.repeats[n] += usize::from(block.modes[n] == 3));
        }
        let needs_window =
            differs(&whole, point, plain, |_, window| window.iter_mut().for_each(|byte| *byte ^= 0x55));
        seen.windows += usize::from(needs_window);
        seen.last_offsets += usize::from(differs(&whole, point, plain, |offsets, window| {
            for offset in offsets.chunks_exact_mut(4) {
                let other = u32::from_le_bytes(offset.try_into().unwrap()) % window.len() as u32 + 1;
                offset.copy_from_slice(&other.to_le_bytes());
            }
        }));
        for (bytes, count) in [(2usize << 20, &mut seen.over_2_mib), (4 << 20, &mut seen.over_4_mib)] {
            let is_long = point.state.len() > bytes + 1000;
            *count += usize::from(
                is_long
                    && differs(&whole, point, plain, |_, window| {
                        let end = window.len() - bytes;
                        window[..end].iter_mut().for_each(|byte| *byte ^= 0x55);
                    }),
            );
        }
        free_borders += usize::from(!needs_window && (point.plain_offset as usize).is_multiple_of(JOB_BYTES));
    }
    (points.len(), free_borders)
}

/// What the command makes of `plain`: one frame of jobs that know nothing of each other.
fn by_jobs(plain: &[u8], level: usize) -> Vec<u8> {
    let mut command = Command::new("zstd");
    command.args([&format!("-{level}"), "-q", "-c", "-T2", "--zstd=ovlog=1", &format!("-B{JOB_BYTES}")]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this test runs zstd");
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(plain).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    })
}

#[test]
fn every_kind_of_stream_restarts_at_every_block() {
    let seed = std::env::var("CINDERFS_TEST_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("CINDERFS_TEST_SEED={seed}");
    let mut seen = Seen::default();
    for level in 1..=19 {
        let random = |n: u64| seed * 1000 + n * 100 + level as u64;
        let mut streams = Vec::new();
        // One frame, as Cinder makes it, with stretches of noise and of zeros that are whole blocks.
        let mut plain = mixed(random(1), 1_200_000);
        plain.extend(
            (0..300_000u64)
                .map(|n| (n.wrapping_mul(random(2) | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u8),
        );
        plain.extend(vec![level as u8; 500_000]);
        // Long copies of some noise, and always the same byte between them: literals that are one byte repeated.
        let mut numbers = Numbers(random(4) | 1);
        let noise: Vec<u8> = (0..16_000).map(|_| numbers.next() as u8).collect();
        plain.extend_from_slice(&noise);
        for _ in 0..3_000 {
            let start = numbers.below(noise.len() - 200);
            plain.extend_from_slice(&noise[start..start + 200]);
            plain.push(b'x');
        }
        plain.extend(mixed(random(3), 400_000));
        streams.push((frame(&plain, level, &[], true), plain));
        // Frames with checksums, small windows and none of their sizes.
        let (mut plain, mut stored) = (Vec::new(), Vec::new());
        for n in 0..4 {
            let part = mixed(random(4 + n), [300_000, 0, 700, 420_000][n as usize]);
            let parameters = [CParameter::ChecksumFlag(n % 2 == 0), CParameter::WindowLog(15 + n as u32)];
            stored.extend(frame(&part, level, &parameters, n == 3));
            plain.extend(part);
        }
        streams.push((stored, plain));
        if level % 6 == 1 {
            let plain = mixed(random(9), 3 * JOB_BYTES + 200_000);
            let (points, free_borders) = check(&plain, &by_jobs(&plain, level as usize), 1, &mut seen);
            seen.levels[level as usize - 1] += points;
            seen.jobs += free_borders;
        }
        for (stored, plain) in streams {
            seen.levels[level as usize - 1] += check(&plain, &stored, 1, &mut seen).0;
        }
    }
    // Copies from far before.
    let mut plain = mixed(seed, 5_500_000);
    plain.extend_from_within(..2_500_000);
    let parameters = [CParameter::WindowLog(23), CParameter::EnableLongDistanceMatching(true)];
    check(&plain, &frame(&plain, 3, &parameters, false), 100_000, &mut seen);
    println!("{seen:?}");
    let Seen { levels, before, literals, repeats, .. } = seen;
    assert!(levels.iter().all(|n| *n >= 15), "{seen:?}");
    assert!(before.iter().chain(&literals).chain(&repeats).all(|n| *n >= 5), "{seen:?}");
    assert!(seen.last_offsets >= 20 && seen.windows >= 100, "{seen:?}");
    assert!(seen.over_2_mib >= 2 && seen.over_4_mib >= 1, "{seen:?}");
    assert!(seen.frames >= 30 && seen.jobs >= 9 && seen.checksums >= 30, "{seen:?}");
}
