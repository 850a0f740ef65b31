//! How fast one core decodes given objects with the bare codec libraries, for `scripts/bench.sh`.
//!
//! A figure for `cinderfs` means nothing without the limit beside it. This is that limit: the object lies whole in
//! memory, one thread decodes it with nothing around the library, and the plain bytes go nowhere. The second figure adds
//! the sha256 of every block, which no verified read can do without.
//!
//! Usage: `decode_speed none|zlib|bz2|zstd FILE...`. All files count as one run. One line of JSON on stdout: plain bytes, and
//! seconds of wall clock and of CPU for `decode` and for `decode_hash`.
#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read};
use std::time::Instant;

use sha2::{Digest, Sha256};

/// Plain bytes taken from the decoder at a time: large enough that calls cost nothing, small enough for the L2 cache.
const PIECE_BYTES: usize = 256 * 1024;

/// Cinder's default hash block.
const BLOCK_BYTES: usize = 32 * 1024;

/// A span of this thread's life.
struct Spent {
    wall_seconds: f64,
    cpu_seconds: f64,
}

/// Nanoseconds this thread has spent on a CPU, from the kernel's scheduler.
fn cpu_nanoseconds() -> Result<u64, Box<dyn Error>> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(line.split(' ').next().ok_or("schedstat is empty")?.parse()?)
}

fn decoder<'a>(codec: &str, stored: &'a [u8]) -> Result<Box<dyn Read + 'a>, Box<dyn Error>> {
    Ok(match codec {
        "none" => Box::new(stored),
        "zlib" => Box::new(flate2::bufread::ZlibDecoder::new(stored)),
        "bz2" => Box::new(bzip2::bufread::MultiBzDecoder::new(stored)),
        "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(stored)?),
        _ => return Err(format!("unknown codec {codec:?}: expected none, zlib, bz2 or zstd").into()),
    })
}

/// Decodes every object once and hands the plain bytes to `eat`, at most [`PIECE_BYTES`] at a time.
fn decode(
    codec: &str,
    objects: &[Vec<u8>],
    mut eat: impl FnMut(&[u8]),
) -> Result<(u64, Spent), Box<dyn Error>> {
    let mut piece = vec![0u8; PIECE_BYTES];
    let (wall, cpu) = (Instant::now(), cpu_nanoseconds()?);
    let mut plain_bytes = 0;
    for stored in objects {
        let mut plain = decoder(codec, stored)?;
        loop {
            let filled = fill(&mut plain, &mut piece)?;
            if filled == 0 {
                break;
            }
            eat(&piece[..filled]);
            plain_bytes += filled as u64;
        }
    }
    let spent = Spent {
        wall_seconds: wall.elapsed().as_secs_f64(),
        cpu_seconds: (cpu_nanoseconds()? - cpu) as f64 / 1e9,
    };
    Ok((plain_bytes, spent))
}

/// Fills `piece` unless the source ends.
fn fill(source: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match source.read(&mut piece[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let codec = args.next().ok_or("usage: decode_speed none|zlib|bz2|zstd FILE...")?;
    let objects = args.map(std::fs::read).collect::<io::Result<Vec<_>>>()?;

    let (plain_bytes, bare) = decode(&codec, &objects, |piece| {
        black_box(piece);
    })?;
    let (_, hashed) = decode(&codec, &objects, |piece| {
        for block in piece.chunks(BLOCK_BYTES) {
            black_box(Sha256::digest(block));
        }
    })?;
    println!(
        "{{\"plain_bytes\": {plain_bytes}, \"decode\": {{\"wall\": {}, \"cpu\": {}}}, \"decode_hash\": {{\"wall\": {}, \
         \"cpu\": {}}}}}",
        bare.wall_seconds, bare.cpu_seconds, hashed.wall_seconds, hashed.cpu_seconds
    );
    Ok(())
}
