//! What restart points inside a zstd object cost, and what they give.
//!
//! Usage: `zstd_restarts FILE [SPACING_MIB...]`. The object lies whole in memory. For each spacing: a decode that notes no points
//! beside one that does (medians of the thread's CPU time in five pairs, in turns; points are dropped as they come, for packing is
//! done beside), what packing takes and leaves, and how long a random 4 KiB read takes from the nearest point, with a new
//! decoder each time.
#![allow(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use cinderfs::codec::{Codec, Decoder, ObjectStream, Recording, RestartPoint};
use cinderfs::store::Store;
use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;
use cinderfs::workers::Workers;

/// Plain bytes taken from a decoder at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// Random reads for each spacing.
const SEEKS: usize = 400;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Seconds this thread has spent on a CPU, from the kernel's scheduler.
fn cpu_seconds() -> Result<f64> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(line.split(' ').next().ok_or("schedstat is empty")?.parse::<f64>()? / 1e9)
}

/// Decodes to the end and hands the points to `take`; plain bytes and CPU seconds.
fn pass(
    stream: &ObjectStream,
    spacing_bytes: Option<u64>,
    mut take: impl FnMut(RestartPoint),
) -> Result<(u64, f64)> {
    let begun = cpu_seconds()?;
    let mut decoder = stream.start()?;
    decoder.record(spacing_bytes.map(|spacing_bytes| Recording { from: 0, spacing_bytes }));
    let (mut piece, mut plain) = (vec![0; PIECE_BYTES], 0);
    loop {
        match decoder.read(&mut piece)? {
            0 => return Ok((plain, cpu_seconds()? - begun)),
            read => plain += read as u64,
        }
        black_box(&piece);
        decoder.take_points().into_iter().for_each(&mut take);
    }
}

/// Reads 4 KiB at `offset`; milliseconds to the decoder, to its first byte, and to the last.
fn seek(stream: &ObjectStream, points: &[RestartPoint], offset: u64) -> Result<[f64; 3]> {
    let begun = Instant::now();
    let milliseconds = || begun.elapsed().as_secs_f64() * 1e3;
    let after = points.partition_point(|point| point.plain_offset <= offset);
    let (mut decoder, mut at): (Box<dyn Decoder>, u64) = match after.checked_sub(1) {
        Some(n) => (stream.resume(&points[n])?, points[n].plain_offset),
        None => (stream.start()?, 0),
    };
    let resumed = milliseconds();
    let mut piece = vec![0; PIECE_BYTES];
    decoder.read(&mut piece[..1])?;
    let first = milliseconds();
    at += 1;
    while at < offset + 4096 {
        let wanted = (offset + 4096 - at).min(PIECE_BYTES as u64) as usize;
        match decoder.read(&mut piece[..wanted])? {
            0 => break,
            read => at += read as u64,
        }
    }
    Ok([resumed, first, milliseconds()])
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: zstd_restarts FILE [SPACING_MIB...]")?;
    let mut spacings: Vec<u64> = args.map(|arg| arg.parse()).collect::<std::result::Result<_, _>>()?;
    if spacings.is_empty() {
        spacings = vec![8, 16, 32, 64];
    }
    let (store, name) = (MemoryStore::new(), ObjectName::parse("object")?);
    store.insert(name.clone(), std::fs::read(file)?);
    let stream = ObjectStream::new(Codec::Zstd, store.open(&name)?, Arc::new(Workers::new(0)));
    for spacing in spacings {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            without.push(pass(&stream, None, drop)?.1);
            with.push(pass(&stream, Some(spacing << 20), drop)?.1);
        }
        let (without, with) = (quantile(&sorted(without), 0.5), quantile(&sorted(with), 0.5));
        let (mut packed, mut pack) = (Vec::new(), 0.0);
        let (plain, _) = pass(&stream, Some(spacing << 20), |point| {
            let begun = Instant::now();
            packed.push(stream.pack(point));
            pack += begun.elapsed().as_secs_f64();
        })?;
        let bytes: Vec<f64> = sorted(packed.iter().map(|point| point.state.len() as f64).collect());
        let total: f64 = bytes.iter().sum();
        println!(
            "spacing {spacing} MiB: {} points; {:.0} MB/s without, {:.0} with (x{:.3}); packing {:.1} ms each; \
             packed bytes mean {:.0} p50 {:.0} max {:.0}; {:.3} % of plain",
            packed.len(),
            plain as f64 / without / 1e6,
            plain as f64 / with / 1e6,
            with / without,
            pack * 1e3 / packed.len().max(1) as f64,
            total / packed.len().max(1) as f64,
            quantile(&bytes, 0.5),
            bytes.last().copied().unwrap_or_default(),
            total / plain as f64 * 100.0,
        );
        let (mut times, mut offset) = ([const { Vec::new() }; 3], 1u64);
        for _ in 0..SEEKS {
            offset = offset.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let seek = seek(&stream, &packed, (offset >> 11) % (plain - 4096))?;
            times.iter_mut().zip(seek).for_each(|(times, time)| times.push(time));
        }
        for (what, times) in ["resume", "first byte", "random 4 KiB"].into_iter().zip(times) {
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let times = sorted(times);
            println!(
                "  {what}: mean {mean:.2} ms, p50 {:.2}, p99 {:.2}",
                quantile(&times, 0.5),
                quantile(&times, 0.99)
            );
        }
    }
    Ok(())
}
